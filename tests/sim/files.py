"""A simulated disk: everything a real one may do to those who trust it too much.

The fault model, which is also what the code under test may rely on:

- A sector of 512 bytes is written whole or not at all.  Unsynced writes reach the disk in any
  order, sector by sector; of several unsynced writes to one sector any prefix may be there.
- ``sync`` of a file makes its bytes and its length durable, and not its name.  Names
  (creations, links, renames, removals) become durable by ``sync_directory``; until then a power
  cut keeps any subset of them in which every operation follows those on the same name.  So of a
  file that was given a second name, and whose first one was then given to another, either name
  may lead to it afterwards, or both, or none.
- An unsynced change of length may be lost or kept; what it brings into the file is zeros.
- A failed sync leaves any part of what it should have written on the disk.  The cache goes on
  showing all of it, and *the next sync succeeds*.
- A failed write may have written a part of its bytes.
- A disk that is full takes as many bytes of a write as there is room for, and no directory, which
  needs a block of its own.  What was reserved for a file, and what it holds, can be written to.
- Rot flips bits that were synced long ago.

``crash`` is the power failing; ``kill`` is the process dying, which loses nothing that was
written.  After either the handles of before fail, and the locks are free.

All chance comes from the generators that are passed in, and nothing iterates over a set, so
one seed gives one disk.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from logd.errors import DirectoryLockedError
from logd.types import Buffer

SECTOR_BYTES: Final = 512
CAPACITY_BYTES_DEFAULT: Final = 1 << 40


@dataclass(slots=True)
class _Write:
    """Bytes that are in the cache and perhaps on the disk."""

    position: int
    data: bytes


@dataclass(slots=True)
class _Resize:
    """A change of length that is in the cache and perhaps on the disk."""

    size: int


class _Inode:
    """One file's bytes: as programs see them, and as the disk has them."""

    __slots__ = ("content", "durable", "pending")

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = bytearray()
        self.pending: list[_Write | _Resize] = []

    def write(self, data: bytes, position: int) -> None:
        end = position + len(data)
        if end > len(self.content):
            self.resize(end)
        self.content[position:end] = data
        self.pending.append(_Write(position, data))

    def resize(self, size: int) -> None:
        _resize(self.content, size)
        self.pending.append(_Resize(size))

    def sync(self) -> None:
        for operation in self.pending:
            match operation:
                case _Write(position, data):
                    self.durable[position : position + len(data)] = data
                case _Resize(size):
                    _resize(self.durable, size)
        self.pending.clear()
        assert len(self.durable) == len(self.content)

    def keep_some(self, rng: random.Random) -> None:
        """Let a legal subset of what is pending reach the disk, and forget the rest."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        resizes = [n for n, operation in enumerate(pending) if isinstance(operation, _Resize)]
        kept_resizes = frozenset(resizes[: rng.randint(0, len(resizes))])
        # Some disks lose nearly all, some nearly nothing: a fair coin would visit neither.
        survival = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        by_sector: dict[int, list[int]] = {}
        for number, operation in enumerate(pending):
            if isinstance(operation, _Write):
                last = operation.position + len(operation.data) - 1
                for sector in range(operation.position // SECTOR_BYTES, last // SECTOR_BYTES + 1):
                    by_sector.setdefault(sector, []).append(number)
        kept: dict[int, list[int]] = {}
        for sector in sorted(by_sector):
            numbers = by_sector[sector]
            whole = rng.random() < survival
            count = len(numbers) if whole else rng.randrange(len(numbers))
            for number in numbers[:count]:
                kept.setdefault(number, []).append(sector)

        size = len(self.durable)
        for number, operation in enumerate(pending):
            match operation:
                case _Write(position, data):
                    for sector in kept.get(number, ()):
                        start = max(position, sector * SECTOR_BYTES)
                        end = min(position + len(data), (sector + 1) * SECTOR_BYTES)
                        if len(self.durable) < end:
                            _resize(self.durable, end)
                        self.durable[start:end] = data[start - position : end - position]
                case _Resize(new_size):
                    if number in kept_resizes:
                        size = new_size
                        # What was cut off is gone, also where the file grows again.
                        del self.durable[new_size:]
        _resize(self.durable, size)

    def crash(self, rng: random.Random) -> None:
        self.keep_some(rng)
        self.content = bytearray(self.durable)


class _Directory:
    """Names, as programs see them and as the disk has them."""

    __slots__ = ("durable", "entries")

    def __init__(self) -> None:
        self.entries: dict[str, _Inode | _Directory] = {}
        self.durable: dict[str, _Inode | _Directory] = {}


@dataclass(slots=True)
class _Link:
    """Give or take a name: one half of a rename, or the whole of anything else."""

    directory: _Directory
    name: str
    node: _Inode | _Directory | None

    def is_same_name(self, other: _Link) -> bool:
        return self.directory is other.directory and self.name == other.name

    def apply(self, entries: dict[str, _Inode | _Directory]) -> None:
        if self.node is None:
            entries.pop(self.name, None)
        else:
            entries[self.name] = self.node


@dataclass(slots=True)
class _NameChange:
    """What one system call did to names; it reaches the disk whole or not at all."""

    links: list[_Link] = field(default_factory=list)

    def touches(self, directory: _Directory) -> bool:
        return any(link.directory is directory for link in self.links)

    def shares_name(self, other: _NameChange) -> bool:
        return any(mine.is_same_name(its) for mine in self.links for its in other.links)

    def make_durable(self) -> None:
        for link in self.links:
            link.apply(link.directory.durable)


class SimulatedFile:
    """One open file."""

    def __init__(
        self, files: SimulatedFileSystem, path: str, inode: _Inode, *, writable: bool
    ) -> None:
        self._files = files
        self._path = path
        self._inode = inode
        self._writable = writable
        self._incarnation = files.incarnation
        self._is_closed = False

    @property
    def path(self) -> str:
        return self._path

    def size(self) -> int:
        self._check("size")
        return len(self._inode.content)

    def pread(self, count: int, position: int) -> bytes:
        self._check("read")
        return bytes(self._inode.content[position : position + count])

    def pread_cached(self, count: int, position: int) -> Buffer | None:
        self._check("read")
        if self._files.is_cold:
            return None
        return bytes(self._inode.content[position : position + count])

    def forget_cached(self, position: int, end: int) -> None:
        """Nothing that can be told apart: what is read is what was written."""
        assert position <= end

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        data = b"".join(buffers)
        self._check_handle(writes=True)
        try:
            self._files.before("write", self._path)
        except OSError:
            self._write(data[: self._files.rng.randint(0, len(data))], position)
            raise
        room = self._files.room_for(position + len(data) - len(self._inode.content))
        self._write(data if room is None else data[: max(0, len(data) - room)], position)
        if room is not None:
            raise _error(errno.ENOSPC, self._path)

    def allocate(self, end: int) -> None:
        self._check("allocate", writes=True)
        growth = end - len(self._inode.content)
        if growth > 0:
            if self._files.room_for(growth) is not None:
                raise _error(errno.ENOSPC, self._path)
            self._inode.resize(end)

    def is_among_last(self, spare: int) -> bool:
        """Numbers are not given out; how many may be open is asked of the disk."""
        assert spare > 0
        return False

    def truncate(self, size: int) -> None:
        self._check("truncate", writes=True)
        growth = size - len(self._inode.content)
        if growth > 0 and self._files.room_for(growth) is not None:
            raise _error(errno.ENOSPC, self._path)
        if growth:
            self._inode.resize(size)

    def sync(self) -> None:
        self._check_handle(writes=True)
        try:
            self._files.before("sync", self._path)
        except OSError:
            self._inode.keep_some(self._files.rng)
            # The pages count as written: the cache shows what the disk does not have.
            _resize(self._inode.durable, len(self._inode.content))
            raise
        self._inode.sync()

    def map(self) -> memoryview:
        """A copy from now: what is mapped is never written to."""
        self._check("map")
        if not self._inode.content:
            raise ValueError("cannot map an empty file")
        return memoryview(bytes(self._inode.content))

    def close(self) -> None:
        self._is_closed = True

    def _write(self, data: bytes, position: int) -> None:
        if data:
            self._inode.write(data, position)

    def _check(self, operation: str, *, writes: bool = False) -> None:
        self._check_handle(writes=writes)
        self._files.before(operation, self._path)

    def _check_handle(self, *, writes: bool) -> None:
        is_dead = self._is_closed or self._incarnation != self._files.incarnation
        if is_dead or (writes and not self._writable):
            raise _error(errno.EBADF, self._path)


class SimulatedLock:
    """A lock that a crash takes away."""

    def __init__(self, files: SimulatedFileSystem, path: str) -> None:
        self._files = files
        self._path = path
        self._incarnation = files.incarnation

    def release(self) -> None:
        if self._incarnation == self._files.incarnation:
            self._files.locks.pop(self._path, None)


class EndOfLifeError(BaseException):
    """The process is killed in the middle of what it does: nobody may catch that."""


@dataclass(slots=True)
class Life:
    """Of a process whose disk was told when it ends."""

    was_cut_off: bool = False


class SimulatedFileSystem:
    """The disk of one node.  It outlives the node's crashes.

    Args:
        rng: for what a failed write or sync leaves behind.
        pid: what a refused lock says about its holder.
        capacity_bytes: what the files may take together.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        pid: int = 1,
        capacity_bytes: int = CAPACITY_BYTES_DEFAULT,
    ) -> None:
        self.rng = rng
        self.pid = pid
        self.capacity_bytes = capacity_bytes
        self.incarnation = 0
        self.locks: dict[str, int] = {}
        self.is_cold = False
        """Nothing is in the page cache: cached reads give nothing."""
        self.on_operation: Callable[[str, str], None] | None = None
        """Called before each operation with its name and path; may raise ``OSError`` to make it
        fail, or anything else to stop the program there.  Operations: size, read, map, write,
        allocate, truncate, sync, open, create, mkdir, link, rename, remove, sync_directory,
        list."""
        self.descriptors: int | None = None
        """How many files may be open; None: any number."""
        self.has_links = True
        """A file can have several names."""
        self._root = _Directory()
        self._changes: list[_NameChange] = []

    # --- FileSystem ---------------------------------------------------------------------

    def open(self, path: str, *, create: bool = False, writable: bool = True) -> SimulatedFile:
        self.before("create" if create else "open", path)
        directory, name = self._parent(path)
        node = directory.entries.get(name)
        if create:
            if node is not None:
                raise _error(errno.EEXIST, path)
            node = _Inode()
            self._change(_Link(directory, name, node))
        if node is None:
            raise _error(errno.ENOENT, path)
        if isinstance(node, _Directory):
            raise _error(errno.EISDIR, path)
        return SimulatedFile(self, path, node, writable=writable)

    def exists(self, path: str) -> bool:
        return self._find(path) is not None

    def is_directory(self, path: str) -> bool:
        return isinstance(self._find(path), _Directory)

    def list_directory(self, path: str) -> list[str]:
        self.before("list", path)
        return sorted(self._directory(path).entries)

    def make_directory(self, path: str) -> None:
        self.before("mkdir", path)
        directory = self._root
        for name in _parts(path):
            node = directory.entries.get(name)
            if node is None:
                if self.room_for(1) is not None:
                    raise _error(errno.ENOSPC, path)
                node = _Directory()
                self._change(_Link(directory, name, node))
            if not isinstance(node, _Directory):
                raise _error(errno.EEXIST, path)
            directory = node

    def rename(self, source: str, target: str) -> None:
        self.before("rename", source)
        from_directory, from_name = self._parent(source)
        to_directory, to_name = self._parent(target)
        node = from_directory.entries.get(from_name)
        if node is None:
            raise _error(errno.ENOENT, source)
        replaced = to_directory.entries.get(to_name)
        if isinstance(node, _Directory) and replaced is not None:
            raise _error(errno.ENOTEMPTY, target)
        if isinstance(replaced, _Directory):
            raise _error(errno.EISDIR, target)
        if node is replaced:
            return  # Two names of one file: POSIX leaves both.
        self._change(_Link(from_directory, from_name, None), _Link(to_directory, to_name, node))

    def link(self, source: str, target: str) -> bool:
        self.before("link", source)
        node = self._find(source)
        if node is None:
            raise _error(errno.ENOENT, source)
        directory, name = self._parent(target)
        if name in directory.entries:
            raise _error(errno.EEXIST, target)
        if isinstance(node, _Directory) or not self.has_links:
            return False
        self._change(_Link(directory, name, node))
        return True

    def remove(self, path: str) -> None:
        self.before("remove", path)
        directory, name = self._parent(path)
        node = directory.entries.get(name)
        if node is None:
            raise _error(errno.ENOENT, path)
        if isinstance(node, _Directory):
            raise _error(errno.EISDIR, path)
        self._change(_Link(directory, name, None))

    def remove_tree(self, path: str) -> None:
        for name in self.list_directory(path):
            below = f"{path}/{name}"
            if self.is_directory(below):
                self.remove_tree(below)
            else:
                self.remove(below)
        self.before("remove", path)
        directory, name = self._parent(path)
        self._change(_Link(directory, name, None))

    def sync_directory(self, path: str) -> None:
        self.before("sync_directory", path)
        directory = self._directory(path)
        synced: list[_NameChange] = []
        left: list[_NameChange] = []
        for change in reversed(self._changes):
            # What came before on a name of another directory goes with it: a rename is one.
            if change.touches(directory) or any(change.shares_name(other) for other in synced):
                synced.append(change)
            else:
                left.append(change)
        for change in reversed(synced):
            change.make_durable()
        self._changes = left[::-1]

    def free_bytes(self, path: str) -> int:
        self._directory(path)
        return self.capacity_bytes - self.used_bytes()

    def require_spare(self, held: int, spare: int) -> None:
        if self.descriptors is not None and held >= self.descriptors - spare:
            raise OSError(errno.EMFILE, f"the last {spare} descriptors are kept")

    def lock(self, path: str) -> SimulatedLock:
        if not self.exists(path):
            self.open(path, create=True)
        if path in self.locks:
            raise DirectoryLockedError(path, self.locks[path])
        self.locks[path] = self.pid
        return SimulatedLock(self, path)

    # --- faults -------------------------------------------------------------------------

    def kill(self) -> None:
        """End the process: its handles and locks are gone, the page cache is not."""
        self.incarnation += 1
        self.locks.clear()

    def crash(self, rng: random.Random) -> None:
        """Cut the power: of what was not synced a legal subset is kept."""
        self.kill()
        changes, self._changes = self._changes, []
        survival = rng.choice((0.0, 0.5, 0.9, 1.0))
        lost: list[_NameChange] = []
        for change in changes:
            # An operation on a name cannot survive one before it on the same name that did not.
            follows_lost = any(change.shares_name(other) for other in lost)
            if not follows_lost and rng.random() < survival:
                change.make_durable()
            else:
                lost.append(change)
        self._crash_below(self._root, rng)

    def flip(self, path: str, position: int, bit: int = 0) -> None:
        """Let one bit rot, on the disk and so in what is read from it."""
        inode = self._inode(path)
        for content in (inode.content, inode.durable):
            if position < len(content):
                content[position] ^= 1 << bit

    def overwrite(self, path: str, position: int, data: bytes) -> None:
        """Put bytes on the disk that nobody wrote."""
        inode = self._inode(path)
        for content in (inode.content, inode.durable):
            if len(content) < position + len(data):
                _resize(content, position + len(data))
            content[position : position + len(data)] = data

    def content(self, path: str) -> bytes:
        """What a program would read."""
        return bytes(self._inode(path).content)

    def used_bytes(self) -> int:
        return sum(len(inode.content) for inode in _inodes_below(self._root, {}).values())

    # --- for the files ------------------------------------------------------------------

    @contextmanager
    def trouble_suspended(self) -> Iterator[None]:
        """For the length of the block no operation is refused."""
        refused, self.on_operation = self.on_operation, None
        try:
            yield
        finally:
            self.on_operation = refused

    @contextmanager
    def killing(self) -> Iterator[None]:
        """For the length of the block whoever wants anything done is dead."""

        def stop(_operation: str, _path: str) -> None:
            raise EndOfLifeError

        refused, self.on_operation = self.on_operation, stop
        try:
            yield
        finally:
            self.on_operation = refused

    @contextmanager
    def failing_after(self, operations: int) -> Iterator[None]:
        """For the length of the block only so many operations are carried out, and then none."""
        left = operations

        def refuse(_operation: str, path: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.EIO, "simulated failure", path)

        self.on_operation = refuse
        try:
            yield
        finally:
            self.on_operation = None

    @contextmanager
    def dying_after(self, operations: int) -> Iterator[Life]:
        """The block ends without a word when so many operations have been carried out."""
        left = operations
        life = Life()

        def stop(_operation: str, _path: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise EndOfLifeError

        self.on_operation = stop
        try:
            yield life
        except EndOfLifeError:
            life.was_cut_off = True
        finally:
            self.on_operation = None

    def refuse_reads(self, *paths: str) -> None:
        """From now on these files cannot be read: bad sectors tell so by an error."""

        def refuse(operation: str, path: str) -> None:
            if operation == "read" and path in paths:
                raise _error(errno.EIO, path)

        self.on_operation = refuse

    def before(self, operation: str, path: str) -> None:
        if self.on_operation is not None:
            self.on_operation(operation, path)

    def room_for(self, growth: int) -> int | None:
        """None if the disk has room for so many more bytes, else by how many it has not."""
        if growth <= 0 or self.capacity_bytes == CAPACITY_BYTES_DEFAULT:
            return None
        missing = self.used_bytes() + growth - self.capacity_bytes
        return missing if missing > 0 else None

    # --- inside -------------------------------------------------------------------------

    def _change(self, *links: _Link) -> None:
        for link in links:
            link.apply(link.directory.entries)
        self._changes.append(_NameChange(list(links)))

    def _crash_below(self, directory: _Directory, rng: random.Random) -> None:
        directory.entries = dict(directory.durable)
        for name in sorted(directory.entries):
            node = directory.entries[name]
            if isinstance(node, _Directory):
                self._crash_below(node, rng)
            else:
                node.crash(rng)

    def _find(self, path: str) -> _Inode | _Directory | None:
        node: _Inode | _Directory | None = self._root
        for name in _parts(path):
            if not isinstance(node, _Directory):
                return None
            node = node.entries.get(name)
        return node

    def _directory(self, path: str) -> _Directory:
        node = self._find(path)
        if node is None:
            raise _error(errno.ENOENT, path)
        if not isinstance(node, _Directory):
            raise _error(errno.ENOTDIR, path)
        return node

    def _inode(self, path: str) -> _Inode:
        node = self._find(path)
        assert isinstance(node, _Inode), path
        return node

    def _parent(self, path: str) -> tuple[_Directory, str]:
        above, _, name = path.rstrip("/").rpartition("/")
        return self._directory(above or "/"), name


def _parts(path: str) -> list[str]:
    assert path.startswith("/"), f"{path} is not absolute"
    return [part for part in path.split("/") if part]


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _inodes_below(directory: _Directory, found: dict[int, _Inode]) -> dict[int, _Inode]:
    """All files, each once, however many names it has."""
    for node in directory.entries.values():
        if isinstance(node, _Inode):
            found[id(node)] = node
        else:
            _inodes_below(node, found)
    return found


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)
