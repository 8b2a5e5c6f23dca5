"""A link to a peer keeps within its bounds, whatever the peer does."""

from __future__ import annotations

import random
from typing import TypeVar

import msgspec
import pytest
import trio

from logd.env import Listener
from logd.replication import peer_link
from logd.replication.membership import Refusal
from logd.replication.peer_link import PeerLink
from logd.replication.peer_protocol import (
    PEER_PROTOCOL_VERSION,
    Claims,
    ClusterView,
    Lane,
    PeerHello,
    PeerKind,
)
from logd.replication.turn import Turn
from logd.types import HostPort, NodeId
from logd.wire.frame import encode_message
from tests.sim.env import SimEnv
from tests.sim.files import SimulatedFileSystem
from tests.sim.incarnation import Incarnation
from tests.sim.network import SimNetwork
from tests.sim.run import run_deterministic

PEER = NodeId(2)
ADDRESS = HostPort("node2", 7181)


def hello(node: int, protocol: int = PEER_PROTOCOL_VERSION) -> PeerHello:
    view = ClusterView(node=node, directory_id=f"directory-{node}", cluster_list="")
    return PeerHello(protocol=protocol, view=view, incarnation=1)


class Owner:
    """Counts what happens to the link."""

    def __init__(self) -> None:
        self.ups = 0
        self.downs = 0
        self.nobody_there_at: list[float] = []

    def greeting(self, lane: Lane) -> PeerHello:
        return hello(1)

    def on_link_up(self, node: NodeId, lane: Lane, answer: PeerHello) -> None:
        self.ups += 1

    def on_link_down(self, node: NodeId, lane: Lane) -> None:
        self.downs += 1

    def on_link_refused(self, node: NodeId, lane: Lane, refusal: Refusal) -> None:
        raise AssertionError(refusal)

    def on_nobody_there(self, node: NodeId) -> None:
        self.nobody_there_at.append(trio.current_time())

    def on_unreachable(self, node: NodeId) -> None: ...
    def on_link_room(self, node: NodeId) -> None: ...


AnyOwner = TypeVar("AnyOwner", bound=Owner)


async def link_to_listener(owner: AnyOwner) -> tuple[PeerLink, AnyOwner, Listener]:
    """A link of node 1, not running yet, and the listener that it will connect to."""
    network = SimNetwork(random.Random(1))
    peers = network.attach(Incarnation("node2", 1))
    return link_in(network, owner), owner, await peers.listen(ADDRESS)


def link_in(network: SimNetwork, owner: Owner) -> PeerLink:
    env = SimEnv(
        seed=1,
        incarnation=Incarnation("node1", 1),
        network=network,
        files=SimulatedFileSystem(random.Random(1)),
        boot_id="boot",
    )
    return PeerLink(PEER, ADDRESS, "main", env, owner, Turn(lambda: False))


