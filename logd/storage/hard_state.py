"""Term and vote: what a node must remember to keep its promises.

Two slots are written in turn, so that the state before is intact while the next one is being
written.  Each slot lies in a block of its own and holds the state twice, in two sectors.  A
write that a power cut interrupts leaves at least one of the two copies whole, old or new, and
either will do: nobody was told of the new one yet.

So a slot without an intact copy is not what an interrupted write leaves behind.  It is
damage, and it may have hidden the newest vote: falling back to the other slot could make the
node vote twice in one term.  Opening the file is refused instead.

The file is opened for each use: saving is rare, and a thousand partitions would otherwise
hold a thousand descriptors for it.

Format: segment_format.md, section 7.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from logd.env import File, FileSystem
from logd.errors import CorruptionError, StorageError, StorageFailedError
from logd.limits import KIB
from logd.storage.checksummed import is_intact, with_checksum
from logd.storage.file_header import (
    HARD_STATE_MAGIC,
    Field,
    FileHeader,
    LogIdentity,
    decode_file_header,
    encode_file_header,
    refuse_foreign,
)
from logd.storage.room import opening
from logd.storage.whole_file import (
    UNFINISHED_SUFFIX,
    WriteNew,
    read_file,
    write_new_file,
)
from logd.types import DirectoryId, GroupId, NodeId, Term

LAYOUT: Final = (
    Field("checksum", "Q", "xxh3_64 of bytes [8, 40) of the copy, seeded with the group id"),
    Field("sequence", "Q", "counts the states saved; the highest holds"),
    Field("term", "Q", "current term"),
    Field("voted_for", "Q", "node voted for in that term; 0 none"),
    Field("newcomer", "I", "1: the log is that of a newcomer, which may not vote yet; else 0"),
    Field("rests_on", "I", "boot in whose memory promises may lie; 0 none, 1 it is lost"),
)
_STRUCT: Final = struct.Struct("<" + "".join(field.format for field in LAYOUT))

MEMORY_LOST: Final = 1
"""A ``rests_on`` that is no boot: what was in memory is known to be gone."""

COPY_BYTES: Final = _STRUCT.size
BLOCK_BYTES: Final = 4 * KIB
SLOT_POSITIONS: Final = (BLOCK_BYTES, 2 * BLOCK_BYTES)
COPY_POSITIONS: Final = (0, 512)
"""Within a slot's block: each copy in a sector of its own."""
FILE_BYTES: Final = 3 * BLOCK_BYTES

assert COPY_BYTES == 40


def boot_number(boot_id: str) -> int:
    """What names a boot of the machine in a hard state: 32 bits, but none that is reserved."""
    return max(xxh3_64_intdigest(boot_id.encode()) & 0xFFFF_FFFF, MEMORY_LOST + 1)


class _State(NamedTuple):
    sequence: int
    term: Term
    voted_for: NodeId | None
    is_newcomer: bool = False
    rests_on: int = 0


class Saving(NamedTuple):
    """A state that is written, and not durable yet."""

    file: File
    state: _State


