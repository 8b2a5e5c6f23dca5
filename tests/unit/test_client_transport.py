"""The client's sockets: what arrives is told by a call, under asyncio and trio alike."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest

from logd_client.transport import Stream, TcpTransport, connect_to_any
from tests.support.received import Received

pytestmark = pytest.mark.anyio


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@asynccontextmanager
async def connected(listener: socket.socket) -> AsyncIterator[tuple[Stream, socket.socket]]:
    """A stream, and the other end of it, which blocks."""
    stream = await TcpTransport().connect(*listener.getsockname()[:2])
    with listener.accept()[0] as peer:
        yield stream, peer
    await stream.aclose()


class Refusing(Received):
    """Does not like what it gets."""

    def received(self, count: int) -> None:
        raise ValueError(f"{count} bytes")


async def test_all_that_arrives_is_given_in_order_until_the_peer_has_finished(
    anyio_backend: object, listener: socket.socket
) -> None:
    receiver = Received()
    sent = bytes(range(256)) * 100
    async with connected(listener) as (stream, peer):
        peer.sendall(sent)
        peer.shutdown(socket.SHUT_WR)

        await stream.deliver_to(receiver)

    assert receiver.data == sent


async def test_a_reset_is_an_error_of_the_system(
    anyio_backend: object, listener: socket.socket
) -> None:
    async with connected(listener) as (stream, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        peer.close()

        with pytest.raises(ConnectionResetError):
            await stream.deliver_to(Received())


async def test_what_the_receiver_raises_comes_out_where_it_was_asked_for(
    anyio_backend: object, listener: socket.socket
) -> None:
    async with connected(listener) as (stream, peer):
        peer.sendall(b"abc")

        with pytest.raises(ValueError, match="3 bytes"):
            await stream.deliver_to(Refusing())


async def test_closing_ends_the_wait_with_an_error(
    anyio_backend: object, listener: socket.socket
) -> None:
    failures: list[OSError] = []

    async def deliver(stream: Stream) -> None:
        try:
            await stream.deliver_to(Received())
        except OSError as error:
            failures.append(error)

    async with connected(listener) as (stream, _), anyio.create_task_group() as tasks:
        tasks.start_soon(deliver, stream)
        await anyio.wait_all_tasks_blocked()
        await stream.aclose()
        await stream.aclose()

    assert len(failures) == 1


async def test_a_cancelled_wait_leaves_the_bytes_and_takes_no_more_calls(
    anyio_backend: object, listener: socket.socket
) -> None:
    receiver = Received()
    async with connected(listener) as (stream, peer), connected(listener) as (other, other_peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.deliver_to, receiver)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        peer.sendall(b"too late")
        other_peer.sendall(b"in time")
        other_peer.close()
        told = Received()
        await other.deliver_to(told)

    assert receiver.data == b""
    assert told.data == b"in time"


async def test_one_receiver_may_close_the_stream_of_another(
    anyio_backend: object, listener: socket.socket
) -> None:
    """Both are readable at the same moment: whoever is called first ends the other."""
    called: list[str] = []
    failures: list[str] = []

    class Closing(Received):
        def __init__(self, name: str, other: Stream) -> None:
            super().__init__()
            self.name = name
            self.other = other

        def received(self, count: int) -> None:
            called.append(self.name)
            with pytest.raises(StopIteration):  # It waits for nothing.
                self.other.aclose().__await__().__next__()
            raise OSError("enough")

    async def deliver(stream: Stream, receiver: Closing) -> None:
        with pytest.raises(OSError, match=r"enough|closed") as caught:
            await stream.deliver_to(receiver)
        failures.append(str(caught.value))

    async with (
        connected(listener) as (one, one_peer),
        connected(listener) as (two, two_peer),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(deliver, one, Closing("one", two))
        tasks.start_soon(deliver, two, Closing("two", one))
        await anyio.wait_all_tasks_blocked()
        one_peer.sendall(b"x")
        two_peer.sendall(b"x")

    assert len(called) == 1
    closed = f"[Errno {errno.ECONNRESET}] the connection was closed"
    assert sorted(failures) == [closed, "enough"]


async def test_more_than_the_network_takes_at_once_is_sent_as_it_empties(
    anyio_backend: object, listener: socket.socket
) -> None:
    data = bytes(range(250)) * 32_000
    arrived = b""
    async with connected(listener) as (stream, peer):

        def drain() -> bytes:
            taken = bytearray()
            while len(taken) < len(data):
                taken += peer.recv(1_000_000)
            return bytes(taken)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send, [data[:10], data[10:5_000_000], data[5_000_000:]])
            arrived = await anyio.to_thread.run_sync(drain)

    assert arrived == data


async def test_the_network_takes_nothing_when_it_is_full(
    anyio_backend: object, listener: socket.socket
) -> None:
    """A moment later it may have room again: the kernel moves on what it has."""
    async with connected(listener) as (stream, _):
        taken = [stream.send_nowait([b"more", bytes(1_000_000)]) for _ in range(100)]

    assert 0 in taken


async def test_every_address_of_a_host_is_tried(
    anyio_backend: object, listener: socket.socket
) -> None:
    """As with ``localhost`` when it means ::1 first and the broker listens on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        refused = gone.getsockname()
    addresses = [(socket.AF_INET, refused), (socket.AF_INET, listener.getsockname())]

    sock = await connect_to_any(addresses)

    assert sock.getpeername() == listener.getsockname()
    sock.close()


async def test_the_first_refusal_is_told_if_no_address_accepts(anyio_backend: object) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        refused = gone.getsockname()

    with pytest.raises(ConnectionRefusedError):
        await connect_to_any([(socket.AF_INET, refused), (socket.AF_INET, refused)])


async def test_a_process_that_is_forked_off_sends_nothing_and_leaves_the_other_one_listening(
    anyio_backend: object, listener: socket.socket
) -> None:
    """Both have the same connection, and the same epoll behind their event loops."""
    receiver = Received()
    async with connected(listener) as (stream, peer), anyio.create_task_group() as tasks:
        tasks.start_soon(stream.deliver_to, receiver)
        await anyio.wait_all_tasks_blocked()
        forked = os.fork()
        if not forked:
            try:
                await stream.aclose()
                stream.send_nowait([b"of the child"])
            except OSError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(forked, 0)[1] == 0

        stream.send_nowait([b"of the parent"])
        assert peer.recv(100) == b"of the parent"
        peer.sendall(b"heard")
        peer.shutdown(socket.SHUT_WR)

    assert receiver.data == b"heard"
