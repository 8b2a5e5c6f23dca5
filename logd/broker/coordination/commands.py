"""Commands on their way into the log: gathered, packed into batches, and answered.

Group commit, twice over.  While batches are under way commands gather, and what has gathered
goes out as one batch: its header, its write, its sync and its round over the followers are paid
once for hundreds of commands.  A command that is alone goes out at once.

Few batches are under way at a time.  More would only make each smaller; fewer would leave the
disk idle while the answers to the last batch are written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from logd.errors import LogdError, RequestTimeoutError
from logd.limits import (
    COORDINATION_BATCH_BYTES_MAX,
    COORDINATION_BATCHES_IN_FLIGHT_MAX,
    COORDINATION_ENTRIES_PER_BATCH_MAX,
)
from logd.record.batch import seal_entries
from logd.record.header import decode_header
from logd.replication.proposal import Outcome, Placed, Proposal
from logd.types import Offset
from logd.wire.coordination import Entry, Result

ENTRY_OVERHEAD_BYTES: Final = 64
"""More than what an entry has around its command, besides the names in it."""

NEVER_MS: Final = 2**62
"""The deadline of a batch: those who wait for its commands each have their own."""

_ENCODER: Final = msgspec.msgpack.Encoder()

Answer = Callable[[Result | LogdError], None]


class PendingCommand:
    """One command that is not answered yet."""

    __slots__ = ("answer", "deadline_ms", "entry", "size_bytes")

    def __init__(self, entry: Entry, size_bytes: int, deadline_ms: int, answer: Answer) -> None:
        self.entry = entry
        self.size_bytes = size_bytes
        self.deadline_ms = deadline_ms
        self.answer: Answer | None = answer

    def finish(self, outcome: Result | LogdError) -> None:
        """Tell whoever waits, once."""
        answer, self.answer = self.answer, None
        if answer is not None:
            answer(outcome)


class Flight:
    """One batch that was proposed, and is not applied yet."""

    __slots__ = ("commands",)

    def __init__(self, commands: list[PendingCommand]) -> None:
        self.commands = commands

    def fail(self, error: LogdError) -> None:
        for command in self.commands:
            command.finish(error)


class CommandQueue:
    """The commands of one partition.  A group's ``ProposalSource``."""

    def __init__(self) -> None:
        self._gathered: deque[PendingCommand] = deque()
        self._in_flight: dict[Flight, None] = {}
        self._placed: dict[Offset, Flight] = {}
        """Committed, and about to be applied."""
        self._is_flush_wanted = False

    def __len__(self) -> int:
        """Commands that are not answered, about: those that timed out are among them."""
        return len(self._gathered) + sum(len(flight.commands) for flight in self._in_flight)

    @property
    def is_idle(self) -> bool:
        """Nothing is under way: the next command need not wait for others."""
        return not self._gathered and not self._in_flight

    def add(self, command: PendingCommand) -> None:
        self._gathered.append(command)

    # --- into the log ---------------------------------------------------------------------------

    @property
    def has_proposals(self) -> bool:
        return bool(self._gathered) and len(self._in_flight) < COORDINATION_BATCHES_IN_FLIGHT_MAX

    @property
    def wants_flush(self) -> bool:
        """There is something to propose, and the group has not been told: once is enough."""
        if self._is_flush_wanted or not self.has_proposals:
            return False
        self._is_flush_wanted = True
        return True

    def take_proposals(self) -> list[Proposal]:
        """What has gathered, as batches, as far as more may be under way."""
        self._is_flush_wanted = False
        proposals = []
        while self.has_proposals:
            commands = self._take_some()
            if commands:
                proposals.append(self._propose(commands))
        return proposals

    def _take_some(self) -> list[PendingCommand]:
        gathered = self._gathered
        taken: list[PendingCommand] = []
        size = 0
        while gathered and len(taken) < COORDINATION_ENTRIES_PER_BATCH_MAX:
            size += gathered[0].size_bytes
            if taken and size > COORDINATION_BATCH_BYTES_MAX:
                break
            command = gathered.popleft()
            if command.answer is not None:  # Else its time was up before its turn came.
                taken.append(command)
        return taken

    def _propose(self, commands: list[PendingCommand]) -> Proposal:
        flight = Flight(commands)
        self._in_flight[flight] = None
        entries = [command.entry for command in commands]
        batch = seal_entries(
            _ENCODER.encode(entries), count=len(entries), timestamp_ms=entries[-1].time_ms
        )

        def done(outcome: Outcome) -> None:
            if isinstance(outcome, Placed):
                self._placed[outcome.base_offset] = flight
            else:
                del self._in_flight[flight]
                flight.fail(outcome)

        return Proposal(batch, decode_header(batch), done, deadline_ms=NEVER_MS)

    # --- out of it ------------------------------------------------------------------------------

    def placed_at(self, base_offset: Offset) -> Flight | None:
        """Our own batch at this offset, if it is one that somebody waits for."""
        flight = self._placed.pop(base_offset, None)
        if flight is not None:
            del self._in_flight[flight]
        return flight

    def refuse_gathered(self, error: LogdError) -> None:
        """None of what has gathered will be proposed."""
        self._is_flush_wanted = False
        gathered, self._gathered = self._gathered, deque()
        for command in gathered:
            command.finish(error)

    def forget_placed(self, error: LogdError) -> None:
        """Committed, but what they came to will not be known here."""
        placed, self._placed = self._placed, {}
        for flight in placed.values():
            del self._in_flight[flight]
            flight.fail(error)

    def expire(self, now_ms: int) -> None:
        """Answer those whose time is up; what was proposed may still be committed."""
        for command in self._gathered:
            _expire(command, now_ms)
        for flight in self._in_flight:
            for command in flight.commands:
                _expire(command, now_ms)


def _expire(command: PendingCommand, now_ms: int) -> None:
    if command.answer is not None and command.deadline_ms <= now_ms:
        command.finish(RequestTimeoutError("the command was not committed in time"))
