"""Who cannot be reached, and why, is said by name; exceptions leave a client as they are."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from logd.errors import ConnectionFailedError, ProtocolError, UsageError
from logd.wire.frame import FLAG_RESPONSE, FrameDecoder, encode_message
from logd.wire.messages import BrokerInfo, HelloResponse, Kind, Message, MetadataResponse
from logd_client import connect, routing, sync
from logd_client.transport import reason_of

pytestmark = pytest.mark.anyio

Handler = Callable[[SocketStream], Awaitable[None]]

# A reason is told at once, long before that; only silence takes all of the time it is given.
REASON_BEFORE_MS = 60_000
SILENT_FOR_MS = 1_000


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    """Something else than a broker on a port of this machine."""
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, handler)
        yield f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


async def answer_http(stream: SocketStream) -> None:
    async with stream:
        await stream.receive()
        await stream.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


async def answer_garbage_shorter_than_a_frame(stream: SocketStream) -> None:
    async with stream:
        await stream.receive()
        await stream.send(b"\0\0\0")


async def close_at_once(stream: SocketStream) -> None:
    await stream.aclose()


async def hear_and_close(stream: SocketStream) -> None:
    """What a broker does with a client that comes to where it listens for brokers."""
    await stream.receive()
    await stream.aclose()


async def stay_silent(stream: SocketStream) -> None:
    async with stream:
        await anyio.sleep_forever()


async def refused_address() -> str:
    """A port that was free a moment ago."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        return f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}"


async def failure_of(
    bootstrap: str, connect_timeout_ms: int = REASON_BEFORE_MS
) -> ConnectionFailedError:
    with pytest.raises(ConnectionFailedError) as caught:
        async with connect(bootstrap, connect_timeout_ms=connect_timeout_ms):
            pytest.fail("connected")
    return caught.value


async def test_a_refused_connection_names_the_address_and_the_reason(
    anyio_backend: object,
) -> None:
    address = await refused_address()

    error = await failure_of(address)

    assert f"{address}: {os.strerror(errno.ECONNREFUSED)}" in str(error)
    assert not error.may_have_applied


async def test_a_name_that_does_not_resolve_is_no_timeout(anyio_backend: object) -> None:
    error = await failure_of("no-such-host.invalid:7171")

    assert "no-such-host.invalid:7171" in str(error)
    assert "within" not in str(error)


@pytest.mark.parametrize("handler", [answer_http, answer_garbage_shorter_than_a_frame])
async def test_what_is_not_logd_is_a_protocol_error_that_shows_what_was_found(
    anyio_backend: object, handler: Handler
) -> None:
    async with listening(handler) as address:
        error = await failure_of(address)

    assert isinstance(error, ProtocolError)
    assert "is not a logd broker" in str(error)
    assert ("HTTP" in str(error)) == (handler is answer_http)


async def test_a_connection_closed_without_an_answer_says_so(anyio_backend: object) -> None:
    async with listening(close_at_once) as address:
        error = await failure_of(address)

    assert address in str(error)
    assert not isinstance(error, ProtocolError)


async def test_who_takes_the_address_for_brokers_for_that_for_clients_is_told(
    anyio_backend: object,
) -> None:
    async with listening(hear_and_close) as address:
        error = await failure_of(address)

    assert f"{address} closed the connection without an answer" in str(error)
    assert "is not where a broker listens for clients" in str(error)


