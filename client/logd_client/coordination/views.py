"""What is so, told anew after each change: a state that is read once and kept true by events.

Where events were missed, the state is read again instead.
"""

from __future__ import annotations

from types import TracebackType
from typing import ClassVar, Generic, Self, TypeVar

from logd.errors import UsageError
from logd.wire.coordination import Event
from logd_client.coordination.watches import GAP, Watch

T = TypeVar("T")


class View(Generic[T]):
    """The states after each change, the present one first.  Cancelled, it misses none."""

    _noun: ClassVar[str] = "view"

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._read_at = -1
        """The revision of the state that was read: earlier events are in it."""
        self._is_first_told = False
        self._has_missed = False
        """Events: the state is yet to be read again."""

    async def _read(self) -> bool:
        """Read the state and set ``_read_at``; whether it is worth telling."""
        raise NotImplementedError

    def _apply(self, event: Event) -> bool:
        """Take over a change; whether the state is worth telling."""
        raise NotImplementedError

    def _present(self) -> T:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        """Begin, with what is so now.  Raises as ``Watch``."""
        await self._watch.__aenter__()
        try:
            await self._read()
        except BaseException:
            await self._watch.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._watch.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if not self._is_first_told:
            self._is_first_told = True
            return self._present()
        while True:
            if self._has_missed:
                is_news = await self._read()
                self._has_missed = False  # Only now: cancelled, it is read the next time.
                if is_news:
                    return self._present()
            event = await self._watch.next()
            if event is None:
                raise StopAsyncIteration
            if event.change == GAP:
                self._has_missed = True
            elif event.revision > self._read_at and self._apply(event):
                return self._present()

    async def next(self) -> T:
        """The next state, for those who do not iterate.

        Raises:
            UsageError: it was closed.
        """
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise UsageError(f"the {self._noun} was closed") from None
