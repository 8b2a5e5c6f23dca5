r"""Cut a stream of bytes into lines, whatever the bytes are.

A line ends at ``\n`` and at nothing else; every other byte is part of it.  Empty lines are
lines, and so is what follows the last ``\n``, unless nothing does.  What this module cuts,
``consume --output value`` puts together again byte for byte.

Memory is bounded: a line longer than the limit is counted and dropped while it arrives, and
the lines around it are not affected.
"""

from __future__ import annotations

from itertools import count, islice
from typing import Final

from logd.limits import RECORD_BYTES_MAX

READ_BYTES: Final = 1024 * 1024
"""What one read takes.  Large, because each read costs a thread switch."""

# A line that lies within one block cannot be over the limit: only the pieces at the two
# ends of a block need to be measured.
assert READ_BYTES <= RECORD_BYTES_MAX


class LineCutter:
    """Blocks in, lines out; over-long lines are remembered by number, from 1."""

    def __init__(self, line_bytes_max: int = RECORD_BYTES_MAX) -> None:
        assert line_bytes_max > 0
        self.oversized: list[tuple[int, int]] = []
        """(line number, bytes) of each line that was dropped."""
        self.line_bytes_max = line_bytes_max
        self._lines_ended = 0
        self._first_given = 1
        """The number of the first line that ended in the last block."""
        self._carried: list[bytes] = []
        self._carried_bytes = 0

    def feed(self, block: bytes) -> list[bytes]:
        """Add the next bytes; return the lines that end in them."""
        self._first_given = self._lines_ended + 1
        pieces = block.split(b"\n")
        rest = pieces.pop()
        if not pieces:
            self._carry(rest)
            return []
        first = self._end_carried_line(pieces[0])
        lines = self._measured(pieces[1:], is_safe=len(block) <= self.line_bytes_max)
        self._carry(rest)
        return lines if first is None else [first, *lines]

    def finish(self) -> list[bytes]:
        """The stream has ended; return the line that no newline ended, if there is one."""
        if self._carried_bytes == 0:
            return []
        self._first_given = self._lines_ended + 1
        last = self._end_carried_line(b"")
        return [] if last is None else [last]

    def number_of(self, at: int) -> int:
        """The number, in its file, of the line at ``at`` in the list that was given last."""
        dropped = {number for number, _ in self.oversized}
        given = (number for number in count(self._first_given) if number not in dropped)
        return next(islice(given, at, None))

    def _carry(self, piece: bytes) -> None:
        self._carried_bytes += len(piece)
        if self._carried_bytes <= self.line_bytes_max:
            self._carried.append(piece)
        else:
            self._carried.clear()

    def _end_carried_line(self, end: bytes) -> bytes | None:
        """The line that ``end`` completes; None if it is over the limit."""
        size = self._carried_bytes + len(end)
        pieces, self._carried, self._carried_bytes = self._carried, [], 0
        self._lines_ended += 1
        if size > self.line_bytes_max:
            self.oversized.append((self._lines_ended, size))
            return None
        return b"".join((*pieces, end))

    def _measured(self, lines: list[bytes], *, is_safe: bool) -> list[bytes]:
        """``lines`` without those over the limit; all of them when their block was small."""
        first_number = self._lines_ended + 1
        self._lines_ended += len(lines)
        if is_safe:
            return lines
        kept = []
        for number, line in enumerate(lines, first_number):
            if len(line) > self.line_bytes_max:
                self.oversized.append((number, len(line)))
            else:
                kept.append(line)
        return kept
