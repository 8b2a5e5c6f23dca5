"""The outgoing side of a pair of nodes: dials, greets, sends, and notices the end.

One link per peer and lane.  It is never answered with anything but the greeting, yet it is
read all the time: the end of the stream is how a dead process is noticed at once, long
before any time-out.  A reset followed by a refused connection means that nobody is there.
"""

from __future__ import annotations

import contextlib
import math
import random
from typing import TYPE_CHECKING, Final, Protocol

import structlog
import trio

from logd.errors import LogdError, ProtocolError
from logd.limits import FRAME_UNAUTHENTICATED_BYTES_MAX, HANDSHAKE_TIMEOUT_S, PEER_QUEUE_BYTES_MAX
from logd.replication import log_events
from logd.replication.inbox import first_frame
from logd.replication.membership import Refusal
from logd.replication.outbox import Outbox
from logd.replication.peer_protocol import (
    KIND_BY_TYPE,
    OUR_VERSIONS,
    AnyPeerMessage,
    Lane,
    PeerHello,
    PeerKind,
    version_in_common,
)
from logd.types import HostPort, NodeId
from logd.wire.frame import FrameDecoder, decode_message, encode_message

if TYPE_CHECKING:
    from logd.env import Buffer, ByteStream, Env
    from logd.replication.turn import Turn

log = structlog.get_logger(__name__)

QUEUED_BYTES_MAX: Final = 2 * PEER_QUEUE_BYTES_MAX
"""Small frames are queued without asking for room.  A peer that takes nothing for so long is
cut off: the next connection begins with all that it needs to know."""

RECONNECT_MIN_S: Final = 0.02
RECONNECT_MAX_S: Final = 1.0
REFUSED_MAX_S: Final = 30.0
"""Whoever is refused for good comes ever less often: each time both sides say so, and a broker that
was removed may run on for days."""

CONNECT_TIMEOUT_S: Final = 2.0
UNREACHABLE_AFTER: Final = 5
"""Attempts in a row that came to nothing: no hiccup, and not the moment of a crash either."""


class LinkOwner(Protocol):
    """Who is told what happens to a link."""

    def greeting(self, lane: Lane) -> PeerHello: ...
    def on_link_up(self, node: NodeId, lane: Lane, answer: PeerHello) -> None: ...
    def on_link_down(self, node: NodeId, lane: Lane) -> None: ...
    def on_link_refused(self, node: NodeId, lane: Lane, refusal: Refusal) -> None: ...
    def on_nobody_there(self, node: NodeId) -> None: ...
    def on_unreachable(self, node: NodeId) -> None: ...
    def on_link_room(self, node: NodeId) -> None: ...


