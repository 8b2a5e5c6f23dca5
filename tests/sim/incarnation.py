"""One life of a simulated node, from boot to crash, shared by all that was given to it.

A crash must look like ``kill -9``: nothing the dying process still does may have an effect.
Python runs ``finally:`` blocks on the way out, so the order is: the incarnation ends first,
from when on every call of its network, its files and its threads refuses; then its tasks are
cancelled.  ``Crashed`` is no ``Exception``, so that the broker's own handlers do not mistake
it for an error of the world.
"""

from __future__ import annotations

from dataclasses import dataclass


class Crashed(BaseException):
    """Raised in the face of code that outlived its node.  Only the simulator catches it."""


@dataclass(slots=True)
class Incarnation:
    """The ``number``-th life of ``host``; numbers start at 1 and never repeat."""

    host: str
    number: int
    is_alive: bool = True

    def __str__(self) -> str:
        return f"{self.host}#{self.number}"

    def end(self) -> None:
        """From now on nothing this incarnation does has an effect."""
        self.is_alive = False

    def require_alive(self) -> None:
        if not self.is_alive:
            raise Crashed(str(self))