async def test_silence_after_the_connection_is_told_apart_from_no_connection(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long this process stands still as the time is up.
    monkeypatch.setattr(routing, "_LAST_WORDS_S", REASON_BEFORE_MS / 1000)
    async with listening(stay_silent) as address:
        error = await failure_of(address, SILENT_FOR_MS)

    assert "the connection was accepted, but nothing was answered within" in str(error)
    assert address in str(error)


async def test_every_address_of_the_list_has_its_own_reason(anyio_backend: object) -> None:
    refused = await refused_address()
    async with listening(answer_http) as foreign:
        error = await failure_of(f"{refused},{foreign}")

    assert not isinstance(error, ProtocolError)
    assert f"{refused}: {os.strerror(errno.ECONNREFUSED)}" in str(error)
    assert f"{foreign} is not a logd broker" in str(error)


class Impostor:
    """Answers the greeting, and one question about the cluster on each connection, for whichever
    cluster it is of."""

    def __init__(self, cluster_id: str | None, *, node: int = 1, member: str = "") -> None:
        """
        Args:
            member: where node 1 is, if that is the only member of the cluster.
        """
        self.cluster_id = cluster_id
        self.asked = 0
        self._node = node
        host, _, port = member.partition(":")
        self._brokers = [BrokerInfo(node_id=1, host=host, port=int(port))] if member else []

    async def serve(self, stream: SocketStream) -> None:
        decoder = FrameDecoder(2**16)
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    decoder.feed(await stream.receive())
                    while (frame := decoder.next_frame()) is not None:
                        kind = Kind(frame.kind)
                        answer = encode_message(
                            kind, self._answer(kind), frame.correlation_id, flags=FLAG_RESPONSE
                        )
                        await stream.send(answer)
                        if kind != Kind.HELLO:
                            return

    def _answer(self, kind: Kind) -> Message:
        if kind == Kind.HELLO:
            return HelloResponse(
                protocol=1, cluster_id=self.cluster_id, node_id=self._node, version="0"
            )
        self.asked += 1
        assert self.cluster_id is not None
        return MetadataResponse(
            cluster_id=self.cluster_id, controller=None, brokers=self._brokers, topics=[]
        )


@pytest.mark.parametrize(("now", "told"), [(None, "no cluster yet"), ("other", "cluster other")])
async def test_who_has_met_a_cluster_asks_brokers_of_no_other(
    now: str | None, told: str, anyio_backend: object
) -> None:
    impostor = Impostor("first")
    async with (
        listening(impostor.serve) as address,
        connect(address, request_timeout_ms=SILENT_FOR_MS) as client,
    ):
        impostor.cluster_id = now
        with pytest.raises(ProtocolError, match=f"belongs to {told}, expected first"):
            await client.admin.list_topics()

        assert impostor.asked == 1
        assert client.cluster_id == "first"


async def test_who_meets_only_a_broker_that_was_removed_is_told_so_at_once(
    anyio_backend: object,
) -> None:
    """It goes on telling where the others were then."""
    gone = await refused_address()
    removed = Impostor("first", node=4, member=gone)
    async with listening(removed.serve) as address:
        error = await failure_of(address)

    assert f"{address} is node 4, which is no member of the cluster: it was removed" in str(error)
    assert f"node 1 at {gone}: {os.strerror(errno.ECONNREFUSED)}" in str(error)


async def test_a_broker_that_was_removed_leads_to_those_that_are_where_they_were(
    anyio_backend: object,
) -> None:
    async with listening(Impostor("first").serve) as member:
        removed = Impostor("first", node=4, member=member)
        async with listening(removed.serve) as address, connect(address) as client:
            assert client.cluster_id == "first"


async def test_a_broker_that_was_removed_keeps_nobody_from_the_others_of_the_list(
    anyio_backend: object,
) -> None:
    removed = Impostor("first", node=4, member=await refused_address())
    async with (
        listening(Impostor("first").serve) as member,
        listening(removed.serve) as address,
        connect(f"{address},{member}") as client,
    ):
        assert client.cluster_id == "first"


async def test_a_process_that_is_forked_off_cannot_go_on_with_the_client(
    anyio_backend: object,
) -> None:
    """It would give back the locks of the other one, and have records stored in its name."""
    impostor = Impostor("first")
    async with listening(impostor.serve) as address, connect(address) as client:
        forked = os.fork()
        if not forked:
            try:
                client.producer("orders")
            except UsageError as error:
                os._exit("forked off" not in str(error))
            finally:
                os._exit(2)
        assert os.waitpid(forked, 0)[1] == 0

        client.producer("orders")


async def test_what_is_not_open_cannot_be_used(anyio_backend: object) -> None:
    client = connect("127.0.0.1:7171")

    with pytest.raises(UsageError, match="async with"):
        client.producer("orders")


@pytest.mark.parametrize("options", [{"connect_timeout_ms": 0}, {"request_timeout_ms": -1}])
async def test_timeouts_are_positive(anyio_backend: object, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        connect("127.0.0.1:7171", **options)  # type: ignore[arg-type]  # wrong on purpose


async def test_the_blocking_client_fails_in_the_same_words(anyio_backend: object) -> None:
    address = await refused_address()

    def block() -> str:
        with pytest.raises(ConnectionFailedError) as caught, sync.connect(address):
            pytest.fail("connected")
        return str(caught.value)

    assert f"{address}: {os.strerror(errno.ECONNREFUSED)}" in await anyio.to_thread.run_sync(block)


async def test_the_reason_is_what_the_system_said_however_it_is_wrapped(
    anyio_backend: object,
) -> None:
    system = OSError(errno.EHOSTUNREACH, "in asyncio's words")
    wrapped = OSError("All connection attempts failed")
    wrapped.__cause__ = ExceptionGroup("several", [system])

    assert reason_of(wrapped) == os.strerror(errno.EHOSTUNREACH)
