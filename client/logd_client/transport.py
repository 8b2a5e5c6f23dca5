"""How bytes reach a broker: the client's only contact with a network.

A transport is given to ``connect``, so that the same client runs over sockets, over TLS, or
inside a simulated network.  It raises ``OSError`` and its subclasses, as the operating
system would; anyio's own stream errors end in this file.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Protocol

import anyio
from anyio.abc import SocketAttribute


class Stream(Protocol):
    """One connection: two ordered streams of bytes, either of which may end at any time."""

    async def receive(self, max_bytes: int) -> bytes:
        """Wait for bytes; ``b""`` means that the peer has finished.  Raises ``OSError``."""

    async def send(self, data: bytes) -> None:
        """Hand all of ``data`` to the network, waiting while it is full.  Raises ``OSError``."""

    def send_nowait(self, data: bytes) -> int:
        """Hand over as much of ``data`` as the network takes at once; how many bytes that was.

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
        try:
            stream = await anyio.connect_tcp(host, port)
        except UnicodeError:
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
        raw_socket = stream.extra(SocketAttribute.raw_socket)
        raw_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _TcpStream(stream)


class _TcpStream:
    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self._stream = stream
        self._socket = stream.extra(SocketAttribute.raw_socket)

    async def receive(self, max_bytes: int) -> bytes:
        try:
            return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise _as_os_error(error) from None

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise _as_os_error(error) from None

    def send_nowait(self, data: bytes) -> int:
        """As ``Stream.send_nowait``.

        Past anyio, to the socket itself: a trip of the event loop for each small request would
        cost more than the request.  Nothing can be overtaken, as ``send`` returns only when all
        of it has left.
        """
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0

    async def aclose(self) -> None:
        await anyio.aclose_forcefully(self._stream)


def _as_os_error(error: Exception) -> OSError:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno:
        return OSError(cause.errno, os.strerror(cause.errno))
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
