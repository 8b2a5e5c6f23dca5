"""Checkpoints: a state machine's state at an offset, so that recovery replays little.

The payload is the caller's; here it is only kept whole.  Two are kept, because the newest
may be damaged, and because it may lie above what the caller may use.  A damaged one, and one
that cannot be read, is stepped over: it is derived from the log and costs only a longer replay.

Format: segment_format.md, section 8.
"""

from __future__ import annotations

import errno
from typing import Final

from logd.env import FileSystem
from logd.errors import CorruptionError, NoRoomError, StorageError, StorageFailedError
from logd.storage.digits import number_of, twenty_digits
from logd.storage.file_header import (
    APPLICATION_MAGIC,
    CHECKPOINT_MAGIC,
    FileHeader,
    LogIdentity,
    refuse_foreign,
)
from logd.storage.room import is_no_descriptor
from logd.storage.whole_file import UNFINISHED_SUFFIX, read_payload_file, write_payload_file
from logd.types import Offset

CHECKPOINTS_KEPT: Final = 2

_BAD_SECTORS: Final = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)
"""How a file system says that what it reads is not what was written; else a mode, say, or too many
open files."""


def application_store(files: FileSystem, directory: str, identity: LogIdentity) -> CheckpointStore:
    """Keeps the state of the state machine that a group feeds, as checkpoints are kept."""
    return CheckpointStore(files, directory, identity, "application", APPLICATION_MAGIC)


class CheckpointStore:
    """The checkpoints of one group on one node, beside its log."""

    def __init__(
        self,
        files: FileSystem,
        directory: str,
        identity: LogIdentity,
        name: str = "checkpoint",
        magic: bytes = CHECKPOINT_MAGIC,
    ) -> None:
        self._files = files
        self._directory = directory
        self._identity = identity
        self._prefix = f"{name}-"
        self._magic = magic
        self.damaged: tuple[str, ...] = ()
        """What the last ``load`` had to step over, and why."""
        self.refused: OSError | None = None
        """Why one that may be intact could not be read; None if the disk was at fault each time."""

    def save(self, offset: Offset, payload: bytes) -> None:
        """Keep ``payload`` as the state after everything below ``offset``, durably.

        Raises:
            StorageFailedError: the disk failed.  The checkpoints there were are still there.
        """
        try:
            header = FileHeader(self._identity, offset)
            write_payload_file(self._files, self._path(offset), self._magic, header, payload)
            for old in self._offsets()[:-CHECKPOINTS_KEPT]:
                self._files.remove(self._path(old))
            self._remove_unfinished()
        except OSError as error:
            raise StorageFailedError(
                f"saving a checkpoint in {self._directory} failed: {error}"
            ) from error

    def load(self, at_most: Offset | None = None) -> tuple[Offset, bytes] | None:
        """The newest intact checkpoint, not above ``at_most``; None if there is none.

        Raises:
            NoRoomError: there is no file descriptor to look with.
            StorageError: the directory cannot be read, or one is not ours or of a newer format.
        """
        damaged: list[str] = []
        self.refused = None
        try:
            for offset in reversed(self._offsets()):
                if at_most is not None and offset > at_most:
                    continue
                try:
                    return offset, self._read(offset)
                except (CorruptionError, OSError) as error:
                    damaged.append(str(error))
                    if isinstance(error, OSError) and error.errno not in _BAD_SECTORS:
                        self.refused = error
        except OSError as error:
            refusal = NoRoomError if is_no_descriptor(error) else StorageError
            raise refusal(f"cannot read checkpoints in {self._directory}: {error}") from error
        finally:
            self.damaged = tuple(damaged)
        return None

    def remove_all(self) -> None:
        """Remove every one: the log is about to be replaced.  Durable with what follows.

        Raises:
            StorageFailedError: the disk failed.
        """
        try:
            for each in self._offsets():
                self._files.remove(self._path(each))
            self._remove_unfinished()
        except OSError as error:
            raise StorageFailedError(
                f"removing checkpoints in {self._directory} failed: {error}"
            ) from error

    def _read(self, offset: Offset) -> bytes:
        path = self._path(offset)
        header, payload = read_payload_file(self._files, path, self._magic)
        refuse_foreign(path, header.identity, self._identity)
        if header.base_offset != offset:
            raise CorruptionError(f"{path}: the header says offset {header.base_offset}")
        return payload

    def _path(self, offset: Offset) -> str:
        return f"{self._directory}/{self._prefix}{twenty_digits(offset)}"

    def _offsets(self) -> list[Offset]:
        if not self._files.is_directory(self._directory):
            return []
        names = self._files.list_directory(self._directory)
        ours = [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]
        found = map(number_of, ours)
        return sorted(Offset(number) for number in found if number is not None)

    def _remove_unfinished(self) -> None:
        for name in self._files.list_directory(self._directory):
            if name.startswith(self._prefix) and name.endswith(UNFINISHED_SUFFIX):
                self._files.remove(f"{self._directory}/{name}")
