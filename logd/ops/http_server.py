"""HTTP/1.1 for people and scrapers: small answers to GET, within bounds.

The protocol is h11's; here are only the sockets and the limits.  They come through the seam
(``logd.env``) like all others, and every one of them is bounded: connections, the size of a
request, the time it may take to arrive, the time its answer may take to leave.  Whatever a
client does, the worst that happens is that its connection is closed; whatever goes wrong in
an answer, the broker goes on (the one place where that is so: nothing here touches data).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import h11
import structlog
import trio

from logd.env import ByteStream, Listener
from logd.limits import HTTP_CONNECTIONS_MAX, HTTP_REQUEST_BYTES_MAX
from logd.ops import log_events

log = structlog.get_logger(__name__)

IDLE_TIMEOUT_S: Final = 75.0
"""Between two requests of a connection; longer than the usual scrape interval."""

REQUEST_TIMEOUT_S: Final = 5.0
"""From a request's first byte to its last."""

ANSWER_TIMEOUT_S: Final = 15.0
"""To make an answer and to hand all of it to the network."""

ACCEPT_RETRY_S: Final = 0.1
RECEIVE_BYTES: Final = 4096

SECURITY_HEADERS: Final = (
    # Nothing on a page comes from elsewhere, and nobody may frame it.
    ("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)

_METHODS: Final = (b"GET", b"HEAD")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request is answered with."""

    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = field(default=(("Cache-Control", "no-store"),))


Respond = Callable[[str], Awaitable[Answer]]
"""Answers a GET of a path."""


async def serve_http(listener: Listener, respond: Respond) -> None:
    """Accept and answer until cancelled."""
    connections = 0
    was_told = False

    async def serve(stream: ByteStream) -> None:
        nonlocal connections
        try:
            await _Connection(stream, respond).run()
        finally:
            connections -= 1
            stream.abort()

    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if not was_told:  # Said once, and not ten times a second.
                    log.error(log_events.HTTP_ACCEPT_FAILED, reason=str(error))
                was_told = True
                await trio.sleep(ACCEPT_RETRY_S)
                continue
            was_told = False
            if connections >= HTTP_CONNECTIONS_MAX:
                stream.abort()
                continue
            connections += 1
            nursery.start_soon(serve, stream)


class _Connection:
    """One client, one request at a time."""

    def __init__(self, stream: ByteStream, respond: Respond) -> None:
        self._stream = stream
        self._respond = respond
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HTTP_REQUEST_BYTES_MAX)
        self._received = memoryview(bytearray(RECEIVE_BYTES))

    async def run(self) -> None:
        """Answer until the client leaves, is too slow, or says what cannot be understood."""
        try:
            while await self._answer_next():
                if self._http.our_state is not h11.DONE:
                    return
                self._http.start_next_cycle()
        except (OSError, trio.TooSlowError, h11.LocalProtocolError) as error:
            log.debug(
                log_events.HTTP_CLIENT_CLOSED, address=self._stream.peer_name, reason=str(error)
            )

    async def _answer_next(self) -> bool:
        """Answer one request; False if no more will come."""
        try:
            request = await self._next_request()
        except h11.RemoteProtocolError as error:
            await self._send_last(Answer(status=error.error_status_hint, body=_line(str(error))))
            return False
        if request is None:
            return False
        if request.method not in _METHODS:
            allow = (("Allow", "GET, HEAD"),)
            text = f"{request.method[:20].decode('ascii')} is not for here: nothing can be changed"
            await self._send_last(Answer(status=405, body=_line(text), headers=allow))
            return False
        with trio.fail_after(ANSWER_TIMEOUT_S):
            answer = await self._made(request)
            await self._send(answer, with_body=request.method == b"GET")
        return True

    async def _next_request(self) -> h11.Request | None:
        """The next request, whole; None when the client has finished."""
        request: h11.Request | None = None
        deadline = trio.current_time() + IDLE_TIMEOUT_S
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                with trio.fail_at(deadline):
                    count = await self._stream.receive_into(self._received)
                self._http.receive_data(bytes(self._received[:count]))
                deadline = min(deadline, trio.current_time() + REQUEST_TIMEOUT_S)
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.EndOfMessage):
                return request
            elif isinstance(event, h11.Data):
                raise h11.RemoteProtocolError("no request here has a body", 413)
            else:  # The connection ended, or the client wants another protocol.
                return None

    async def _made(self, request: h11.Request) -> Answer:
        path = request.target.decode("ascii").partition("?")[0]
        try:
            return await self._respond(path)
        except Exception:  # A bug in what is shown must not stop what is shown.
            log.exception(log_events.HTTP_REQUEST_FAILED, path=path)
            return Answer(status=500, body=_line("failed; the broker's log says why"))

    async def _send_last(self, answer: Answer) -> None:
        """Refuse, and have the connection closed behind it."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        refusal = Answer(
            status=answer.status,
            body=answer.body,
            headers=(*answer.headers, ("Connection", "close")),
        )
        with trio.fail_after(ANSWER_TIMEOUT_S):
            await self._send(refusal, with_body=True)

    async def _send(self, answer: Answer, *, with_body: bool) -> None:
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            *answer.headers,
            *SECURITY_HEADERS,
        ]
        parts = [self._http.send(h11.Response(status_code=answer.status, headers=headers))]
        if with_body:
            parts.append(self._http.send(h11.Data(data=answer.body)))
        parts.append(self._http.send(h11.EndOfMessage()))
        await self._stream.send([part for part in parts if part])


def _line(text: str) -> bytes:
    return f"{text}\n".encode()
