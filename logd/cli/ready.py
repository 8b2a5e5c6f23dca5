"""Waiting for a local cluster to be usable.

Ready means that any broker may be asked anything: each one answers, knows the controller,
and sees every other alive.  Less would make the first command after ``logd dev`` fail now
and then, which is the worst moment for it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import anyio

from logd.cli.local_cluster import LocalBroker, LocalCluster
from logd.errors import LogdError, UnavailableError
from logd.types import NodeId
from logd_client import connect

READY_TIMEOUT_S: Final = 30.0
READY_POLL_S: Final = 0.05
ASK_TIMEOUT_S: Final = 2.0
"""One that was removed knows the others by where they were, and looks for them there."""


class BrokerDiedError(LogdError):
    """A broker of a local cluster ended before the cluster was ready."""


async def wait_until_ready(cluster: LocalCluster, timeout_s: float = READY_TIMEOUT_S) -> int:
    """Return once every broker of ``cluster`` sees all of them alive; how much of the metadata log
    they all had applied then.

    Raises:
        BrokerDiedError: one ended instead; says why.
        UnavailableError: not ready within ``timeout_s``; says what was still missing.
    """
    applied = []
    for broker in cluster.brokers:
        with anyio.move_on_after(timeout_s):
            applied.append(await _wait_for_broker(cluster, broker))
            continue
        raise UnavailableError(
            f"broker {broker.node_id} was not ready within {timeout_s:.0f} s: see {broker.log_path}"
        )
    return min(applied)


async def find_removed(
    cluster: LocalCluster, registered_at: int, timeout_s: float = READY_TIMEOUT_S
) -> list[NodeId]:
    """Those of ``cluster`` that are no members any more.

    All had registered when the metadata log was ``registered_at`` long: who is not in a later state
    of the metadata was removed, and is not just late.

    Raises:
        BrokerDiedError: one ended instead; says why.
        UnavailableError: there was no controller within ``timeout_s``.
    """
    with anyio.move_on_after(timeout_s):
        while True:
            for broker in cluster.brokers:
                _raise_if_one_ended(cluster)
                members = await _members_known_to(broker, registered_at)
                if members is not None:
                    return [b.node_id for b in cluster.brokers if b.node_id not in members]
            await anyio.sleep(READY_POLL_S)
    logs = ", ".join(str(broker.log_path) for broker in cluster.brokers)
    raise UnavailableError(f"the cluster had no controller within {timeout_s:.0f} s: see {logs}")


async def _members_known_to(broker: LocalBroker, registered_at: int) -> set[int] | None:
    """Whom ``broker`` takes for members; None if it knows no controller, or not enough yet, or does
    not say in time."""
    with suppress(LogdError), anyio.move_on_after(ASK_TIMEOUT_S):
        async with connect(str(broker.address)) as client:
            metadata = await client.admin.describe_cluster()
        if metadata.controller is not None and metadata.metadata_offset >= registered_at:
            return {known.node_id for known in metadata.brokers}
    return None


async def _wait_for_broker(cluster: LocalCluster, broker: LocalBroker) -> int:
    expected = {each.node_id for each in cluster.brokers}
    while True:
        _raise_if_one_ended(cluster)
        try:
            async with connect(str(broker.address)) as client:
                while True:
                    _raise_if_one_ended(cluster)
                    metadata = await client.admin.describe_cluster()
                    alive = {known.node_id for known in metadata.brokers if known.alive}
                    if metadata.controller is not None and expected <= alive:
                        return metadata.metadata_offset
                    await anyio.sleep(READY_POLL_S)
        except BrokerDiedError:
            raise
        except LogdError:
            await anyio.sleep(READY_POLL_S)


def _raise_if_one_ended(cluster: LocalCluster) -> None:
    for broker in cluster.brokers:
        if not cluster.is_running(broker.node_id):
            reason = cluster.last_words(broker.node_id)
            raise BrokerDiedError(f"broker {broker.node_id} did not start: {reason}")
