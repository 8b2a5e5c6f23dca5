"""Replicas of a group come and go while it serves: whole nodes, links and logs, in one process.

The nodes, groups, cores, links and logs are those of production; network, files and time are
simulated.  What metadata does in a broker (who opens and who deletes a replica) the tests do.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import pytest
import trio
from structlog.testing import capture_logs

from logd.config import BrokerConfig
from logd.errors import (
    ChangeUnderWayError,
    InvalidRequestError,
    LearnerBehindError,
    LogdError,
    NotLeaderError,
    UnavailableError,
)
from logd.limits import KIB
from logd.raft.messages import Configuration
from logd.raft.options import RaftOptions
from logd.record.batch import seal_batch
from logd.record.header import decode_header
from logd.replication import log_events
from logd.replication.catch_up_budget import CatchUpBudget
from logd.replication.group import Group
from logd.replication.installing import begin_install, finish_install
from logd.replication.membership import Membership, Refusal
from logd.replication.mending import Mender
from logd.replication.node import LANES, PASSING_REFUSAL_S, Node
from logd.replication.opening import open_group, start_core
from logd.replication.peer_protocol import Lane, PeerHello
from logd.replication.peer_server import serve_peers
from logd.replication.proposal import Outcome, Placed, Proposal
from logd.replication.standing import role_name
from logd.storage.directory import DataDirectory
from logd.storage.hard_state import HardStateFile
from logd.storage.log import LogOptions
from logd.types import GroupId, HostPort, NodeId, Offset, Term
from tests.sim.env import SimEnv
from tests.sim.files import SimulatedFileSystem
from tests.sim.incarnation import Incarnation
from tests.sim.network import SimNetwork
from tests.support.replica import PROMPT, play, until

GROUP: Final = GroupId(7)
ONE, TWO, THREE, FOUR = (NodeId(i) for i in range(1, 5))
NODES: Final = (ONE, TWO, THREE, FOUR)
FIRST: Final = Configuration((ONE, TWO, THREE))
PATIENCE_MS: Final = 30_000


class House:
    """Nodes that hear each other, and the replicas of one group on some of them."""

    def __init__(self) -> None:
        self.nodes: dict[NodeId, Node] = {}
        self.directories: dict[NodeId, DataDirectory] = {}
        self.files: dict[NodeId, SimulatedFileSystem] = {}
        self.envs: dict[NodeId, SimEnv] = {}

    async def start(self, nursery: trio.Nursery) -> None:
        network = SimNetwork(random.Random(1))
        cluster = {node: HostPort(f"node{node}", 7181) for node in NODES}
        for node in NODES:
            files = self.files[node] = SimulatedFileSystem(random.Random(node))
            env = self.envs[node] = SimEnv(
                seed=1,
                incarnation=Incarnation(f"node{node}", 1),
                network=network,
                files=files,
                boot_id="boot",
                blocking=PROMPT,
            )
            config = BrokerConfig(node_id=node, data_dir="/data", cluster=cluster)
            directory = DataDirectory.open(files, "/data", node, partial(str, node))
            self.directories[node] = directory
            membership = Membership(node, directory, cluster, env)
            self.nodes[node] = Node(config, env, membership)
            listener = await env.network.listen(cluster[node])
            await nursery.start(self.nodes[node].run)
            nursery.start_soon(serve_peers, listener, self.nodes[node])
        await until(lambda: all(len(n.peers_up()) == len(NODES) - 1 for n in self.nodes.values()))

    def open(self, node: NodeId, first: Configuration = FIRST) -> Group:
        """As a broker does when metadata says that it holds a replica."""
        host = self.nodes[node]
        options = LogOptions(segment_bytes=64 * KIB)
        opened = open_group(self.files[node], self.directories[node], node, GROUP, options)
        core = start_core(
            opened,
            first,
            options=RaftOptions(),
            draw=self.envs[node].rng("raft").random,
            now_ms=host.now_ms(),
        )
        group = Group(opened, core, host, "orders/0")
        host.add_group(group)
        return group

    async def retire(self, node: NodeId) -> None:
        """As a broker does when metadata says that it holds a replica no more."""
        await self.nodes[node].remove_group(GROUP)
        self.directories[node].retire_group(GROUP)

    async def restart(self, node: NodeId) -> Group:
        """The replica is closed and opened again."""
        await self.nodes[node].remove_group(GROUP)
        return self.open(node)

    def group(self, node: NodeId) -> Group:
        return self.nodes[node].groups[GROUP]

    def leaders(self) -> list[Group]:
        groups = [n.groups[GROUP] for n in self.nodes.values() if GROUP in n.groups]
        return [group for group in groups if group.is_ready]

    async def leader(self) -> Group:
        await until(lambda: len(self.leaders()) == 1)
        return self.leaders()[0]

    async def append(self, value: bytes = b"value") -> Offset:
        """Append one record, wherever the leader is, and have it acknowledged."""
        while True:
            outcome = await propose(await self.leader(), value)
            if isinstance(outcome, Placed):
                return outcome.base_offset
            assert outcome.retriable, outcome

    async def change(self, voters: tuple[NodeId, ...], learners: tuple[NodeId, ...] = ()) -> None:
        """Insist, as whoever moves replicas does."""
        with trio.fail_after(PATIENCE_MS / 1000):
            while True:
                try:
                    await (await self.leader()).members.change_configuration(voters, learners)
                except LogdError as error:
                    if not error.retriable:
                        raise
                    await trio.sleep(0.01)
                else:
                    return

    async def equal(self, *nodes: NodeId) -> None:
        """Wait until these replicas hold the same committed log, from its beginning."""
        await self.equal_from(Offset(0), *nodes)

    async def equal_from(self, start: Offset, *nodes: NodeId) -> None:
        leader = await self.leader()
        end = leader.log.end_offset
        await until(lambda: all(self.group(node).commit_offset == end for node in nodes))
        whole = leader.log.read(start, end, 1 << 20, cached_only=False)
        for node in nodes:
            assert self.group(node).log.read(start, end, 1 << 20, cached_only=False) == whole


def is_newcomer(group: Group) -> bool:
    return group.core.hard_state.is_newcomer


async def propose(group: Group, value: bytes) -> Outcome:
    batch = seal_batch(values=[value], timestamps_ms=0)
    outcomes: list[Outcome] = []
    done = trio.Event()

    def settle(outcome: Outcome) -> None:
        outcomes.append(outcome)
        done.set()

    deadline_ms = int(trio.current_time() * 1000) + PATIENCE_MS
    group.propose(Proposal(batch, decode_header(batch), settle, deadline_ms=deadline_ms))
    await done.wait()
    return outcomes[0]


@asynccontextmanager
async def open_house(*members: NodeId) -> AsyncIterator[House]:
    house = House()
    async with trio.open_nursery() as nursery:
        await house.start(nursery)
        for node in members:
            house.open(node)
        yield house
        nursery.cancel_scope.cancel()


def in_a_house(*members: NodeId) -> Callable[[Callable[[House], Awaitable[None]]], None]:
    """Play a story in which these nodes have replicas from the beginning."""

    def tell(story: Callable[[House], Awaitable[None]]) -> None:
        async def play_it() -> None:
            async with open_house(*members) as house:
                await story(house)

        play(play_it)

    return tell


def test_a_learner_catches_up_and_takes_the_place_of_a_voter() -> None:
    async def story(house: House) -> None:
        for _ in range(20):
            await house.append()
        house.open(FOUR)
        await house.change((ONE, TWO, THREE), (FOUR,))
        await house.append()
        await house.change((ONE, TWO, FOUR))
        await house.append()

        await house.equal(ONE, TWO, FOUR)

        leader = await house.leader()
        assert leader.configuration == Configuration((ONE, TWO, FOUR))
        await until(lambda: house.group(THREE).core.configuration_is_committed)
        assert house.group(THREE).configuration == leader.configuration
        assert role_name(house.group(THREE)) == "learner"

    in_a_house(ONE, TWO, THREE)(story)


def test_all_voters_can_be_replaced_and_the_last_of_the_old_ones_hands_over() -> None:
    async def story(house: House) -> None:
        await house.append(b"before")
        for node in (TWO, THREE):
            house.open(node, Configuration((ONE,)))
        await house.change((ONE,), (TWO, THREE))
        began = trio.current_time()

        await house.change((TWO, THREE))

        leader = await house.leader()
        assert leader.core.leader in (TWO, THREE)
        assert trio.current_time() - began < 1.0
        await house.retire(ONE)
        await house.append(b"after")
        await house.equal(TWO, THREE)

    async def play_it() -> None:
        async with open_house() as house:
            house.open(ONE, Configuration((ONE,)))
            await story(house)

    play(play_it)


def test_what_was_appended_before_a_leader_was_left_out_is_acknowledged() -> None:
    async def story(house: House) -> None:
        leader = await house.leader()
        others = tuple(n for n in (ONE, TWO, THREE) if n != leader.core.node)
        outcomes: list[Outcome] = []

        async with trio.open_nursery() as nursery:

            async def append() -> None:
                outcomes.append(await propose(leader, b"value"))

            for _ in range(5):
                nursery.start_soon(append)
            nursery.start_soon(leader.members.change_configuration, others, ())

        assert all(isinstance(outcome, Placed) for outcome in outcomes)
        await until(lambda: not leader.is_leader)
        assert (await house.leader()).core.node in others

    in_a_house(ONE, TWO, THREE)(story)


def test_a_replica_that_returns_is_a_newcomer_until_it_has_caught_up() -> None:
    async def story(house: House) -> None:
        await house.append()
        await house.change((ONE, TWO))
        promised = house.group(THREE).core.term
        await house.retire(THREE)
        await house.append()

        newcomer = house.open(THREE, Configuration((ONE, TWO)))

        assert is_newcomer(newcomer)
        assert newcomer.core.term == promised
        await house.change((ONE, TWO), (THREE,))
        await house.change((ONE, TWO, THREE))
        await house.equal(ONE, TWO, THREE)
        assert not is_newcomer(newcomer)
        reopened = await house.restart(THREE)
        assert not is_newcomer(reopened)
        assert reopened.configuration == FIRST

    in_a_house(ONE, TWO, THREE)(story)


@asynccontextmanager
async def change_to_one_that_dies(leader: Group, newcomer: Group) -> AsyncIterator[None]:
    """The leader and the newcomer are to be all voters, and the newcomer has just died.  At the
    end of the block the change has been taken back."""

    async def change() -> None:
        with pytest.raises(UnavailableError, match="was taken back"):
            await leader.members.change_configuration((leader.core.node, FOUR), ())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        await until(lambda: leader.configuration.is_joint)
        newcomer.fail(OSError(errno.EIO, "simulated failure"))
        yield


def test_a_change_whose_new_voters_die_at_once_is_taken_back_and_the_group_goes_on() -> None:
    async def story(house: House) -> None:
        await house.append()
        newcomer = house.open(FOUR)
        await house.change((ONE, TWO, THREE), (FOUR,))
        await house.append()
        leader = await house.leader()
        await until(lambda: leader.core.is_caught_up(FOUR))

        async with change_to_one_that_dies(leader, newcomer):
            pass

        await house.append(b"after")
        assert leader.is_leader
        assert leader.configuration == Configuration((ONE, TWO, THREE), (FOUR,))
        await house.equal(ONE, TWO, THREE)

    in_a_house(ONE, TWO, THREE)(story)


def test_who_asks_during_a_change_that_is_taken_back_is_told_that_the_leader_leads() -> None:
    async def story(house: House) -> None:
        await house.append()
        newcomer = house.open(FOUR)
        await house.change((ONE, TWO, THREE), (FOUR,))
        leader = await house.leader()
        await until(lambda: leader.core.is_caught_up(FOUR))

        async with change_to_one_that_dies(leader, newcomer):
            with trio.fail_after(PATIENCE_MS / 1000):
                await leader.leadership.confirmed()

        assert leader.configuration.voters == (ONE, TWO, THREE)
        with trio.fail_after(PATIENCE_MS / 1000):
            await leader.leadership.confirmed()

    in_a_house(ONE, TWO, THREE)(story)


def test_changes_are_refused_with_the_reason() -> None:
    async def story(house: House) -> None:
        await house.append()
        leader = await house.leader()
        follower = next(n for n in (ONE, TWO, THREE) if n != leader.core.node)
        with pytest.raises(NotLeaderError):
            await house.group(follower).members.change_configuration((ONE,), ())
        with pytest.raises(InvalidRequestError):
            await leader.members.change_configuration((), ())
        with pytest.raises(InvalidRequestError, match="no learner"):
            await leader.members.change_configuration((ONE, TWO, FOUR), ())
        # Nobody has opened a replica there.
        await leader.members.change_configuration((ONE, TWO, THREE), (FOUR,))
        with pytest.raises(LearnerBehindError):
            await leader.members.change_configuration((ONE, TWO, FOUR), ())

    in_a_house(ONE, TWO, THREE)(story)


def test_one_change_at_a_time_but_the_same_one_may_be_asked_for_twice() -> None:
    async def story(house: House) -> None:
        leader = await house.leader()
        kept = next(n for n in (ONE, TWO, THREE) if n != leader.core.node)
        wanted = (leader.core.node, kept)
        refusals: list[LogdError] = []

        async def another() -> None:
            try:
                await leader.members.change_configuration((leader.core.node,), ())
            except ChangeUnderWayError as error:
                refusals.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leader.members.change_configuration, wanted, ())
            await trio.sleep(0)
            nursery.start_soon(leader.members.change_configuration, wanted, ())
            nursery.start_soon(another)
        await leader.members.change_configuration(wanted, ())

        assert len(refusals) == 1
        assert leader.configuration == Configuration(wanted)

    in_a_house(ONE, TWO, THREE)(story)


def test_a_change_goes_on_when_nobody_waits_for_it_any_more() -> None:
    async def story(house: House) -> None:
        leader = await house.leader()
        kept = tuple(n for n in (ONE, TWO, THREE) if n != leader.core.node)
        with trio.CancelScope() as scope:
            scope.cancel()
            await leader.members.change_configuration((leader.core.node, kept[0]), ())

        await until(lambda: leader.configuration == Configuration((leader.core.node, kept[0])))

    in_a_house(ONE, TWO, THREE)(story)


def test_no_change_is_begun_that_would_stop_the_group() -> None:
    async def story(house: House) -> None:
        leader = await house.leader()
        gone, kept = (n for n in (ONE, TWO, THREE) if n != leader.core.node)
        await house.nodes[gone].remove_group(GROUP)
        # Something has to be sent before a replica that died under a live node is noticed.
        await house.append()
        await trio.sleep(5.0)

        with pytest.raises(UnavailableError):
            await leader.members.change_configuration((leader.core.node, gone), ())

        await leader.members.change_configuration((leader.core.node, kept), ())

    in_a_house(ONE, TWO, THREE)(story)


def test_a_restarted_replica_knows_the_members_from_its_log() -> None:
    async def story(house: House) -> None:
        await house.change((ONE, TWO))
        await house.append()
        for node in (ONE, TWO):
            reopened = await house.restart(node)
            assert reopened.configuration == Configuration((ONE, TWO))

        await house.append()

    in_a_house(ONE, TWO, THREE)(story)


def test_a_leader_tells_how_far_each_member_is() -> None:
    async def story(house: House) -> None:
        await house.append()
        leader = await house.leader()
        assert house.open(FOUR).members.progress() == ()
        await house.change((ONE, TWO, THREE), (FOUR,))

        def all_caught_up() -> bool:
            return all(p.is_caught_up and p.bytes_behind == 0 for p in leader.members.progress())

        await until(all_caught_up)

        progress = leader.members.progress()
        assert [(p.node, p.is_voter) for p in progress] == [
            (ONE, True),
            (TWO, True),
            (THREE, True),
            (FOUR, False),
        ]
        assert [p.synced_end for p in progress] == [leader.log.end_offset] * 4

    in_a_house(ONE, TWO, THREE)(story)


# --- snapshots --------------------------------------------------------------------------


# --- who is let in ----------------------------------------------------------------------


def test_a_broker_that_is_removed_is_neither_heard_nor_dialled_any_more_and_is_told_why() -> None:
    """Its links were let in while it was a member, and what it asks would go on being done."""

    async def story(house: House) -> None:
        with capture_logs() as logs:
            for node in (ONE, TWO, THREE):
                house.nodes[node].membership.remove(FOUR)
                house.nodes[node].shut_out(FOUR)
            await until(
                lambda: all(FOUR not in house.nodes[n].peers_up() for n in (ONE, TWO, THREE))
            )
            await until(lambda: house.nodes[FOUR].peers_up() == [])

        assert not house.nodes[FOUR].send_peer(ONE, house.nodes[FOUR].claims.own())
        told = [line for line in logs if line["event"] == log_events.PEER_REFUSED]
        assert {line["peer"] for line in told if "peer" in line} == {ONE, TWO, THREE}
        assert {line["log_level"] for line in told if "peer" in line} == {"error"}
        assert all("was removed from this cluster" in line["reason"] for line in told)

    in_a_house()(story)


def test_a_broker_that_is_removed_while_it_is_greeted_is_not_let_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(house: House) -> None:
        host = house.nodes[ONE]
        greeting = host.greeting

        def greet_and_remove(lane: Lane) -> PeerHello:
            host.membership.remove(FOUR)
            return greeting(lane)

        host.shut_out(FOUR)
        monkeypatch.setattr(host, "greeting", greet_and_remove)
        await until(lambda: FOUR not in host.peers_up())

        assert not [node for node, _ in host.accepted_links if node == FOUR]

    in_a_house()(story)


def test_a_refusal_that_is_about_to_end_is_no_error_until_it_has_lasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Brokers that join at once hear of one another from the metadata log, each in its own time."""

    def levels(logs: Sequence[MutableMapping[str, Any]], side: str) -> list[str]:
        return [
            line["log_level"]
            for line in logs
            if line["event"] == log_events.PEER_REFUSED and side in line
        ]

    async def story(house: House) -> None:
        host = house.nodes[ONE]
        too_soon = Refusal("it comes too soon", is_passing=True)
        with monkeypatch.context() as patched:
            patched.setattr(host.membership, "refusal", lambda _: too_soon)
            for _ in range(2):  # The second time is as the first: it was let in between.
                for lane in LANES:
                    host.accepted_links[FOUR, lane].cancel()
                with capture_logs() as logs:
                    await trio.sleep(PASSING_REFUSAL_S - 1)
                assert set(levels(logs, "peer")) == set(levels(logs, "address")) == {"info"}
                with capture_logs() as logs:
                    await trio.sleep(3)
                assert levels(logs, "peer")[-1] == "error"
                assert set(levels(logs, "address")) == {"info"}
                with monkeypatch.context() as healed:
                    healed.setattr(host.membership, "refusal", lambda _: None)
                    await until(lambda: len(host.accepted_links) == 2 * 3)

    in_a_house()(story)


