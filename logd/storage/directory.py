"""The data directory: whose it is, and where each group's files lie in it.

    lock                      held by the process that uses the directory
    meta                      whose directory this is
    groups/<group, 20 digits> log, hard state and checkpoints of one group
    promises/<the same>       hard state of a replica that was removed from here
    replicas/<the same>       empty: there is a replica of that group
    trash/                    what was deleted by a committed command, or replaced by a compaction

Why ``meta`` is believed and nothing is guessed: a directory that was copied, restored from a
backup or mounted in the wrong place looks perfectly healthy, and a voter that starts on it
breaks its promises.  So it is drawn an id when it is first used, every file in it carries
that id, and a node, a cluster or a format that does not fit is refused.

Why ``replicas``: a replica whose whole directory was taken away, by a hand or by a check of the
file system, looks like one that was not made yet.  It would be made, empty, and vote as if nothing
had ever been promised in its name.  A note may be lost to a power cut: it is made again at the next
start, as long as the directory is there.

Why the trash: deleting is the one thing that cannot be repaired from a peer once all have
done it.  A group leaves by a rename, which is atomic and can be undone by hand.

Format: segment_format.md, section 9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from logd.env import DirectoryLock, FileSystem
from logd.errors import CorruptionError, ForeignDirectoryError, NoRoomError, StorageError
from logd.storage.digits import number_of, twenty_digits
from logd.storage.file_header import META_MAGIC, FileHeader, LogIdentity
from logd.storage.hard_state import FILE_BYTES, promise_file, promise_in
from logd.storage.kept_open import KeptOpen
from logd.storage.repair import last_term
from logd.storage.room import what_lacks
from logd.storage.trash import Trash
from logd.storage.whole_file import (
    UNFINISHED_SUFFIX,
    make_directory_durably,
    parent,
    read_file,
    read_payload_file,
    write_new_file,
    write_payload_file,
)
from logd.types import METADATA_GROUP, DirectoryId, GroupId, NodeId, Term
from logd.wording import count_of

LOCK_NAME: Final = "lock"
META_NAME: Final = "meta"
REPLICAS_NAME: Final = "replicas"
GROUPS_NAME: Final = "groups"
TRASH_NAME: Final = "trash"
PROMISES_NAME: Final = "promises"
HARD_STATE_NAME: Final = "hard_state"

_OUR_NAMES: Final = (
    *(LOCK_NAME, META_NAME, META_NAME + UNFINISHED_SUFFIX, GROUPS_NAME),
    *(TRASH_NAME, PROMISES_NAME, REPLICAS_NAME),
    "lost+found",  # Of a file system of our own.
)


class Meta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``meta`` says besides its header, as JSON that an operator can read."""

    cluster_id: str | None = None
    members: dict[int, str] | None = None
    """Directory ids of the voters that formed the cluster, by node."""


