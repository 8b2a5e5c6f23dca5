"""Feeds a leader's followers: what each is sent next, from where, and on which lane.

A follower that keeps up is fed from memory, on the main lane.  One that needs what memory has let
go of is fed from the files, one request at a time, on the bulk lane, so that reading back an old
log holds up nobody's votes and appends.  It stays on a lane until nothing is under way to it,
because two lanes would overtake each other.  One behind the log's start is shipped state
(``shipping.py``).

How much may be under way the core says, follower by follower; a newcomer may be held to a budget
besides, whose owner refills it, until it votes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from logd.errors import CorruptionError, DiskFullError, LogdError, OffsetOutOfRangeError
from logd.limits import APPEND_BYTES_MAX, PEER_WINDOW_BYTES_MAX
from logd.raft.progress import ProgressState
from logd.raft.quorum import is_quorum
from logd.record.compacted import cut_gap
from logd.record.header import decode_header
from logd.replication.room_waits import when_there_is_room
from logd.types import NodeId, Offset
from logd.wording import named

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logd.raft.core import RaftCore
    from logd.replication.catch_up_budget import CatchUpBudget
    from logd.replication.group import Group
    from logd.replication.peer_protocol import Lane
    from logd.replication.seams import GroupHost
    from logd.types import Buffer


class _Range(NamedTuple):
    """Batches for an append request."""

    buffers: tuple[Buffer, ...]
    size_bytes: int
    end_offset: Offset


class Feeder:
    """The followers of one group, while this node leads it."""

    __slots__ = (
        "_budgets",
        "_catching_up",
        "_core",
        "_fed_from_file",
        "_group",
        "_host",
        "_lanes",
    )

    def __init__(self, group: Group, host: GroupHost) -> None:
        self._group = group
        self._core: RaftCore = group.core
        self._host = host
        self._catching_up: dict[NodeId, bool] = {}
        """Followers for whom the files are being read."""
        self._lanes: dict[NodeId, Lane] = {}
        self._fed_from_file: dict[NodeId, bool] = {}
        """Followers whose last batches were too old for memory."""
        self._budgets: dict[NodeId, CatchUpBudget] = {}

    # --- what is known of followers -----------------------------------------------------------

    def acknowledged_end(self, follower: NodeId) -> Offset | None:
        """Durable end of a follower's log; None until it has told this leader."""
        return self._core.progress(follower).match or None if self._core.is_leader else None

    def is_in_sync(self, follower: NodeId) -> bool:
        """The follower agrees and is fed from memory, so that it lacks at most what is on its
        way; or it lacks nothing, however it got there."""
        if not self._core.is_leader or follower in self._catching_up:
            return False
        progress = self._core.progress(follower)
        if progress.state is not ProgressState.PIPELINE:
            return False
        is_fed = follower not in self._fed_from_file and self.may_feed(follower)
        return is_fed or progress.match == self._group.log.end_offset

    # --- disks that are full --------------------------------------------------------------------

    def may_feed(self, follower: NodeId) -> bool:
        """Whether ``follower`` is sent what it lacks, although its disk may be full.

        A log that feeds a state machine goes on: it is trimmed behind the state, and what it says
        (that a topic is deleted, a lock released) is what makes room.  A log of records goes on
        only where it has to, and only if little is lacking: if there is no majority without this
        follower, so that what was under way when the disk filled up can still be committed, and
        what a leader begins its term with; or if the follower lacks a trim, which will make room.
        """
        full_disks, group = self._host.fitness.full_disks, self._group
        if follower not in full_disks or group.application is not None:
            return True
        match = self._core.progress(follower).match
        lacks_trim = match < group.state.trim.end_offset
        is_needed = lacks_trim or not self._is_majority(full_disks)
        return is_needed and group.log.bytes_from(match) <= PEER_WINDOW_BYTES_MAX

    def check_disks(self) -> None:
        """Raise DiskFullError while too few of those that are up have room for records."""
        full_disks = self._host.fitness.full_disks
        if not full_disks or not self._core.is_leader or self._is_majority(full_disks):
            return
        if self._is_majority(without={}):
            full = sorted(set(full_disks).intersection(self._group.configuration.voters))
            raise DiskFullError(
                f"{self._group.name} needs a majority of its replicas, and there is no room on "
                f"disk for more at {named('broker', full)}: free some space there"
            )

    def _is_majority(self, without: Mapping[NodeId, None]) -> bool:
        """Whether the voters that are up are one, but for those in ``without``."""
        core, ourselves = self._core, self._host.node
        return is_quorum(
            self._group.configuration,
            lambda node: node not in without and (node == ourselves or core.progress(node).is_up),
        )

    # --- what they are sent -------------------------------------------------------------------

    def begin_leading(self) -> None:
        """Nothing that was noted in an earlier term of this leader holds any more."""
        self._lanes.clear()
        self._fed_from_file.clear()

    def limit_catch_up(self, node: NodeId, budget: CatchUpBudget | None) -> None:
        """Feed ``node`` within ``budget``, whose owner refills it and says ``send_on``."""
        if budget is None:
            self._budgets.pop(node, None)
        else:
            self._budgets[node] = budget

    def send_on(self) -> None:
        """There may be room again for what was held back."""
        if not self._group.is_held and self._group.is_leader:
            self._send_between_steps()

    def _send_between_steps(self) -> None:
        """What is sent is sent again if it is never answered, also if no step follows that would
        see to that: a group may be idle from now on."""
        self.send()
        self._host.set_deadline(self._group, self._core.deadline_ms)

    def send(self) -> None:
        """Send each follower what it may be sent now."""
        ranges: dict[tuple[Offset, int], _Range] = {}
        for follower in self._core.sendable():
            while self._send_next(follower, ranges):
                pass

    def _send_next(self, follower: NodeId, ranges: dict[tuple[Offset, int], _Range]) -> bool:
        """Send the next range to one follower.

        Args:
            follower: one of ``sendable()``.
            ranges: what others were sent in the same turn, by start and bytes allowed: followers
                that keep up stand at the same offset.

        Returns:
            Whether there is more, which may not fit its window.
        """
        core, host, group = self._core, self._host, self._group
        start = core.next_offset(follower)
        end = group.log.end_offset
        window = core.window_bytes_left(follower)
        if start >= end or window <= 0 or follower in self._catching_up:
            return False
        if not self.may_feed(follower):
            return False
        lane = self._lanes.get(follower, "main")
        if not host.has_room(follower, lane):
            return False
        budget = self._budgets.get(follower)
        if budget is not None and not budget.allows(start) and self._is_learner(follower):
            return False
        bytes_max = min(window, APPEND_BYTES_MAX)
        found = ranges.get((start, bytes_max)) or self._read_cached(start, end, bytes_max)
        if found is None:
            if not host.has_room(follower, "bulk"):
                return False
            self._catching_up[follower] = True
            host.start_soon(self._send_from_file, follower, start, bytes_max)
            return False
        if lane == "bulk" and core.progress(follower).in_flight_bytes == 0:
            lane = self._lanes[follower] = "main"
        self._fed_from_file.pop(follower, None)
        ranges[start, bytes_max] = found
        request = core.make_append(follower, found.end_offset, found.size_bytes, host.now_ms())
        host.send(request, found.buffers, lane)
        if budget is not None:
            budget.spend(start, found.size_bytes)
        return found.end_offset < end

    def _read_cached(self, start: Offset, end: Offset, bytes_max: int) -> _Range | None:
        """What memory still has from ``start`` on."""
        group_id = self._group.group_id
        batches = self._host.tail_cache.read(group_id, start, end, bytes_max)
        if batches is None or batches[0].base_offset < start:
            # A gap that an earlier leader sent is cut where it is read from the file.
            return None
        return _Range(
            tuple([buffer for batch in batches for buffer in batch.buffers]),
            sum([batch.size_bytes for batch in batches]),
            batches[-1].end_offset,
        )

    def _is_learner(self, follower: NodeId) -> bool:
        """Only learners are held back: everybody waits for one that votes."""
        return follower in self._group.configuration.learners

    async def _send_from_file(self, follower: NodeId, start: Offset, bytes_max: int) -> None:
        """Read a follower's next range back from the log, and send it on the bulk lane."""
        group, core = self._group, self._core
        term = core.term
        found: list[memoryview] = []

        async def read() -> list[memoryview]:
            if not group.is_leader:
                return []
            return await group.reader.read_file(start, group.log.end_offset, bytes_max)

        try:
            found = await when_there_is_room(group.group_id, read)
        except OffsetOutOfRangeError:
            pass  # Cut off meanwhile, by the leader that came after.
        except CorruptionError:
            return  # Reported; the follower is served again when the hole has been filled.
        except (OSError, LogdError) as error:
            # A leader that cannot read its own log must not go on leading it.
            group.fail(error)
        finally:
            self._catching_up.pop(follower, None)
        if not group.is_leader:
            return
        with self._host.turn:
            if (
                found
                and core.term == term
                and follower in core.sendable()
                and core.next_offset(follower) == start
            ):
                self._send_found(follower, found)
            # Also if the follower stands elsewhere by now: nothing was sent to it meanwhile.
            self._send_between_steps()

    def _send_found(self, follower: NodeId, found: list[memoryview]) -> None:
        if self._core.progress(follower).in_flight_bytes == 0:
            self._lanes[follower] = "bulk"
        self._fed_from_file[follower] = True
        first, start = decode_header(found[0]), self._core.next_offset(follower)
        if first.base_offset < start:
            # The follower's log ends inside a gap that compaction left in ours.
            found[0] = memoryview(cut_gap(first, start, first.end_offset, self._group.group_id))
        size = sum(len(batch) for batch in found)
        last = decode_header(found[-1])
        request = self._core.make_append(
            follower, Offset(last.end_offset), size, self._host.now_ms()
        )
        self._host.send(request, tuple(found), self._lanes.get(follower, "main"))
        budget = self._budgets.get(follower)
        if budget is not None:
            budget.spend(start, size)

    def tell_commit(self) -> None:
        """Send followers that have nothing under way the commit offset they do not know."""
        group, core = self._group, self._core
        if not group.is_leader or group.is_held:
            return
        now_ms = self._host.now_ms()
        for follower in core.commit_lagging():
            request = core.make_append(follower, core.next_offset(follower), 0, now_ms)
            self._host.send(request, (), self._lanes.get(follower, "main"))
        self._host.set_deadline(group, core.deadline_ms)
