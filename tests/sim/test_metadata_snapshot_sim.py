"""The metadata log is dropped behind the state that is kept; who was away gets the state."""

from __future__ import annotations

import contextlib
import errno

import pytest
import trio

from logd.errors import LogdError
from logd.types import METADATA_GROUP, NodeId
from logd_client import Client
from tests.sim.cluster import DATA_DIR, ClusterSettings, SimCluster, open_cluster
from tests.sim.knobs import Knobs
from tests.sim.network import CALM
from tests.sim.run import run_deterministic

PATIENCE_S = 60


def settings() -> ClusterSettings:
    return ClusterSettings(
        brokers=3, network=CALM, knobs=Knobs(commands_per_snapshot=4, snapshot_chunk_bytes=100)
    )


async def connected(cluster: SimCluster, stack: contextlib.AsyncExitStack) -> Client:
    while True:
        with contextlib.suppress(LogdError):
            return await stack.enter_async_context(cluster.client())
        await trio.sleep(0.2)


async def created(client: Client, name: str, replicas: int) -> None:
    while True:
        try:
            await client.admin.create_topic(name, partitions=1, replicas=replicas)
        except LogdError as error:
            if error.code == 21:  # It exists: an earlier attempt had succeeded.
                return
            await trio.sleep(0.2)
        else:
            return


@pytest.mark.parametrize("seed", range(3))
def test_a_broker_that_was_away_while_the_metadata_log_moved_on_gets_the_state(seed: int) -> None:
    async def story() -> None:
        async with (
            open_cluster(seed, settings()) as cluster,
            contextlib.AsyncExitStack() as stack,
        ):
            client = await connected(cluster, stack)
            await created(client, "first", 3)
            victim = cluster.nodes[NodeId(1 + seed)]
            await victim.stop()
            for number in range(12):
                await created(client, f"topic-{number}", 2)

            victim.start()

            with trio.fail_after(PATIENCE_S):
                while victim.broker is None or len(victim.broker.metadata.state.topics) < 13:
                    await trio.sleep(0.1)
            assert "snapshot_installed" in {event.name for event in cluster.trace.events}
            assert victim.broker.node.groups[METADATA_GROUP].log.start_offset > 0
            victim.broker.metadata.state.check_invariants()

    run_deterministic(story, seed=seed)


def test_a_broker_that_has_no_room_for_the_state_at_its_start_waits_for_it() -> None:
    """What it was shipped is written down, and was not put in place when its process ended."""

    def refuse(operation: str, path: str) -> None:
        if operation == "create" and f"{METADATA_GROUP:020}/checkpoint-" in path:
            raise OSError(errno.ENOSPC, "simulated failure", path)

    async def story() -> None:
        async with (
            open_cluster(1, settings()) as cluster,
            contextlib.AsyncExitStack() as stack,
        ):
            client = await connected(cluster, stack)
            await created(client, "first", 3)
            victim = cluster.nodes[NodeId(1)]
            await victim.stop()
            for number in range(12):
                await created(client, f"topic-{number}", 2)
            victim.files.on_operation = refuse
            with trio.fail_after(PATIENCE_S):
                victim.start()
                while not victim.files.exists(f"{DATA_DIR}/groups/{METADATA_GROUP:020}/install"):
                    await trio.sleep(0.1)
                await victim.crash(power=False)
                victim.start()
                await trio.sleep(10)
                assert victim.broker is not None
                (shut,) = victim.broker.node.shut.values()
                assert shut.reason.endswith("tried again until there is room")
                assert sum(e.name == "partition_waits" for e in cluster.trace.events) == 1

                victim.files.on_operation = None

                while len(victim.broker.metadata.state.topics) < 13:
                    await trio.sleep(0.1)
            assert not victim.broker.node.shut

    run_deterministic(story, seed=1)