def test_whoever_was_refused_for_long_comes_at_once_when_its_peer_has_come_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the configuration of the peer was wrong, and it has been started again."""

    async def story(house: House) -> None:
        host, guest = house.nodes[ONE], house.nodes[FOUR]
        with monkeypatch.context() as patched:
            patched.setattr(host.membership, "refusal", lambda _: Refusal("a mistake"))
            for lane in LANES:
                host.accepted_links[FOUR, lane].cancel()
            await trio.sleep(120)
        assert (FOUR, "main") not in host.accepted_links

        for lane in LANES:
            guest.accepted_links[ONE, lane].cancel()  # Whoever dialled it dials again.

        with trio.fail_after(2):
            while {node for node, _ in host.accepted_links} != {TWO, THREE, FOUR}:
                await trio.sleep(0.01)

    in_a_house()(story)


async def trimmed(house: House, *nodes: NodeId) -> Offset:
    """Append some segments, and drop all but the last of them from these replicas."""
    for number in range(12):
        await house.append(bytes([number]) * 20_000)
    await house.append(b"in the state, and above the start")
    leader = await house.leader()
    await until(lambda: all(house.group(n).commit_offset == leader.log.end_offset for n in nodes))
    start = leader.log.segment_bases[-1]
    assert start > 0
    for node in nodes:
        group = house.group(node)
        group.checkpoints.take()
        await trio.sleep(0.5)
        assert await group.checkpoints.restorable_offset() >= start
        assert await group.upkeep.trim(start, house.directories[node].trash_path)
    return start


def test_a_learner_that_needs_what_was_trimmed_is_shipped_state_and_the_rest_of_the_log() -> None:
    async def story(house: House) -> None:
        start = await trimmed(house, ONE, TWO, THREE)
        learner = house.open(FOUR, FIRST)

        await house.change((ONE, TWO, THREE), (FOUR,))
        await house.change((ONE, TWO, FOUR))
        await house.append(b"after")

        await house.equal_from(start, ONE, TWO, FOUR)
        assert learner.log.start_offset == start
        leader = await house.leader()
        assert learner.state.snapshot().encode() == leader.state.snapshot().encode()
        reopened = await house.restart(FOUR)
        assert reopened.configuration.voters == (ONE, TWO, FOUR)
        assert reopened.log.start_offset == start

    in_a_house(ONE, TWO, THREE)(story)


def test_a_newcomer_that_votes_is_held_to_no_budget_any_more() -> None:
    """Else a partition could wait for a voter that it does not send anything."""

    async def story(house: House) -> None:
        await house.append()
        house.open(FOUR, FIRST)
        await house.change((ONE, TWO, THREE), (FOUR,))
        await house.equal(FOUR)
        leader = await house.leader()
        exhausted = CatchUpBudget(Offset(leader.log.end_offset + 100))
        leader.feeder.limit_catch_up(FOUR, exhausted)

        await house.change((ONE, TWO, FOUR))
        await house.append(b"after")

        await house.equal(ONE, TWO, FOUR)

    in_a_house(ONE, TWO, THREE)(story)


def test_a_voter_that_was_away_while_the_log_moved_on_is_shipped_state() -> None:
    async def story(house: House) -> None:
        await house.append()
        leader = await house.leader()
        away = next(n for n in (ONE, TWO, THREE) if n != leader.core.node)
        others = tuple(n for n in (ONE, TWO, THREE) if n != away)
        await house.nodes[away].remove_group(GROUP)
        start = await trimmed(house, *others)

        house.open(away)
        await house.append(b"after")

        await house.equal_from(start, ONE, TWO, THREE)

    in_a_house(ONE, TWO, THREE)(story)


def test_a_doubtful_replica_that_is_replaced_by_its_peers_state_stays_doubtful() -> None:
    """It may have vouched for batches behind the place where that state's log begins."""
    before_the_power_cut = 77

    async def story(house: House) -> None:
        await trimmed(house, ONE, TWO, THREE)
        snapshot = await (await house.leader()).checkpoints.take_snapshot()
        assert snapshot is not None
        files, node, directory = house.files[FOUR], house.nodes[FOUR], house.directories[FOUR]
        house.open(FOUR, FIRST)
        await node.remove_group(GROUP)
        opened = open_group(files, directory, FOUR, GROUP, LogOptions(segment_bytes=64 * KIB))
        opened.hard_state.save(Term(0), None, rests_on=before_the_power_cut)

        mender = Mender(node.repairer, node, opened, (ONE, TWO, THREE), has_application=False)
        await mender._install(snapshot)

        again = open_group(files, directory, FOUR, GROUP, LogOptions(segment_bytes=64 * KIB))
        assert again.log.start_offset == snapshot.start_offset
        assert again.loaded_hard_state.term > 0
        assert again.loaded_hard_state.rests_on == before_the_power_cut
        again.close()

    in_a_house(ONE, TWO, THREE)(story)


