"""A network between real brokers that can be broken: a TCP proxy in front of each peer listener.

Every broker is listed under the address of a proxy, which passes what it accepts on to where
that broker really listens.  A connection between brokers begins with a greeting that names
who dials; by it the proxy knows both ends, so each fault holds for one direction of one pair.

The proxy breaks a network as TCP shows it.  What a cut holds back is not lost: it arrives
when the cut is healed, like a segment sent again, and while a cut holds, the end of a
connection does not get through either.  A half-open path takes bytes that arrive nowhere,
so its connections are reset when it is healed.  A broker that is down refuses connections:
the proxy stops listening while nobody listens behind it.

Runs on trio in a thread of its own; its methods are for other threads, and return when what
they ask for is in force.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

import trio

from logd.cli.local_cluster import HOST, LocalBroker, LocalCluster, free_ports
from logd.errors import LogdError
from logd.limits import FRAME_UNAUTHENTICATED_BYTES_MAX, HANDSHAKE_TIMEOUT_S, KIB
from logd.metadata.commands import RegisterBroker, decode_command
from logd.replication.peer_protocol import JoinRequest, PeerHello, PeerKind
from logd.types import HostPort, NodeId
from logd.wire.frame import Frame, FrameDecoder, decode_message

CHUNK_BYTES: Final = 16 * KIB
CHUNKS_UNDER_WAY_MAX: Final = 256
"""More wait in the sender's socket: the proxy pushes back as a network does."""
LISTENING_POLL_S: Final = 0.02
LISTENING_CHECK_S: Final = 0.3
"""Nobody behind the proxy is usually found sooner, by a connection that is refused there."""

START_TIMEOUT_S: Final = 30.0

_LISTEN_STATE: Final = "0A"
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

T = TypeVar("T")
Pair = tuple[NodeId, NodeId]
"""From, to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a path does to the bytes that take it."""

    delay_s: float = 0.0
    bytes_per_s: float | None = None
    is_cut: bool = False
    """Bytes wait until it is healed; the connection stays."""
    is_half_open: bool = False
    """Bytes are taken, and arrive nowhere."""


@dataclass(slots=True)
class _Path:
    """One direction between two brokers, over all their connections."""

    shape: Shape = Shape()
    changed: trio.Event = field(default_factory=trio.Event)

    def change(self, shape: Shape) -> None:
        self.shape = shape
        self.changed.set()
        self.changed = trio.Event()

    async def wait_until_passable(self) -> None:
        while self.shape.is_cut:
            await self.changed.wait()

    async def wait_until_whole(self) -> None:
        while self.shape.is_half_open:
            await self.changed.wait()


