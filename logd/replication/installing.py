"""Puts a snapshot in the place of a replica's log, so that a crash leaves the old or the new.

The snapshot is first written down whole, beside the log, under a name of its own.  From then on
it *is* the replica: whatever follows is carried out again when the replica is opened.  The old
segments and checkpoints go, the new ones come, and the note is removed last.  Term and vote are
not touched.

Blocking.  Format: segment_format.md, section 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from logd.errors import NoRoomError, StorageError, StorageFailedError
from logd.replication.snapshot import Snapshot, decode_snapshot, encode_snapshot
from logd.storage.checkpoint import CheckpointStore, application_store
from logd.storage.file_header import SNAPSHOT_MAGIC, FileHeader, refuse_foreign
from logd.storage.log import Log
from logd.storage.room import is_no_descriptor, what_lacks
from logd.storage.whole_file import (
    UNFINISHED_SUFFIX,
    parent,
    read_payload_file,
    write_payload_file,
)

if TYPE_CHECKING:
    from logd.env import FileSystem
    from logd.storage.log import LogIdentity, LogOptions

INSTALL_NAME: Final = "install"


def begin_install(
    files: FileSystem, directory: str, identity: LogIdentity, snapshot: Snapshot
) -> None:
    """Write down what is to be installed.  When this returns there is no way back.

    Raises:
        NoRoomError: the disk has none, and all is as it was, unless ``has_begun``: then nothing but
            a descriptor was lacking, and ``finish_install`` goes on.
        StorageFailedError: the disk failed; what is in force, a restart finds out.
    """
    path = f"{directory}/{INSTALL_NAME}"
    header = FileHeader(identity, snapshot.start_offset)
    try:
        write_payload_file(files, path, SNAPSHOT_MAGIC, header, encode_snapshot(snapshot))
    except OSError as error:
        lack = what_lacks(error)
        if is_no_descriptor(error) or (lack is not None and not files.exists(path)):
            raise NoRoomError(f"no {lack} to write {path}") from error
        raise StorageFailedError(f"cannot write {path}: {error}") from error


def has_begun(files: FileSystem, directory: str) -> bool:
    """Whether an installation was written down, and not carried out to its end."""
    return files.exists(f"{directory}/{INSTALL_NAME}")


def finish_install(
    files: FileSystem, directory: str, identity: LogIdentity, options: LogOptions
) -> bool:
    """Carry out an installation that was written down, also one that a crash interrupted.

    The log must not be open.  False: there is none.

    Raises:
        CorruptionError: the note is damaged.
        NoRoomError: the disk has none; carried out again, it begins again.
        StorageError: it is not ours, or the disk failed.
    """
    path = f"{directory}/{INSTALL_NAME}"
    try:
        if files.exists(path + UNFINISHED_SUFFIX):
            files.remove(path + UNFINISHED_SUFFIX)
        if not files.exists(path):
            return False
        header, payload = read_payload_file(files, path, SNAPSHOT_MAGIC)
        refuse_foreign(path, header.identity, identity)
        snapshot = decode_snapshot(payload)
        # Whoever wrote it down may have been killed before its name was durable: the log must not
        # go before.
        files.sync_directory(directory)
        Log.remove(files, directory)
        checkpoints = CheckpointStore(files, directory, identity)
        checkpoints.remove_all()
        checkpoints.save(snapshot.state_offset, snapshot.state)
        applications = application_store(files, directory, identity)
        applications.remove_all()
        if snapshot.application is not None:
            applications.save(snapshot.application_offset, snapshot.application)
        terms = snapshot.terms_below_start()
        log = Log.create(
            files, directory, identity, options, snapshot.start_offset, prev_term=terms[-1][0]
        )
        log.close()
        files.remove(path)
        files.sync_directory(parent(path))
    except (OSError, StorageError, StorageFailedError) as error:
        lack = what_lacks(error)
        if lack is not None:
            raise NoRoomError(f"no {lack} to install a snapshot in {directory}") from error
        if not isinstance(error, OSError):
            raise
        raise StorageFailedError(f"installing a snapshot in {directory}: {error}") from error
    return True