class HardStateFile:
    """The hard state of one group on one node.  Make one with ``create`` or ``open``."""

    def __init__(self, files: FileSystem, path: str, identity: LogIdentity, state: _State) -> None:
        self._files = files
        self._path = path
        self._identity = identity
        self._state = state
        self.failure: BaseException | None = None
        """The error after which nothing is saved any more, if there was one."""

    @classmethod
    def create(
        cls,
        files: FileSystem,
        path: str,
        identity: LogIdentity,
        promised: tuple[Term, NodeId | None] | None = None,
        write: WriteNew = write_new_file,
    ) -> HardStateFile:
        """Create the file: term 0, no vote.  Replaces nothing that is there.

        Durable unless ``write`` leaves that to the caller.

        Args:
            promised: term and vote of a replica that was here before: they hold for the new
                one too, which is a newcomer.

        Raises:
            StorageError: it cannot be written.
        """
        assert not files.exists(path)
        state = _State(1, Term(0), None)
        if promised is not None:
            state = _State(1, *promised, is_newcomer=True)
        try:
            write(files, path, [_new_content(identity, state)])
        except OSError as error:
            raise StorageError(f"cannot create {path}: {error}") from error
        return cls(files, path, identity, state)

    @classmethod
    def open(
        cls, files: FileSystem, path: str, identity: LogIdentity, *, is_new: bool = False
    ) -> HardStateFile:
        """Open the file and find the newest state in it.

        That state is written and synced once more: if saving it failed before the process
        ended, the page cache may show a vote that the disk does not have.  The directory is the
        caller's to sync: the log in it does so when it is opened, and nothing is promised before.

        Args:
            is_new: the caller has just created it, durably.

        Raises:
            CorruptionError: damaged, so that the newest vote may not be known.
            StorageError: not there, not ours, or of a newer format.
        """
        try:
            if files.exists(path + UNFINISHED_SUFFIX):
                files.remove(path + UNFINISHED_SUFFIX)
            content = read_file(files, path, FILE_BYTES)
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error}") from error
        header = decode_file_header(path, HARD_STATE_MAGIC, content)
        refuse_foreign(path, header.identity, identity)
        opened = cls(files, path, identity, _newest(path, content, identity))
        if is_new:
            return opened
        try:
            file = files.open(path)
            try:
                opened._write(file, opened._state)
                file.sync()
            finally:
                file.close()
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error}") from error
        return opened

    def load(self) -> tuple[Term, NodeId | None]:
        """The term and the vote last saved."""
        return self._state.term, self._state.voted_for

    @property
    def is_newcomer(self) -> bool:
        """Whether the replica was made empty after an earlier one, and may not vote yet."""
        return self._state.is_newcomer

    @property
    def rests_on(self) -> int:
        """The boot in whose memory some of what the replica vouches for may lie; 0: none."""
        return self._state.rests_on

    def rest_on_disk(self, boot: int) -> None:
        """The log is synced and takes no more: nothing lies in the memory of ``boot`` alone.

        Raises:
            StorageFailedError: as ``save``.
        """
        self._save_rests_on(0, boot)

    def lose_memory(self, boot: int) -> None:
        """The log has failed: what lay in the memory of ``boot`` cannot be relied on.

        Raises:
            StorageFailedError: as ``save``.
        """
        self._save_rests_on(MEMORY_LOST, boot)

    def _save_rests_on(self, rests_on: int, boot: int) -> None:
        state = self._state
        if state.rests_on == boot != 0:  # Else it is doubtful, or has nothing to lose.
            self.save(
                state.term,
                state.voted_for,
                is_newcomer=state.is_newcomer,
                rests_on=rests_on,
            )

    def save(
        self,
        term: Term,
        voted_for: NodeId | None,
        *,
        is_newcomer: bool = False,
        rests_on: int = 0,
    ) -> None:
        """Save durably.  Until this returns nothing may be sent that depends on it.

        Raises:
            NoRoomError: as ``begin_save``.
            StorageFailedError: the disk failed.  Which state it holds is not known; nothing
                is tried again, a restart finds out.
        """
        saving = self.begin_save(term, voted_for, is_newcomer=is_newcomer, rests_on=rests_on)
        try:
            saving.file.sync()
        except OSError as error:
            raise self.fail_save(error) from error
        finally:
            saving.file.close()
        self.finish_save(saving)

    def begin_save(
        self, term: Term, voted_for: NodeId | None, *, is_newcomer: bool, rests_on: int
    ) -> Saving:
        """The first part of ``save``, for who syncs the file by other means.

        It is followed by the sync of ``file``; then ``finish_save`` if that was done, or
        ``fail_save`` if it failed; and by closing the file.

        Raises:
            NoRoomError: the file cannot be opened for want of a descriptor: all is as it was.
            StorageFailedError: the disk failed.
        """
        if self.failure is not None:
            raise StorageFailedError(f"{self._path} failed before") from self.failure
        before = self._state
        assert term >= before.term, "terms never go back"
        assert term > before.term or before.voted_for in (None, voted_for), "votes never change"
        assert voted_for is None or voted_for > 0
        assert before.is_newcomer or not is_newcomer, "a newcomer only at the beginning"
        state = _State(before.sequence + 1, term, voted_for, is_newcomer, rests_on)
        try:
            with opening(self._path):  # Nothing of it is on its way to the disk.
                file = self._files.open(self._path)
        except OSError as error:
            raise self.fail_save(error) from error
        try:
            self._write(file, state)
        except OSError as error:
            file.close()
            raise self.fail_save(error) from error
        return Saving(file, state)

    def finish_save(self, saving: Saving) -> None:
        """What ``begin_save`` wrote has been synced."""
        assert saving.state.sequence == self._state.sequence + 1
        self._state = saving.state

    def fail_save(self, error: OSError) -> StorageFailedError:
        """Saving failed: nothing is saved any more.  Returns what is to be raised."""
        self.failure = error
        return StorageFailedError(f"saving {self._path} failed: {error}")

    def close(self) -> None:
        """Save nothing more.  No descriptor is held between two saves."""
        self.failure = self.failure or StorageFailedError(f"{self._path} is closed")

    def _write(self, file: File, state: _State) -> None:
        slot = _encode_slot(state, self._identity)
        file.pwritev([slot], SLOT_POSITIONS[state.sequence % 2])