class PeerProxy:
    """Stands between all brokers of a cluster.  Own it with ``with``."""

    def __init__(self, listed: Sequence[LocalBroker], real_addresses: dict[NodeId, HostPort]):
        self._listed = tuple(listed)
        self._real_addresses = real_addresses
        self._paths = {(one.node_id, other.node_id): _Path() for one in listed for other in listed}
        self._links: set[_Link] = set()
        self._refused = {broker.node_id: trio.Event() for broker in listed}
        self._thread = threading.Thread(target=self._run_thread, name="peer-proxy", daemon=True)
        self._started: Future[None] = Future()
        self._ended: trio.Event | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self.link_count = 0
        """Connections between brokers that were ever made."""

    def __enter__(self) -> PeerProxy:
        self._thread.start()
        self._started.result(START_TIMEOUT_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._ended is not None
        self._call(self._ended.set)
        self._thread.join()

    # --- faults, for other threads ------------------------------------------------------

    def shape(self, pairs: Sequence[Pair], shape: Shape) -> None:
        """Give each of these directed pairs that shape."""

        def change() -> None:
            for pair in pairs:
                self._paths[pair].change(shape)

        self._call(change)

    def heal(self) -> None:
        """Every path is whole again."""
        self.shape(tuple(self._paths), Shape())

    def reset_all(self) -> int:
        """Reset every connection there is; return how many there were."""

        def reset() -> int:
            for link in self._links:
                link.reset()
            return len(self._links)

        return self._call(reset)

    def pairs_from(self, node: NodeId) -> list[Pair]:
        """Everything that a broker sends."""
        return [pair for pair in self._paths if pair[0] == node != pair[1]]

    def pairs_to(self, node: NodeId) -> list[Pair]:
        """Everything that is sent to a broker."""
        return [pair for pair in self._paths if pair[1] == node != pair[0]]

    @property
    def all_pairs(self) -> list[Pair]:
        return [pair for pair in self._paths if pair[0] != pair[1]]

    # --- the thread ---------------------------------------------------------------------

    def _call(self, function: Callable[[], T]) -> T:
        assert self._token is not None
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        self._token.run_sync_soon(run)
        return result.result(START_TIMEOUT_S)

    def _run_thread(self) -> None:
        try:
            trio.run(self._run)
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        async with trio.open_nursery() as nursery:
            for broker in self._listed:
                nursery.start_soon(self._stand_before, broker)
            self._started.set_result(None)
            await self._ended.wait()
            nursery.cancel_scope.cancel()

    async def _stand_before(self, broker: LocalBroker) -> None:
        """Listen exactly while the broker does."""
        target = self._real_addresses[broker.node_id]
        async with trio.open_nursery() as nursery:
            while True:
                while not _is_listening(target.port):  # noqa: ASYNC110 - /proc tells nobody
                    await trio.sleep(LISTENING_POLL_S)
                listeners = await trio.open_tcp_listeners(broker.peer_address.port, host=HOST)
                try:
                    async with trio.open_nursery() as listening:
                        for listener in listeners:
                            listening.start_soon(self._accept, listener, broker.node_id, nursery)
                        await self._until_nobody_listens(broker.node_id)
                        listening.cancel_scope.cancel()
                finally:
                    for listener in listeners:
                        listener.socket.close()

    async def _until_nobody_listens(self, node: NodeId) -> None:
        while _is_listening(self._real_addresses[node].port):
            with trio.move_on_after(LISTENING_CHECK_S):
                await self._refused[node].wait()
            self._refused[node] = trio.Event()

    async def _accept(
        self, listener: trio.SocketListener, node: NodeId, nursery: trio.Nursery
    ) -> None:
        while True:
            nursery.start_soon(self._serve, await listener.accept(), node)

    async def _serve(self, dialer: trio.SocketStream, destination: NodeId) -> None:
        link = _Link(dialer)
        self._links.add(link)
        self.link_count += 1
        try:
            with link.scope:
                await self._connect(link, destination)
        except* (trio.BrokenResourceError, OSError, LogdError):
            pass  # One end is gone: the other learns it by our closing.
        finally:
            link.close()
            self._links.discard(link)

    async def _connect(self, link: _Link, destination: NodeId) -> None:
        greeting, source = await _read_greeting(link.dialer)
        there = self._paths[source, destination]
        back = self._paths[destination, source]
        await there.wait_until_passable()
        if there.shape.is_half_open:
            await _swallow(link.dialer, there)
            return
        target = self._real_addresses[destination]
        try:
            link.acceptor = await trio.open_tcp_stream(target.host, target.port)
        except OSError:
            self._refused[destination].set()
            link.reset()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_carry, link, link.dialer, link.acceptor, there, greeting)
            nursery.start_soon(_carry, link, link.acceptor, link.dialer, back, b"")


class _Link:
    """One connection between two brokers: two streams and what passes between them."""

    def __init__(self, dialer: trio.SocketStream) -> None:
        self.dialer = dialer
        self.acceptor: trio.SocketStream | None = None
        self.scope = trio.CancelScope()
        self._is_reset = False

    def reset(self) -> None:
        """Both ends see ECONNRESET."""
        self._is_reset = True
        self.scope.cancel()

    def close(self) -> None:
        for stream in (self.dialer, self.acceptor):
            if stream is not None:
                if self._is_reset:
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                stream.socket.close()


Chunk = tuple[float, bytes]
"""When it arrives, and what; nothing: the stream's end."""


async def _carry(
    link: _Link, source: trio.SocketStream, sink: trio.SocketStream, path: _Path, first: bytes
) -> None:
    """Move bytes from one stream to the other as the path lets them; its end ends the link."""
    send, receive = trio.open_memory_channel[Chunk](CHUNKS_UNDER_WAY_MAX)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_take_in, source, path, send, first)
        await _give_out(link, sink, path, receive)
    link.scope.cancel()


