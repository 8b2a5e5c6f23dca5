"""The seam: all that the broker may ask of the world outside itself.

Network, files, blocking calls, chance and the wall clock come through here and nowhere
else.  ``logd.runtime`` implements these protocols on a real machine, ``tests/sim`` on
simulated links, simulated disks and virtual time; the broker cannot tell which (P7).
Monotonic time is ``trio.current_time()``, which trio's own clock virtualises.

Errors are ``OSError`` and its subclasses, as the operating system would raise them: the
simulator raises the same ones, so no handler is written for a fake.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from logd.types import HostPort

T = TypeVar("T")

Buffer = bytes | bytearray | memoryview


class Receiver(Protocol):
    """Takes what arrives on one connection as it arrives, without waiting for anything."""

    def writable(self) -> memoryview:
        """Memory for what comes next; not empty."""

    def received(self, count: int) -> None:
        """So many bytes, at least one, were put at the start of ``writable()``."""

    def ended(self, error: OSError | None) -> None:
        """Nothing more will come: the connection is lost, or the peer has finished (None)."""


class Round(Protocol):
    """What all deliveries of one look at the network have in common."""

    def begin(self) -> None: ...
    def end(self) -> None: ...


class ByteStream(Protocol):
    """One connection: two ordered streams of bytes, either of which may end at any time."""

    @property
    def peer_name(self) -> str:
        """Who is on the other side, for logs: ``host:port``."""

    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes; return how many were put at the start of ``buffer``.

        0 means that the peer has finished sending.  Raises ``OSError`` when the connection
        is lost or was closed here.  Cancelling loses no bytes.
        """

    def start_receiving(self, receiver: Receiver) -> None:
        """From now on have ``Network.deliver`` hand over what arrives, instead of asking for it.

        Until ``stop_receiving``, ``abort``, or the end, of which ``receiver`` is told once.
        """

    def stop_receiving(self) -> None:
        """Leave in the network what has not been handed over; may be called by the receiver.
        Idempotent."""

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Hand all bytes to the network, waiting while it is full.

        Raises ``OSError`` when the connection is lost.  Cancelled half-way the stream is of
        no further use: some bytes may have left.
        """

    def send_nowait(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """Hand over as much as the network takes at once; return what is left, often ``()``.

        Not while ``send`` is under way.  Raises ``OSError`` when the connection is lost.
        """

    def abort(self) -> None:
        """Close at once, without waiting; both sides see the connection end."""


class Listener(Protocol):
    """Accepts connections on one address."""

    @property
    def address(self) -> HostPort:
        """Where it listens; the port is the real one, also when 0 was asked for."""

    async def accept(self) -> ByteStream:
        """Wait for the next connection.  Raises ``OSError`` (e.g. out of descriptors)."""

    def close(self) -> None:
        """Stop listening.  Connections already accepted go on."""


class Network(Protocol):
    """Makes connections."""

    async def connect(self, address: HostPort) -> ByteStream:
        """Connect, trying every address the host resolves to.  Raises ``OSError``."""

    async def deliver(self, turn: Round) -> None:
        """Hand what arrives to the receivers of streams, until cancelled.  Called once.

        Everything that is there at one time is handed over between ``turn.begin()`` and
        ``turn.end()``; meanwhile no task runs.  An exception of a receiver ends it.
        """

    async def listen(self, address: HostPort, *, spare_descriptors: int = 0) -> Listener:
        """Listen.  Raises ``OSError``: address in use, no permission, cannot resolve.

        A connection that would leave the process fewer than ``spare_descriptors`` is closed,
        and ``accept`` raises ``OSError``: what matters more than it must still be opened.
        """


class File(Protocol):
    """One open file.  All calls block; positions are bytes from the start."""

    @property
    def path(self) -> str:
        """The path it was opened under."""

    def size(self) -> int:
        """Current length in bytes."""

    def pread(self, count: int, position: int) -> bytes:
        """Read up to ``count`` bytes; fewer only at the end of the file."""

    def pread_cached(self, count: int, position: int) -> Buffer | None:
        """As ``pread``, but ``None`` instead of waiting for the disk."""

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        """Write all the bytes, in order, at ``position``.  Raises ``OSError``; then part of
        them may have been written."""

    def allocate(self, end: int) -> None:
        """Reserve space so that the file is at least ``end`` bytes, the new ones zero.

        A file system that cannot reserve space leaves the file as it is.  What is written
        meanwhile by others stays what they wrote.
        """

    def truncate(self, size: int) -> None:
        """Cut, or extend with zeros, to ``size`` bytes."""

    def sync(self) -> None:
        """Put data and length on stable storage (fdatasync).  After an error nothing about
        unsynced data is known: never retry."""

    def forget_cached(self, position: int, end: int) -> None:
        """Have the system drop what it keeps in memory of [position, end), as far as that is
        synced.  A hint: what is read there all the same comes from the disk."""

    def map(self) -> memoryview:
        """The whole file, which must not be empty, seen as memory that cannot be written to.

        It is let go with the last reference to it or a part of it, and must not be truncated
        before (else SIGBUS).
        """

    def is_among_last(self, spare: int) -> bool:
        """Whether opening it left fewer than ``spare`` files that may be opened; where few may be
        open, a part of them: as ``FileSystem.require_spare``."""

    def close(self) -> None:
        """Close.  Idempotent.  Does not sync."""


class DirectoryLock(Protocol):
    """Held from ``FileSystem.lock`` until released or until the process ends."""

    def release(self) -> None: ...


class FileSystem(Protocol):
    """Names and files below a data directory.  All calls block; paths are absolute."""

    def open(self, path: str, *, create: bool = False, writable: bool = True) -> File:
        """Open a file.  With ``create`` it must not exist yet (``FileExistsError``), else it
        must (``FileNotFoundError``)."""

    def exists(self, path: str) -> bool:
        """Whether anything has that name.  Raises ``OSError`` if that cannot be told: a vote that
        may not be looked at is not one that was never given."""

    def is_directory(self, path: str) -> bool:
        """Whether it is there and a directory.  Raises ``OSError`` as ``exists``."""

    def list_directory(self, path: str) -> list[str]:
        """Names in the directory, sorted."""

    def make_directory(self, path: str) -> None:
        """Create one directory, and its parents, if missing."""

    def rename(self, source: str, target: str) -> None:
        """Atomically give ``source`` the name ``target``, replacing a file of that name."""

    def link(self, source: str, target: str) -> bool:
        """Give the file ``source`` a second name; ``FileExistsError`` if something has it.

        False: the file system knows no second names; nothing was done.
        """

    def remove(self, path: str) -> None:
        """Remove one file: its bytes go with its last name, once nobody has it open."""

    def remove_tree(self, path: str) -> None:
        """Remove a directory and all below it."""

    def sync_directory(self, path: str) -> None:
        """Put the directory's entries (creations, renames, removals) on stable storage."""

    def free_bytes(self, path: str) -> int:
        """Space left on the disk that holds ``path``."""

    def require_spare(self, held: int, spare: int) -> None:
        """Raise ``OSError`` (EMFILE) if of all the files that may be open at a time, those ``held``
        leave fewer than ``spare``; where few may be open, a part of them: as ``Network.listen``."""

    def lock(self, path: str) -> DirectoryLock:
        """Lock a data directory by the lock file ``path``, created if missing.

        Raises ``DirectoryLockedError`` with the holder's process id.
        """


