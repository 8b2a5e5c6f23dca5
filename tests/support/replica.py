"""One real replica on a simulated disk, whose peers are played by the test.

The node, the group, the core and the log are those of production.  The other voters do not
exist: the test says what they would have said, and looks at what was sent to them.
"""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import pytest
import trio

from logd.config import BrokerConfig
from logd.errors import LogdError
from logd.limits import KIB
from logd.raft.messages import (
    AppendRequest,
    AppendResponse,
    Configuration,
    Message,
    PeerUp,
    RaftMessage,
    Received,
    Role,
    VoteResponse,
)
from logd.raft.options import RaftOptions
from logd.record.batch import seal_batch
from logd.record.header import decode_header, leader_part
from logd.replication.group import Group
from logd.replication.membership import Membership
from logd.replication.node import Node
from logd.replication.opening import open_group, start_core
from logd.replication.peer_protocol import AnyPeerMessage, Lane
from logd.replication.proposal import Outcome, Placed, Proposal
from logd.replication.received import check_append
from logd.storage.directory import DataDirectory
from logd.storage.hard_state import boot_number
from logd.storage.log import LogOptions
from logd.types import Buffer, GroupId, HostPort, NodeId, Offset, Term
from tests.sim.env import BlockingConditions, SimEnv
from tests.sim.files import SimulatedFileSystem
from tests.sim.incarnation import Incarnation
from tests.sim.network import SimNetwork
from tests.sim.run import run_deterministic

GROUP: Final = GroupId(7)
OURSELVES: Final = NodeId(1)
SECOND: Final = NodeId(2)
THIRD: Final = NodeId(3)
PROMPT: Final = BlockingConditions(latency_s_min=0.001, latency_s_mean=0.0, spike_probability=0.0)
PATIENCE_S: Final = 30.0

M = TypeVar("M", bound=RaftMessage)


class TappedNode(Node):
    """A node that remembers what its groups sent."""

    sent: list[Message]
    sent_batches: list[tuple[AppendRequest, bytes]]
    full_links: set[NodeId]
    """To whom nothing can be sent just now."""
    connected: set[NodeId]
    """To whom a message of the node is sent; to others it says that they are not there."""
    sent_to_peers: list[tuple[NodeId, AnyPeerMessage, bytes]]

    def send(self, message: Message, buffers: tuple[Buffer, ...] = (), lane: Lane = "main") -> None:
        self.sent.append(message)
        if isinstance(message, AppendRequest) and buffers:
            self.sent_batches.append((message, b"".join(buffers)))
        super().send(message, buffers, lane)

    def send_peer(
        self, target: NodeId, message: AnyPeerMessage, buffers: tuple[Buffer, ...] = ()
    ) -> bool:
        self.sent_to_peers.append((target, message, b"".join(buffers)))
        return super().send_peer(target, message, buffers) or target in self.connected

    def has_room(self, target: NodeId, lane: Lane) -> bool:
        # Nobody is connected; what is sent is seen by the test alone.
        return target not in self.full_links


