"""What was proposed to one leader: the queue, the judgement, and the answer to each.

A proposal waits in the queue until its group appends, and is judged only then, with all before
it placed in the partition's state: by the very log that it would follow.  The order of checks is
duplicate, fence, expected offset.  Placed, it waits for the commit; a duplicate waits for the
commit of its original.

Refusals are honest.  One that rests on the log's state is sent only once that state is beyond
doubt (``_refuse_honestly``), and one that leaves open what becomes of the batch says so by its
error.  Whatever happens, each proposer is told once.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from logd.errors import DiskFullError, LogdError, RequestTimeoutError, UnexpectedOffsetError
from logd.limits import MIB
from logd.replication.proposal import Outcome, Placed, Proposal
from logd.types import Offset

if TYPE_CHECKING:
    from collections.abc import Callable

    from logd.record.header import BatchHeader
    from logd.replication.group import Group
    from logd.replication.seams import ProposalSource
    from logd.storage.log import LogBatch
    from logd.types import Buffer

PROPOSALS_PER_FLUSH_MAX: Final = 512
"""Batches in one vectored write: bounds the time a flush holds the event loop."""

BYTES_PER_FLUSH_MAX: Final = 8 * MIB
"""The same bound in bytes; the last batch may pass it."""


class Proposals:
    """All proposals of one group that are not answered yet."""

    __slots__ = ("_group", "_waiting", "_waiting_elsewhere", "queued", "source")

    def __init__(self, group: Group) -> None:
        self._group = group
        self.source: ProposalSource | None = None
        """Asked for more whenever the group, as the leader, appends what has gathered."""
        self.queued: deque[Proposal] = deque()
        """Neither judged nor placed yet."""
        self._waiting: deque[Proposal] = deque()
        """Placed, in the order of the log."""
        self._waiting_elsewhere: list[Proposal] = []
        """Waiting for the commit of what another request appended."""

    def queue(self, proposal: Proposal) -> bool:
        """Let it wait for the next flush; whether nothing was under way that it could join."""
        is_alone = not self._waiting and not self.queued
        self.queued.append(proposal)
        return is_alone

    @property
    def has_more(self) -> bool:
        """There is something to append, queued here or not sealed yet."""
        return bool(self.queued) or (self.source is not None and self.source.has_proposals)

    @property
    def has_waiting(self) -> bool:
        """Somebody waits for an answer."""
        return bool(self._waiting or self._waiting_elsewhere or self.queued)

    # --- placing ------------------------------------------------------------------------------

    def ask_source(self) -> None:
        """Queue what the source seals now."""
        if self.source is not None:
            self.queued.extend(self.source.take_proposals())

    def place_queued(self, place: Callable[[Buffer, BatchHeader], LogBatch]) -> list[LogBatch]:
        """Judge what is queued, each with all before it placed; what is to be appended.

        Args:
            place: gives a batch its offsets, and notes it in the state.
        """
        batches: list[LogBatch] = []
        admitted: list[Proposal] = []
        size = 0
        for _ in range(min(len(self.queued), PROPOSALS_PER_FLUSH_MAX)):
            proposal = self.queued.popleft()
            if not self._group.make_room(size + proposal.header.size_bytes):
                self.queued.appendleft(proposal)
                self.refuse_queued(self.no_room())
                break
            if proposal.done is not None and self._admit(proposal):
                batches.append(place(proposal.batch, proposal.header))
                admitted.append(proposal)
                size += proposal.header.size_bytes
                if size >= BYTES_PER_FLUSH_MAX:
                    break
        for batch, proposal in zip(batches, admitted, strict=True):
            proposal.placed = Placed(
                batch.base_offset, batch.end_offset, batch.append_time_ms, duplicate=False
            )
            self._waiting.append(proposal)
        if self._group.failure is not None:  # Found out on the way: nothing of this is written.
            self.give_up_placed(self._group.leadership.lost)
            return []
        return batches

    def no_room(self) -> LogdError:
        """Why nothing was placed, where ``make_room`` has found none."""
        group = self._group
        if group.failure is not None:
            return group.leadership.not_leader()
        return DiskFullError(
            f"the disk of the broker that leads {group.name} has no room left: free some space"
        )

    def _admit(self, proposal: Proposal) -> bool:
        """Check a proposal against the state: duplicate, fence, expected offset, in order."""
        if proposal.header.is_control:
            return True  # Of this broker: whoever proposes it has judged it.
        group = self._group
        state = group.state
        try:
            duplicate = state.check_append(proposal.header, fence_required=group.fence_required)
            if duplicate is not None:
                proposal.placed = Placed(
                    Offset(duplicate.base_offset),
                    Offset(duplicate.end_offset),
                    duplicate.append_time_ms,
                    duplicate=True,
                )
                self._finish_when_committed(proposal)
                return False
            expected = proposal.expected_offset
            if expected is not None and not state.data_end <= expected <= state.end_offset:
                raise UnexpectedOffsetError(
                    f"expected_offset {expected} does not hold: the log ends at "
                    f"{state.end_offset}, its data at {state.data_end}",
                    log_end=state.end_offset,
                )
        except LogdError as error:
            self._refuse_honestly(proposal, error)
            return False
        return True

    # --- answering ----------------------------------------------------------------------------

    def _finish_when_committed(self, proposal: Proposal) -> None:
        """Answer now if it can be known what that rests on.

        What an earlier leader has committed may lie in the memory of a majority only, whatever the
        topic's options say by now.  This leader knows once it has committed something itself.
        """
        assert proposal.placed is not None
        group = self._group
        if proposal.placed.end_offset <= group.commit_offset and group.is_ready:
            proposal.finish(proposal.placed)
        else:
            self._waiting_elsewhere.append(proposal)
            group.flush_later()  # So that the node sees to those here whose time is up.

    def _refuse_honestly(self, proposal: Proposal, error: LogdError) -> None:
        """Refuse on the ground of the log's state only once that state is beyond doubt.

        An uncommitted tail may yet be replaced, and a deposed leader judges a log that is no
        longer the log.  So the judged end must be committed and leadership confirmed by a
        round begun after the request; otherwise the answer is NotLeader.
        """
        group = self._group
        judged_end = group.state.end_offset

        def confirmed(doubt: LogdError | None) -> None:
            if doubt is not None:
                proposal.finish(doubt)
                return
            judged = Proposal(b"", proposal.header, committed, deadline_ms=proposal.deadline_ms)
            judged.placed = Placed(judged_end, judged_end, 0, duplicate=False)
            self._finish_when_committed(judged)

        def committed(outcome: Outcome) -> None:
            proposal.finish(error if isinstance(outcome, Placed) else group.leadership.not_leader())

        group.leadership.confirm(confirmed)

    def finish_committed(self, commit_offset: Offset) -> None:
        """The commit offset has moved: answer what lies below it."""
        waiting = self._waiting
        while waiting:
            placed = waiting[0].placed
            assert placed is not None
            if placed.end_offset > commit_offset:
                break
            waiting.popleft().finish(placed)
        if self._waiting_elsewhere:
            self._finish_elsewhere(commit_offset)

    def _finish_elsewhere(self, commit_offset: Offset) -> None:
        still: list[Proposal] = []
        for proposal in self._waiting_elsewhere:
            assert proposal.placed is not None
            if proposal.placed.end_offset <= commit_offset:
                proposal.finish(proposal.placed)
            else:
                still.append(proposal)
        self._waiting_elsewhere = still

    def expire(self, now_ms: int) -> None:
        """Answer proposals whose time is up; those that are placed may still be committed."""
        group = self._group
        is_any_queued = any(proposal.deadline_ms <= now_ms for proposal in self.queued)
        for proposal in (*self._waiting, *self._waiting_elsewhere, *self.queued):
            if proposal.deadline_ms <= now_ms and proposal.done is not None:
                proposal.finish(
                    RequestTimeoutError(
                        f"{group.name} did not commit the batch in time: "
                        f"commit offset {group.commit_offset}, log end {group.log.end_offset}"
                    )
                )
        if is_any_queued:  # A group that waits for its disk takes none out for a long time.
            self.queued = deque(each for each in self.queued if each.done is not None)

    def give_up_placed(self, error: Callable[[], LogdError]) -> None:
        """This node leads no more: whoever waits for a commit does not learn of it here."""
        waiting = (*self._waiting, *self._waiting_elsewhere)
        self._waiting.clear()
        self._waiting_elsewhere.clear()
        for proposal in waiting:
            proposal.finish(error())

    def refuse_queued(self, error: LogdError) -> None:
        """Answer what was not judged."""
        proposals, self.queued = self.queued, deque()
        for proposal in proposals:
            proposal.finish(error)
