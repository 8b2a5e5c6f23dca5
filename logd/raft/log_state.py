"""What the core knows about its replica's log: where it begins, ends, is durable, is committed.

The batches themselves are the driver's; the core decides about ranges only.
"""

from __future__ import annotations

from logd.raft.messages import BatchSpan
from logd.raft.term_history import TermHistory
from logd.types import Offset, Term


class LogState:
    """Offsets of one log.  ``start ≤ commit_offset ≤ end`` and ``synced_end ≤ end``."""

    __slots__ = ("commit_offset", "end", "start", "synced_end", "terms")

    def __init__(
        self,
        *,
        start: Offset,
        end: Offset,
        synced_end: Offset,
        commit_offset: Offset,
        terms: TermHistory,
    ) -> None:
        assert 0 <= start <= commit_offset <= end
        assert synced_end <= end
        assert terms.last_term > 0 or end == 0
        self.start = start
        self.end = end
        self.synced_end = synced_end
        self.commit_offset = commit_offset
        self.terms = terms

    def extend(self, batches: tuple[BatchSpan, ...], first: int = 0) -> None:
        """Take up ``batches[first:]``, which begin at the log's end."""
        assert batches[first].base_offset == self.end
        last = batches[-1]
        terms = self.terms
        if last.term != terms.last_term:
            for batch in batches[first:]:
                terms.append(batch.term, batch.base_offset)
        assert last.end_offset > self.end
        self.end = last.end_offset

    def truncate(self, offset: Offset) -> None:
        """Drop everything at and above ``offset``."""
        assert self.commit_offset <= offset < self.end  # R8
        self.end = offset
        self.synced_end = min(self.synced_end, offset)
        self.terms.truncate(offset)

    def trim(self, offset: Offset) -> None:
        """Drop everything below ``offset``."""
        assert self.start <= offset <= self.commit_offset
        self.start = offset
        self.terms.trim(offset)

    def restart(self, offset: Offset, terms: TermHistory) -> None:
        """Begin again at ``offset``, with nothing; what lies below is committed and elsewhere."""
        assert offset > self.commit_offset
        assert terms.last_term > 0
        self.start = self.commit_offset = self.synced_end = self.end = offset
        self.terms = terms
        terms.trim(offset)

    def sync(self, end_offset: Offset, last_term: Term) -> bool:
        """Note that a sync has completed; False if it says nothing new about this log.

        A sync may complete after its range was truncated and written anew.  The term of
        its last batch tells: the log may be as long again, but with another leader's batches.
        """
        if not self.synced_end < end_offset <= self.end:
            return False
        if self.terms.term_at(end_offset - 1) != last_term:
            return False
        self.synced_end = end_offset
        return True
