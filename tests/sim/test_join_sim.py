"""Brokers join a cluster that exists, follow its metadata, vote in it, and hold replicas."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from logd.broker import joining
from logd.broker.broker import Broker
from logd.broker.log_events import METADATA_REFUSED
from logd.errors import LogdError
from logd.metadata.commands import RegisterBroker, encode_command
from logd.raft.messages import Configuration, TransferLeadership
from logd.replication import log_events
from logd.replication.peer_protocol import PEER_PROTOCOL_VERSION, JoinRequest, JoinResponse
from logd.types import METADATA_GROUP, DirectoryId, NodeId
from logd_client import Client
from logd_client.routing import METADATA_AGE_S
from tests.sim.cluster import DATA_DIR, ClusterSettings, SimCluster, SimNode, open_cluster
from tests.sim.env import BlockingConditions
from tests.sim.knobs import Knobs
from tests.sim.network import CALM
from tests.sim.run import run_deterministic

PATIENCE_S = 60
FOUR, FIVE = NodeId(4), NodeId(5)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.05)


async def connected(cluster: SimCluster, stack: contextlib.AsyncExitStack) -> Client:
    while True:
        with contextlib.suppress(LogdError):
            return await stack.enter_async_context(cluster.client())
        await trio.sleep(0.2)


async def created(client: Client, name: str, replicas: int) -> None:
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                await client.admin.create_topic(name, partitions=1, replicas=replicas)
            except LogdError as error:
                if error.code == 21:  # It exists: an earlier attempt had succeeded.
                    return
                await trio.sleep(0.2)
            else:
                return


def metadata_members(cluster: SimCluster) -> Configuration | None:
    leader = cluster.leader_of(METADATA_GROUP)
    return None if leader is None else leader.groups[METADATA_GROUP].configuration


def brokers_known_to(cluster: SimCluster, node: NodeId) -> int:
    broker = cluster.nodes[node].broker
    return 0 if broker is None else len(broker.metadata.state.brokers)


@pytest.mark.parametrize(("seed", "commands_per_snapshot"), [(1, 1000), (2, 2)])
def test_brokers_join_hold_replicas_and_vote(seed: int, commands_per_snapshot: int) -> None:
    settings = ClusterSettings(
        brokers=3, network=CALM, knobs=Knobs(commands_per_snapshot=commands_per_snapshot)
    )

    async def story() -> None:
        async with open_cluster(seed, settings) as cluster, contextlib.AsyncExitStack() as stack:
            client = await connected(cluster, stack)
            for number in range(6):
                await created(client, f"before-{number}", 3)

            cluster.join(FOUR)
            await until(lambda: brokers_known_to(cluster, FOUR) == 4)
            members = metadata_members(cluster)
            assert members is not None
            assert sorted(members.voters) == [1, 2, 3]
            cluster.join(FIVE)
            await until(lambda: brokers_known_to(cluster, FIVE) == 5)

            await until(
                lambda: (
                    sorted((metadata_members(cluster) or Configuration(())).voters)
                    == [1, 2, 3, 4, 5]
                )
            )
            await created(client, "wide", 5)
            async with client.producer("wide") as producer:
                for _ in range(5):
                    await producer.append(b"value")
            # Two of the founders go: with the two that joined there is still a majority.
            for founder in (NodeId(1), NodeId(2)):
                await cluster.nodes[founder].crash(power=True)
            async with client.producer("wide") as producer:
                ack = await producer.append(b"after")
            assert ack.offset > 5
            await created(client, "later", 3)
            # One that joined comes back, also with the broker gone that it was told to ask.
            await cluster.nodes[FIVE].crash(power=True)
            cluster.nodes[NodeId(2)].start()
            cluster.nodes[FIVE].start()
            await until(lambda: brokers_known_to(cluster, FIVE) == 5)
            await until(lambda: len(cluster.nodes[FIVE].groups) >= 2)

    run_deterministic(story, seed=seed)


def test_who_joins_is_told_to_wait_by_those_that_have_not_heard_of_it_yet() -> None:
    """They see that it is of their cluster: it is not refused as a stranger."""
    refused: list[MutableMapping[str, Any]] = []

    async def story() -> None:
        async with open_cluster(1, ClusterSettings(brokers=3, network=CALM)) as cluster:
            await until(lambda: metadata_members(cluster) is not None)
            controller = cluster.leader_of(METADATA_GROUP)
            assert controller is not None
            late = next(node for node in cluster.nodes if node not in (1, controller.node))
            cluster.network.slow(controller.host, cluster.nodes[late].host, seconds=0.5)
            with capture_logs() as logs:
                newcomer = cluster.join(FOUR)
                newcomer.set_blocking(BlockingConditions(latency_s_min=0.02))
                await until(lambda: brokers_known_to(cluster, FOUR) == 4)
        refused.extend(line for line in logs if line["event"] == log_events.PEER_REFUSED)

    run_deterministic(story, seed=1)

    assert refused
    assert {line["log_level"] for line in refused} == {"info"}


def test_a_client_that_asks_nothing_learns_of_brokers_that_join_all_the_same() -> None:
    """Those that it knew may all be gone when it wants something again."""

    async def story() -> None:
        settings = ClusterSettings(brokers=3, network=CALM)
        async with open_cluster(1, settings) as cluster, contextlib.AsyncExitStack() as stack:
            client = await connected(cluster, stack)
            known = client._open_routing().view
            cluster.join(FOUR)
            await until(lambda: brokers_known_to(cluster, FOUR) == 4)
            assert FOUR not in known.nodes()

            await trio.sleep(METADATA_AGE_S)

            assert FOUR in known.nodes()

    run_deterministic(story, seed=1)


def test_a_voter_of_the_metadata_log_that_stays_away_is_replaced_by_itself() -> None:
    settings = ClusterSettings(brokers=3, network=CALM, replace_after_ms=5_000)

    def voters(cluster: SimCluster, node: NodeId) -> list[NodeId]:
        members = cluster.nodes[node].groups[METADATA_GROUP].configuration
        return [] if members.is_joint else sorted(members.voters)

    async def story() -> None:
        async with open_cluster(1, settings) as cluster, contextlib.AsyncExitStack() as stack:
            client = await connected(cluster, stack)
            cluster.join(FOUR)
            await until(lambda: brokers_known_to(cluster, FOUR) == 4)
            await cluster.nodes[NodeId(2)].crash(power=False)
            await trio.sleep(2)
            assert voters(cluster, FOUR) == [1, 2, 3]

            for node in (NodeId(3), FOUR):
                await until(partial(lambda node: voters(cluster, node) == [1, 3, 4], node))

            # A second failure stops nothing, and who comes back follows.
            await cluster.nodes[NodeId(1)].crash(power=False)
            await created(client, "later", 1)
            cluster.nodes[NodeId(2)].start()
            await until(lambda: 2 in (metadata_members(cluster) or Configuration(())).learners)

    run_deterministic(story, seed=1)


async def metadata_led_by(cluster: SimCluster, node: NodeId) -> None:
    """Have ``node``, which votes there or soon will, lead the metadata log."""
    await until(lambda: node in (metadata_members(cluster) or Configuration(())).voters)
    with trio.fail_after(PATIENCE_S):
        while (leader := cluster.leader_of(METADATA_GROUP)) is None or leader.node != node:
            if leader is not None:
                leader.groups[METADATA_GROUP].post(TransferLeadership(node))
            await trio.sleep(1)


@pytest.mark.parametrize("is_cut_off", [False, True], ids=["down", "cut off"])
def test_a_broker_hears_of_those_that_joined_while_it_was_away_although_one_of_them_leads(
    is_cut_off: bool,
) -> None:
    """The metadata would tell it, but come over a link that it refuses."""
    settings = ClusterSettings(brokers=3, network=CALM)
    away = NodeId(2)
    links = [(f"node{other}", "node2") for other in (1, 3, 4, 5)]
    cut = links + [(there, here) for here, there in links]

    async def story() -> None:
        async with open_cluster(1, settings) as cluster, contextlib.AsyncExitStack() as stack:
            await connected(cluster, stack)
            await until(lambda: brokers_known_to(cluster, away) == 3)
            if is_cut_off:
                cluster.network.hold(cut)
            else:
                await cluster.nodes[away].crash(power=False)
            for node in (FOUR, FIVE):
                cluster.join(node)
                await until(partial(lambda node: brokers_known_to(cluster, node) == node, node))
            await metadata_led_by(cluster, FIVE)
            if is_cut_off:
                cluster.network.release(cut)
            else:
                cluster.nodes[away].start()

            await until(lambda: brokers_known_to(cluster, away) == 5)
            leader = cluster.leader_of(METADATA_GROUP)
            assert leader is not None
            assert leader.node == FIVE

    run_deterministic(story, seed=1)


def test_a_broker_that_was_away_finds_one_that_has_moved_although_that_one_leads() -> None:
    """What it would hear from there is answered to where nobody listens any more."""
    settings = ClusterSettings(brokers=3, network=CALM)
    away, elsewhere = NodeId(2), 7281

    def address_known_to(cluster: SimCluster, node: NodeId) -> int:
        broker = cluster.nodes[node].broker
        known = None if broker is None else broker.metadata.state.broker(FIVE)
        return 0 if known is None else known.peer_address.port

    async def story() -> None:
        async with open_cluster(1, settings) as cluster, contextlib.AsyncExitStack() as stack:
            await connected(cluster, stack)
            for node in (FOUR, FIVE):
                cluster.join(node)
            await until(lambda: brokers_known_to(cluster, away) == 5)
            await cluster.nodes[away].crash(power=False)
            await cluster.nodes[FIVE].stop()
            cluster.peer_ports[FIVE] = elsewhere
            cluster.nodes[FIVE].start()
            await until(lambda: address_known_to(cluster, FIVE) == elsewhere)
            await metadata_led_by(cluster, FIVE)

            cluster.nodes[away].start()

            await until(lambda: address_known_to(cluster, away) == elsewhere)
            leader = cluster.leader_of(METADATA_GROUP)
            assert leader is not None
            assert leader.node == FIVE

    run_deterministic(story, seed=1)


def test_a_broker_that_has_moved_is_found_although_it_is_not_told_again_where_to_join() -> None:
    """The others look for it where it was, so it hears nobody, not even the controller."""
    settings = ClusterSettings(brokers=3, network=CALM)
    elsewhere = 7281

    def hears_all(cluster: SimCluster, node: NodeId) -> bool:
        broker = cluster.nodes[node].broker
        return broker is not None and len(broker.node.peers_up()) == 3

    async def story() -> None:
        async with open_cluster(1, settings) as cluster, contextlib.AsyncExitStack() as stack:
            await connected(cluster, stack)
            cluster.join(FOUR)
            await until(lambda: brokers_known_to(cluster, FOUR) == 4)
            await until(lambda: hears_all(cluster, FOUR))
            await cluster.nodes[FOUR].stop()
            cluster.peer_ports[FOUR] = elsewhere
            cluster.started_without_join.append(FOUR)

            with capture_logs() as logs:
                cluster.nodes[FOUR].start()
                await until(lambda: hears_all(cluster, FOUR))

            refused = [entry["reason"] for entry in logs if entry["event"] == METADATA_REFUSED]
            assert any("hears none of its peers; 1, 2, 3 let it in" in reason for reason in refused)

    run_deterministic(story, seed=1)


def test_nobody_joins_by_way_of_a_broker_that_was_removed() -> None:
    """Had it gone on as a member, whoever asked it would be registered and never hear of it."""
    settings = ClusterSettings(brokers=3, network=CALM)
    gone = NodeId(1)

    async def story() -> None:
        async with open_cluster(1, settings) as cluster, contextlib.AsyncExitStack() as stack:
            client = await connected(cluster, stack)
            await until(lambda: brokers_known_to(cluster, gone) == 3)
            with trio.fail_after(PATIENCE_S):
                while gone in [b.node_id for b in (await client.admin.describe_cluster()).brokers]:
                    with contextlib.suppress(LogdError):
                        await client.admin.alter_broker(gone, "remove")
                    await trio.sleep(1)
            others = [cluster.nodes[node] for node in (NodeId(2), NodeId(3))]
            brokers = [node.broker for node in others]
            await until(lambda: not any(b is None or b.node.is_up(gone) for b in brokers))

            cluster.join(FOUR)  # By way of the first one, which runs on and does not know.
            await trio.sleep(PATIENCE_S)
            assert [brokers_known_to(cluster, node.node) for node in others] == [2, 2]
            assert brokers_known_to(cluster, FOUR) == 0
            await cluster.nodes[FOUR].stop()
            removed = cluster.nodes[gone]
            cluster.forget(removed)
            cluster.nodes[FOUR].start()

            await until(lambda: brokers_known_to(cluster, FOUR) == 3)
            await removed.crash(power=True)

    run_deterministic(story, seed=1)


def registration(node: NodeId, incarnation: int, peer_port: int) -> RegisterBroker:
    return RegisterBroker(
        node=node,
        directory_id=DirectoryId("directory"),
        incarnation=incarnation,
        host="elsewhere",
        port=1,
        peer_host="elsewhere",
        peer_port=peer_port,
    )


def test_who_wants_to_join_by_way_of_a_broker_that_is_starting_is_told_that_it_is_early() -> None:
    """Not that this is no address of a broker: it would be looked for elsewhere."""
    told: list[JoinResponse | str] = []

    async def ask_at_once(
        broker: Broker, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        told.append(
            await joining._ask(broker, broker.peer_address, registration(FOUR, 1, peer_port=2))
        )
        task_status.started()

    async def story() -> None:
        settings = ClusterSettings(brokers=1, network=CALM, companion=ask_at_once)
        async with open_cluster(1, settings):
            await until(lambda: bool(told))

    run_deterministic(story, seed=1)

    assert told == ["broker 1 is no member of a cluster yet"]


def test_a_request_to_join_of_an_earlier_start_that_is_read_late_changes_nothing() -> None:
    settings = ClusterSettings(brokers=3, network=CALM)

    async def story() -> None:
        async with open_cluster(1, settings) as cluster, contextlib.AsyncExitStack() as stack:
            await connected(cluster, stack)
            cluster.join(FOUR)
            await until(lambda: brokers_known_to(cluster, FOUR) == 4)
            member = cluster.nodes[NodeId(2)].broker
            assert member is not None
            earlier = member.metadata.state.broker(FOUR)
            assert earlier is not None
            await cluster.nodes[FOUR].crash(power=False)
            cluster.peer_ports[FOUR] = 7281
            cluster.nodes[FOUR].start()
            await until(lambda: member.metadata.state.broker(FOUR) != earlier)
            now = member.metadata.state.broker(FOUR)
            assert now is not None

            late = registration(FOUR, earlier.incarnation, earlier.peer_address.port)
            answers = [
                await joining.answer_join(
                    member,
                    JoinRequest(
                        protocol=PEER_PROTOCOL_VERSION,
                        command=encode_command(late),
                        instead_of=known,
                    ),
                )
                for known in (None, 0, earlier.incarnation)
            ]

            assert [answer.registered for answer in answers] == [now.incarnation] * 3
            assert all(answer.refused and not answer.is_final for answer in answers)
            assert member.metadata.state.broker(FOUR) == now

    run_deterministic(story, seed=1)


# --- without room -------------------------------------------------------------------------


def refuse_to_note(node: SimNode, *, after: int) -> None:
    """No room for what says whose the data directory is, once it was written so often."""
    written = 0

    def refuse(operation: str, path: str) -> None:
        nonlocal written
        if operation == "create" and path == f"{DATA_DIR}/meta.tmp":
            written += 1
            if written > after:
                raise OSError(errno.ENOSPC, "simulated failure", path)

    node.files.on_operation = refuse


# The first time when the directory is made.  Without room for that it does not start, and says so.
@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("is_founder", [True, False])
def test_a_broker_without_room_to_note_its_cluster_waits_for_some(
    after: int, *, is_founder: bool
) -> None:
    async def story() -> None:
        settings = ClusterSettings(brokers=3, network=CALM)
        async with open_cluster(1, settings) as cluster, contextlib.AsyncExitStack() as stack:
            if not is_founder:
                await until(lambda: brokers_known_to(cluster, NodeId(2)) == 3)
            node = cluster.nodes[NodeId(1)] if is_founder else cluster.join(FOUR)
            refuse_to_note(node, after=after)
            client = await connected(cluster, stack)
            await trio.sleep(10.0)
            assert node.is_running
            assert brokers_known_to(cluster, NodeId(2)) == (2 if is_founder else 4)
            told = [e for e in cluster.trace.events if e.name == log_events.NO_ROOM]
            assert [e.source for e in told] == [node.host]

            node.files.on_operation = None

            await until(lambda: brokers_known_to(cluster, node.node) == len(cluster.nodes))
            await created(client, "wide", len(cluster.nodes))

    run_deterministic(story, seed=1)
