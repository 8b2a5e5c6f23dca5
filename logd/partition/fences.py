"""The newest fencing token of each lock that has been used on a partition.

A lease can expire while its holder sleeps.  The holder therefore writes its fencing token
into each append, tokens grow with every grant, and the log refuses a token older than the
newest it has seen for that lock: whoever was replaced can write no more, without the log
knowing a clock or the lock service.

The table is bounded.  Forgetting a fence must not reopen the door that it shut, so the
largest token ever forgotten is kept as a floor: a fence that is not in the table is held
against that.  It may refuse a holder whose lease is that old and who never wrote here; he
gets the lock again and goes on.  It never admits one who was replaced.
"""

from __future__ import annotations

from collections import OrderedDict

from logd.errors import CorruptionError, FencedError
from logd.limits import FENCES_PER_PARTITION_MAX


class FenceTable:
    """Fence id → newest token, those raised or used last at the end."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[int, int] = OrderedDict()
        self._floor = 0

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def floor(self) -> int:
        """The largest token that was forgotten."""
        return self._floor

    def check(self, fence_id: int, token: int) -> None:
        """Refuse a token older than the newest known.  Changes nothing.

        Raises:
            FencedError: says which token is the newest.
        """
        newest = self._tokens.get(fence_id)
        if newest is None:
            if token < self._floor:
                raise FencedError(
                    f"token {token} of fence {fence_id} is older than fences that have been "
                    f"forgotten here (up to token {self._floor}): take the lock again"
                )
        elif token < newest:
            raise FencedError(f"fence {fence_id} stands at token {newest}, found {token}")

    def raise_to(self, fence_id: int, token: int) -> None:
        """The log now holds ``token``; nothing older may follow.  Never lowers a fence."""
        newest = self._tokens.get(fence_id)
        self._tokens[fence_id] = token if newest is None else max(token, newest)
        self._tokens.move_to_end(fence_id)
        if len(self._tokens) > FENCES_PER_PARTITION_MAX:
            _, forgotten = self._tokens.popitem(last=False)
            self._floor = max(self._floor, forgotten)

    def rows(self) -> list[tuple[int, int]]:
        """(fence id, token) for a checkpoint, unused longest first."""
        return list(self._tokens.items())

    @classmethod
    def from_rows(cls, rows: list[tuple[int, int]], floor: int) -> FenceTable:
        """The table that ``rows`` and ``floor`` were taken of.

        Raises:
            CorruptionError: the rows are not those of a table.
        """
        table = cls()
        table._tokens.update(rows)
        table._floor = floor
        if len(table) != len(rows) or len(rows) > FENCES_PER_PARTITION_MAX:
            raise CorruptionError(
                f"{len(rows)} fences in a checkpoint, expected at most "
                f"{FENCES_PER_PARTITION_MAX} and each once"
            )
        return table
