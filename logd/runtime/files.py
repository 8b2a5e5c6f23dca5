"""The real file system: ``logd.env.FileSystem`` over the ``os`` module.

Why so thin: every decision about durability (what is synced when, in which order names and
bytes reach the disk) belongs to ``logd.storage``, where the simulated file system can put it
to the test.  Nothing here retries, caches or hides an error.

Why descriptors close with their last reference: a cold read may be under way in a worker
thread while the event loop lets go of a trimmed segment.  An explicit close there could give
the descriptor's number to another file under the reader's hands.

Why files are mapped without the ``mmap`` module: its maps each keep a descriptor, in case one is to
be resized.

Why space is reserved without ``os.posix_fallocate``: where a file system cannot reserve any, the
C library pretends to, by writing a zero into each block behind what it saw as the file's end.  A
log reserves space in a thread while it is appended to, and those zeros would land on batches.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import stat
import weakref
from collections.abc import Sequence
from typing import Final

from logd.errors import DirectoryLockedError
from logd.runtime.descriptors import keep_spare
from logd.types import Buffer

_VECTORS_MAX: Final = min(1024, os.sysconf("SC_IOV_MAX"))
_READ_WITHOUT_WAITING: Final = getattr(os, "RWF_NOWAIT", None)
_ADVISE: Final = getattr(os, "posix_fadvise", None)
_CANNOT_TELL: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_CANNOT_RESERVE: Final = (errno.EOPNOTSUPP, errno.ENOSYS)
_NOT_THERE: Final = (FileNotFoundError, NotADirectoryError)
_CANNOT_LINK: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_NOT_MAPPED: Final = ctypes.c_void_p(-1).value


class RealFile:
    """One descriptor.  Closed when asked to, or with the last reference to it."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @property
    def path(self) -> str:
        return self._path

    @property
    def descriptor(self) -> int:
        """Valid as long as the file is referred to and not closed."""
        self._check_open()
        return self._descriptor

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def pread(self, count: int, position: int) -> bytes:
        found = os.pread(self._descriptor, count, position)
        if len(found) == count or not found:
            return found
        # Short: the end of the file, or a signal.  Only another read can tell.
        parts = [found]
        got = len(found)
        while got < count and (more := os.pread(self._descriptor, count - got, position + got)):
            parts.append(more)
            got += len(more)
        return b"".join(parts)

    def pread_cached(self, count: int, position: int) -> Buffer | None:
        if _READ_WITHOUT_WAITING is None:
            return None
        buffer = bytearray(count)
        try:
            got = os.preadv(self._descriptor, [buffer], position, _READ_WITHOUT_WAITING)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _CANNOT_TELL:
                return None
            raise
        if got == count:
            return buffer
        if position + got < self.size():
            return None  # The rest is on the disk only.
        return memoryview(buffer)[:got]

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        for first in range(0, len(buffers), _VECTORS_MAX):
            position = self._write_vectors(buffers[first : first + _VECTORS_MAX], position)

    def _write_vectors(self, buffers: Sequence[Buffer], position: int) -> int:
        """One system call, and more only if the kernel took less than it was given."""
        left = sum(len(buffer) for buffer in buffers)
        while left:
            written = os.pwritev(self._descriptor, buffers, position)
            position += written
            left -= written
            if left:
                buffers = _without_first(buffers, written)
        return position

    def allocate(self, end: int) -> None:
        size = self.size()
        if end > size:
            _reserve(self._descriptor, size, end - size)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def sync(self) -> None:
        self._check_open()
        os.fdatasync(self._descriptor)

    def forget_cached(self, position: int, end: int) -> None:
        if _ADVISE is not None:
            _ADVISE(self._descriptor, position, end - position, os.POSIX_FADV_DONTNEED)

    def map(self) -> memoryview:
        self._check_open()
        size = self.size()
        address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, self._descriptor, 0)
        if address == _NOT_MAPPED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        mapped = (ctypes.c_ubyte * size).from_address(address)
        # Each view of it, and part of one, holds on to it.
        unmap = weakref.finalize(mapped, _LIBC.munmap, address, size)
        unmap.atexit = False  # A thread may be reading still.
        return memoryview(mapped).cast("B").toreadonly()

    def is_among_last(self, spare: int) -> bool:
        # The kernel gives out the lowest number that is free: a high one says how few are.
        try:
            keep_spare(self._descriptor, spare)
        except OSError:
            return True
        return False

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _check_open(self) -> None:
        """For the calls that take a closed descriptor for something else than closed."""
        if self._descriptor < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self._path)

    def __del__(self) -> None:
        self.close()


class RealLock:
    """An advisory lock: the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 32, 0).strip()
            os.close(self._descriptor)
            raise DirectoryLockedError(path, int(holder) if holder.isdigit() else None) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        # The file stays: removing it would let two processes lock two files of one name.
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class RealFileSystem:
    """The machine's own file system."""

    def open(self, path: str, *, create: bool = False, writable: bool = True) -> RealFile:
        flags = os.O_CLOEXEC | (os.O_RDWR if writable else os.O_RDONLY)
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        return RealFile(path, os.open(path, flags, 0o644))

    # Not ``os.path``: to that whatever it may not look at, or cannot read, is not there.

    def exists(self, path: str) -> bool:
        try:
            os.lstat(path)
        except _NOT_THERE:
            return False
        return True

    def is_directory(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(os.stat(path).st_mode)
        except _NOT_THERE:
            return False

    def list_directory(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def make_directory(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def link(self, source: str, target: str) -> bool:
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno in _CANNOT_LINK:
                return False
            raise
        return True

    def remove(self, path: str) -> None:
        os.unlink(path)

    def remove_tree(self, path: str) -> None:
        shutil.rmtree(path)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, path: str) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def require_spare(self, held: int, spare: int) -> None:
        keep_spare(held, spare)

    def lock(self, path: str) -> RealLock:
        return RealLock(path)


def _reserve(descriptor: int, position: int, count: int) -> None:
    """Reserve space, if the file system can; else what needs it takes it when it is written."""
    fallocate = getattr(_LIBC, "fallocate", None)
    if fallocate is None:
        return
    position_and_count = (ctypes.c_long(position), ctypes.c_long(count))
    while fallocate(ctypes.c_int(descriptor), ctypes.c_int(0), *position_and_count) < 0:
        number = ctypes.get_errno()
        if number in _CANNOT_RESERVE:
            return
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _without_first(buffers: Sequence[Buffer], count: int) -> list[Buffer]:
    """What is left of ``buffers`` after their first ``count`` bytes."""
    rest: list[Buffer] = []
    for buffer in buffers:
        if count >= len(buffer):
            count -= len(buffer)
        else:
            rest.append(memoryview(buffer)[count:])
            count = 0
    return rest
