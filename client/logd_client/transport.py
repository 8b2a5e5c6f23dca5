"""How bytes reach a broker: the client's only contact with a network.

A transport is given to ``connect``, so that the same client runs over sockets, over TLS, or
inside a simulated network.  It raises ``OSError`` and its subclasses, as the operating
system would; anyio's own errors end in this file.

The sockets are our own, without a stream of anyio around them: bytes are received straight
into the memory in which frames are looked for, by whoever learns that there are some, and what
the network takes at once is handed over without a trip through the event loop.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol
from weakref import WeakSet

import anyio

from logd.types import Buffer
from logd.wire.unsent import unsent
from logd_client.event_loop import Event, new_event, when_readable

_STAGGER_S: Final = 0.25
"""Head start of one address of a host before the next is tried beside it."""


class Receiver(Protocol):
    """Takes what arrives on a stream.  Neither method waits."""

    def writable(self) -> memoryview:
        """Memory to receive into; never empty."""

    def received(self, count: int) -> None:
        """``count`` bytes were put at the start of what ``writable`` gave last."""


class Stream(Protocol):
    """One connection: two ordered streams of bytes, either of which may end at any time."""

    async def deliver_to(self, receiver: Receiver) -> None:
        """Give ``receiver`` all that arrives; returns when the peer has finished.

        Raises ``OSError``, and what the receiver raises.  Called once.  The receiver may be
        called from another task than this one, or from none.
        """

    async def send(self, parts: Sequence[Buffer]) -> None:
        """Hand all bytes of ``parts``, in order, to the network, waiting while it is full.

        There are few enough parts for one system call.  Raises ``OSError``.
        """

    def send_nowait(self, parts: Sequence[Buffer]) -> int:
        """Hand over as much of ``parts`` as the network takes at once; how many bytes that was.

        Not while ``send`` is under way.  0 is always a right answer.  Raises ``OSError``.
        """

    async def aclose(self) -> None:
        """Close at once; whatever waits on the stream gets an ``OSError``.  Idempotent."""


class Transport(Protocol):
    """Makes connections."""

    async def connect(self, host: str, port: int) -> Stream:
        """Connect, trying every address that ``host`` resolves to.  Raises ``OSError``."""


class TcpTransport:
    """Plain TCP, without Nagle's delay: the client coalesces its frames itself."""

    async def connect(self, host: str, port: int) -> Stream:
        sock = await connect_to_any(await _resolve(host, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _TcpStream(sock)


_Address = tuple[socket.AddressFamily, tuple[object, ...]]


async def _resolve(host: str, port: int) -> list[_Address]:
    try:
        # A number needs no resolver, and no thread to wait for one.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (UnicodeError, socket.gaierror):
        try:
            return [
                (family, address)
                for family, _, _, _, address in await anyio.getaddrinfo(
                    host, port, type=socket.SOCK_STREAM
                )
            ]
        except UnicodeError:
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
    return [(family, address) for family, _, _, _, address in found]


async def connect_to_any(addresses: Sequence[_Address]) -> socket.socket:
    """Connect to the first address that accepts; each gets a head start before the next."""
    if len(addresses) == 1:
        return await _connect(addresses[0])
    connected: list[socket.socket] = []
    failures: list[OSError] = []

    async def attempt(address: _Address, failed: anyio.Event) -> None:
        try:
            connected.append(await _connect(address))
        except OSError as error:
            failures.append(error)
            failed.set()
        else:
            race.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as race:
            for address in addresses:
                failed = anyio.Event()
                race.start_soon(attempt, address, failed)
                with anyio.move_on_after(_STAGGER_S):
                    await failed.wait()
    except BaseException:
        for sock in connected:
            sock.close()
        raise
    for sock in connected[1:]:
        sock.close()
    if not connected:
        raise failures[0]
    return connected[0]


async def _connect(address: _Address) -> socket.socket:
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        found = sock.connect_ex(where)
        if found in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            await anyio.wait_writable(sock)
            found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if found:
            raise OSError(found, os.strerror(found))
    except BaseException:
        sock.close()
        raise
    return sock


class _TcpStream:
    """A connected socket, which never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reading: _Reading | None = None
        _streams.add(self)

    async def deliver_to(self, receiver: Receiver) -> None:
        assert self._reading is None
        self._reading = _Reading(self._socket, receiver)
        await self._reading.run()

    async def send(self, parts: Sequence[Buffer]) -> None:
        while parts := unsent(parts, self.send_nowait(parts)):
            await self._wait_writable()

    async def _wait_writable(self) -> None:
        try:
            await anyio.wait_writable(self._socket)
        except anyio.ClosedResourceError as error:
            raise _closed() from error

    def send_nowait(self, parts: Sequence[Buffer]) -> int:
        try:
            if len(parts) == 1:
                return self._socket.send(parts[0])
            return self._socket.sendmsg(parts)
        except BlockingIOError:
            return 0

    async def aclose(self) -> None:
        if self._socket.fileno() < 0:
            return
        if self._reading is not None:
            self._reading.end(_closed())
        anyio.notify_closing(self._socket)
        self._socket.close()

    def lose(self) -> None:
        """This process was forked off the one whose connection it is: nothing is sent or taken
        here, and what tells of readable sockets, which both share, is left as it is."""
        if self._reading is not None:
            self._reading.forget_how_to_stop()
        self._socket.close()


_streams: Final = WeakSet[_TcpStream]()


def _lose_streams() -> None:
    for stream in _streams:
        stream.lose()


os.register_at_fork(after_in_child=_lose_streams)


class _Reading:
    """One stream on its way to its receiver."""

    def __init__(self, sock: socket.socket, receiver: Receiver) -> None:
        self._socket = sock
        self._receiver = receiver
        self._stop: Callable[[], None] | None = None
        self._is_ended = False
        self._error: BaseException | None = None
        self._ended: Event = new_event()

    async def run(self) -> None:
        """Until it ends.  Raises what ended it."""
        try:
            self._stop = when_readable(self._socket, self._on_readable)
        except NotImplementedError:
            await self._run_in_task()
        else:
            try:
                await self._ended.wait()
            finally:
                self.end(None)
        if self._error is not None:
            raise self._error

    async def _run_in_task(self) -> None:
        while not self._is_ended:
            try:
                await anyio.wait_readable(self._socket)
            except anyio.ClosedResourceError:
                self.end(_closed())
            else:
                self._on_readable()

    def _on_readable(self) -> None:
        try:
            count = self._socket.recv_into(self._receiver.writable())
            if count:
                self._receiver.received(count)
                return
        except BlockingIOError:
            return
        except BaseException as error:
            # Raised where ``run`` waits: here nobody could handle it.
            self.end(error)
            return
        self.end(None)

    def end(self, error: BaseException | None) -> None:
        """The first call counts."""
        if self._is_ended:
            return
        self._is_ended = True
        self._error = error
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
        self._ended.set()

    def forget_how_to_stop(self) -> None:
        """Ending it leaves the event loop alone."""
        self._stop = None


def _closed() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, "the connection was closed")


def reason_of(error: OSError) -> str:
    """What the operating system said, without the wrapping that a resolver or anyio adds."""
    cause: BaseException = error
    while cause.__cause__ is not None or isinstance(cause, BaseExceptionGroup):
        inner = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__
        assert inner is not None
        cause = inner
    if isinstance(cause, socket.gaierror) or not isinstance(cause, OSError):
        return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    # asyncio puts its own words into strerror.
    return os.strerror(cause.errno) if cause.errno else str(cause) or type(cause).__name__