def promise_in(content: bytes, identity: LogIdentity) -> tuple[Term, NodeId | None] | None:
    """Term and vote, from the content of a hard state's file; None if they are lost."""
    try:
        newest = _newest("", content, identity)
    except CorruptionError:
        return None
    return newest.term, newest.voted_for


def promise_file(identity: LogIdentity, term: Term, voted_for: NodeId | None) -> bytearray:
    """The content of a file that keeps what a replica that is leaving has promised."""
    return _new_content(identity, _State(1, term, voted_for))


def rests_on_by(files: FileSystem, path: str, group: GroupId) -> int:
    """What a hard state says that its replica rests on, for whoever only looks at the file.

    Raises:
        CorruptionError: damaged.
        OSError: it cannot be read.
    """
    identity = LogIdentity(DirectoryId(""), NodeId(0), group)
    content = read_file(files, path, FILE_BYTES)
    return _newest(path, content, identity).rests_on


def _new_content(identity: LogIdentity, state: _State) -> bytearray:
    block = bytearray(FILE_BYTES)
    header = encode_file_header(HARD_STATE_MAGIC, FileHeader(identity))
    block[: len(header)] = header
    for each in (state._replace(sequence=0), state):
        position = SLOT_POSITIONS[each.sequence % 2]
        slot = _encode_slot(each, identity)
        block[position : position + len(slot)] = slot
    return block


def _encode_slot(state: _State, identity: LogIdentity) -> bytes:
    """Both copies, in a whole block: no part of it has to be read before it is written."""
    packed = _STRUCT.pack(
        0,
        state.sequence,
        state.term,
        state.voted_for or 0,
        int(state.is_newcomer),
        state.rests_on,
    )
    copy = with_checksum(packed, identity.group)
    slot = bytearray(BLOCK_BYTES)
    for position in COPY_POSITIONS:
        slot[position : position + COPY_BYTES] = copy
    return bytes(slot)


def _newest(path: str, content: bytes, identity: LogIdentity) -> _State:
    """The state that holds.

    Raises:
        CorruptionError: a slot is damaged, and may have held it.
    """
    slots = [_decode_slot(path, content, position, identity) for position in SLOT_POSITIONS]
    return max(slots, key=lambda state: state.sequence)


def _decode_slot(path: str, content: bytes, slot: int, identity: LogIdentity) -> _State:
    """The newer of a slot's intact copies."""
    intact: list[_State] = []
    for position in COPY_POSITIONS:
        copy = content[slot + position : slot + position + COPY_BYTES]
        if len(copy) < COPY_BYTES:
            continue
        if is_intact(copy, identity.group):
            _, sequence, term, voted_for, newcomer, rests_on = _STRUCT.unpack(copy)
            vote = NodeId(voted_for) if voted_for else None
            intact.append(_State(sequence, Term(term), vote, bool(newcomer), rests_on))
    if not intact:
        raise CorruptionError(
            f"{path}: neither copy in the slot at position {slot} is intact; it may have held "
            "the newest vote, so this replica must not vote again"
        )
    return max(intact, key=lambda state: state.sequence)
