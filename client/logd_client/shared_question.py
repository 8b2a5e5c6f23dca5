"""What many tasks want to know at the same time is asked once.

A thousand partitions that lose their leaders at once all want to know who leads now, again and
again until there are leaders.  Each answer describes all of them, and costs whoever gives it and
whoever takes it milliseconds, just when brokers have the most to do.  So those who ask while a
question is under way share its answer; and after an answer nobody is asked for a few times as
long as it took, so that a small cluster is asked at once and a large one not all the time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import anyio

T = TypeVar("T")

REST_FACTOR: Final = 4
"""So many times as long as an answer took nobody is asked: asking takes a fifth of the time."""

REST_S_MAX: Final = 0.05
"""Nobody waits longer than this for asking again, however long an answer took."""


class SharedQuestion(Generic[T]):
    """One question, asked by many tasks."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """
        Args:
            clock: monotonic seconds, in step with anyio's timeouts.
        """
        self._clock = clock
        self._asking = anyio.Lock()
        self._rests_until = 0.0
        self.answers = 0
        """How often it has been answered."""
        self._last: T | None = None

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """The answer to a question that was open when this was called, whoever has put it.

        Cancelled, others who wait for the same answer ask themselves.

        Raises what ``question`` raises: a failure is not shared, whoever waits tries again.
        """
        seen = self.answers
        async with self._asking:
            if self.answers == seen:
                rest_s = self._rests_until - self._clock()
                if rest_s > 0:
                    await anyio.sleep(rest_s)
                began = self._clock()
                self._last = await question()
                took_s = self._clock() - began
                self._rests_until = began + took_s + min(REST_FACTOR * took_s, REST_S_MAX)
                self.answers += 1
        assert self._last is not None
        return self._last
