"""TCP for the broker: non-blocking standard sockets, trio only for waiting.

Why not ``trio.SocketStream``: each of its operations passes a full checkpoint, which is a
trip through the scheduler even when the bytes are already there.  Measured for a send and
a receive that need not wait: trio's sockets 27 µs, these 11-14 µs, nearly all of it the
two system calls.  Here an operation is tried first and waits only if the kernel says so.

What that costs is fairness: a socket that always has bytes would never let another task
run.  So each stream yields once per ``BYTES_PER_YIELD``, and an operation counts as
``OPERATION_COST_BYTES`` besides its bytes, so that many small ones yield too.  Cancellation
is noticed on every call, before anything is done: a cancelled receive has taken no bytes.

Why a second way to receive (``deliver``): a task that waits for a socket costs a system call, a
trip through the scheduler and a task switch each time, some 30 µs of processor time, which is
more than anything else that happens to a small append.  Sockets that receive for somebody are
therefore in one ``epoll`` set of our own, which stays as it is from one wake-up to the next.  A
single task waits for that set, and takes in what there is of all of them with one receive each.

Why ``abort`` closes without resetting: what was handed over before, usually the error that
says why, still reaches the peer.  The kernel resets by itself when bytes are left unread.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from logd.env import Buffer, ByteStream, Listener, Receiver, Round
from logd.limits import (
    KEEP_ALIVE_IDLE_S,
    KEEP_ALIVE_INTERVAL_S,
    KEEP_ALIVE_PROBES,
    KIB,
    MIB,
)
from logd.runtime.descriptors import keep_spare
from logd.types import HostPort
from logd.wire.unsent import unsent

BUFFERS_PER_SEND_MAX: Final = 1024
"""IOV_MAX of Linux: more buffers in one ``sendmsg`` are refused."""

BYTES_PER_YIELD: Final = 1 * MIB
OPERATION_COST_BYTES: Final = 64 * KIB

MORE_FOLLOWS_BYTES: Final = 4 * KIB
"""Who received less waits for more without asking first: after a small request nothing
follows before its answer, and a system call that says so is one too many."""

LOOKS_PER_YIELD: Final = 4
"""What arrived while the last round was being worked on makes another one at once, so often."""

BACKLOG: Final = 1024
"""Connections that wait to be accepted: a whole fleet reconnects at once after an election.
The kernel caps it at ``net.core.somaxconn``."""

ADDRESS_TIMEOUT_S: Final = 3.0
"""One address of several that does not answer must not use up the caller's whole deadline.
The last address is given all the time the caller has."""


class TcpStream:
    """A connected socket as ``logd.env.ByteStream``; owns it.

    At most one task receives and at most one sends at a time.
    """

    def __init__(self, sock: socket.socket, peer: HostPort, arrivals: Arrivals) -> None:
        sock.setblocking(False)
        # Frames are written whole; waiting for more to send would only delay them.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEP_ALIVE_PROBES)
        self._socket = sock
        self._arrivals = arrivals
        self._peer_name = str(peer)
        self._is_closed = False
        self._receiver: Receiver | None = None
        self._until_yield = BYTES_PER_YIELD
        self._is_drained = False
        """The last receive got so little that there is hardly more already."""

    @property
    def peer_name(self) -> str:
        return self._peer_name

    async def receive_into(self, buffer: memoryview) -> int:
        await self._begin()
        if self._is_drained:
            await self._wait(trio.lowlevel.wait_readable)
        while True:
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_readable)
            else:
                self._until_yield -= count
                self._is_drained = count < MORE_FOLLOWS_BYTES
                return count

    def start_receiving(self, receiver: Receiver) -> None:
        """As ``ByteStream.start_receiving``."""
        if self._is_closed:
            raise _closed_here(self._peer_name)
        assert self._receiver is None
        self._receiver = receiver
        self._arrivals.add(self._socket.fileno(), self.take_in)

    def stop_receiving(self) -> None:
        """As ``ByteStream.stop_receiving``."""
        if self._receiver is not None:
            self._receiver = None
            self._arrivals.remove(self._socket.fileno())

    def take_in(self) -> None:
        """Receive once, and again as long as there was more than room for it."""
        taken = 0
        while (receiver := self._receiver) is not None and taken < BYTES_PER_YIELD:
            buffer = receiver.writable()
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                return
            except OSError as error:
                self.stop_receiving()
                receiver.ended(error)
                return
            if count == 0:
                self.stop_receiving()
                receiver.ended(None)
                return
            is_full = count == len(buffer)
            receiver.received(count)
            if not is_full:
                return
            taken += count

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """As ``ByteStream.send``; memoryviews must be of bytes (``len`` is their size)."""
        await self._begin()
        while buffers:
            try:
                sent = self._socket.sendmsg(buffers[:BUFFERS_PER_SEND_MAX], (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_writable)
            else:
                self._until_yield -= sent
                buffers = unsent(buffers, sent)

    def send_nowait(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """As ``ByteStream.send_nowait``; one system call."""
        if self._is_closed:
            raise _closed_here(self._peer_name)
        try:
            if len(buffers) == 1:
                sent = self._socket.send(buffers[0], socket.MSG_NOSIGNAL)
            else:
                sent = self._socket.sendmsg(buffers[:BUFFERS_PER_SEND_MAX], (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return buffers
        return unsent(buffers, sent)

    def abort(self) -> None:
        """Close at once.  A task that waits here gets an ``OSError``.  Idempotent."""
        if not self._is_closed:
            self.stop_receiving()
            self._is_closed = True
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def _begin(self) -> None:
        """Notice a cancellation, let others run when it is their turn, refuse if closed."""
        if self._until_yield > 0:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._until_yield = BYTES_PER_YIELD
            await trio.lowlevel.checkpoint()
        self._until_yield -= OPERATION_COST_BYTES
        if self._is_closed:
            raise _closed_here(self._peer_name)

    async def _wait(self, ready: Callable[[socket.socket], Awaitable[None]]) -> None:
        try:
            await ready(self._socket)
        except trio.ClosedResourceError:
            raise _closed_here(self._peer_name) from None
        self._until_yield = BYTES_PER_YIELD


class Arrivals:
    """The sockets that receive for somebody."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        """Only while they are waited for, so that nobody need close it."""
        self._take_in: dict[int, Callable[[], None]] = {}

    def add(self, descriptor: int, take_in: Callable[[], None]) -> None:
        """Call ``take_in`` whenever there is something to receive."""
        assert descriptor not in self._take_in
        self._take_in[descriptor] = take_in
        if self._epoll is not None:
            self._epoll.register(descriptor, select.EPOLLIN)

    def remove(self, descriptor: int) -> None:
        del self._take_in[descriptor]
        if self._epoll is not None:
            self._epoll.unregister(descriptor)

    async def deliver(self, turn: Round) -> None:
        """As ``Network.deliver``."""
        assert self._epoll is None
        with select.epoll() as epoll:
            self._epoll = epoll
            try:
                for descriptor in self._take_in:
                    epoll.register(descriptor, select.EPOLLIN)
                while True:
                    await trio.lowlevel.wait_readable(epoll.fileno())
                    for _ in range(LOOKS_PER_YIELD):
                        ready = epoll.poll(0)
                        if not ready:
                            break
                        self._take_in_all(ready, turn)
            finally:
                self._epoll = None

    def _take_in_all(self, ready: list[tuple[int, int]], turn: Round) -> None:
        turn.begin()
        try:
            for descriptor, _ in ready:
                take_in = self._take_in.get(descriptor)
                if take_in is not None:  # Else another one's receiver has stopped it.
                    take_in()
        finally:
            turn.end()


class TcpListener:
    """A listening socket as ``logd.env.Listener``; owns it."""

    def __init__(self, sock: socket.socket, spare_descriptors: int, arrivals: Arrivals) -> None:
        sock.setblocking(False)
        self._arrivals = arrivals
        self._socket = sock
        self._spare_descriptors = spare_descriptors
        self._address = _host_port(sock.getsockname())
        self._is_closed = False

    @property
    def address(self) -> HostPort:
        return self._address

    async def accept(self) -> ByteStream:
        await trio.lowlevel.checkpoint()
        while True:
            if self._is_closed:
                raise _closed_here(str(self._address))
            try:
                accepted, peer = self._socket.accept()
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_readable(self._socket)
                except trio.ClosedResourceError:
                    raise _closed_here(str(self._address)) from None
            except ConnectionAbortedError:
                continue  # The peer gave up while it waited in the backlog.
            else:
                self._keep_spare(accepted)
                return TcpStream(accepted, _host_port(peer), self._arrivals)

    def _keep_spare(self, accepted: socket.socket) -> None:
        """The kernel gives out the lowest number that is free: a high one says how few are."""
        try:
            keep_spare(accepted.fileno(), self._spare_descriptors)
        except OSError:
            accepted.close()
            raise

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


class TcpNetwork:
    """``logd.env.Network`` over the machine's TCP."""

    def __init__(self) -> None:
        self._arrivals = Arrivals()

    async def deliver(self, turn: Round) -> None:
        """As ``Network.deliver``."""
        await self._arrivals.deliver(turn)

    async def connect(self, address: HostPort) -> ByteStream:
        """Connect to the first address of the host that accepts.

        Raises ``OSError`` of the kind the last address failed with; its text names the
        address asked for and what each one resolved to answered.  Cancelling closes the
        half-made connection.
        """
        found = await _resolve(address)
        failures: list[str] = []
        for family, target in found[:-1]:
            try:
                with trio.fail_after(ADDRESS_TIMEOUT_S):
                    return await _connect(family, target, self._arrivals)
            except trio.TooSlowError:
                failures.append(f"{target[0]}: no answer in {ADDRESS_TIMEOUT_S:g} s")
            except OSError as error:
                failures.append(f"{target[0]}: {_reason(error)}")
        family, target = found[-1]
        try:
            return await _connect(family, target, self._arrivals)
        except OSError as error:
            failures.append(_reason(error) if not failures else f"{target[0]}: {_reason(error)}")
            text = f"cannot connect to {address}: {'; '.join(failures)}"
            raise OSError(error.errno, text) from error

    async def listen(self, address: HostPort, *, spare_descriptors: int = 0) -> Listener:
        """Listen on one address.

        A name with several (``localhost``) means the first IPv4 one, if there is one, so that
        the address reported is the one a client reaches.  ``::`` takes IPv4 as well.
        """
        found = await _resolve(address, socket.AI_PASSIVE)
        family, target = min(found, key=lambda row: row[0] is not socket.AF_INET)
        sock = _new_socket(family)
        try:
            # A restarted broker must not wait for the connections of the last one to expire.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is socket.AF_INET6:
                only_ipv6 = 0 if target[0] == "::" else 1
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
            sock.bind(target)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            text = f"cannot listen on {address}: {_reason(error)}"
            raise OSError(error.errno, text) from error
        except BaseException:
            sock.close()
            raise
        return TcpListener(sock, spare_descriptors, self._arrivals)