def test_a_peer_that_takes_nothing_is_cut_off_before_its_queue_grows_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound = 8 * 1024 * 1024
    monkeypatch.setattr(peer_link, "QUEUED_BYTES_MAX", bound)

    async def main() -> None:
        link, owner, listener = await link_to_listener(Owner())

        async def greet_and_fall_silent() -> None:
            while True:
                stream = await listener.accept()
                await stream.send([encode_message(PeerKind.PEER_HELLO, hello(2), 0)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(greet_and_fall_silent)
            nursery.start_soon(link.run)
            claims = Claims(groups=[(group, 1) for group in range(10_000)])
            most = 0
            for _ in range(2_000):
                link.send(claims)
                most = max(most, link._outbox.queued_bytes)
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

        assert most <= bound + 100_000
        assert owner.downs > 0
        assert owner.ups > 1

    run_deterministic(main, seed=1)


def test_a_peer_that_answers_in_a_version_that_is_not_spoken_here_is_not_talked_to() -> None:
    async def main() -> None:
        link, owner, listener = await link_to_listener(Owner())

        async def greet_in(protocol: int) -> None:
            stream = await listener.accept()
            await stream.send([encode_message(PeerKind.PEER_HELLO, hello(2, protocol), 0)])
            await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            await greet_in(PEER_PROTOCOL_VERSION + 1)
            assert owner.ups == 0
            await greet_in(PEER_PROTOCOL_VERSION)
            assert owner.ups == 1
            nursery.cancel_scope.cancel()

    run_deterministic(main, seed=1)


class RefusedOwner(Owner):
    """Counts how often it is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0

    def on_link_refused(self, node: NodeId, lane: Lane, refusal: Refusal) -> None:
        self.refused += 1


@pytest.mark.parametrize(("is_passing", "at_most"), [(False, 30), (True, 600)])
def test_whoever_is_refused_for_good_comes_less_often_until_the_peer_comes_to_it(
    is_passing: bool, at_most: int
) -> None:
    async def main() -> None:
        link, owner, listener = await link_to_listener(RefusedOwner())
        answer = msgspec.structs.replace(hello(2), refused="no", is_passing=is_passing)

        async def refuse() -> None:
            while True:
                stream = await listener.accept()
                await stream.send([encode_message(PeerKind.PEER_HELLO, answer, 0)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            nursery.start_soon(refuse)
            await trio.sleep(5)
            soon = owner.refused
            await trio.sleep(295)
            assert at_most / 2 < owner.refused <= at_most
            assert soon > 5  # It may have been a matter of moments.

            before = owner.refused
            link.hope()
            await trio.sleep(0.1)
            assert owner.refused == before + (not is_passing)
            answer = hello(2)
            link.hope()
            await trio.sleep(1)
            assert owner.ups == 1
            nursery.cancel_scope.cancel()

    run_deterministic(main, seed=1)


@pytest.mark.parametrize("lived_s", [0.01, 0.5, 30.0])
def test_a_peer_that_dies_is_known_to_be_gone_at_once_however_young_the_connection_was(
    lived_s: float,
) -> None:
    async def main() -> None:
        link, owner, listener = await link_to_listener(Owner())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            stream = await listener.accept()
            stream.abort()  # So that the link has begun to rest between its attempts.
            for _ in range(5):
                stream = await listener.accept()
                stream.abort()
            stream = await listener.accept()
            await stream.send([encode_message(PeerKind.PEER_HELLO, hello(2), 0)])
            await trio.sleep(lived_s)
            assert owner.ups == 1
            died_at = trio.current_time()
            listener.close()
            stream.abort()
            await trio.sleep(5)
            assert owner.downs == 1
            assert owner.nobody_there_at[0] - died_at < 0.05
            nursery.cancel_scope.cancel()

    run_deterministic(main, seed=1)


def test_a_peer_that_lets_in_and_hangs_up_is_not_dialled_without_end() -> None:
    async def main() -> None:
        link, owner, listener = await link_to_listener(Owner())

        async def hang_up() -> None:
            while True:
                stream = await listener.accept()
                await stream.send([encode_message(PeerKind.PEER_HELLO, hello(2), 0)])
                await trio.sleep(0.001)
                stream.abort()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            nursery.start_soon(hang_up)
            await trio.sleep(60)
            assert 60 < owner.ups < 600
            nursery.cancel_scope.cancel()

    run_deterministic(main, seed=1)


def test_a_peer_that_comes_to_us_is_dialled_at_once_if_nobody_was_there_before() -> None:
    async def main() -> None:
        network = SimNetwork(random.Random(1))
        peers = network.attach(Incarnation("node2", 1))
        owner = Owner()
        link = link_in(network, owner)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            while len(owner.nobody_there_at) < 10:  # By now its attempts are far apart.
                await trio.sleep(0.1)
            listener = await peers.listen(ADDRESS)
            link.hope()
            with trio.fail_after(0.05):
                await listener.accept()
            nursery.cancel_scope.cancel()

    run_deterministic(main, seed=1)
