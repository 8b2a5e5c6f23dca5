"""The incoming side of a pair of nodes: accepts links, checks who greets, reads frames.

This listener is for brokers only.  It is another state machine than the one for clients: a
client's frame here, or a peer's frame there, closes the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from logd.errors import LogdError, ProtocolError
from logd.limits import (
    FRAME_BYTES_MAX,
    FRAME_UNAUTHENTICATED_BYTES_MAX,
    HANDSHAKE_TIMEOUT_S,
)
from logd.replication import log_events
from logd.replication.peer_protocol import PEER_PROTOCOL_VERSION, PeerHello, PeerKind
from logd.types import NodeId
from logd.wire.frame import FrameDecoder, decode_message, encode_message

if TYPE_CHECKING:
    from logd.env import ByteStream, Listener
    from logd.replication.node import Node

log = structlog.get_logger(__name__)


async def serve_peers(listener: Listener, node: Node) -> None:
    """Accept links until cancelled.  A bad connection ends alone."""
    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                log.error(log_events.PEER_REFUSED, reason=str(error))
                await trio.sleep(0.1)
                continue
            nursery.start_soon(_serve_link, stream, node)


async def _serve_link(stream: ByteStream, node: Node) -> None:
    decoder = FrameDecoder(FRAME_UNAUTHENTICATED_BYTES_MAX, long_messages=True)
    try:
        with trio.fail_after(HANDSHAKE_TIMEOUT_S):
            hello = await _greet(stream, decoder, node)
        source = NodeId(hello.view.node)
        decoder.frame_bytes_max = FRAME_BYTES_MAX
        node.on_accepted(hello)
        try:
            await _read_frames(stream, decoder, source, node)
        finally:
            node.on_closed(source)
    except LogdError as error:
        log.warning(log_events.PEER_REFUSED, address=stream.peer_name, reason=str(error))
    except trio.TooSlowError:
        reason = f"no greeting within {HANDSHAKE_TIMEOUT_S:g} s"
        log.warning(log_events.PEER_REFUSED, address=stream.peer_name, reason=reason)
    except OSError as error:
        log.debug(log_events.PEER_DISCONNECTED, address=stream.peer_name, reason=str(error))
    finally:
        stream.abort()


async def _greet(stream: ByteStream, decoder: FrameDecoder, node: Node) -> PeerHello:
    while (frame := decoder.next_frame()) is None:
        received = await stream.receive_into(decoder.writable())
        if received == 0:
            raise ProtocolError("the connection was closed before a greeting")
        decoder.received(received)
    if frame.kind != PeerKind.PEER_HELLO:
        raise ProtocolError(f"frame kind {frame.kind} on the peer listener, expected a greeting")
    hello = decode_message(PeerHello, frame.header)
    if hello.protocol != PEER_PROTOCOL_VERSION:
        refused: str | None = (
            f"peer protocol {hello.protocol}, node {node.node} speaks {PEER_PROTOCOL_VERSION}"
        )
    else:
        refused = node.membership.refusal(hello.view)
    answer = node.greeting(hello.lane)
    if refused is not None:
        answer = PeerHello(
            protocol=answer.protocol,
            view=answer.view,
            incarnation=answer.incarnation,
            lane=answer.lane,
            refused=refused,
        )
    await stream.send([encode_message(PeerKind.PEER_HELLO, answer, 0)])
    if refused is not None:
        raise ProtocolError(refused)
    return hello


async def _read_frames(
    stream: ByteStream, decoder: FrameDecoder, source: NodeId, node: Node
) -> None:
    while True:
        while (frame := decoder.next_frame()) is not None:
            node.on_frame(source, frame)
        received = await stream.receive_into(decoder.writable())
        if received == 0:
            return
        decoder.received(received)
        node.on_heard(source)
