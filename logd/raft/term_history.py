"""Which term is an offset of?  Answered without reading the log.

A leader appends one run of offsets per term, so the terms of a whole log are a short table:
one row (term, first offset) per election that led to a batch.  The table resolves a
divergence of two logs in about one round trip (as KRaft's leader epoch cache and osiris'
epoch chunks do), where the paper steps back one entry at a time.

Trimming the log keeps the row of the batch *before* the new start: a request that begins at
the start still has to name the term of its predecessor.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from logd.types import Offset, Term


class TermHistory:
    """Rows of (term, first offset), strictly increasing in both columns."""

    __slots__ = ("_starts", "_terms")

    def __init__(self, rows: Iterable[tuple[Term, Offset]] = ()) -> None:
        self._terms: list[Term] = []
        self._starts: list[Offset] = []
        for term, start in rows:
            assert term > self.last_term
            self.append(term, start)

    @property
    def rows(self) -> tuple[tuple[Term, Offset], ...]:
        """The whole table, oldest first."""
        return tuple(zip(self._terms, self._starts, strict=True))

    @property
    def last_term(self) -> Term:
        """Term of the last batch; 0 for a log that never held one."""
        return self._terms[-1] if self._terms else Term(0)

    def term_at(self, offset: int) -> Term:
        """Term of the batch that covers ``offset``; 0 before everything that is known.

        ``offset`` must lie below the log end: the last row has no end of its own.
        """
        starts = self._starts
        if starts and offset >= starts[-1]:  # Nearly every question is about the last term.
            return self._terms[-1]
        row = bisect_right(starts, offset) - 1
        return self._terms[row] if row >= 0 else Term(0)

    def term_not_above(self, term: Term) -> Term:
        """The largest term in the log that is at most ``term``; 0 if there is none."""
        row = bisect_right(self._terms, term) - 1
        return self._terms[row] if row >= 0 else Term(0)

    def end_of_term(self, term: Term, log_end: Offset) -> Offset:
        """Where the batches of all terms up to ``term`` end in a log that ends at ``log_end``."""
        row = bisect_right(self._terms, term)
        return self._starts[row] if row < len(self._starts) else log_end

    def append(self, term: Term, start: Offset) -> None:
        """Note that a batch of ``term`` begins at ``start``; only the first of a term counts."""
        if self._terms:
            if term == self._terms[-1]:
                return
            assert term > self._terms[-1]
            assert start > self._starts[-1]
        assert term > 0
        assert start >= 0
        self._terms.append(term)
        self._starts.append(start)

    def truncate(self, offset: Offset) -> None:
        """Forget everything at and above ``offset``."""
        while self._starts and self._starts[-1] >= offset:
            self._starts.pop()
            self._terms.pop()

    def trim(self, offset: Offset) -> None:
        """Forget what lies below ``offset``, except the term just before it."""
        while len(self._starts) > 1 and self._starts[1] < offset:
            del self._starts[0], self._terms[0]