class ApartWork(Protocol):
    """What can be run in a process of its own: a function of a module, found by its name."""

    __module__: str
    __qualname__: str

    def __call__(self, files: FileSystem, request: bytes, wait_s: Callable[[float], None]) -> bytes:
        """Do it.  Called with ``wait_s(seconds)`` now and then, it may be ended there."""


class Env(Protocol):
    """Everything the broker is given.  One per node."""

    @property
    def network(self) -> Network: ...

    @property
    def files(self) -> FileSystem: ...

    @property
    def boot_id(self) -> str:
        """Changes when the machine restarts (page cache lost), not when the process does."""

    def rng(self, component: str) -> random.Random:
        """A generator of its own per component, so that a new draw in one does not shift
        the others in a simulated run."""

    def wall_clock_ms(self) -> int:
        """Milliseconds since 1970-01-01T00:00Z.  May jump; never used to decide safety."""

    @property
    def brief_call_s(self) -> float:
        """A small blocking call may be made on the event loop while calls of its kind take less
        than this: usually they take a fraction, and less than to hand them to a thread.
        0: none may."""

    async def run_blocking(self, function: Callable[..., T], *args: object) -> T:
        """Run ``function`` off the event loop and return what it returns.

        Not abandoned on cancellation: a half-known sync is worse than a late exit.
        """

    async def run_computing(self, function: Callable[..., T], *args: object) -> T:
        """As ``run_blocking``, for what keeps a processor busy and asks no disk.

        So it does not wait where calls wait for a disk that does not answer, least of all what
        tells an operator that they do.
        """

    async def sync_file(self, file: File) -> None:
        """As ``file.sync()`` off the event loop.  Not abandoned on cancellation either."""

    async def run_apart(self, work: ApartWork, request: bytes) -> bytes:
        """Run ``work`` in a process of its own, with the least claim to the processor, and
        return its answer.

        For what takes long, decodes records or may take memory: neither the event loop nor
        the broker's memory has to do with it.  Cancelled, the process is ended.

        Raises ``OSError`` when it could not be started or did not answer.
        """
