"""Waiting for a local cluster to be usable.

Ready means that any broker may be asked anything: each one answers, knows the controller,
and sees every other alive.  Less would make the first command after ``logd dev`` fail now
and then, which is the worst moment for it.
"""

from __future__ import annotations

from typing import Final

import anyio

from logd.cli.local_cluster import LocalBroker, LocalCluster
from logd.errors import LogdError, UnavailableError
from logd_client import connect

READY_TIMEOUT_S: Final = 30.0
READY_POLL_S: Final = 0.05


class BrokerDiedError(LogdError):
    """A broker of a local cluster ended before the cluster was ready."""


async def wait_until_ready(cluster: LocalCluster, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Return once every broker of ``cluster`` sees the whole cluster.

    Raises:
        BrokerDiedError: one ended instead; says why.
        UnavailableError: not ready within ``timeout_s``; says what was still missing.
    """
    for broker in cluster.brokers:
        with anyio.move_on_after(timeout_s):
            await _wait_for_broker(cluster, broker)
            continue
        raise UnavailableError(
            f"broker {broker.node_id} was not ready within {timeout_s:.0f} s: see {broker.log_path}"
        )


async def _wait_for_broker(cluster: LocalCluster, broker: LocalBroker) -> None:
    while True:
        _raise_if_one_ended(cluster)
        try:
            async with connect(str(broker.address)) as client:
                while True:
                    _raise_if_one_ended(cluster)
                    metadata = await client.admin.describe_cluster()
                    alive = sum(known.alive for known in metadata.brokers)
                    if metadata.controller is not None and alive == len(cluster.brokers):
                        return
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