class DataDirectory:
    """A data directory, locked by this process.  Make one with ``open``."""

    def __init__(
        self,
        files: FileSystem,
        path: str,
        node_id: NodeId,
        lock: DirectoryLock,
        directory_id: DirectoryId,
        meta: Meta,
    ) -> None:
        self._files = files
        self._lock = lock
        self._meta = meta
        self._noted = dict.fromkeys(groups_in(files, f"{path}/{REPLICAS_NAME}"))
        """Groups of which there is a replica, unless it was taken away."""
        self.kept_open = KeptOpen(files)
        """The files of the logs in it."""
        self.path = path
        self.node_id = node_id
        self.directory_id = directory_id

    @classmethod
    def open(
        cls, files: FileSystem, path: str, node_id: NodeId, draw_id: Callable[[], str]
    ) -> DataDirectory:
        """Lock the directory and read whose it is; a new one is made ours.

        Args:
            draw_id: draws the id of a new directory: up to 64 ASCII characters.

        Raises:
            DirectoryLockedError: another process uses it; says which.
            ForeignDirectoryError: it belongs to another node, or to something else than logd.
            NewerFormatError: a later version wrote it.
            CorruptionError: ``meta`` is damaged, or missing where there is data.
            StorageError: it cannot be created or written; says why.
        """
        assert node_id >= 1
        path = path.rstrip("/") or "/"
        try:
            make_directory_durably(files, path)
            _refuse_strangers(files, path)
            lock = files.lock(f"{path}/{LOCK_NAME}")
        except OSError as error:
            raise StorageError(cannot_use(files, path, error)) from error
        try:
            for name in (GROUPS_NAME, TRASH_NAME, PROMISES_NAME, REPLICAS_NAME):
                make_directory_durably(files, f"{path}/{name}")
            directory_id, meta = _read_or_draw(files, path, node_id, draw_id)
            # A process that was killed here before may have left the names unsynced.
            files.sync_directory(f"{path}/{GROUPS_NAME}")
            files.sync_directory(path)
            directory = cls(files, path, node_id, lock, directory_id, meta)
            for group in groups_in(files, f"{path}/{GROUPS_NAME}"):
                directory.note_group(group)
            files.sync_directory(f"{path}/{REPLICAS_NAME}")
        except OSError as error:
            lock.release()
            raise StorageError(cannot_use(files, path, error)) from error
        except BaseException:
            lock.release()
            raise
        return directory

    @property
    def cluster_id(self) -> str | None:
        """The cluster it belongs to; None before the first was formed or joined."""
        return self._meta.cluster_id

    @property
    def members(self) -> dict[int, str] | None:
        """Directory ids of the founding voters, by node; None before the cluster was formed."""
        return self._meta.members

    def form(self, members: Mapping[int, str]) -> None:
        """Remember, durably, with which directories this one founds a cluster.

        Raises:
            ForeignDirectoryError: it has founded one with others.
            NoRoomError: the same is to be done again.
            StorageError: it cannot be written.
        """
        chosen = dict(sorted(members.items()))
        if self._meta.members not in (None, chosen):
            raise ForeignDirectoryError(
                f"{self.path} has formed a cluster of {self._meta.members}, asked for {chosen}"
            )
        self._save(msgspec.structs.replace(self._meta, members=chosen))

    def set_cluster_id(self, cluster_id: str) -> None:
        """Remember, durably, to which cluster it belongs.

        Raises:
            ForeignDirectoryError: it belongs to another.
            NoRoomError: the same is to be done again.
            StorageError: it cannot be written.
        """
        assert cluster_id
        if self._meta.cluster_id not in (None, cluster_id):
            raise ForeignDirectoryError(
                f"{self.path} belongs to cluster {self._meta.cluster_id}, asked for {cluster_id}"
            )
        self._save(msgspec.structs.replace(self._meta, cluster_id=cluster_id))

    def identity(self, group: GroupId) -> LogIdentity:
        """What the files of ``group`` are stamped with."""
        return LogIdentity(self.directory_id, self.node_id, group)

    def group_path(self, group: GroupId) -> str:
        """Where the group's files lie, or would lie."""
        assert group >= 0
        return f"{self.path}/{GROUPS_NAME}/{twenty_digits(group)}"

    def has_group(self, group: GroupId) -> bool:
        """Whether the group has a replica here, be it one whose directory was taken away; or may
        have one: the disk does not say."""
        try:
            return group in self._noted or self._files.exists(self.group_path(group))
        except OSError:
            return True

    def note_group(self, group: GroupId) -> None:
        """A replica of ``group`` is here from now on: its directory is, durably.

        Raises:
            OSError: the disk failed.
        """
        if group not in self._noted:
            path = self._note_path(group)
            if not self._files.exists(path):
                self._files.open(path, create=True).close()
            self._noted[group] = None

    def _note_path(self, group: GroupId) -> str:
        return f"{self.path}/{REPLICAS_NAME}/{twenty_digits(group)}"

    def is_noted(self, group: GroupId) -> bool:
        """Whether there was a replica of ``group``: it is lost if it has no directory."""
        return group in self._noted

    def promises_path(self, group: GroupId) -> str:
        """Where the term and vote of a replica of ``group`` outlive it."""
        return f"{self.path}/{PROMISES_NAME}/{twenty_digits(group)}"

    @property
    def trash_path(self) -> str:
        return f"{self.path}/{TRASH_NAME}"

    @property
    def trash(self) -> Trash:
        """What is on its way out."""
        return Trash(self._files, self.trash_path, f"{self.path}/{GROUPS_NAME}")

    def list_groups(self) -> list[GroupId]:
        """Groups that have a replica here, in order; also one whose directory was taken away."""
        found = groups_in(self._files, f"{self.path}/{GROUPS_NAME}")
        return sorted({*found, *self._noted})

    def retire_group(self, group: GroupId) -> None:
        """The replica was removed from this node, but the group lives on: keep its promises.

        Of one whose directory was taken away nothing is known.  It comes back as one that knows
        nothing: that is safe because its removal is committed without it (ADR 8).

        Raises:
            StorageError: they could not be kept, or the files not moved; or both the votes and
                the log are lost, so that nobody knows what was promised.
        """
        try:
            is_lost = not self._files.exists(self.group_path(group))
            if not is_lost or not self._files.exists(self.promises_path(group)):
                promise = (Term(0), None) if is_lost else self._promise_of(group)
                content = promise_file(self.identity(group), *promise)
                write_new_file(self._files, self.promises_path(group), [content])
        except OSError as error:
            raise StorageError(f"cannot keep the promises of group {group}: {error}") from error
        self._move_to_trash(group)
        # Durably: another replica may come here, and must not be missed before it is made.
        self._forget_note(group, durably=True)

    def _promise_of(self, group: GroupId) -> tuple[Term, NodeId | None]:
        """Term and vote of a replica that is leaving, or what its log says in place of them.

        The term is what matters.  A vote that is lost helped a candidate that cannot win without
        one of those who have committed the removal since, or that knows of it: ADR 8.
        """
        files, path, identity = self._files, self.group_path(group), self.identity(group)
        hard_state = f"{path}/{HARD_STATE_NAME}"
        if files.exists(hard_state):
            promise = promise_in(read_file(files, hard_state, FILE_BYTES), identity)
            if promise is not None:
                return promise
        term = last_term(files, path, identity)
        if term is None:
            raise StorageError(
                f"{path} holds a replica whose votes (hard_state) and last term (the newest "
                "segment, or its synced marks) are lost: what it promised is not known, and it "
                "must not come back here"
            )
        return term, None

    def trash_group(self, group: GroupId) -> None:
        """Move the files of a group that is no more to the trash, durably and at once.

        Raises:
            StorageError: they could not be moved.
        """
        try:
            has_promises = self._files.exists(self.promises_path(group))
        except OSError as error:
            raise StorageError(f"cannot look for the promises of group {group}: {error}") from error
        if has_promises:
            self.forget_promises(group)
        self._move_to_trash(group)
        self._forget_note(group, durably=False)

    def list_promises(self) -> list[GroupId]:
        """Groups whose promises are kept, in order."""
        return groups_in(self._files, f"{self.path}/{PROMISES_NAME}")

    def forget_promises(self, group: GroupId) -> None:
        """The group is no more, and nobody will ask.

        Raises:
            StorageError: the file could not be removed.
        """
        try:
            self._files.remove(self.promises_path(group))
        except OSError as error:
            raise StorageError(f"cannot forget the promises of group {group}: {error}") from error

    def _move_to_trash(self, group: GroupId) -> None:
        source = self.group_path(group)
        try:
            if not self._files.exists(source):
                return
            taken = self._files.list_directory(self.trash_path)
            name = twenty_digits(group)
            number = next(n for n in range(len(taken) + 1) if f"{name}-{n}" not in taken)
            self._files.rename(source, f"{self.trash_path}/{name}-{number}")
            self._files.sync_directory(self.trash_path)
            self._files.sync_directory(parent(source))
        except OSError as error:
            raise StorageError(f"cannot move {source} to the trash: {error}") from error

    def _forget_note(self, group: GroupId, *, durably: bool) -> None:
        """There is no replica of ``group`` here any more, nor may one have been lost.

        Its directory is gone by then: a crash in between leaves a note without one, and the replica
        is removed once more.
        """
        if group not in self._noted:
            return
        path = self._note_path(group)
        try:
            if self._files.exists(path):
                self._files.remove(path)
            if durably:
                self._files.sync_directory(f"{self.path}/{REPLICAS_NAME}")
        except OSError as error:
            raise StorageError(f"cannot forget the replica of group {group}: {error}") from error
        del self._noted[group]

    def close(self) -> None:
        """Let another process use the directory."""
        self._lock.release()

    def _save(self, meta: Meta) -> None:
        if meta == self._meta:
            return
        identity = self.identity(METADATA_GROUP)
        try:
            _write_meta(self._files, self.path, identity, meta)
        except OSError as error:
            path, lack = f"{self.path}/{META_NAME}", what_lacks(error)
            if lack is not None:
                raise NoRoomError(f"no {lack} to write {path}") from error
            raise StorageError(f"cannot write {path}: {error}") from error
        self._meta = meta


