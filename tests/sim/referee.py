"""What no single broker can see: whether all of them together keep Raft's promises.

Held against every election and every commit as it happens, so that a broken promise ends the
run there and not at its end, if anybody notices then:

- a term has one leader, elected once;
- who is elected holds everything that was committed in earlier terms;
- whatever two replicas call committed at one offset is of one term, hence the same batches;
- what a leader calls committed is durable on a majority of those who replicate the group by its
  configuration, of the old and of the new ones while that changes;
- who is elected votes in its configuration, or in one that may still be the committed one;
- no replica stops for want of room, which is not what this simulated disk refuses a sync for.

It looks into the brokers by replacing methods of their groups for the time of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from logd.raft.messages import Role
from logd.raft.quorum import is_quorum
from logd.raft.term_history import TermHistory
from logd.replication.feeding import Feeder
from logd.replication.group import Group
from logd.storage.room import is_no_room
from logd.types import GroupId, NodeId, Offset, Term
from tests.sim.clock import HOST
from tests.sim.trace import Trace


class Committed:
    """The furthest that any replica of one group calls committed."""

    def __init__(self) -> None:
        self.end = Offset(0)
        self._terms = TermHistory()
        self._end_by_term: dict[Term, Offset] = {}
        """Term of a replica → how far it knew commits when it was in that term."""

    def note(self, group: Group) -> None:
        """A replica's commit offset has moved."""
        end, terms = group.commit_offset, group.core.term_history
        common = min(end, self.end)
        assert self._agrees_below(common, terms), (
            f"group {group.group_id}: at {common - 1} a batch of term {terms.term_at(common - 1)} "
            f"is called committed, and one of term {self._terms.term_at(common - 1)} was"
        )
        if end <= self.end:
            return
        self.end = end
        self._end_by_term[group.core.term] = end
        if terms.term_at(end - 1) != self._terms.last_term:
            rows = [(term, start) for term, start in terms.rows if start < end]
            # A log that was trimmed does not know the terms of what it let go.
            first_term, first_start = rows[0]
            older = [(t, at) for t, at in self._terms.rows if t < first_term and at < first_start]
            self._terms = TermHistory(older + rows)

    def check_leader(self, group: Group) -> None:
        """A leader was elected in its core's term."""
        core = group.core
        ends = [end for term, end in self._end_by_term.items() if term < core.term]
        end = max(ends, default=Offset(0))
        holds_all = core.log_end >= end and self._agrees_below(end, core.term_history)
        assert holds_all, (
            f"group {group.group_id}: the leader of term {core.term} has a log up to "
            f"{core.log_end} and not all that was committed up to {end}"
        )

    def _agrees_below(self, end: Offset, terms: TermHistory) -> bool:
        if end == 0:
            return True
        is_known_there = bool(terms.rows) and terms.rows[0][1] < end
        return not is_known_there or terms.term_at(end - 1) == self._terms.term_at(end - 1)


class Referee:
    """Watches all groups of one cluster."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._committed: dict[GroupId, Committed] = {}
        self._leaders: dict[tuple[GroupId, Term], str] = {}
        self._replicas: dict[tuple[GroupId, str], Group] = {}
        """The last that a host had, also of one that is down: its disk still holds it."""

        self._losses: dict[tuple[GroupId, str], str | None] = {}

    def _of(self, group: Group) -> Committed:
        return self._committed.setdefault(group.group_id, Committed())

    def elected(self, group: Group) -> None:
        if group.core.role is not Role.LEADER:
            return  # Elected, and deposed before it could be carried out.
        host, key = HOST.get(), (group.group_id, group.core.term)
        assert key not in self._leaders, (
            f"group {key[0]}: {host} was elected in term {key[1]}, as {self._leaders[key]} was"
        )
        self._leaders[key] = host
        if group.possible_loss not in (None, self._losses.get((group.group_id, host))):
            # It says itself that it begins again from what a majority without power has kept.
            self._losses[group.group_id, host] = group.possible_loss
            self._committed.pop(group.group_id, None)
        self._of(group).check_leader(group)
        core = group.core
        assert core._configurations.may_need(core.node, group.commit_offset), (
            f"group {key[0]}: {host} was elected, and has no vote in {core.configuration}"
        )

    def opened(self, group: Group) -> None:
        self._replicas[group.group_id, HOST.get()] = group

    def committed(self, group: Group) -> None:
        self._of(group).note(group)
        # What rests on memory is held against each new leader's log, and that is all: of a machine
        # that has just lost its memory the leader need not know yet.
        if group.is_leader and not group.rests_on_memory(group.commit_offset):
            self._check_quorum(group)

    def _check_quorum(self, group: Group) -> None:
        end, configuration = group.commit_offset, group.configuration

        def is_durable_on(node: NodeId) -> bool:
            replica = self._replicas.get((group.group_id, f"node{node}"))
            return replica is not None and replica.log.synced_end >= end

        assert is_quorum(configuration, is_durable_on), (
            f"group {group.group_id}: {HOST.get()} calls {end} committed, which is not durable on "
            f"a majority of {configuration}"
        )

    def failed(self, group: Group, error: BaseException) -> None:
        assert not is_no_room(error), (
            f"group {group.group_id}: the replica of {HOST.get()} stopped for want of room: {error}"
        )

    def fed_from_file(self, group: Group, follower: NodeId) -> None:
        self._trace.record(
            HOST.get(), "fed_from_file", group=group.group_id, follower=f"node{follower}"
        )

    @contextmanager
    def on_duty(self) -> Iterator[None]:
        """Watch whatever happens meanwhile."""
        watched: Any = Group
        feeder: Any = Feeder
        init = watched.__init__
        on_elected, on_commit = watched._on_elected, watched._on_commit
        on_failed = watched.fail
        send_found = feeder._send_found

        def open_it(group: Group, *parts: Any) -> None:
            init(group, *parts)
            self.opened(group)

        def elect(group: Group) -> None:
            self.elected(group)
            on_elected(group)

        def commit(group: Group, commit_offset: Offset) -> None:
            on_commit(group, commit_offset)
            self.committed(group)

        def fail(group: Group, error: BaseException) -> None:
            self.failed(group, error)
            on_failed(group, error)

        def send(feeder: Feeder, follower: NodeId, found: list[memoryview]) -> None:
            self.fed_from_file(feeder._group, follower)
            send_found(feeder, follower, found)

        watched.__init__ = open_it
        watched._on_elected, watched._on_commit = elect, commit
        watched.fail = fail
        feeder._send_found = send
        try:
            yield
        finally:
            watched.__init__ = init
            watched._on_elected, watched._on_commit = on_elected, on_commit
            watched.fail = on_failed
            feeder._send_found = send_found