SocketAddress = tuple[Any, ...]
"""As the socket module has it: (host, port) or (host, port, flow, scope)."""


async def _resolve(
    address: HostPort, flags: int = 0
) -> list[tuple[socket.AddressFamily, SocketAddress]]:
    """The addresses of a host, in the order the system prefers; at least one."""
    try:
        rows = await trio.socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=flags
        )
    except socket.gaierror as error:
        text = f"cannot resolve {address.host!r}: {error.strerror}"
        raise socket.gaierror(error.errno, text) from error
    except UnicodeError as error:  # Not encodable as a domain name.
        text = f"cannot resolve {address.host!r}: not a host name"
        raise socket.gaierror(socket.EAI_NONAME, text) from error
    assert rows
    return [(family, target) for family, _, _, _, target in rows]


async def _connect(
    family: socket.AddressFamily, target: SocketAddress, arrivals: Arrivals
) -> TcpStream:
    sock = _new_socket(family)
    try:
        sock.setblocking(False)
        try:
            sock.connect(target)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
        else:
            await trio.lowlevel.checkpoint()
        failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        # Nobody listens, and the kernel drew the very port we wanted as our own: on loopback
        # TCP then connects the socket to itself.
        if failure == 0 and sock.getsockname() == sock.getpeername():
            failure = errno.ECONNREFUSED
        if failure != 0:
            raise OSError(failure, os.strerror(failure))
        return TcpStream(sock, _host_port(target), arrivals)
    except BaseException:
        sock.close()
        raise


def _new_socket(family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM)


def _host_port(address: SocketAddress) -> HostPort:
    return HostPort(str(address[0]), int(address[1]))


def _closed_here(name: str) -> OSError:
    return ConnectionAbortedError(errno.ECONNABORTED, f"{name} was closed here")


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
