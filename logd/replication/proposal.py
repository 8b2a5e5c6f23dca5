"""A batch on its way to being committed, and what may come of it.

What comes of it is one of two: where it was placed, or an error that says what the proposer may
conclude.  ``LeadershipLostError`` and ``RequestTimeoutError`` leave open whether the batch will
be committed; all the others say for certain that it was not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from logd.errors import LogdError
from logd.types import Buffer, Offset

if TYPE_CHECKING:
    from logd.record.header import BatchHeader


class Placed:
    """Where a proposal was committed: the success half of an ``Outcome``."""

    __slots__ = ("append_time_ms", "base_offset", "duplicate", "end_offset")

    def __init__(
        self, base_offset: Offset, end_offset: Offset, append_time_ms: int, duplicate: bool
    ) -> None:
        self.base_offset = base_offset
        self.end_offset = end_offset
        self.append_time_ms = append_time_ms
        self.duplicate = duplicate


Outcome = Placed | LogdError


class Proposal:
    """A sealed batch on its way to being committed, and whom to tell."""

    __slots__ = ("batch", "deadline_ms", "done", "expected_offset", "header", "placed")

    def __init__(
        self,
        batch: Buffer,
        header: BatchHeader,
        done: Callable[[Outcome], None],
        *,
        deadline_ms: int,
        expected_offset: int | None = None,
    ) -> None:
        self.batch = batch
        self.header = header
        self.done: Callable[[Outcome], None] | None = done
        self.deadline_ms = deadline_ms
        self.expected_offset = expected_offset
        self.placed: Placed | None = None

    def finish(self, outcome: Outcome) -> None:
        """Tell the proposer, once."""
        done, self.done = self.done, None
        self.batch = b""  # The log has it, or never will; nobody counts it any more.
        if done is not None:
            done(outcome)
