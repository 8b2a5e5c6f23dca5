"""The trash of a data directory: what was deleted or replaced, on its way out.

Files leave it in pieces, by being cut shorter.  A file system that gives back a quarter of a
gigabyte at once keeps every sync on that disk waiting, for two to four tenths of a second; the
same in pieces of a few MiB, with time for others in between, is not noticed.

Only segments are cut: indexes may still be mapped by somebody, and are small.

What a compaction replaces comes here as well, and its name is given to another file at the same
time.  So it is set aside first, by a second name beside the first one, and comes here when it has
certainly lost that: a file that were cut here and had a name in its log would be damage there.  A
crash in between leaves the second name, which is an unfinished file's, and recovery removes it.

Why a second name, and not the exchange of two: every file system has second names, and Python
knows them.  Why not one in the trash at once: then the trash would have to find out before each
cut whether the file is still part of a log, and whether that is durable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from logd.env import FileSystem
from logd.errors import StorageError
from logd.storage.digits import twenty_digits
from logd.storage.segment import SEGMENT_SUFFIX, segment_name
from logd.storage.whole_file import UNFINISHED_SUFFIX, parent
from logd.types import GroupId, Offset

_NAME_BYTES: Final = 4096
"""What a file or directory counts for beside its content when it is removed."""


class Trash:
    """The directory that deleted groups, trimmed and replaced segments are moved to."""

    def __init__(self, files: FileSystem, path: str, groups_path: str) -> None:
        """
        Args:
            groups_path: the directory of the groups' directories, where everything came from.
        """
        self._files = files
        self._groups_path = groups_path
        self.path = path

    def names(self) -> list[str]:
        """What lies there, oldest groups first.

        Raises:
            StorageError: it cannot be read.
        """
        try:
            return self._files.list_directory(self.path)
        except OSError as error:
            raise StorageError(f"cannot look into {self.path}: {error}") from error

    def settle(self, names: Iterable[str]) -> None:
        """Make durable that ``names`` lie here and nowhere else.

        Whoever moved them does so too, but may not have come to it yet.  A segment that was cut
        here and is back in its log after a power cut would be damage.

        Raises:
            StorageError: the disk failed.
        """
        groups = dict.fromkeys(f"{self._groups_path}/{name.partition('-')[0]}" for name in names)
        try:
            self._files.sync_directory(self.path)
            self._files.sync_directory(self._groups_path)
            for path in filter(self._files.is_directory, groups):
                self._files.sync_directory(path)
        except OSError as error:
            raise StorageError(f"cannot sync what leads to {self.path}: {error}") from error

    def remove_piece(self, names: Iterable[str], bytes_max: int) -> int:
        """Remove about ``bytes_max`` bytes of ``names`` for good, in that order.

        Not durable by itself: what comes back after a power cut is in the trash again.

        Returns:
            About how many bytes were removed; 0 when nothing of ``names`` was left.

        Raises:
            StorageError: not all could be removed.
        """
        removed = 0
        try:
            for name in names:
                if removed >= bytes_max:
                    break
                path = f"{self.path}/{name}"
                if self._files.exists(path):
                    removed += self._remove(path, bytes_max - removed)
        except OSError as error:
            raise StorageError(f"cannot empty {self.path}: {error}") from error
        return removed

    def _remove(self, path: str, bytes_max: int) -> int:
        """Of ``path``, or of a directory with all that is in it."""
        if not self._files.is_directory(path):
            return self._remove_file(path, bytes_max)
        removed = 0
        for name in self._files.list_directory(path):
            if removed >= bytes_max:
                return removed
            removed += self._remove(f"{path}/{name}", bytes_max - removed)
        if removed < bytes_max:
            self._files.remove_tree(path)
            removed += _NAME_BYTES
        return removed

    def _remove_file(self, path: str, bytes_max: int) -> int:
        file = self._files.open(path)
        try:
            size_bytes = file.size()
            if size_bytes > bytes_max and path.endswith(SEGMENT_SUFFIX):
                file.truncate(size_bytes - bytes_max)
                return bytes_max
        finally:
            file.close()
        self._files.remove(path)
        return size_bytes + _NAME_BYTES


# --- what is put there -----------------------------------------------------------------------


def set_aside(files: FileSystem, path: str) -> str | None:
    """Give a file that is about to be replaced a second name; None if it cannot have one, or is
    gone: that it was deleted may be why it is replaced.

    Raises:
        OSError: the disk failed; nothing was done.
    """
    directory, _, name = path.rpartition("/")
    aside = f"{directory}/old-{name}{UNFINISHED_SUFFIX}"
    if files.exists(aside):
        files.remove(aside)
    return aside if files.exists(path) and files.link(path, aside) else None


def throw_away(
    files: FileSystem,
    trash: str,
    group: GroupId,
    thrown: Mapping[str, Offset],
    number: int | None = None,
) -> None:
    """Move segments of one directory to the trash, durably.

    Args:
        thrown: the paths, which must be the only names of these files for good, and the
            segments' base offsets.
        number: of what was replaced, another one each time.  Its successor may follow before it is
            gone, and must lie for a round like any other; so no name comes twice.

    Raises:
        OSError: the disk failed.
    """
    for path, base_offset in thrown.items():
        name = f"{twenty_digits(group)}-{segment_name(base_offset)}"
        if number is not None:
            name = _numbered_name(files, trash, group, base_offset, number)
        files.rename(path, f"{trash}/{name}")
    # The trash last: what lets them go, a checkpoint, must be durable no later than that they went,
    # and its name may not be yet, if that failed when it was made.
    for directory in dict.fromkeys(map(parent, thrown)):
        files.sync_directory(directory)
    files.sync_directory(trash)


def _numbered_name(
    files: FileSystem, trash: str, group: GroupId, base_offset: Offset, number: int
) -> str:
    """With that number, or a higher one if an earlier life of the broker left it there."""
    while True:
        name = f"{twenty_digits(group)}-{number}-{segment_name(base_offset)}"
        if not files.exists(f"{trash}/{name}"):
            return name
        number += 1