def test_no_checkpoint_is_taken_of_a_shipped_state_that_the_log_has_not_reached() -> None:
    async def story(house: House) -> None:
        start = await trimmed(house, ONE, TWO, THREE)
        snapshot = await (await house.leader()).checkpoints.take_snapshot()
        assert snapshot is not None
        house.open(FOUR, FIRST)
        await house.nodes[FOUR].remove_group(GROUP)
        files, identity = house.files[FOUR], house.directories[FOUR].identity(GROUP)
        path = house.directories[FOUR].group_path(GROUP)
        HardStateFile.open(files, f"{path}/hard_state", identity).save(Term(1), None)
        begin_install(files, path, identity, snapshot)
        finish_install(files, path, identity, LogOptions())
        replica = house.open(FOUR, FIRST)
        assert replica.state.end_offset > replica.log.end_offset == start

        replica.checkpoints.take()

        await house.change((ONE, TWO, THREE), (FOUR,))
        await house.equal_from(start, ONE, TWO, THREE, FOUR)
        replica.checkpoints.take()
        await trio.sleep(0.5)
        assert await replica.checkpoints.restorable_offset() == replica.log.end_offset

    in_a_house(ONE, TWO, THREE)(story)


def test_a_power_cut_at_any_moment_of_an_installation_leaves_a_replica_that_catches_up() -> None:
    async def story(house: House) -> None:
        start = await trimmed(house, ONE, TWO, THREE)
        snapshot = await (await house.leader()).checkpoints.take_snapshot()
        assert snapshot is not None
        assert snapshot.state_offset > start
        files = house.files[FOUR]
        house.open(FOUR, FIRST)
        await house.nodes[FOUR].remove_group(GROUP)
        directory, identity = house.directories[FOUR], house.directories[FOUR].identity(GROUP)
        path = directory.group_path(GROUP)
        # The term of the leader that ships is durable before anything else.
        HardStateFile.open(files, f"{path}/hard_state", identity).save(Term(1), None)
        starts: list[Offset] = []

        for count in range(60):
            left = count

            def cut(_operation: str, name: str) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise OSError(errno.EIO, "power is out", name)

            files.on_operation = cut
            with contextlib.suppress(OSError, LogdError):
                begin_install(files, path, identity, snapshot)
                finish_install(files, path, identity, LogOptions())
            files.on_operation = None
            files.crash(random.Random(count))
            opened = open_group(files, directory, FOUR, GROUP, LogOptions(segment_bytes=64 * KIB))
            assert opened.damage is None
            starts.append(opened.log.start_offset)
            assert opened.state.end_offset == (snapshot.state_offset if starts[-1] else 0)
            assert not files.exists(f"{path}/install")
            opened.close()
        assert (starts[0], starts[-1]) == (0, start)
        assert starts == sorted(starts)
        house.open(FOUR, FIRST)
        await house.change((ONE, TWO, THREE), (FOUR,))
        await house.append(b"after")
        await house.equal_from(start, ONE, TWO, THREE, FOUR)

    in_a_house(ONE, TWO, THREE)(story)
