"""The incoming side of a pair of nodes: accepts links, checks who greets, reads frames.

This listener is for brokers only.  It is another state machine than the one for clients: a
client's frame here, or a peer's frame there, closes the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from logd.errors import LogdError, ProtocolError
from logd.limits import (
    FRAME_BYTES_MAX,
    FRAME_UNAUTHENTICATED_BYTES_MAX,
    HANDSHAKE_TIMEOUT_S,
    PEER_CONNECTIONS_MAX,
    PEER_PROGRESS_TIMEOUT_S,
)
from logd.replication import log_events
from logd.replication.inbox import Inbox, first_frame
from logd.replication.membership import Refusal
from logd.replication.newcomers import Newcomers
from logd.replication.peer_protocol import (
    OUR_VERSIONS,
    PEER_PROTOCOL_VERSION,
    JoinRequest,
    PeerHello,
    PeerKind,
    version_in_common,
    versions_text,
)
from logd.types import NodeId
from logd.wire.frame import FLAG_LONG, FrameDecoder, decode_message, encode_message

if TYPE_CHECKING:
    from logd.env import ByteStream, Listener
    from logd.replication.node import Node
    from logd.wire.frame import Frame

log = structlog.get_logger(__name__)


ACCEPT_RETRY_S: Final = 0.1


async def serve_peers(listener: Listener, node: Node) -> None:
    """Accept links until cancelled.  A bad connection ends alone."""
    server = _PeerServer(node)
    was_told = False
    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if not was_told:  # Said once, and not ten times a second.
                    log.error(log_events.PEER_REFUSED, reason=str(error))
                was_told = True
                if not server.newcomers.make_room():
                    await trio.sleep(ACCEPT_RETRY_S)
                continue
            was_told = False
            if server.connections >= PEER_CONNECTIONS_MAX and not server.newcomers.make_room():
                reason = f"{PEER_CONNECTIONS_MAX} connections, the most there may be"
                log.warning(log_events.PEER_REFUSED, address=stream.peer_name, reason=reason)
                stream.abort()
                continue
            server.connections += 1
            nursery.start_soon(server.serve, stream)


class _PeerServer:
    """All links that were accepted."""

    def __init__(self, node: Node) -> None:
        self.connections = 0
        self.newcomers = Newcomers()
        self._node = node

    async def serve(self, stream: ByteStream) -> None:
        """Serve one connection to its end."""
        decoder = FrameDecoder(FRAME_UNAUTHENTICATED_BYTES_MAX, long_messages=True)
        try:
            with self.newcomers.greeting(stream.peer_name):
                hello = await _greet(stream, decoder, self._node)
            if hello is None:
                return
            decoder.frame_bytes_max = FRAME_BYTES_MAX
            await self._serve_link(stream, decoder, hello)
        except LogdError as error:
            log.warning(log_events.PEER_REFUSED, address=stream.peer_name, reason=str(error))
        except trio.TooSlowError:
            reason = _too_slow(decoder)
            log.warning(log_events.PEER_REFUSED, address=stream.peer_name, reason=reason)
        except OSError as error:
            log.debug(log_events.PEER_DISCONNECTED, address=stream.peer_name, reason=str(error))
        finally:
            self.connections -= 1
            stream.abort()

    async def _serve_link(
        self, stream: ByteStream, decoder: FrameDecoder, hello: PeerHello
    ) -> None:
        """Take frames of a peer that has greeted.

        A node dials a lane again only when it has given the last connection up.  That may
        have died without a sign on this side: it ends now.
        """
        source, node = NodeId(hello.view.node), self._node
        links = node.accepted_links
        superseded = links.get((source, hello.lane))
        if superseded is not None:
            superseded.cancel()
        with trio.CancelScope() as scope:
            links[source, hello.lane] = scope
            node.on_accepted(hello)
            try:
                await _read_frames(stream, decoder, source, node)
            finally:
                node.on_closed(source)
                if links.get((source, hello.lane)) is scope:
                    del links[source, hello.lane]


def _too_slow(decoder: FrameDecoder) -> str:
    if decoder.frame_bytes_max == FRAME_UNAUTHENTICATED_BYTES_MAX:
        return f"no greeting within {HANDSHAKE_TIMEOUT_S:g} s"
    return f"no progress: {decoder.pending_bytes} bytes of an unfinished frame"


async def _greet(stream: ByteStream, decoder: FrameDecoder, node: Node) -> PeerHello | None:
    """Exchange greetings; None if it was somebody who wants to join, or comes too soon."""
    frame = await first_frame(stream, decoder)
    if frame is None:
        raise ProtocolError("the connection was closed before a greeting")
    if frame.kind == PeerKind.JOIN_REQUEST and node.on_join is not None:
        joined = await node.on_join(decode_message(JoinRequest, frame.header))
        await stream.send([encode_message(PeerKind.JOIN_RESPONSE, joined, 0)])
        return None
    if frame.kind != PeerKind.PEER_HELLO:
        raise ProtocolError(f"frame kind {frame.kind} on the peer listener, expected a greeting")
    hello = decode_message(PeerHello, frame.header)
    version = version_in_common(hello.protocol, hello.protocol_min)
    if version is None:
        refusal: Refusal | None = Refusal(
            f"peer protocol {versions_text(hello.protocol, hello.protocol_min)}, "
            f"node {node.node} speaks {OUR_VERSIONS}"
        )
    else:
        refusal = node.refusal(hello.view)
    answer = msgspec.structs.replace(
        node.greeting(hello.lane),
        protocol=version or PEER_PROTOCOL_VERSION,
        protocol_min=None,
        refused=None if refusal is None else refusal.reason,
        is_passing=refusal is not None and refusal.is_passing,
    )
    await stream.send([encode_message(PeerKind.PEER_HELLO, answer, 0)])
    # It may have been removed while it was answered.
    refusal = refusal or node.refusal(hello.view)
    if refusal is None:
        return hello
    if not refusal.is_passing:
        raise ProtocolError(refusal.reason)
    # Whoever dialled tells it louder if it lasts.
    log.info(log_events.PEER_REFUSED, address=stream.peer_name, reason=refusal.reason)
    return None


async def _read_frames(
    stream: ByteStream, decoder: FrameDecoder, source: NodeId, node: Node
) -> None:
    def take(frame: Frame) -> bool:
        if frame.flags & ~FLAG_LONG:
            raise ProtocolError(f"frame kind {frame.kind} with flags {frame.flags} from a peer")
        node.on_frame(source, frame)
        return True

    def heard() -> None:
        node.on_heard(source)

    inbox = Inbox(
        stream,
        decoder,
        node.turn,
        timeout_s=PEER_PROGRESS_TIMEOUT_S,
        take=take,
        on_bytes=heard,
    )
    await inbox.run()