def groups_in(files: FileSystem, path: str) -> list[GroupId]:
    """The groups that something in the directory ``path`` is named by, in order."""
    found = map(number_of, files.list_directory(path))
    return [GroupId(number) for number in found if number is not None]


def _refuse_strangers(files: FileSystem, path: str) -> None:
    """A directory with other things in it, and never used by a broker, is a slip of the pen."""
    if files.exists(f"{path}/{META_NAME}"):
        return
    strangers = [name for name in files.list_directory(path) if name not in _OUR_NAMES]
    if strangers:
        raise ForeignDirectoryError(
            f"{path} is not empty and no data directory: it holds {sorted(strangers)[0]!r}; "
            "name an empty or missing directory"
        )


def cannot_use(files: FileSystem, path: str, error: OSError) -> str:
    """Why there is no data directory at ``path``, for a person: ``error`` came of opening it."""
    # Without number and path: the path is told already.
    reason = error.strerror or str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        there = error.filename or path
        while not files.exists(there):
            there = parent(there)
        if not files.is_directory(there):
            reason = f"{'it' if there == path else there} is no directory"
    return f"cannot use data directory {path}: {reason}"


def _read_or_draw(
    files: FileSystem, path: str, node_id: NodeId, draw_id: Callable[[], str]
) -> tuple[DirectoryId, Meta]:
    meta_path = f"{path}/{META_NAME}"
    if files.exists(meta_path + UNFINISHED_SUFFIX):
        files.remove(meta_path + UNFINISHED_SUFFIX)
    if not files.exists(meta_path):
        groups = files.list_directory(f"{path}/{GROUPS_NAME}")
        if groups:
            raise CorruptionError(
                f"{meta_path} is missing, but {path} holds {count_of(len(groups), 'group')}; "
                "whose is not known"
            )
        identity = LogIdentity(DirectoryId(draw_id()), node_id, METADATA_GROUP)
        _write_meta(files, path, identity, Meta())
        return identity.directory, Meta()

    header, payload = read_payload_file(files, meta_path, META_MAGIC)
    if header.identity.node != node_id:
        raise ForeignDirectoryError(
            f"data directory {path} belongs to node {header.identity.node}, this is node {node_id}"
        )
    try:
        return header.identity.directory, msgspec.json.decode(payload, type=Meta)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptionError(f"{meta_path}: {error}") from error


def _write_meta(files: FileSystem, path: str, identity: LogIdentity, meta: Meta) -> None:
    payload = msgspec.json.encode(meta) + b"\n"
    write_payload_file(files, f"{path}/{META_NAME}", META_MAGIC, FileHeader(identity), payload)
