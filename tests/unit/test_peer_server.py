"""Whoever dials a broker's peer listener is let in, or told why not; nothing ends the listener."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
import trio
from structlog.testing import capture_logs

from logd.config import BrokerConfig
from logd.env import ByteStream, Listener
from logd.replication import log_events
from logd.replication.membership import Membership, Refusal
from logd.replication.node import Node
from logd.replication.peer_protocol import (
    PEER_PROTOCOL_VERSION,
    ClusterView,
    PeerHello,
    PeerKind,
)
from logd.replication.peer_server import ACCEPT_RETRY_S, serve_peers
from logd.storage.directory import DataDirectory
from logd.types import HostPort, NodeId
from logd.wire.frame import FrameDecoder, decode_message, encode_message
from tests.sim.env import SimEnv
from tests.sim.files import SimulatedFileSystem
from tests.sim.incarnation import Incarnation
from tests.sim.network import SimHostNetwork, SimNetwork
from tests.support.replica import PROMPT, a_while, play

HOST, GUEST = NodeId(1), NodeId(2)
ADDRESS: Final = HostPort("node1", 7181)


class ShortListener:
    """A listener, for whose connections there may be no descriptors."""

    def __init__(self, listener: Listener, refusals: int) -> None:
        self._listener = listener
        self.refusals_left = refusals
        self.asked_at: list[float] = []

    @property
    def address(self) -> HostPort:
        return self._listener.address

    async def accept(self) -> ByteStream:
        self.asked_at.append(trio.current_time())
        if self.refusals_left:
            self.refusals_left -= 1
            raise OSError(errno.EMFILE, "simulated failure")
        return await self._listener.accept()

    def close(self) -> None:
        self._listener.close()


class Door:
    """A node that listens, and the network of one that comes to it."""

    def __init__(self, node: Node, listener: ShortListener, network: SimHostNetwork) -> None:
        self.node = node
        self.listener = listener
        self._network = network

    async def knock(self) -> ByteStream:
        stream = await self._network.connect(ADDRESS)
        await a_while()
        return stream

    async def greet(self) -> tuple[ByteStream, PeerHello]:
        """Greet, and hear the answer."""
        stream = await self.knock()
        view = ClusterView(
            node=GUEST,
            directory_id="directory",
            cluster_list=self.node.membership.view().cluster_list,
        )
        hello = PeerHello(protocol=PEER_PROTOCOL_VERSION, view=view, incarnation=1)
        await stream.send([encode_message(PeerKind.PEER_HELLO, hello, 0)])
        decoder = FrameDecoder(64 * 1024, long_messages=True)
        while (frame := decoder.next_frame()) is None:
            received = await stream.receive_into(decoder.writable())
            assert received, "the connection was closed without an answer"
            decoder.received(received)
        assert frame.kind == PeerKind.PEER_HELLO
        return stream, decode_message(PeerHello, frame.header)


@asynccontextmanager
async def open_door(refusals: int = 0) -> AsyncIterator[Door]:
    network = SimNetwork(random.Random(1))
    files = SimulatedFileSystem(random.Random(1))
    env = SimEnv(
        seed=1,
        incarnation=Incarnation("node1", 1),
        network=network,
        files=files,
        boot_id="boot",
        blocking=PROMPT,
    )
    cluster = {node: HostPort(f"node{node}", 7181) for node in (HOST, GUEST)}
    config = BrokerConfig(node_id=HOST, data_dir="/data", cluster=cluster)
    directory = DataDirectory.open(files, "/data", HOST, lambda: "a-directory")
    node = Node(config, env, Membership(HOST, directory, cluster, env))
    listener = ShortListener(await env.network.listen(ADDRESS), refusals)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        nursery.start_soon(serve_peers, listener, node)
        yield Door(node, listener, network.attach(Incarnation("node2", 1)))
        nursery.cancel_scope.cancel()


async def ends(stream: ByteStream) -> bool:
    """Whether the other side has closed the connection."""
    with trio.move_on_after(1):
        try:
            return await stream.receive_into(memoryview(bytearray(10))) == 0
        except OSError:
            return True
    return False


def test_who_greets_is_greeted_and_let_in() -> None:
    async def story() -> None:
        async with open_door() as door:
            stream, answer = await door.greet()

            assert (answer.view.node, answer.refused, answer.is_passing) == (HOST, None, False)
            assert not await ends(stream)
            assert (GUEST, "main") in door.node.accepted_links

    play(story)


@pytest.mark.parametrize("is_passing", [False, True])
def test_who_is_refused_is_told_why_and_whether_it_shall_come_again_soon(
    monkeypatch: pytest.MonkeyPatch, *, is_passing: bool
) -> None:
    """Whoever is refused for good, and took it for a matter of moments, would knock for ever."""

    async def story() -> None:
        async with open_door() as door:
            refusal = Refusal("not you", is_passing=is_passing)
            monkeypatch.setattr(door.node.membership, "refusal", lambda _: refusal)

            stream, answer = await door.greet()

            assert (answer.refused, answer.is_passing) == ("not you", is_passing)
            assert await ends(stream)
            assert door.node.accepted_links == {}

    play(story)


def test_without_descriptors_who_has_not_greeted_goes_and_the_next_is_asked_for_at_once() -> None:
    async def story() -> None:
        async with open_door() as door:
            silent = await door.knock()
            door.listener.refusals_left = 1
            door.listener.asked_at.clear()

            await door.knock()

            refused_at, again_at = door.listener.asked_at
            assert refused_at == again_at
            assert await ends(silent)

    play(story)


def test_without_descriptors_and_with_nobody_to_go_the_listener_waits_a_moment() -> None:
    """There is nothing that it could do meanwhile, and the error would come at once."""

    async def story() -> None:
        async with open_door(refusals=3) as door:
            with capture_logs() as logs:
                await trio.sleep(1)

            began, *later = door.listener.asked_at
            waits = [at - began for at in later]
            assert waits == pytest.approx([ACCEPT_RETRY_S * n for n in (1, 2, 3)])
            assert [entry["event"] for entry in logs].count(log_events.PEER_REFUSED) == 1
            assert (await door.greet())[1].refused is None

    play(story)
