"""Syncs that the kernel makes by itself, and says so through an eventfd (Linux ``io_submit``).

Why not the threads of ``threads.py``: a thread that comes back from ``fdatasync`` needs the
interpreter, which the event loop has.  They take it from each other some ten times per sync,
each time by way of the kernel's scheduler: 40 ``futex`` calls per sync of a busy leader.  Here
a sync is one call to begin it and one to collect it, and no thread of ours has to do with it.

Where the kernel has no such thing (a sandbox that forbids it, a file system that cannot, another
processor), threads do it as before.

glibc has no functions for these calls, so they are made by number, as libaio does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import outcome
import trio

from logd.runtime.threads import refuse_to_abort

SYNCS_MAX: Final = 64
"""Under way at once; more take the way of threads."""


class _Numbers(NamedTuple):
    """Of the system calls."""

    setup: int
    destroy: int
    collect: int
    submit: int


_NUMBERS: Final = {
    "x86_64": _Numbers(setup=206, destroy=207, collect=208, submit=209),
    "aarch64": _Numbers(setup=0, destroy=1, collect=4, submit=2),
}

# struct iocb: data, key, rw_flags, opcode, priority, descriptor, buffer, bytes, offset,
# reserved, flags, eventfd.
_CONTROL_BLOCK: Final = struct.Struct("<QIIHhIQQqQII")
_EVENT: Final = struct.Struct("<QQqq")
"""struct io_event: data, control block, result, second result."""

_FDATASYNC: Final = 3
_TELL_EVENTFD: Final = 1
_CANNOT: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EAGAIN, errno.EPERM)

assert _CONTROL_BLOCK.size == 64
assert _EVENT.size == 32


class KernelSyncs:
    """Syncs files off the event loop.  Made by ``open_kernel_syncs``."""

    def __init__(self, numbers: _Numbers) -> None:
        """
        Raises:
            OSError: the kernel does not do that.
        """
        # Not released: a call that only hands something over is shorter than giving the
        # interpreter away and getting it back.
        libc = ctypes.PyDLL(None, use_errno=True)
        self._call = libc.syscall
        self._call.restype = ctypes.c_long
        self._numbers = numbers
        self._context = ctypes.c_ulong(0)
        self._check(self._call(numbers.setup, SYNCS_MAX, ctypes.byref(self._context)))
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events = ctypes.create_string_buffer(SYNCS_MAX * _EVENT.size)
        self._under_way: dict[int, trio.lowlevel.Task] = {}
        self._next_number = 1
        self._idle = trio.Event()
        self._idle.set()
        # Shielded: a task that waits for its sync is not cancelled, so somebody must wake it.
        self._collecting = trio.CancelScope(shield=True)
        self._collected_last = trio.Event()

    async def sync(self, descriptor: int) -> bool:
        """fdatasync; False if it has to be done in another way, and was not begun.

        Cancelled before, it is not begun; later, it is waited for.

        Raises:
            OSError: what fdatasync would have raised.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        number = self._next_number
        if len(self._under_way) >= SYNCS_MAX or not self._submit(descriptor, number):
            return False
        self._next_number += 1
        if not self._under_way:
            self._idle = trio.Event()
        self._under_way[number] = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(refuse_to_abort)
        return True

    def _submit(self, descriptor: int, number: int) -> bool:
        block = ctypes.create_string_buffer(
            _CONTROL_BLOCK.pack(
                *(number, 0, 0, _FDATASYNC, 0, descriptor),
                *(0, 0, 0, 0, _TELL_EVENTFD, self._eventfd),
            ),
            _CONTROL_BLOCK.size,
        )
        blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        try:
            self._check(self._call(self._numbers.submit, self._context, ctypes.c_long(1), blocks))
        except OSError as error:
            if error.errno in _CANNOT:
                return False
            raise
        return True

    async def collect(self) -> None:
        """Wake those whose syncs are done.  Runs as long as there may be any."""
        with self._collecting:
            while True:
                await trio.lowlevel.wait_readable(self._eventfd)
                # Reset before looking: what is done in between wakes us once more.
                os.eventfd_read(self._eventfd)
                self._wake_done()
        self._collected_last.set()

    def _wake_done(self) -> None:
        count = self._check(
            self._call(
                self._numbers.collect,
                self._context,
                ctypes.c_long(0),
                ctypes.c_long(SYNCS_MAX),
                self._events,
                None,
            )
        )
        for number, _, result, _ in _EVENT.iter_unpack(self._events.raw[: count * _EVENT.size]):
            task = self._under_way.pop(number)
            failed = outcome.Error(OSError(-result, os.strerror(-result))) if result else None
            trio.lowlevel.reschedule(task, failed or outcome.Value(None))
        if not self._under_way:
            self._idle.set()

    async def close(self) -> None:
        """Wait for what is under way, and let go."""
        with trio.CancelScope(shield=True):
            await self._idle.wait()
            self._collecting.cancel()
            await self._collected_last.wait()
        self._call(self._numbers.destroy, self._context)
        os.close(self._eventfd)

    def _check(self, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


@asynccontextmanager
async def open_kernel_syncs() -> AsyncIterator[KernelSyncs | None]:
    """For the length of the block; None where the kernel does not do that.

    Leaving waits for the syncs under way.
    """
    numbers = _NUMBERS.get(platform.machine())
    syncs = None
    if numbers is not None and sys.platform == "linux" and sys.byteorder == "little":
        try:
            syncs = KernelSyncs(numbers)
        except OSError:
            syncs = None
    if syncs is None:
        yield None
        return
    trio.lowlevel.spawn_system_task(syncs.collect)
    try:
        yield syncs
    finally:
        await syncs.close()
