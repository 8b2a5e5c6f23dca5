"""The newest fencing token of each lock that has been used on a partition.

A lease can expire while its holder sleeps.  The holder therefore writes its fencing token
into each append, tokens grow with every grant, and the log refuses a token older than the
newest it has seen for that lock: whoever was replaced can write no more, without the log
knowing a clock or the lock service.

The table is bounded.  Forgetting a fence must not reopen the door that it shut, so the
largest token ever forgotten is kept as a floor: a fence that is not in the table is held
against that.  It may refuse a holder whose lease is that old and who never wrote here; he
gets the lock again and goes on.  It never admits one who was replaced.

There is a floor for each value of the lowest byte of a fence id, which stands for namespaces that
live in one partition of the coordination log: only within that do later grants have larger tokens,
and so only within that does getting the lock again help.
"""

from __future__ import annotations

from collections import OrderedDict

from logd.errors import CorruptionError, FencedError
from logd.limits import FENCE_CLASSES, FENCES_PER_PARTITION_MAX


class FenceTable:
    """Fence id → newest token, those raised or used last at the end."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[int, int] = OrderedDict()
        self._floors: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def floors(self) -> list[tuple[int, int]]:
        """(lowest byte of fence ids, the largest token of such that was forgotten), in order."""
        return sorted(self._floors.items())

    def check(self, fence_id: int, token: int) -> None:
        """Refuse a token older than the newest known.  Changes nothing.

        Raises:
            FencedError: says which token is the newest.
        """
        newest = self._tokens.get(fence_id)
        if newest is None:
            floor = self._floors.get(fence_id % FENCE_CLASSES, 0)
            if token < floor:
                raise FencedError(
                    f"token {token} of fence {fence_id} is older than fences that have been "
                    f"forgotten here (up to token {floor}): take the lock again"
                )
        elif token < newest:
            raise FencedError(f"fence {fence_id} stands at token {newest}, found {token}")

    def raise_to(self, fence_id: int, token: int) -> None:
        """The log now holds ``token``; nothing older may follow.  Never lowers a fence."""
        newest = self._tokens.get(fence_id)
        self._tokens[fence_id] = token if newest is None else max(token, newest)
        self._tokens.move_to_end(fence_id)
        if len(self._tokens) > FENCES_PER_PARTITION_MAX:
            forgotten_id, forgotten = self._tokens.popitem(last=False)
            of_class = forgotten_id % FENCE_CLASSES
            self._floors[of_class] = max(self._floors.get(of_class, 0), forgotten)

    def rows(self) -> list[tuple[int, int]]:
        """(fence id, token) for a checkpoint, unused longest first."""
        return list(self._tokens.items())

    @staticmethod
    def floors_of(floor: int) -> list[tuple[int, int]]:
        """The floors of a table of which the largest one only is known."""
        return [(number, floor) for number in range(FENCE_CLASSES)] if floor else []

    @classmethod
    def from_rows(cls, rows: list[tuple[int, int]], floors: list[tuple[int, int]]) -> FenceTable:
        """The table that ``rows`` and ``floors`` were taken of.

        Raises:
            CorruptionError: they are not those of a table.
        """
        table = cls()
        table._tokens.update(rows)
        table._floors.update(floors)
        if len(table) != len(rows) or len(rows) > FENCES_PER_PARTITION_MAX:
            raise CorruptionError(
                f"{len(rows)} fences in a checkpoint, expected at most "
                f"{FENCES_PER_PARTITION_MAX} and each once"
            )
        if len(table._floors) != len(floors) or not all(0 <= n < FENCE_CLASSES for n, _ in floors):
            raise CorruptionError(
                f"{len(floors)} floors in a checkpoint, expected one for each class of fences at "
                f"most, of 0 to {FENCE_CLASSES - 1}"
            )
        return table