class Replica:
    """A group under test, and the words of its peers."""

    def __init__(
        self, node: TappedNode, group: Group, files: SimulatedFileSystem, env: SimEnv
    ) -> None:
        self.node = node
        self.group = group
        self.files = files
        self.env = env

    def sent(self, kind: type[M]) -> list[M]:
        return [message for message in self.node.sent if isinstance(message, kind)]

    async def lead(self) -> None:
        """Be elected by the second voter, and have the no-op committed."""
        self.group.post(PeerUp(THIRD))
        await self.be_elected()
        await self.commit()
        await until(lambda: self.group.is_ready)

    async def be_elected(self) -> None:
        """By the second voter."""
        group = self.group
        if len(group.core.configuration.voters) > 1:
            group.post(PeerUp(SECOND))
            await until(lambda: group.core.role is Role.PRE_CANDIDATE)
            self.vote(Term(group.core.term + 1), pre_vote=True)
            await until(lambda: group.core.role is Role.CANDIDATE)
            self.vote(group.core.term, pre_vote=False)
        await until(lambda: group.is_leader and group.log.last_term == group.core.term)

    def vote(self, term: Term, *, pre_vote: bool) -> None:
        self.group.post(
            Received(
                VoteResponse(
                    group=self.group.group_id,
                    source=SECOND,
                    target=OURSELVES,
                    term=term,
                    granted=True,
                    pre_vote=pre_vote,
                )
            )
        )

    async def commit(self) -> None:
        """The second voter acknowledges all there is, and so it is committed."""
        group = self.group
        await until(lambda: not group.syncer.needs_sync)
        end = group.log.end_offset
        self.acknowledge(end)
        await until(lambda: group.commit_offset == end)

    def acknowledge(
        self, end: Offset, *, received_end: Offset | None = None, reading_round: int | None = None
    ) -> None:
        """The second voter has everything below ``received_end``, and synced below ``end``."""
        group = self.group
        requests = [m for m in self.node.sent if isinstance(m, AppendRequest)]
        last_round = max((request.round for request in requests), default=0)
        group.post(
            Received(
                AppendResponse(
                    group=self.group.group_id,
                    source=SECOND,
                    target=OURSELVES,
                    term=group.core.term,
                    round=last_round if reading_round is None else reading_round,
                    enrolment=requests[-1].enrolment if requests else Offset(0),
                    accepted=True,
                    synced_end=end,
                    received_end=end if received_end is None else received_end,
                )
            )
        )

    def depose(self, term: Term) -> None:
        """The third voter leads a later term, and says so."""
        self.append([], term=term)

    def append(
        self,
        batches: Sequence[bytes],
        *,
        term: Term,
        start: Offset | None = None,
        prev_term: Term | None = None,
        commit_offset: Offset = Offset(0),  # noqa: B008 - a NewType is an int
        source: NodeId = THIRD,
    ) -> None:
        """What the third voter, as leader of ``term``, appends here."""
        core = self.group.core
        begin = core.log_end if start is None else start
        body = b"".join(batches)
        request = AppendRequest(
            group=self.group.group_id,
            source=source,
            target=OURSELVES,
            term=term,
            start_offset=begin,
            end_offset=decode_header(batches[-1]).end_offset if batches else begin,
            prev_term=core.term_history.term_at(begin - 1) if prev_term is None else prev_term,
            commit_offset=commit_offset,
            round=0,
            enrolment=Offset(0),
        )
        self.group.post_append(request, check_append(request, body))

    def propose(
        self,
        value: bytes = b"value",
        *,
        expected_offset: int | None = None,
        producer_id: int = 0,
        sequence: int = 0,
        timeout_s: float = PATIENCE_S,
    ) -> list[Outcome]:
        """Propose one record; what comes of it is put into the list that is returned."""
        batch = seal_batch(
            values=[value],
            timestamps_ms=0,
            producer_id=producer_id,
            base_sequence=sequence,
        )
        outcomes: list[Outcome] = []
        self.group.propose(
            Proposal(
                batch,
                decode_header(batch),
                outcomes.append,
                deadline_ms=self.node.now_ms() + int(timeout_s * 1000),
                expected_offset=expected_offset,
            )
        )
        return outcomes

    def slow_down(self, seconds: float) -> None:
        """From now on each blocking call takes this long."""
        self.env.blocking = BlockingConditions(
            latency_s_min=seconds, latency_s_mean=0.0, spike_probability=0.0
        )

    def fail_disk(self, *operations: str, match: str = f"{GROUP:020}") -> None:
        """From now on these operations on the group's files fail."""

        def refuse(operation: str, path: str) -> None:
            if operation in operations and match in path:
                raise OSError(errno.EIO, "simulated failure", path)

        self.files.on_operation = refuse