class PeerLink:
    """Sends frames to one peer over one lane; drops them while there is no connection.

    Dropping is safe: on each new connection the consensus core probes and acknowledges
    anew, and claims are sent in full.
    """

    def __init__(
        self,
        node: NodeId,
        address: HostPort,
        lane: Lane,
        env: Env,
        owner: LinkOwner,
        turn: Turn,
    ) -> None:
        self.node = node
        self.lane = lane
        self.is_connected = False
        self._address = address
        self._env = env
        self._owner = owner
        self._rng: random.Random = env.rng(f"link:{node}:{lane}")
        self._stream: ByteStream | None = None
        self._is_refused = False
        """The last attempt was, and not only for a moment."""
        self._hope = trio.Event()
        self._outbox = Outbox(PEER_QUEUE_BYTES_MAX, turn, lambda: owner.on_link_room(node))

    @property
    def has_room(self) -> bool:
        return self._outbox.has_room

    @property
    def queued_bytes(self) -> int:
        return self._outbox.queued_bytes

    def send(self, message: AnyPeerMessage, buffers: tuple[Buffer, ...] = ()) -> None:
        """Queue one frame.  The caller has asked ``has_room`` where the frame is large."""
        if not self.is_connected:
            return
        if self._outbox.queued_bytes >= QUEUED_BYTES_MAX:
            assert self._stream is not None
            self._stream.abort()
            return
        body_bytes = sum(map(len, buffers))
        head = encode_message(KIND_BY_TYPE[type(message)], message, 0, body_bytes)
        self._outbox.push((head, *buffers), len(head) + body_bytes)

    def hope(self) -> None:
        """The peer has just come to us: it is there, and may let us in by now."""
        self._hope.set()

    async def run(self) -> None:
        """Keep the link connected until cancelled."""
        delay_s = RECONNECT_MIN_S
        looked_at = -math.inf
        failures = 0
        while True:
            self._is_refused, self._hope = False, trio.Event()
            is_shut_out = False
            try:
                with trio.fail_after(CONNECT_TIMEOUT_S):
                    stream = await self._env.network.connect(self._address)
            except (OSError, trio.TooSlowError) as error:
                is_shut_out = True
                if isinstance(error, ConnectionRefusedError):
                    self._owner.on_nobody_there(self.node)
                failures += 1
                if failures >= UNREACHABLE_AFTER:
                    self._owner.on_unreachable(self.node)
            else:
                failures = 0
                was_up = await self._use(stream)
                is_shut_out = self._is_refused
                lost_at = trio.current_time()
                if was_up and lost_at - looked_at >= RECONNECT_MAX_S:
                    # Try again at once, to learn whether somebody is still there: however young
                    # the connection was, but not each time that a peer lets us in and hangs up.
                    delay_s, looked_at = 0.0, lost_at
            delay_max_s = REFUSED_MAX_S if self._is_refused else RECONNECT_MAX_S
            delay_s = min(delay_s, delay_max_s)
            # Whoever was not let in comes again as soon as the peer has come to us.
            rest = self._hope.wait if is_shut_out else trio.sleep_forever
            with trio.move_on_after(delay_s * self._rng.uniform(0.5, 1.0)):
                await rest()
            delay_s = min(max(delay_s * 2, RECONNECT_MIN_S), delay_max_s)

    async def _use(self, stream: ByteStream) -> bool:
        """Greet, then send until the connection ends; whether the peer let us in."""
        was_up = False
        try:
            answer = await self._greet(stream)
            self._stream = stream
            self.is_connected = was_up = True
            log.info(log_events.PEER_CONNECTED, peer=self.node, lane=self.lane)
            self._owner.on_link_up(self.node, self.lane, answer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, stream, nursery.cancel_scope)
                await _until_end(stream)
                nursery.cancel_scope.cancel()
        except (OSError, LogdError, trio.TooSlowError) as error:
            log.debug(
                log_events.PEER_DISCONNECTED, peer=self.node, lane=self.lane, reason=str(error)
            )
        finally:
            stream.abort()
            self._outbox.clear()
            if self.is_connected:
                self.is_connected = False
                self._owner.on_link_down(self.node, self.lane)
        return was_up

    async def _send(self, stream: ByteStream, scope: trio.CancelScope) -> None:
        try:
            await self._outbox.run(stream)
        except OSError:
            scope.cancel()

    async def _greet(self, stream: ByteStream) -> PeerHello:
        """Exchange greetings; raises ProtocolError when the peer refuses us."""
        greeting = self._owner.greeting(self.lane)
        with trio.fail_after(HANDSHAKE_TIMEOUT_S):
            await stream.send([encode_message(PeerKind.PEER_HELLO, greeting, 0)])
            decoder = FrameDecoder(FRAME_UNAUTHENTICATED_BYTES_MAX, long_messages=True)
            frame = await first_frame(stream, decoder)
        if frame is None:
            raise ProtocolError(f"node {self.node} at {self._address} closed the greeting")
        if frame.kind != PeerKind.PEER_HELLO:
            raise ProtocolError(f"kind {frame.kind} in place of a greeting")
        answer = decode_message(PeerHello, frame.header)
        if answer.refused is not None:
            refusal = Refusal(answer.refused, answer.is_passing)
            self._is_refused = not refusal.is_passing
            self._owner.on_link_refused(self.node, self.lane, refusal)
            raise ProtocolError(f"node {self.node} refused the link: {answer.refused}")
        if (
            version_in_common(answer.protocol, None) != answer.protocol
            or answer.view.node != self.node
        ):
            raise ProtocolError(
                f"{self._address} is node {answer.view.node} speaking peer protocol "
                f"{answer.protocol}, expected node {self.node} and {OUR_VERSIONS}"
            )
        return answer


async def _until_end(stream: ByteStream) -> None:
    """Wait for the peer to end the connection; it has nothing to say on it."""
    scrap = memoryview(bytearray(4096))
    with contextlib.suppress(OSError):  # A reset is an end like any other.
        while await stream.receive_into(scrap):
            pass
