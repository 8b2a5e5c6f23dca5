"""Which sealed segments of all logs keep their file open behind a read.

Who reads one mostly reads on, and an open file is read without a thread.  But a descriptor that
is kept for that is one that a replica, a client or a vote may need: so there are only as many as
all logs and clients leave of a share, and whose was read longest ago goes first.

Any thread may call, none waits for another: each change is one call of a dictionary.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakSet

from logd.limits import DESCRIPTORS_SPARE_OF_READING

if TYPE_CHECKING:
    from logd.env import FileSystem
    from logd.storage.log_contents import LogContents
    from logd.storage.segment import Segment


class KeptOpen:
    """The open files of sealed segments, of the logs of one broker."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files
        self._logs: WeakSet[LogContents] = WeakSet()
        self._segments: OrderedDict[Segment, None] = OrderedDict()
        """The one that was read longest ago first."""

    def log_opened(self, log: LogContents) -> None:
        """There is one more log, which holds a descriptor too."""
        self._logs.add(log)
        self._make_room()

    def log_closed(self, log: LogContents) -> None:
        """Its descriptor is free again.  Idempotent."""
        self._logs.discard(log)

    def note_read(self, segment: Segment) -> None:
        """``segment`` is open, and is read: it stays open if there are descriptors for that.

        Who reads has the file, and goes on with it either way.
        """
        is_new = self._segments.pop(segment, self) is self
        self._segments[segment] = None
        if is_new:
            file = segment.file
            if file is not None and file.is_among_last(DESCRIPTORS_SPARE_OF_READING):
                self._let_one_go()  # Others, clients perhaps, have taken the first ones.
                self._let_one_go()
            self._make_room()

    def forget(self, segment: Segment) -> None:
        """It is no sealed segment of a log any more, or is let go."""
        self._segments.pop(segment, None)

    def _make_room(self) -> None:
        while self._segments:
            held = len(self._logs) + len(self._segments)
            try:
                self._files.require_spare(held - 1, DESCRIPTORS_SPARE_OF_READING)
            except OSError:
                self._let_one_go()
            else:
                return

    def _let_one_go(self) -> None:
        with suppress(KeyError):  # Another thread has.
            segment, _ = self._segments.popitem(last=False)
            segment.let_go_of_file()
