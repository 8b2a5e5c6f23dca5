"""Whether this node leads a group, for those who have to be certain, and who does if not.

A node that leads by its own knowledge may have been deposed already.  Whoever has to be certain
asks for a round that begins after the question: peers that answer it have elected nobody else
by then.

Where leadership was handed over, those who come in that moment are not sent away to guess where
to go: they wait, for a short time, until the successor is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from logd.errors import LeadershipLostError, LogdError, NotLeaderError
from logd.raft.messages import ReadRequested

if TYPE_CHECKING:
    from collections.abc import Callable

    from logd.raft.core import RaftCore
    from logd.replication.group import Group
    from logd.replication.seams import GroupHost

SUCCESSOR_AWAITED_S: Final = 0.2
"""Who asks a leader that has just handed over is answered once its successor is known, or after
this time: sent away at once, they could only guess where to go."""


class Leadership:
    """What is known here of who leads one group."""

    __slots__ = (
        "_confirmations",
        "_core",
        "_group",
        "_handed_over",
        "_host",
        "_next_read_id",
        "awaits_successor",
    )

    def __init__(self, group: Group, host: GroupHost) -> None:
        self._group = group
        self._core: RaftCore = group.core
        self._host = host
        self._confirmations: dict[int, Callable[[LogdError | None], None]] = {}
        self._next_read_id = 1
        self.awaits_successor = False
        """Leadership was handed over, and it is not known yet that it was taken."""
        self._handed_over = 0
        """How often it was."""

    # --- being certain ------------------------------------------------------------------------

    def confirm(self, done: Callable[[LogdError | None], None]) -> None:
        """Call ``done(None)`` once a round begun now has confirmed that this node leads.

        ``done`` is told why not if it does not, or if too many wait for that already.
        """
        if not self._group.is_leader:
            done(self.not_leader())
            return
        read_id = self._next_read_id
        self._next_read_id += 1
        self._confirmations[read_id] = done
        refused = self._group.ask_when_free(lambda: self._group.post(ReadRequested(read_id)))
        if refused is not None:
            del self._confirmations[read_id]
            done(refused)

    async def confirmed(self) -> None:
        """Return once it is certain that this node leads now, so that what it knows to be
        committed is everything that was acknowledged before.

        Raises:
            NotLeaderError: it does not, or not any more.
            OverloadedError: its disk does not answer, and too many wait for that.
        """
        answers: list[LogdError | None] = []
        answered = trio.Event()

        def done(doubt: LogdError | None) -> None:
            answers.append(doubt)
            answered.set()

        self.confirm(done)
        await answered.wait()
        if answers[0] is not None:
            raise answers[0]

    def on_confirmed(self, read_id: int) -> None:
        """The round that was begun for this question is complete."""
        self._confirmations.pop(read_id)(None)

    def on_refuted(self, read_id: int) -> None:
        """This node stepped down before the round was complete."""
        self._confirmations.pop(read_id)(self.not_leader())

    # --- not leading --------------------------------------------------------------------------

    def not_leader(self) -> NotLeaderError:
        """For those who ask for what only the leader does: who that is, as far as is known."""
        leader, node = self._core.leader, self._host.node
        if leader == node:
            leader = None
        known = f"node {leader} does" if leader is not None else "no leader is known"
        return NotLeaderError(f"node {node} does not lead {self._group.name}: {known}", leader)

    def lost(self) -> LeadershipLostError:
        """For those whose batch was placed, and may yet be committed by another leader."""
        return LeadershipLostError(
            f"node {self._host.node} stopped leading {self._group.name} before the batch was "
            "committed"
        )

    def await_successor(self) -> None:
        """Leadership was handed over: its successor will be known in a moment."""
        self.awaits_successor = True
        self._handed_over += 1
        self._host.start_soon(self._await_successor, self._handed_over)

    async def _await_successor(self, handed_over: int) -> None:
        await trio.sleep(SUCCESSOR_AWAITED_S)
        # Of this time, not of a later one.  The term says nothing: a successor that is not elected
        # at once, or another one in its place, asks for votes in the next.
        if self.awaits_successor and self._handed_over == handed_over:
            self.end_wait()

    def end_wait(self) -> None:
        """Send away whoever has asked meanwhile: there is a leader, or none to be seen."""
        self.awaits_successor = False
        if not self._group.is_leader:
            self._group.send_away()

    def take_unanswered(self) -> list[Callable[[LogdError | None], None]]:
        """The replica stops: those whose question no round will answer any more."""
        self.awaits_successor = False
        confirmations, self._confirmations = self._confirmations, {}
        return list(confirmations.values())
