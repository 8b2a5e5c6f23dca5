"""One replica of one Raft group: the core, the log and the partition's state, joined.

A group is an actor without a task.  Whoever has news for it (a link that received a
message, the sync pool, the clock) calls it; it steps the core and carries the output out
there and then, in the order the output's fields state.  Nothing is handed from task to
task on the hot path, and an idle group costs nothing at all.

What blocks (hard state, truncation, a roll) cannot be done there and then.  While such a
piece is under way the group is *held*: news waits in a queue and is taken up afterwards, in
order.  One group waits for its disk; the event loop and all other groups go on.

Appends are grouped by themselves: proposals gather until the turn ends in which they came, or
the node's pump comes round, and all that gathered becomes one write, one step and one frame per
follower (``flush``).

What is here is the order of things: news is taken, the core is stepped, its output is carried
out, and the replica begins, leads, fails and ends.  What is done in each step is the matter of a
part with one job:

- ``proposals``: the queue, the judgement of each proposal, and its answer;
- ``leadership``: whether this node certainly leads, and who does if not;
- ``members``: who replicates the group, and how that is changed;
- ``feeder``: what each follower is sent next; ``shipping`` and ``intake``: what one is shipped that
  needs what was trimmed, and what it makes of it;
- ``appending``: places and writes batches, and notes them in the partition's state;
- ``syncer``, ``roller``, ``checkpoints``, ``upkeep``, ``reader``: what is done with the files.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Final, TypeVarTuple

import structlog
import trio

from logd.errors import (
    CorruptionError,
    LogdError,
    OverloadedError,
    UnavailableError,
)
from logd.limits import BATCHES_PER_CHECKPOINT
from logd.raft.core import RaftCore
from logd.raft.messages import (
    Appended,
    AppendRequest,
    BatchSpan,
    Configuration,
    DurabilityChosen,
    Event,
    HardState,
    Output,
    Received,
    Resign,
    Role,
    Tick,
)
from logd.record.control import Control, NoOp
from logd.record.header import decode_header
from logd.replication import log_events
from logd.replication.appending import CONTROL_BYTES_MAX, Appender
from logd.replication.checkpoints import Checkpoints
from logd.replication.counts import GroupCounts
from logd.replication.feeding import Feeder
from logd.replication.held_news import HELD_QUESTIONS_MAX, HeldNews
from logd.replication.leadership import Leadership
from logd.replication.log_reader import LogReader
from logd.replication.members import Members
from logd.replication.proposal import Outcome, Placed, Proposal
from logd.replication.proposals import Proposals
from logd.replication.received import ReceivedBatch, split_gaps
from logd.replication.rolling import Roller
from logd.replication.room_waits import ROOM_LOOK_S, when_there_is_room
from logd.replication.shipping import Shipper
from logd.replication.snapshot_intake import SnapshotIntake
from logd.replication.syncing import Syncer
from logd.replication.upkeep import Upkeep
from logd.storage.log import LogBatch
from logd.types import Buffer, GroupId, Offset, Term

if TYPE_CHECKING:
    from logd.partition.state import PartitionState
    from logd.replication.opening import OpenedGroup
    from logd.replication.seams import Application, GroupHost, Watcher
    from logd.storage.file_header import LogIdentity

Args = TypeVarTuple("Args")

log = structlog.get_logger(__name__)

DAMAGE_LOOK_S: Final = 1.0
"""A replica that waits for damage to be filled looks again after so long."""


class Group:
    """One replica.  All methods without ``async`` run to completion on the event loop."""

    def __init__(self, opened: OpenedGroup, core: RaftCore, host: GroupHost, name: str) -> None:
        self.group_id: GroupId = opened.group_id
        self.name = name
        """What people call it; the number of a group means nothing to them."""
        self.core = core
        self.log = opened.log
        self.state: PartitionState = opened.state
        self.application: Application | None = None
        self.counts = GroupCounts()
        self.fence_required = False
        """The topic refuses appends that carry no fencing token."""
        self._in_memory = False
        """By the topic's options, batches count once they are in memory."""
        self.trimmed_to = Offset(0)
        """By a committed command; the files follow when whole segments lie below it."""

        self.failure: BaseException | None = None
        self.damage: str | None = None
        """A hole that could not be filled yet, for people."""
        self.possible_loss: str | None = None
        """For people: the group was restarted from what was left, in this process."""
        self.let_go_elsewhere = Offset(0)
        """Below it a peer has trimmed its log: what is damaged here need not be repaired."""
        self.settled_to = Offset(0)
        """Below it the log has been compacted for as long as the topic keeps tombstones."""
        self.is_held = False
        """Something blocks: the core may be ahead of the log, and news waits."""
        self._blocked_since = math.inf
        """Since when what holds it waits for the disk; infinite while that waits for a repair."""
        self.is_closed = False
        """The files are."""
        self.io_lock = trio.Lock()
        """Held by whoever works on the files; in the order in which they asked."""

        self._opened = opened
        self._host = host
        self._commit_offset = core.commit_offset
        self._take_up_trim()
        self._held_news = HeldNews()
        self._watchers: dict[int, Watcher] = {}
        self._next_watcher = 0

        # The parts.  They know the group by its public names, and not one another by more.
        self.leadership = Leadership(self, host)
        self.proposals = Proposals(self)
        self.members = Members(self, host)
        self.feeder = Feeder(self, host)
        self.reader = LogReader(self, host)
        self.syncer = Syncer(self, host)
        self.checkpoints = Checkpoints(self, host, opened)
        self.upkeep = Upkeep(self, host)
        self.roller = Roller(self, host)
        self._appender = Appender(self, host)
        self._shipper = Shipper(self, host)
        self.intake = SnapshotIntake(self, host, opened)
        host.set_deadline(self, core.deadline_ms)

    # --- facts ----------------------------------------------------------------------------

    @property
    def commit_offset(self) -> Offset:
        """Below it the log *here* holds what was committed.

        Not the core's: that one is ahead while an output waits for the disk, and the log may
        still hold what is about to be truncated.
        """
        return self._commit_offset

    @property
    def log_start(self) -> Offset:
        """Readers see nothing below it."""
        return max(self.log.start_offset, self.trimmed_to)

    @property
    def is_leader(self) -> bool:
        return self.core.role is Role.LEADER and self.failure is None

    @property
    def takes_proposals(self) -> bool:
        """Leads, or will know in a moment who does."""
        return self.is_leader or self.leadership.awaits_successor

    @property
    def is_ready(self) -> bool:
        """Leads, and its no-op is committed: it may serve."""
        return self.failure is None and self.core.is_ready

    @property
    def committed_data_end(self) -> Offset:
        """End of the last data batch below the commit offset, as far as it is known."""
        return min(self.state.data_end, self.commit_offset)

    @property
    def configuration(self) -> Configuration:
        """Who replicates the group: the last change in the log here, committed or not."""
        return self.core.configuration

    def choose_durability(self, *, in_memory: bool) -> None:
        """What the topic's options say that an acknowledgement rests on, from now on."""
        if in_memory != self._in_memory:
            self._in_memory = in_memory
            self.post(DurabilityChosen(in_memory))

    def rests_on_memory(self, end_offset: Offset) -> bool:
        """Whether what was committed below ``end_offset`` may rest on a majority's memory."""
        return self.core.rests_on_memory(end_offset)

    def watch(self, watcher: Watcher) -> int:
        """Call ``watcher`` on each commit from now on; returns a key for ``unwatch``."""
        self._next_watcher += 1
        self._watchers[self._next_watcher] = watcher
        return self._next_watcher

    def unwatch(self, key: int) -> None:
        self._watchers.pop(key, None)

    # --- news -----------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Take news that carries no batches."""
        if self.failure is not None:
            return
        if not self.is_held:
            self._step(event, ())
        elif isinstance(event, Received):
            self._held_news.add_message(lambda: self._step(event, ()))
        else:
            self._held_news.add(event, lambda: self._step(event, ()))

    def tick(self) -> None:
        """Time has passed.  Who does not lead campaigns only if it could begin a term."""

        def step() -> None:
            if self.failure is None:
                has_room = self.is_leader or self.make_room(CONTROL_BYTES_MAX)
                self._step(Tick(has_room), ())

        self.when_free(Tick, step)

    def post_append(self, request: AppendRequest, batches: tuple[ReceivedBatch, ...]) -> None:
        """Take a leader's append request with its batches, already verified."""
        if self.failure is not None:
            return
        if self.is_held:
            self._held_news.add_message(lambda: self._take_append(request, batches))
        else:
            self._take_append(request, batches)

    def _take_append(self, request: AppendRequest, batches: tuple[ReceivedBatch, ...]) -> None:
        if request.start_offset < self.core.log_end:  # It overlaps what is here.
            batches = split_gaps(batches, self._end_of_term, self.group_id)
        if batches and not self._has_room_for(batches):
            return  # As if they had been lost on the way: they are sent again.
        self._step(Received(request, tuple(batch.span for batch in batches)), batches)

    def _has_room_for(self, batches: tuple[ReceivedBatch, ...]) -> bool:
        size = sum([batch.log_batch.size_bytes for batch in batches])
        return self.failure is None and self.make_room(size)

    def make_room(self, size_bytes: int) -> bool:
        """See that so many bytes can be appended; False: they cannot, and must not be tried."""
        try:
            has_room = self.log.make_room(size_bytes)
        except (OSError, LogdError) as error:
            self.fail(error)
            return False
        if not has_room:  # Others send no more, and lead what this node would have to refuse.
            self._host.fitness.note_disk(self._host.node, is_full=True)
        return has_room

    def _end_of_term(self, term: Term) -> Offset:
        return self.core.term_history.end_of_term(term, self.core.log_end)

    def propose(self, proposal: Proposal) -> None:
        """Queue a sealed batch; ``flush`` appends it.  Its ``done`` is called exactly once.

        With nothing under way there is nothing to group it with, and waiting for the pump
        would only delay it: it is appended at once.
        """
        if not self.is_leader:
            if self.leadership.awaits_successor:
                self.proposals.queue(proposal)
                self._host.mark_dirty(self)
            else:
                proposal.finish(self.leadership.not_leader())
            return
        if self.proposals.queue(proposal):
            self._host.flush_soon(self)
        else:
            self._host.mark_dirty(self)

    def flush_soon(self) -> None:
        """Append what the source has: now, or by the pump if something else is under way."""
        if self.is_leader:
            self._host.flush_soon(self)

    def flush_later(self) -> None:
        """Have the pump append what the source has gathered until then."""
        if self.is_leader:
            self._host.mark_dirty(self)

    async def commit(self, batch: Buffer, deadline_ms: int) -> Placed:
        """Have a sealed batch of this broker's own committed; says where it lies.

        Cancelled, it may still be committed.

        Raises:
            LogdError: it was not, or is not known to be.
        """
        settled = trio.Event()
        outcomes: list[Outcome] = []

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            settled.set()

        self.propose(Proposal(batch, decode_header(batch), done, deadline_ms=deadline_ms))
        await settled.wait()
        (outcome,) = outcomes
        if isinstance(outcome, LogdError):
            raise outcome
        return outcome

    def when_free(self, news: Hashable, step: Callable[[], None]) -> None:
        """Take ``step`` now, or if the group is held, after what waits; not the same news twice."""
        if self.is_held and self.failure is None:
            self._held_news.add(news, step)
        else:
            step()

    def ask_when_free(self, step: Callable[[], None]) -> LogdError | None:
        """Take ``step``, for somebody who waits for what comes of it, now or after what waits.

        Returns:
            Why not: the group has been held for long, and too many have asked.
        """
        if not self.is_held or self.failure is not None:
            step()
        elif not self._held_news.add_question(step):
            return OverloadedError(
                f"{self.name} waits for its disk, and {HELD_QUESTIONS_MAX} questions wait for that"
            )
        return None

    # --- one step ---------------------------------------------------------------------------

    def _step(self, event: Event, batches: tuple[ReceivedBatch, ...]) -> None:
        if self.failure is not None:
            return
        before = (self.core.leader, self.core.term)
        output = self.core.step(event, self._host.now_ms())
        if before != (self.core.leader, self.core.term):
            self.intake.on_leader_changed()
            self._host.leader_learnt(self)
            if self.leadership.awaits_successor and self.core.leader is not None:
                self.leadership.end_wait()
        for message in output.send_now:
            self._host.send(message)
        if output.persist is not None or output.truncate_to is not None or output.install_snapshot:
            # What is to be cut may have to be repaired first.
            self.hold(is_disk_asked=output.truncate_to is None)
            self._host.start_soon(self._block_then_finish, output, batches)
        else:
            self._finish(output, batches)

    def hold(self, *, is_disk_asked: bool) -> None:
        """Something is about to block: news waits until it is done."""
        self.is_held = True
        self._blocked_since = trio.current_time() if is_disk_asked else math.inf
        self._host.group_held(self)

    @property
    def disk_wait_s(self) -> float:
        """For how long it has waited for its disk, to go on or to have synced; 0 if it does not."""
        since = self.syncer.waiting_since
        if self.is_held:
            since = min(since, self._blocked_since)
        return max(0.0, trio.current_time() - since)

    def step_aside(self) -> None:
        """Let another replica lead: this one's disk does not answer, and nothing can be appended.

        If the group is held, then only while a segment is sealed.  Whatever else holds one, an
        output of the core waits to be carried out, and a leader has none that would block for long.
        """
        is_stuck = self.roller.is_rolling if self.is_held else self.syncer.is_disk_behind
        if is_stuck and self.is_leader:
            with self._host.turn:
                self._step(Resign(may_campaign=True), ())

    async def _block_then_finish(self, output: Output, batches: tuple[ReceivedBatch, ...]) -> None:
        """Carry out what blocks, then the rest, then the news that waited."""
        try:
            if output.truncate_to is not None:
                await self._until_whole_below(output.truncate_to)
                self._blocked_since = trio.current_time()
            if output.persist is not None:
                await self._when_there_is_room(self._persist, output.persist)
            if output.truncate_to is not None:
                await self._when_there_is_room(self._truncate, output.truncate_to)
            if output.truncate_to is not None and output.append_from is not None:
                await self._until_room_for(batches[output.append_from :])
            if output.install_snapshot:
                await self._when_there_is_room(self.intake.install)
        except (OSError, LogdError) as error:
            self.fail(error)
            return
        if self.failure is not None:
            return  # Stopped meanwhile: all who waited were told.
        self.is_held = False
        self.intake.forget()
        with self._host.turn:
            self._finish(output, batches)
            self._take_held_news()

    def release(self, news: Event) -> None:
        """What blocked is done, and this came of it: take it first, then what waited."""
        self.is_held = False
        self.post(news)
        self._take_held_news()

    def _take_held_news(self) -> None:
        while self._held_news and not self.is_held:
            self._held_news.take_up_next()
        if not self.is_held and self.proposals.has_more:
            self._host.mark_dirty(self)

    def _finish(self, output: Output, batches: tuple[ReceivedBatch, ...]) -> None:
        """Carry out an output whose blocking part is done."""
        if output.contradicted:
            self.fail(
                CorruptionError(
                    f"the leader of {self.name} differs from what was committed here: while this "
                    "replica was away, the partition lost the memory of a majority and was "
                    "restarted from what was left"
                )
            )
            return
        if output.append_from is not None and not self._append_received(
            batches[output.append_from :]
        ):
            return
        for message in output.send_after_persist:
            self._host.send(message)
        if output.lost_leadership and not output.left_out:
            self._on_leadership_lost(output)
        if output.restarted:
            self._on_restarted()
        if output.became_leader:
            self._on_elected()
        if output.commit_offset is not None:
            self._on_commit(output.commit_offset)
            due = self.core.configuration_due
            if due is not None:
                self.members.append(due)
        if output.taken_back is not None:
            self.members.take_back(output.taken_back)
        if self.failure is not None:
            return  # Met by what was appended: all who waited were told.
        if output.left_out:
            self._on_leadership_lost(output)
        for read_id, offset in output.reads_confirmed:
            assert offset <= self.commit_offset
            self.leadership.on_confirmed(read_id)
        for read_id in output.reads_failed:
            self.leadership.on_refuted(read_id)
        if self.core.role is Role.LEADER:
            self.feeder.send()
            if output.snapshot_wanted is not None:
                self._shipper.ship_soon(output.snapshot_wanted)
            if self.core.commit_lagging():
                self._host.commit_notices.tell_later(self)
            if self.proposals.has_more and not self.core.is_transferring:
                self._host.mark_dirty(self)
        self.checkpoints.save_due()
        self._host.set_deadline(self, self.core.deadline_ms)

    async def _when_there_is_room(
        self, change: Callable[[*Args], Awaitable[None]], *args: *Args
    ) -> None:
        """Change the files, unless the group has failed by then."""

        async def change_if_running() -> None:
            async with self.io_lock:
                if self.failure is None:
                    await change(*args)

        await when_there_is_room(self.group_id, change_if_running)

    async def _persist(self, hard_state: HardState) -> None:
        file = self._opened.hard_state
        saving = file.begin_save(
            hard_state.term,
            hard_state.voted_for,
            is_newcomer=hard_state.is_newcomer,
            rests_on=hard_state.rests_on,
        )
        try:
            await self._host.env.sync_file(saving.file)
        except OSError as error:
            raise file.fail_save(error) from error
        finally:
            saving.file.close()
        file.finish_save(saving)

    async def _until_whole_below(self, offset: Offset) -> None:
        """Wait until what a cut at ``offset`` leaves can be replayed.

        Damage in it is reported, and filled meanwhile by whoever repairs; nothing is cut before,
        so that log and state go on fitting each other.
        """

        async def check() -> None:
            if self.failure is None:
                await self._host.env.run_blocking(self._opened.check_replay, offset)

        is_reported = False
        while self.failure is None:
            # Looking means to read much: not again before whoever repairs says that it is whole.
            if not is_reported or self.damage is None:
                try:
                    await when_there_is_room(self.group_id, check)
                except CorruptionError:
                    self._host.damage_met(self)
                    is_reported = True
                else:
                    return
            await trio.sleep(DAMAGE_LOOK_S)

    async def _truncate(self, offset: Offset) -> None:
        """Cut the log, and take back from the derived state what was cut."""
        assert offset >= self._commit_offset
        end = self.log.end_offset
        self._host.tail_cache.forget(self.group_id)
        self.checkpoints.forget_above(offset)
        await self._host.env.run_blocking(self.log.truncate, offset)
        if end > offset:  # Else it has been cut, and only its state could not be read.
            log.info(log_events.LOG_TRUNCATED, group=self.group_id, start=offset, end=end)
        self.state = await self._host.env.run_blocking(self._opened.replay_state)
        self.members.introduce()

    async def _until_room_for(self, batches: tuple[ReceivedBatch, ...]) -> None:
        """Wait until there is room for what the core has taken in place of what was cut.

        There was before, but a cut gives back what was reserved, and others may have taken it.
        """
        was_told = False
        while not self._has_room_for(batches) and self.failure is None:
            if not was_told:
                reason = f"no room in {self.directory} for what takes the place of what was cut"
                log.error(log_events.NO_ROOM, group=self.group_id, reason=reason)
            was_told = True
            await trio.sleep(ROOM_LOOK_S)

    # --- following ----------------------------------------------------------------------------

    def _append_received(self, batches: tuple[ReceivedBatch, ...]) -> bool:
        """Write a leader's batches; False if the log failed."""
        if not batches:
            return True
        if not self._appender.write_received(batches):
            return False
        self._after_append()
        return True

    def _after_append(self) -> None:
        """Roll and checkpoint when due."""
        if self.checkpoints.batches_since >= BATCHES_PER_CHECKPOINT:
            self.checkpoints.take_now()
        if self.log.needs_roll:
            self.roller.roll_soon()

    # --- leading ------------------------------------------------------------------------------

    def _on_elected(self) -> None:
        if self.state.end_offset != self.log.end_offset:
            # Only after a majority has lost its memory: what it was shipped counted on theirs.
            self.fail(
                CorruptionError(
                    f"{self.name}: the log ends at {self.log.end_offset}, before the state that "
                    f"this replica was shipped, at {self.state.end_offset}: what lies between "
                    "was lost, and another replica has to lead"
                )
            )
            return
        log.info(
            log_events.LEADER_ELECTED,
            group=self.group_id,
            term=self.core.term,
            log_end=self.log.end_offset,
        )
        self._appender.begin_leading()
        self.feeder.begin_leading()
        self.counts.elections_won += 1
        self._host.leadership_changed(self)
        self.append_control(NoOp())

    def _on_restarted(self) -> None:
        """A majority has lost its memory: this log, the longest there is, goes on."""
        self.possible_loss = (
            f"{self.name} was restarted from offset {self.log.end_offset}: a majority of its "
            "replicas had lost power, and records acknowledged as replicated may be lost"
        )
        self.counts.restarts_with_loss += 1
        log.error(
            log_events.RESTARTED_WITH_LOSS,
            group=self.group_id,
            partition=self.name,
            term=self.core.term,
            log_end=self.log.end_offset,
        )

    def _on_leadership_lost(self, output: Output) -> None:
        log.info(log_events.LEADERSHIP_LOST, group=self.group_id, term=self.core.term)
        self.counts.leaderships_lost += 1
        if output.handed_over and self.core.leader is None:
            self.leadership.await_successor()
        self._host.leadership_changed(self)
        self._end_leading()

    def _end_leading(self) -> None:
        """Answer those who wait for a commit, and tell those who follow the leader."""
        self._appender.end_leading()
        self.proposals.give_up_placed(self.leadership.lost)
        self.members.give_up()
        if not self.leadership.awaits_successor:
            self.send_away()

    def send_away(self) -> None:
        """Tell whoever waits for this node to lead that it does not."""
        self.proposals.refuse_queued(self.leadership.not_leader())
        for watcher in list(self._watchers.values()):
            watcher.on_leadership_lost()

    def _stop(self) -> None:
        """This replica takes no more news: whoever waits for any is answered now.

        Whether it still led does not matter.  It may have stepped down in an output that
        will never be carried out, and then nobody has been told yet.
        """
        assert self.failure is not None
        unanswered = self.leadership.take_unanswered()
        self._end_leading()
        for answer in unanswered:
            answer(self.leadership.not_leader())
        self._held_news.clear()
        self.intake.stop()
        self.checkpoints.forget()
        self._host.set_deadline(self, None)

    def flush(self) -> None:
        """Append all proposals that have gathered.  Called by the node's pump."""
        if self.is_held or self.failure is not None:
            return
        if not self.is_leader:
            if not self.leadership.awaits_successor:
                self.proposals.refuse_queued(self.leadership.not_leader())
            return
        if self.syncer.is_disk_behind or self.core.is_transferring:
            # While leadership is handed over nothing is added, or the successor never catches up.
            self.feeder.send_on()
            return
        proposals = self.proposals
        proposals.ask_source()
        if not proposals.queued:
            self.feeder.send_on()
            return
        batches = proposals.place_queued(self._appender.place)
        if proposals.queued:
            self._host.mark_dirty(self)
        if batches:
            self._append_own(batches)

    def append_control(self, control: Control, configuration: Configuration | None = None) -> None:
        """Append a control batch of this leader's own; as ``_append_own``.

        Without room for so much this node cannot lead: it lets go.
        """
        if not self.make_room(CONTROL_BYTES_MAX):
            self._host.start_soon(self._resign)
            return
        self._append_own([self._appender.place_control(control)], configuration)

    async def _resign(self) -> None:
        with self._host.turn:
            self.post(Resign(may_campaign=True))

    def _append_own(
        self, batches: list[LogBatch], configuration: Configuration | None = None
    ) -> None:
        """Append what was placed: one write, one step, one frame per follower.

        Args:
            configuration: what the first batch puts in force, if it does.
        """
        if not self._appender.write_placed(batches):
            return
        spans = tuple(BatchSpan(b.base_offset, b.end_offset, b.term) for b in batches)
        self._step(Appended(spans, is_configuration=configuration is not None), ())
        if configuration is not None and self.failure is None:
            self.members.put_in_force(batches[0].base_offset, configuration)
        self._after_append()

    # --- commit -------------------------------------------------------------------------------

    def _on_commit(self, commit_offset: Offset) -> None:
        assert self._commit_offset <= commit_offset <= self.log.end_offset
        self._commit_offset = commit_offset
        self._take_up_trim()
        self._appender.count_commits(commit_offset)
        self.proposals.finish_committed(commit_offset)
        self.members.settle_committed()
        for watcher in list(self._watchers.values()):
            watcher.on_commit(commit_offset)

    def _take_up_trim(self) -> None:
        """A trim holds from its commit on."""
        start, end = self.state.trim
        if start > self.trimmed_to and end <= self._commit_offset:
            self.trimmed_to = start

    # --- disk ---------------------------------------------------------------------------------

    @property
    def directory(self) -> str:
        """Where its files lie."""
        return self._opened.directory

    @property
    def identity(self) -> LogIdentity:
        """What its files are stamped with."""
        return self._opened.identity

    def fail(self, error: BaseException) -> None:
        """This replica's disk cannot be trusted any more: stop it, and say so.

        Nothing is retried: after a failed sync the next one succeeds although the data is
        gone.  A restart recovers from what is really there.
        """
        if self.failure is not None:
            return
        log.error(log_events.GROUP_FAILED, group=self.group_id, error=str(error))
        # Nothing comes of this output: what it says about others, they learn from the claims.
        self.core.step(Resign(may_campaign=False), self._host.now_ms())
        self.failure = error
        self._stop()
        if self._opened.hard_state.rests_on == self._opened.boot != 0:
            self._host.start_soon(self._note_lost_memory)
        self._host.group_failed(self, error)

    async def _note_lost_memory(self) -> None:
        """What was written may be gone although the machine runs on: say so to the next start."""
        try:
            async with self.io_lock:
                if not self.is_closed:
                    await self._host.env.run_blocking(
                        self._opened.hard_state.lose_memory, self._opened.boot
                    )
        except (OSError, LogdError) as error:
            log.error(log_events.LOST_MEMORY_NOT_NOTED, group=self.group_id, reason=str(error))

    async def close(self) -> None:
        """Stop: sync what is appended, and close the files.  The group is of no further use.

        Does not raise: a disk that fails now says so in the log, and has nothing to undo.
        """
        close = self._sync_and_close if self.failure is None else self._close_files
        if self.failure is None:
            self.failure = UnavailableError(f"the replica of {self.name} is closing")
            self._stop()
        async with self.io_lock:
            self.is_closed = True
            try:
                await self._host.env.run_blocking(close)
            except (OSError, LogdError) as error:
                log.error(log_events.GROUP_FAILED, group=self.group_id, error=str(error))

    def _sync_and_close(self) -> None:
        try:
            if self.log.failure is None and self.log.is_open:
                self.log.sync(self.commit_offset)
                self.log.sync_mark(self.commit_offset)
                self._opened.hard_state.rest_on_disk(self._opened.boot)
        finally:
            self._close_files()

    def _close_files(self) -> None:
        """What still rests on memory by now, rests on that of a log that has failed."""
        try:
            self._opened.hard_state.lose_memory(self._opened.boot)
        finally:
            self._opened.close()
