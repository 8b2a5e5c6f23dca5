"""The faults of the simulated network: what is held, what is lost, and who learns of it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio

from logd.types import HostPort
from tests.sim.incarnation import Crashed, Incarnation
from tests.sim.network import (
    CALM,
    NetworkConditions,
    SimHostNetwork,
    SimNetwork,
    SimStream,
    SimTransport,
)
from tests.sim.run import run_deterministic
from tests.support.received import Received

PORT = 7000
SOON_S = 1.0


class World:
    """Hosts a and b, and a connection from one to the other."""

    def __init__(self, conditions: NetworkConditions = CALM) -> None:
        self.network = SimNetwork(random.Random("world"), conditions=conditions)
        self.incarnations = {name: Incarnation(name, 1) for name in "ab"}
        self.a = self.network.attach(self.incarnations["a"])
        self.b = self.network.attach(self.incarnations["b"])

    async def connected(self) -> tuple[SimStream, SimStream]:
        listener = await self.b.listen(HostPort("b", PORT))
        near = await self.a.connect_stream(HostPort("b", PORT))
        far = await listener.accept()
        assert isinstance(far, SimStream)
        return near, far

    def crash(self, name: str, *, vanish: bool) -> None:
        self.incarnations[name].end()
        self.network.crash(name, vanish=vanish)

    def boot(self, name: str) -> SimHostNetwork:
        old = self.incarnations[name]
        self.incarnations[name] = Incarnation(name, old.number + 1)
        return self.network.attach(self.incarnations[name])


def play(
    scenario: Callable[[World], Awaitable[None]],
    conditions: NetworkConditions = CALM,
    seed: int = 1,
) -> None:
    async def main() -> None:
        world = World(conditions)
        await scenario(world)

    run_deterministic(main, seed=seed, time_limit_s=600)


async def receive(stream: SimStream, count: int = 100) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: await stream.receive_into(memoryview(buffer))])


async def receive_until_reset(stream: SimStream) -> bytes:
    received = b""
    with pytest.raises(ConnectionResetError):  # noqa: PT012 - bytes before it are welcome
        while True:
            received += await receive(stream)
    return received


async def hears_nothing(stream: SimStream, seconds: float = SOON_S) -> bool:
    """True if nothing arrives for a while, not even an ending."""
    with trio.move_on_after(seconds) as patience:
        await receive(stream)
    return patience.cancelled_caught


# --- cuts and clogs ---------------------------------------------------------------------


def test_a_cut_holds_one_direction_and_leaves_the_other() -> None:
    async def scenario(world: World) -> None:
        near, far = await world.connected()
        world.network.cut("a", "b")
        await near.send([b"held"])
        await far.send([b"passes"])
        assert await receive(near) == b"passes"
        assert await hears_nothing(far)

    play(scenario)


def test_what_a_cut_held_arrives_in_order_after_healing() -> None:
    async def scenario(world: World) -> None:
        near, far = await world.connected()
        world.network.cut("a", "b")
        for part in (b"one ", b"two ", b"three"):
            await near.send([part])
            await trio.sleep(0.1)
        world.network.heal()
        received = b""
        while len(received) < 13:
            received += await receive(far)
        assert received == b"one two three"

    play(scenario)


def test_healing_may_reset_a_connection_that_was_held() -> None:
    async def scenario(world: World) -> None:
        near, far = await world.connected()
        world.network.partition(["a"], ["b"])
        await near.send([b"held"])
        await trio.sleep(SOON_S)
        world.network.heal()
        assert await receive_until_reset(near) == b""
        assert b"held".startswith(await receive_until_reset(far))

    play(scenario, replace(CALM, reset_on_heal_probability=1.0))


def test_healing_never_resets_a_connection_that_held_nothing() -> None:
    async def scenario(world: World) -> None:
        near, far = await world.connected()
        world.network.partition(["a"], ["b"])
        world.network.heal()
        await near.send([b"fine"])
        assert await receive(far) == b"fine"

    play(scenario, replace(CALM, reset_on_heal_probability=1.0))


def test_the_end_of_a_connection_does_not_pass_a_cut() -> None:
    async def scenario(world: World) -> None:
        near, far = await world.connected()
        world.network.partition(["a"], ["b"])
        near.abort()
        assert await hears_nothing(far)
        world.network.heal()
        assert await receive(far) == b""

    play(scenario)


def test_a_sender_gets_no_room_back_while_the_way_back_is_cut() -> None:
    size = CALM.buffer_bytes

    async def scenario(world: World) -> None:
        near, far = await world.connected()
        world.network.cut("b", "a")
        await near.send([bytes(size)])
        received = 0
        while received < size:
            received += len(await receive(far, size))
        with trio.move_on_after(SOON_S) as patience:
            await near.send([b"more"])
        assert patience.cancelled_caught
        world.network.heal()
        await near.send([b"more"])

    play(scenario)


def test_a_clog_ends_by_itself() -> None:
    async def scenario(world: World) -> None:
        near, far = await world.connected()
        world.network.clog("a", "b", 5.0)
        began_s = trio.current_time()
        await near.send([b"late"])
        assert await receive(far) == b"late"
        assert 5.0 <= trio.current_time() - began_s < 5.0 + SOON_S

    play(scenario)


def test_a_slow_link_delivers_later() -> None:
    async def scenario(world: World) -> None:
        near, far = await world.connected()
        world.network.slow("a", "b", 2.0)
        began_s = trio.current_time()
        await near.send([b"late"])
        assert await receive(far) == b"late"
        assert 2.0 <= trio.current_time() - began_s < 2.0 + SOON_S

    play(scenario)


def test_bytes_arrive_in_order_however_late_each_piece_is() -> None:
    rough = NetworkConditions(latency_s_mean=0.05, spike_probability=0.3, split_probability=0.9)

    async def scenario(world: World) -> None:
        near, far = await world.connected()
        expected = b"".join(b"%04d" % number for number in range(200))
        for number in range(200):
            await near.send([b"%04d" % number])
        received = b""
        while len(received) < len(expected):
            received += await receive(far)
        assert received == expected

    play(scenario, rough)


# --- connecting through faults ----------------------------------------------------------


@pytest.mark.parametrize("link", [("a", "b"), ("b", "a")])
def test_connecting_times_out_when_either_direction_is_cut(link: tuple[str, str]) -> None:
    async def scenario(world: World) -> None:
        await world.b.listen(HostPort("b", PORT))
        world.network.cut(*link)
        with pytest.raises(TimeoutError, match=f"cannot connect to b:{PORT}"):
            await world.a.connect(HostPort("b", PORT))
        assert trio.current_time() >= CALM.connect_timeout_s

    play(scenario)


def test_connecting_succeeds_when_the_cut_heals_in_time() -> None:
    async def scenario(world: World) -> None:
        await world.b.listen(HostPort("b", PORT))
        world.network.cut("a", "b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.a.connect, HostPort("b", PORT))
            await trio.sleep(5.0)
            world.network.heal()

    play(scenario)


def test_connecting_to_a_host_that_vanished_times_out_and_to_a_killed_one_is_refused() -> None:
    async def scenario(world: World) -> None:
        await world.b.listen(HostPort("b", PORT))
        world.crash("b", vanish=False)
        with pytest.raises(ConnectionRefusedError):
            await world.a.connect(HostPort("b", PORT))
        world.boot("b")
        world.crash("b", vanish=True)
        with pytest.raises(TimeoutError):
            await world.a.connect(HostPort("b", PORT))

    play(scenario)


# --- crashes ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_peer_of_a_killed_process_reads_the_end_or_is_reset(seed: int) -> None:
    async def scenario(world: World) -> None:
        world.network.chance.seed(seed)
        near, _far = await world.connected()
        world.crash("b", vanish=False)
        with contextlib.suppress(ConnectionResetError):
            assert await receive(near) == b""

    play(scenario)


def test_who_sends_to_a_killed_process_is_reset() -> None:
    async def scenario(world: World) -> None:
        near, _far = await world.connected()
        world.crash("b", vanish=False)

        async def send_for_ever() -> None:
            while True:
                await near.send([b"anybody?"])
                await trio.sleep(0.01)

        with pytest.raises(ConnectionResetError):
            await send_for_ever()

    play(scenario)


@pytest.mark.parametrize("seed", range(10))
def test_who_sends_learns_of_a_reset_that_got_lost_with_the_other_host(seed: int) -> None:
    """Something in the middle has reset it: the host that is back knows nothing of that."""

    async def scenario(world: World) -> None:
        world.network.chance.seed(seed)
        near, _ = await world.connected()
        assert world.network.reset_random()
        world.crash("b", vanish=True)
        world.boot("b")

        async def ask() -> None:
            while True:
                await near.send([b"anybody there?"])
                await trio.sleep(SOON_S / 10)

        with trio.fail_after(SOON_S), pytest.raises(ConnectionResetError):
            await ask()

    play(scenario)


def test_a_host_that_vanished_is_silent_until_it_is_back_and_then_resets() -> None:
    async def scenario(world: World) -> None:
        near, _far = await world.connected()
        world.crash("b", vanish=True)
        await near.send([b"anybody?"])
        assert await hears_nothing(near, 60.0)
        world.boot("b")
        with pytest.raises(ConnectionResetError):
            await receive(near)

    play(scenario)


def test_a_new_life_does_not_inherit_the_connections_of_the_old_one() -> None:
    async def scenario(world: World) -> None:
        near, _far = await world.connected()
        world.crash("b", vanish=True)
        listener = await world.boot("b").listen(HostPort("b", PORT))
        await near.send([b"are you still you?"])
        with pytest.raises(ConnectionResetError):
            await receive(near)
        with trio.move_on_after(SOON_S) as patience:
            await listener.accept()
        assert patience.cancelled_caught

    play(scenario)


def test_nothing_an_old_life_does_has_an_effect() -> None:
    async def scenario(world: World) -> None:
        near, far = await world.connected()
        world.crash("b", vanish=True)
        far.abort()
        with pytest.raises(Crashed):
            await far.send([b"from the grave"])
        with pytest.raises(Crashed):
            await receive(far)
        with pytest.raises(Crashed):
            await world.b.connect(HostPort("a", PORT))
        with pytest.raises(Crashed):
            await world.b.listen(HostPort("b", PORT + 1))
        assert await hears_nothing(near)

    play(scenario)


def test_tasks_that_wait_in_an_old_life_do_not_wait_for_ever() -> None:
    async def scenario(world: World) -> None:
        _near, far = await world.connected()
        listener = await world.b.listen(HostPort("b", PORT + 1))

        async def wait(operation: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(Crashed):
                await operation()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, lambda: receive(far))
            nursery.start_soon(wait, lambda: far.send([bytes(10 * CALM.buffer_bytes)]))
            nursery.start_soon(wait, listener.accept)
            await trio.sleep(SOON_S)
            world.crash("b", vanish=True)

    play(scenario)


def test_a_killed_process_never_leaves_a_hole_in_what_it_sent() -> None:
    async def scenario(world: World) -> None:
        for seed in range(20):
            world.network.chance.seed(seed)
            near, far = await world.connected()
            for number in range(50):
                await far.send([b"%04d" % number])
            world.crash("b", vanish=False)
            received = b""
            try:
                while part := await receive(near):
                    received += part
            except ConnectionResetError:
                pass
            assert b"".join(b"%04d" % number for number in range(50)).startswith(received)
            world.b = world.boot("b")

    play(scenario, replace(CALM, split_probability=0.5, latency_s_mean=0.01))


# --- resets and the client's side -------------------------------------------------------


def test_a_random_reset_ends_both_sides_of_one_connection() -> None:
    async def scenario(world: World) -> None:
        near, far = await world.connected()
        assert world.network.reset_random()
        for stream in (near, far):
            with pytest.raises(ConnectionResetError):
                await receive(stream)
        assert not world.network.reset_random()

    play(scenario)


def test_the_clients_transport_speaks_to_a_listener() -> None:
    async def scenario(world: World) -> None:
        listener = await world.b.listen(HostPort("b", PORT))
        client = await SimTransport(world.a).connect("b", PORT)
        broker = await listener.accept()
        await client.send([b"one "])
        await client.send([b"two ", bytearray(b"three")])
        buffer = bytearray(13)
        received = 0
        while received < 13:
            received += await broker.receive_into(memoryview(buffer)[received:])
        assert buffer == b"one two three"
        await broker.send([b"answer"])
        broker.abort()
        receiver = Received()
        await client.deliver_to(receiver)
        assert receiver.data == b"answer"
        await client.aclose()

    play(scenario)


def test_connections_that_are_over_are_forgotten() -> None:
    async def scenario(world: World) -> None:
        listener = await world.b.listen(HostPort("b", PORT))
        for _ in range(300):
            near = await world.a.connect(HostPort("b", PORT))
            far = await listener.accept()
            near.abort()
            far.abort()
        assert len(world.network._connections) < 130

    play(scenario)


def test_a_link_that_was_cut_twice_is_open_when_both_cuts_have_ended() -> None:
    async def scenario(world: World) -> None:
        near, far = await world.connected()
        world.network.hold([("a", "b")])
        world.network.hold([("a", "b"), ("b", "a")])
        await near.send([b"held"])
        world.network.release([("a", "b")])
        with trio.move_on_after(SOON_S) as scope:
            await receive(far)
        assert scope.cancelled_caught
        world.network.release([("a", "b"), ("b", "a")])
        assert await receive(far) == b"held"

    play(scenario)


def test_of_a_half_open_connection_one_end_knows_and_the_other_learns_by_sending() -> None:
    async def scenario(world: World) -> None:
        ends = await world.connected()
        assert world.network.half_open_random()
        lost, believing = sorted(ends, key=lambda end: end.is_live)
        with pytest.raises(ConnectionResetError):
            await receive(lost)
        with trio.move_on_after(60.0) as scope:
            await receive(believing)
        assert scope.cancelled_caught, "nobody tells who only listens"
        await believing.send([b"are you there?"])
        with pytest.raises(ConnectionResetError):
            await receive(believing)

    play(scenario)
