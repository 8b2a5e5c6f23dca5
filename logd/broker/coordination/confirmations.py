"""Rounds that confirm leadership, shared by all who wait for one.

A round serves those who came before it began: it proves that this broker still led after that.
Those who come while one is under way wait for the next, so there is one at a time, however many
ask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from logd.errors import LogdError

if TYPE_CHECKING:
    from logd.replication.group import Group

Confirmed = Callable[[LogdError | None], None]


class Confirmations:
    """Those of one group."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._waiting: list[Confirmed] = []
        self._is_under_way = False
        self.rounds = 0

    def add(self, then: Confirmed) -> None:
        """Call ``then`` once a round that begins from now on has confirmed, or could not."""
        self._waiting.append(then)
        if not self._is_under_way:
            self._begin()

    def _begin(self) -> None:
        served, self._waiting = self._waiting, []
        self._is_under_way = True
        self.rounds += 1

        def done(doubt: LogdError | None) -> None:
            self._is_under_way = False
            if self._waiting:
                self._begin()
            for then in served:
                then(doubt)

        self._group.leadership.confirm(done)
