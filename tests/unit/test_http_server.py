"""The HTTP listener answers what it understands, and nobody can hold more than its bounds."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable

import h11
import pytest
import structlog
import trio
from structlog.testing import capture_logs

from logd.env import ByteStream, Listener
from logd.limits import HTTP_CONNECTIONS_MAX, HTTP_REQUEST_BYTES_MAX
from logd.ops import log_events
from logd.ops.http_server import IDLE_TIMEOUT_S, REQUEST_TIMEOUT_S, Answer, serve_http
from logd.types import HostPort
from tests.sim.incarnation import Incarnation
from tests.sim.network import SimHostNetwork, SimNetwork
from tests.sim.run import run_deterministic

ADDRESS = HostPort("broker", 7191)
PAGE = b"<p>hello</p>"
PATIENCE_S = 300.0


async def respond(path: str) -> Answer:
    if path == "/bug":
        raise ZeroDivisionError("a bug of the page")
    return Answer(body=PAGE if path == "/" else path.encode())


class Visitor:
    """A client that says what the test wants, and reads what HTTP says."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def say(self, data: bytes) -> None:
        await self._stream.send([data])

    async def raw_answer(self) -> bytes:
        """All bytes until the server closes."""
        received = b""
        space = memoryview(bytearray(65536))
        while count := await self._stream.receive_into(space):
            received += space[:count]
        return received

    async def get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        request = h11.Request(method=method, target=path, headers=[("Host", "broker")])
        await self.say(self._http.send(request) + self._http.send(h11.EndOfMessage()))
        status, body = 0, b""
        space = memoryview(bytearray(65536))
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                count = await self._stream.receive_into(space)
                self._http.receive_data(bytes(space[:count]))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                assert isinstance(event, h11.EndOfMessage)
                self._http.start_next_cycle()
                return status, body


class Door:
    """Where visitors come from."""

    def __init__(self, network: SimHostNetwork) -> None:
        self._network = network

    async def visitor(self) -> Visitor:
        return Visitor(await self._network.connect(ADDRESS))


class ShortListener:
    """A listener, for whose first connections there are no descriptors."""

    def __init__(self, listener: Listener, refusals: int) -> None:
        self._listener = listener
        self._refusals_left = refusals

    @property
    def address(self) -> HostPort:
        return self._listener.address

    async def accept(self) -> ByteStream:
        if self._refusals_left:
            self._refusals_left -= 1
            raise OSError(errno.EMFILE, "simulated failure")
        return await self._listener.accept()

    def close(self) -> None:
        self._listener.close()


def play(story: Callable[[Door], Awaitable[None]], refusals: int = 0) -> None:
    async def main() -> None:
        network = SimNetwork(random.Random(1))
        server = network.attach(Incarnation("broker", 1))
        door = Door(network.attach(Incarnation("visitor", 1)))
        listener = ShortListener(await server.listen(ADDRESS), refusals)
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_http, listener, respond)
                await story(door)
                nursery.cancel_scope.cancel()
        listener.close()

    run_deterministic(main, seed=1)


def test_a_connection_carries_one_request_after_another() -> None:
    async def story(door: Door) -> None:
        visitor = await door.visitor()

        assert await visitor.get("/") == (200, PAGE)
        assert await visitor.get("/some/path?with=a&query=too") == (200, b"/some/path")

    play(story)


def test_that_there_are_no_descriptors_is_said_once_and_pages_are_there_when_there_are() -> None:
    async def story(door: Door) -> None:
        with capture_logs() as logs:
            await trio.sleep(1)
        assert [entry["event"] for entry in logs] == [log_events.HTTP_ACCEPT_FAILED]

        assert await (await door.visitor()).get("/") == (200, PAGE)

    play(story, refusals=5)


def test_a_head_is_answered_without_the_body() -> None:
    async def story(door: Door) -> None:
        visitor = await door.visitor()
        await visitor.say(b"HEAD / HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")

        answer = await visitor.raw_answer()

        assert answer.startswith(b"HTTP/1.1 200")
        assert f"Content-Length: {len(PAGE)}".encode() in answer
        assert answer.endswith(b"\r\n\r\n")

    play(story)


def test_a_page_may_take_nothing_from_elsewhere() -> None:
    async def story(door: Door) -> None:
        visitor = await door.visitor()
        await visitor.say(b"GET / HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")

        assert b"Content-Security-Policy: default-src 'self'" in await visitor.raw_answer()

    play(story)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n", 405),
        (b"DELETE /topics HTTP/1.1\r\nHost: b\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\n\r\nhello", 413),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x00\x00\x00\x10 something of another protocol\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: b\r\nX: " + b"x" * HTTP_REQUEST_BYTES_MAX, 431),
    ],
    ids=["post", "delete", "body", "no host", "not http", "too long"],
)
def test_what_is_not_for_here_is_refused_and_the_connection_closed(
    request_bytes: bytes, status: int
) -> None:
    async def story(door: Door) -> None:
        visitor = await door.visitor()
        await visitor.say(request_bytes)

        assert (await visitor.raw_answer()).startswith(b"HTTP/1.1 %d" % status)

    play(story)


def test_a_request_that_trickles_in_is_cut_off() -> None:
    async def story(door: Door) -> None:
        visitor = await door.visitor()
        began = trio.current_time()
        await visitor.say(b"GET / HT")

        assert await visitor.raw_answer() == b""
        assert trio.current_time() - began == pytest.approx(REQUEST_TIMEOUT_S, abs=1.0)

    play(story)


def test_an_idle_connection_is_closed_in_the_end() -> None:
    async def story(door: Door) -> None:
        visitor = await door.visitor()
        began = trio.current_time()

        assert await visitor.raw_answer() == b""
        assert trio.current_time() - began == pytest.approx(IDLE_TIMEOUT_S, abs=1.0)

    play(story)


def test_one_connection_too_many_is_closed_and_the_others_are_served() -> None:
    async def story(door: Door) -> None:
        visitors = [await door.visitor() for _ in range(HTTP_CONNECTIONS_MAX)]
        for visitor in visitors:
            assert await visitor.get("/") == (200, PAGE)

        assert await (await door.visitor()).raw_answer() == b""
        assert await visitors[-1].get("/") == (200, PAGE)

    play(story)


def test_a_bug_in_a_page_is_an_error_of_that_page_only() -> None:
    async def story(door: Door) -> None:
        visitor = await door.visitor()

        with structlog.testing.capture_logs() as logged:
            status, _ = await visitor.get("/bug")

        assert status == 500
        assert [event["event"] for event in logged] == ["http_request_failed"]
        assert await visitor.get("/") == (200, PAGE)

    play(story)


def test_a_broker_that_does_not_listen_does_not_pay_for_http() -> None:
    program = (
        "import sys, logd.broker.server, logd.ops.companion\n"
        "print([name for name in ('h11', 'prometheus_client') if name in sys.modules])"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )

    assert ran.stdout == "[]\n"