async def _take_in(
    source: trio.SocketStream, path: _Path, send: trio.MemorySendChannel[Chunk], first: bytes
) -> None:
    if first:
        await send.send((trio.current_time() + path.shape.delay_s, first))
    while True:
        try:
            chunk = bytes(await source.receive_some(CHUNK_BYTES))
        except trio.BrokenResourceError:
            chunk = b""
        await send.send((trio.current_time() + path.shape.delay_s, chunk))
        if not chunk:
            return


async def _give_out(
    link: _Link, sink: trio.SocketStream, path: _Path, receive: trio.MemoryReceiveChannel[Chunk]
) -> None:
    async for arrives_at, chunk in receive:
        await trio.sleep_until(arrives_at)
        await path.wait_until_passable()
        if path.shape.is_half_open:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drain, receive)
                await path.wait_until_whole()
                nursery.cancel_scope.cancel()
            link.reset()
            return
        if not chunk:
            return
        if path.shape.bytes_per_s is not None:
            await trio.sleep(len(chunk) / path.shape.bytes_per_s)
        await sink.send_all(chunk)


async def _drain(receive: trio.MemoryReceiveChannel[Chunk]) -> None:
    async for _ in receive:
        pass


async def _swallow(stream: trio.SocketStream, path: _Path) -> None:
    """Take whatever comes until the path is whole or the dialer gives up."""
    async with trio.open_nursery() as nursery:

        async def take_all() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while await stream.receive_some(CHUNK_BYTES):
                    pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(take_all)
        await path.wait_until_whole()
        nursery.cancel_scope.cancel()


async def _read_greeting(stream: trio.SocketStream) -> tuple[bytes, NodeId]:
    """Everything received so far, and who sent it."""
    decoder = FrameDecoder(FRAME_UNAUTHENTICATED_BYTES_MAX, long_messages=True)
    received = b""
    with trio.move_on_after(2 * HANDSHAKE_TIMEOUT_S):
        while received_now := bytes(await stream.receive_some(CHUNK_BYTES)):
            chunk = received_now
            received += chunk
            while chunk:
                room = decoder.writable()
                taken = min(len(room), len(chunk))
                room[:taken] = chunk[:taken]
                decoder.received(taken)
                chunk = chunk[taken:]
            if (frame := decoder.next_frame()) is not None:
                return received, _who_greets(frame)
    raise OSError("no greeting came")


def _who_greets(frame: Frame) -> NodeId:
    """A peer, or a broker that asks a member whom it knows to be told who the others are."""
    if frame.kind == PeerKind.JOIN_REQUEST:
        registration = decode_command(decode_message(JoinRequest, frame.header).command)
        assert isinstance(registration, RegisterBroker)
        return registration.node
    assert frame.kind == PeerKind.PEER_HELLO
    return NodeId(decode_message(PeerHello, frame.header).view.node)


def _is_listening(port: int) -> bool:
    """Whether a socket listens there, as /proc has it; looked up without connecting."""
    local = f":{port:04X}"
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        columns = line.split()
        if columns[3] == _LISTEN_STATE and columns[1].endswith(local):
            return True
    return False


# --- a cluster behind it ----------------------------------------------------------------


class ProxiedCluster(LocalCluster):
    """Its brokers are listed under the proxy's addresses and listen elsewhere."""

    def __init__(
        self,
        brokers: Sequence[LocalBroker],
        real_addresses: dict[NodeId, HostPort],
        *,
        settings: Sequence[str] = (),
    ) -> None:
        super().__init__(brokers, settings=settings)
        self.proxy = PeerProxy(brokers, real_addresses)
        self._real_addresses = real_addresses

    def command(self, broker: LocalBroker) -> list[str]:
        command = super().command(broker)
        at = command.index("--peer-listen") + 1
        command[at] = str(self._real_addresses[broker.node_id])
        return command


def proxied(listed: Sequence[LocalBroker], *, settings: Sequence[str] = ()) -> ProxiedCluster:
    """A cluster whose brokers reach each other by a proxy only; own its ``proxy`` first."""
    taken = [address.port for b in listed for address in (b.address, b.peer_address)]
    ports = free_ports(len(listed), random.Random(), taken=taken)
    real_addresses = {
        broker.node_id: HostPort(HOST, port) for broker, port in zip(listed, ports, strict=True)
    }
    return ProxiedCluster(listed, real_addresses, settings=settings)
