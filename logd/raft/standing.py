"""What a replica's word is worth: its vote, and what it acknowledges.

Two kinds of replica hold less than was once said in their name, and know it.  A *newcomer* is
empty, on a node whose earlier replica was removed; a *doubtful* replica vouched for what lay in
the memory of a machine that has rebooted since.  Either is caught up by a leader before it
counts again, the newcomer beyond where it was enrolled, the doubtful one up to where that
leader's log ended when it heard of it.

Whoever rests on memory first makes durable in which boot of its machine it does (``rests_on``);
only then it *vouches*: what it has written counts although it is not durable, because losing it
would not go unnoticed.  What it rests on follows what the group's options say, not at once: back
on the disk it rests on memory until all that it vouched for is durable.

``is_newcomer`` and ``rests_on`` are part of the hard state.  Invariants R16, R18; the argument is
in docs/raft.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logd.types import NO_OFFSET, Offset

if TYPE_CHECKING:
    from logd.raft.log_state import LogState
    from logd.raft.messages import HardState


class Standing:
    """What one replica's word is worth at present."""

    __slots__ = (
        "_in_memory",
        "_log",
        "_memory_end",
        "boot",
        "is_newcomer",
        "may_campaign",
        "rests_on",
    )

    def __init__(self, recovered: HardState, boot: int, log: LogState) -> None:
        self.is_newcomer = recovered.is_newcomer
        """It neither votes nor campaigns."""
        self.rests_on = recovered.rests_on
        """The boot in whose memory some of what it vouches for may lie; 0: the disk alone."""
        self.may_campaign = True
        """False: its node cannot write, or is stopping."""
        self.boot = boot
        """The present one; with 0 nothing ever rests on memory."""
        self._log = log
        self._in_memory = False
        self._memory_end = log.end
        """Durable below it, this replica rests on its disk alone, if its options say so."""

    @property
    def is_doubtful(self) -> bool:
        """It may have lost what it vouched for: the memory that it lay in is gone."""
        return self.rests_on not in (0, self.boot)

    @property
    def doubt(self) -> int:
        """The boot in which it found that it had; 0: it is whole."""
        return self.boot if self.is_doubtful else 0

    @property
    def vouches(self) -> bool:
        """What is written here counts although it is not durable: if it is lost, that is known."""
        return self._in_memory and self.rests_on == self.boot != 0

    def choose(self, *, in_memory: bool) -> None:
        """What the group's batches are to rest on from now on."""
        if self._in_memory and not in_memory:
            self._memory_end = self._log.end
        self._in_memory = in_memory
        self.rest_as_chosen()

    def rest_as_chosen(self) -> None:
        """Let ``rests_on`` follow what was chosen, as far as it may by now."""
        if self.is_doubtful:
            return
        if self._in_memory:
            self.rests_on = self.boot
        elif self.rests_on and self._log.synced_end >= self._memory_end:
            self.rests_on = 0

    def truncate(self, offset: Offset) -> None:
        """The log was cut at ``offset``."""
        self._memory_end = min(self._memory_end, offset)

    def catch_up(self, synced_end: Offset, enrolment: Offset, whole_end: Offset) -> None:
        """Durable below ``synced_end`` is what its leader has there too.

        Args:
            enrolment: where this leader enrolled it.
            whole_end: what the leader has said makes it whole; negative: nothing yet.
        """
        if synced_end > enrolment:
            # It has all that the replica before it had when it was removed, and some more.
            self.is_newcomer = False
        if self.is_doubtful and NO_OFFSET < whole_end <= synced_end:
            # R18: it has all that it may have vouched for, on the disk.
            self.become_whole()

    def become_whole(self) -> None:
        """What a doubtful replica vouches for from here on is here."""
        assert self.is_doubtful
        self.rests_on = self.boot if self._in_memory else 0