def batch_of(
    base_offset: Offset, term: Term, value: bytes = b"value", *, time_ms: int = 0, records: int = 1
) -> bytes:
    """A data batch as the leader of ``term`` sends it."""
    return placed(
        seal_batch(values=[value] * records, timestamps_ms=0), base_offset, term, time_ms=time_ms
    )


def placed(sealed: Buffer, base_offset: Offset, term: Term, *, time_ms: int = 0) -> bytes:
    part = leader_part(
        sealed, base_offset=base_offset, term=term, append_time_ms=time_ms, group=GROUP
    )
    return part + bytes(memoryview(sealed)[len(part) :])


def offset_of(outcomes: Sequence[Outcome]) -> Offset:
    """Where the one proposal was placed."""
    (outcome,) = outcomes
    assert isinstance(outcome, Placed), outcome
    return outcome.base_offset


def refusal_of(outcomes: Sequence[Outcome]) -> LogdError:
    """Why the one proposal was refused."""
    (outcome,) = outcomes
    assert isinstance(outcome, LogdError), outcome
    return outcome


async def until(condition: Callable[[], bool]) -> None:
    """Wait, in virtual time, until ``condition`` holds."""
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.001)


async def a_while() -> None:
    """Long enough for all that is under way to be over."""
    await trio.sleep(0.2)


@asynccontextmanager
async def open_replica(
    files: SimulatedFileSystem | None = None,
    *,
    group_id: GroupId = GROUP,
    voters: tuple[NodeId, ...] = (OURSELVES, SECOND, THIRD),
    segment_bytes: int = 64 * KIB,
    tail_cache_bytes: int = 1024 * KIB,
    follower_cached_bytes: int = 32 * KIB,
    blocking: BlockingConditions = PROMPT,
    life: int = 1,
    boot_id: str = "boot",
) -> AsyncIterator[Replica]:
    """A node with one group.  At the end of the block the node vanishes."""
    files = SimulatedFileSystem(random.Random(1)) if files is None else files
    network = SimNetwork(random.Random(1))
    env = SimEnv(
        seed=1,
        incarnation=Incarnation("node1", life),
        network=network,
        files=files,
        boot_id=boot_id,
        blocking=blocking,
    )
    config = BrokerConfig(
        node_id=OURSELVES,
        data_dir="/data",
        cluster={node: HostPort(f"node{node}", 7181) for node in (OURSELVES, SECOND, THIRD)},
        tail_cache_bytes=tail_cache_bytes,
        follower_cached_bytes=follower_cached_bytes,
    )
    directory = DataDirectory.open(files, "/data", OURSELVES, lambda: "a-directory")
    node = TappedNode(config, env, Membership(OURSELVES, directory, config.cluster, env))
    node.sent = []
    node.sent_batches = []
    node.full_links = set()
    node.connected = set()
    node.sent_to_peers = []
    opened = open_group(
        files,
        directory,
        OURSELVES,
        group_id,
        LogOptions(segment_bytes=segment_bytes),
        boot_number(boot_id),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        core = start_core(
            opened,
            Configuration(voters),
            options=RaftOptions(),
            draw=lambda: 0.0,
            now_ms=node.now_ms(),
        )
        group = Group(opened, core, node, "orders/0")
        node.add_group(group)
        yield Replica(node, group, files, env)
        nursery.cancel_scope.cancel()


def play(story: Callable[[], Awaitable[None]]) -> None:
    """Run one story in virtual time."""
    run_deterministic(story, seed=1, time_limit_s=600)


def let_peers_answer(
    monkeypatch: pytest.MonkeyPatch, node: Node, answer: Callable[[NodeId, AnyPeerMessage], bool]
) -> None:
    """All peers are there; whatever is sent to one of them is given to ``answer``, which says
    whether it was sent."""

    def send_peer(
        target: NodeId, message: AnyPeerMessage, buffers: tuple[Buffer, ...] = ()
    ) -> bool:
        return answer(target, message)

    monkeypatch.setattr(node, "send_peer", send_peer)
    monkeypatch.setattr(node, "is_up", lambda _: True)
