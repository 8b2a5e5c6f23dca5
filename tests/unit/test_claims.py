"""A node says what it leads to whoever it connects to, before anything else."""

from __future__ import annotations

import msgspec
import trio

from logd.env import ByteStream
from logd.limits import KIB
from logd.replication.peer_protocol import Claims, PeerHello, PeerKind, Ping
from logd.types import HostPort
from logd.wire.frame import Frame, FrameDecoder, decode_message, encode_message
from tests.sim.incarnation import Incarnation
from tests.support.replica import GROUP, OURSELVES, SECOND, Replica, open_replica, play

PATIENCE_S = 30.0


async def next_frame(stream: ByteStream, decoder: FrameDecoder) -> Frame:
    while (frame := decoder.next_frame()) is None:
        decoder.received(await stream.receive_into(decoder.writable()))
    return frame


async def first_words(replica: Replica, count: int) -> list[Frame]:
    """What the second node hears behind the greetings when it is connected to."""
    network = replica.env._sim_network.attach(Incarnation("node2", 1))
    listener = await network.listen(HostPort("node2", 7181))
    while True:  # The lanes come in any order.
        stream, decoder = await listener.accept(), FrameDecoder(64 * KIB, long_messages=True)
        hello = decode_message(PeerHello, (await next_frame(stream, decoder)).header)
        if hello.lane == "main":
            break
    view = msgspec.structs.replace(hello.view, node=SECOND, directory_id="directory")
    answer = msgspec.structs.replace(hello, view=view, protocol_min=None)
    await stream.send([encode_message(PeerKind.PEER_HELLO, answer, 0)])
    return [await next_frame(stream, decoder) for _ in range(count)]


def test_whoever_is_connected_to_hears_first_what_is_led_and_then_how_the_disk_is() -> None:
    """It may still believe in what an earlier life of this node led, and is about to send to
    it, or to begin to fill its disk."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await replica.lead()
            replica.node.fitness.note_disk(OURSELVES, is_full=True)
            with trio.fail_after(PATIENCE_S):
                claims, ping = await first_words(replica, 2)

            term = replica.group.core.term
            assert claims.kind == PeerKind.CLAIMS
            assert decode_message(Claims, claims.header).groups == [(GROUP, term)]
            assert ping.kind == PeerKind.PING
            assert decode_message(Ping, ping.header).disk_full

    play(story)
