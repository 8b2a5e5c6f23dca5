"""What the broker may expect of a network, held against TCP and against the simulated one.

Each test runs on both: a rule that only one of them keeps is a bug in the simulator, or in
what we believe about TCP.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import trio

from logd.env import Buffer, ByteStream, Listener, Network
from logd.limits import KIB, MIB
from logd.runtime.network import BUFFERS_PER_SEND_MAX, TcpNetwork
from logd.types import HostPort
from tests.sim.incarnation import Incarnation
from tests.sim.network import CALM, NetworkConditions, SimNetwork
from tests.sim.run import run_deterministic

Scenario = Callable[["Wires"], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wires:
    """Two machines (on TCP one, twice)."""

    near: Network
    far: Network
    far_host: str
    opened: list[ByteStream] = field(default_factory=list)

    async def listen(self) -> Listener:
        """A listener on the far machine."""
        return await self.far.listen(HostPort(self.far_host, 0))

    async def connect(self, listener: Listener) -> tuple[ByteStream, ByteStream]:
        """Both ends of a new connection, the near one and the far one; closed at the end."""
        near = await self.near.connect(listener.address)
        self.opened.append(near)
        far = await listener.accept()
        self.opened.append(far)
        return near, far

    async def connected(self) -> tuple[ByteStream, ByteStream]:
        """As ``connect``, through a listener made for it."""
        listener = await self.listen()
        ends = await self.connect(listener)
        listener.close()
        return ends

    async def play(self, scenario: Scenario, deadline_s: float) -> None:
        try:
            with trio.fail_after(deadline_s):
                await scenario(self)
        finally:
            for stream in self.opened:
                stream.abort()


Runner = Callable[[Scenario], None]


def on_tcp(scenario: Scenario) -> None:
    async def main() -> None:
        network = TcpNetwork()
        await Wires(near=network, far=network, far_host="127.0.0.1").play(scenario, 10)

    trio.run(main)


def on_simulation(conditions: NetworkConditions) -> Runner:
    async def main(scenario: Scenario) -> None:
        network = SimNetwork(random.Random("conformance"), conditions=conditions)
        near = network.attach(Incarnation("near", 1))
        far = network.attach(Incarnation("far", 1))
        await Wires(near=near, far=far, far_host="far").play(scenario, 60)

    return lambda scenario: run_deterministic(main, scenario, seed=1)


RUNNERS = {
    "tcp": on_tcp,
    "calm": on_simulation(CALM),
    "rough": on_simulation(
        NetworkConditions(
            latency_s_mean=0.01,
            spike_probability=0.1,
            split_probability=0.8,
            short_read_probability=0.8,
            buffer_bytes=16 * KIB,
        )
    ),
}


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest) -> Runner:
    return RUNNERS[request.param]


async def receive_exactly(stream: ByteStream, count: int) -> bytes:
    data = bytearray(count)
    view = memoryview(data)
    position = 0
    while position < count:
        received = await stream.receive_into(view[position:])
        assert received > 0, f"ended after {position} of {count} bytes"
        position += received
    return bytes(data)


async def receive_one_by_one(stream: ByteStream, count: int) -> None:
    buffer = memoryview(bytearray(1))
    for _ in range(count):
        assert await stream.receive_into(buffer) == 1


async def receive_rest(stream: ByteStream) -> bytes:
    data = bytearray()
    buffer = memoryview(bytearray(64 * KIB))
    while count := await stream.receive_into(buffer):
        data += buffer[:count]
    return bytes(data)


# --- bytes ------------------------------------------------------------------------------


def test_bytes_arrive_in_order_and_unchanged(run: Runner) -> None:
    sent = random.Random(7).randbytes(1 * MIB)

    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send, [sent])
            assert await receive_exactly(far, len(sent)) == sent

    run(scenario)


def test_both_directions_carry_bytes_at_the_same_time(run: Runner) -> None:
    there, back = bytes(200_000), b"\xff" * 200_000

    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send, [there])
            nursery.start_soon(far.send, [back])
            assert await receive_exactly(far, len(there)) == there
            assert await receive_exactly(near, len(back)) == back

    run(scenario)


def test_any_number_of_buffers_of_any_kind_and_size_is_sent_in_order(run: Runner) -> None:
    chance = random.Random(3)
    parts = [chance.randbytes(chance.choice([0, 1, 30, 900])) for _ in range(3000)]
    kinds: list[Callable[[bytes], Buffer]] = [bytes, bytearray, memoryview]
    buffers = [kinds[number % 3](part) for number, part in enumerate(parts)]
    assert len(buffers) > 2 * BUFFERS_PER_SEND_MAX
    total = sum(map(len, parts))

    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send, buffers)
            assert await receive_exactly(far, total) == b"".join(parts)

    run(scenario)


def test_sending_nothing_returns(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        await near.send([])
        await near.send([b""])
        await near.send([b"x"])
        assert await receive_exactly(far, 1) == b"x"

    run(scenario)


def test_what_does_not_fit_the_buffer_stays_for_the_next_receive(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        await near.send([b"abcdef"])
        small = memoryview(bytearray(1))
        received = b""
        while len(received) < 6:
            assert await far.receive_into(small) == 1
            received += bytes(small)
        assert received == b"abcdef"

    run(scenario)


def test_sending_waits_while_nobody_receives(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        with trio.move_on_after(0.05) as patience:
            await near.send([bytes(32 * MIB)])
        assert patience.cancelled_caught
        far.abort()

    run(scenario)


def test_a_sender_that_waits_goes_on_when_bytes_are_received(run: Runner) -> None:
    size = 8 * MIB

    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send, [bytes(size)])
            await trio.sleep(0.01)
            assert len(await receive_exactly(far, size)) == size

    run(scenario)


# --- bytes that are handed over ---------------------------------------------------------


class Turns:
    """Whether one is open."""

    def __init__(self) -> None:
        self.is_open = False
        self.count = 0

    def begin(self) -> None:
        assert not self.is_open
        self.is_open = True
        self.count += 1

    def end(self) -> None:
        assert self.is_open
        self.is_open = False


class Taker:
    """A receiver that keeps what it is handed, through a buffer of ``size`` bytes."""

    def __init__(self, turns: Turns, size: int = 1000, stop_at: int | None = None) -> None:
        self.turns = turns
        self.buffer = bytearray(size)
        self.stop_at = stop_at
        self.taken = bytearray()
        self.ends: list[OSError | None] = []
        self.stream: ByteStream | None = None
        self.changed = trio.Event()

    def take_from(self, stream: ByteStream) -> None:
        self.stream = stream
        stream.start_receiving(self)

    def writable(self) -> memoryview:
        return memoryview(self.buffer)

    def received(self, count: int) -> None:
        assert self.turns.is_open
        assert count > 0
        self.taken += self.buffer[:count]
        if self.stop_at is not None and len(self.taken) >= self.stop_at:
            assert self.stream is not None
            self.stream.stop_receiving()
        self.changed.set()

    def ended(self, error: OSError | None) -> None:
        assert self.turns.is_open
        self.ends.append(error)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed = trio.Event()
            await self.changed.wait()


Handing = Callable[[ByteStream, ByteStream, Taker], Awaitable[None]]


def handing_over(story: Handing, *, stop_at: int | None = None) -> Scenario:
    """Connect, and have the far network hand over while ``story`` is told."""

    async def scenario(wires: Wires) -> None:
        turns = Turns()
        near, far = await wires.connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wires.far.deliver, turns)
            await story(near, far, Taker(turns, stop_at=stop_at))
            nursery.cancel_scope.cancel()

    return scenario


def test_what_arrives_is_handed_over_in_order_and_then_the_end_once(run: Runner) -> None:
    sent = random.Random(8).randbytes(300_000)

    async def story(near: ByteStream, far: ByteStream, taker: Taker) -> None:
        taker.take_from(far)
        await near.send([sent])
        near.abort()
        await taker.until(lambda: bool(taker.ends))
        await trio.sleep(0.05)
        assert taker.taken == sent
        assert taker.ends == [None]
        assert taker.turns.count > 1

    run(handing_over(story))


def test_what_arrived_before_anybody_was_to_take_it_is_handed_over(run: Runner) -> None:
    async def story(near: ByteStream, far: ByteStream, taker: Taker) -> None:
        await near.send([b"early"])
        near.abort()
        await trio.sleep(0.05)
        taker.take_from(far)
        await taker.until(lambda: bool(taker.ends))
        assert taker.taken == b"early"

    run(handing_over(story))


def test_a_lost_connection_is_told_with_its_error(run: Runner) -> None:
    async def story(near: ByteStream, far: ByteStream, taker: Taker) -> None:
        await far.send([b"never received"])
        await trio.sleep(1.0 if run is not on_tcp else 0.01)
        taker.take_from(far)
        near.abort()
        await taker.until(lambda: bool(taker.ends))
        assert isinstance(taker.ends[0], ConnectionResetError)

    run(handing_over(story))


def test_a_receiver_that_stops_is_handed_nothing_and_the_rest_is_there_for_the_next(
    run: Runner,
) -> None:
    sent = random.Random(9).randbytes(12_000)

    async def story(near: ByteStream, far: ByteStream, taker: Taker) -> None:
        taker.take_from(far)
        await near.send([sent])
        await taker.until(lambda: len(taker.taken) >= 2500)
        so_far = bytes(taker.taken)
        await trio.sleep(0.1)
        assert taker.taken == so_far
        assert sent.startswith(so_far)
        rest = await receive_exactly(far, 5000)
        taker.stop_at = None
        taker.take_from(far)
        near.abort()
        await taker.until(lambda: bool(taker.ends))
        assert so_far + rest + taker.taken[len(so_far) :] == sent

    run(handing_over(story, stop_at=2500))


def test_an_aborted_stream_hands_nothing_over_not_even_its_end(run: Runner) -> None:
    async def story(near: ByteStream, far: ByteStream, taker: Taker) -> None:
        taker.take_from(far)
        await near.send([b"too late"])
        far.abort()
        far.stop_receiving()
        await trio.sleep(0.05)
        assert not taker.ends
        with pytest.raises(OSError, match="closed here"):
            far.start_receiving(taker)

    run(handing_over(story))


# --- cancellation and fairness ----------------------------------------------------------


def test_a_cancelled_receive_loses_no_bytes(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        buffer = memoryview(bytearray(100))
        with trio.move_on_after(0.001):
            await far.receive_into(buffer)
        await near.send([b"abc"])
        await trio.sleep(0.01)
        with trio.CancelScope() as scope:
            scope.cancel()
            await far.receive_into(buffer)
        assert scope.cancelled_caught
        assert await receive_exactly(far, 3) == b"abc"

    run(scenario)


def test_a_stream_that_is_always_ready_lets_other_tasks_run(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        await near.send([bytes(100)])
        await trio.sleep(0.05)
        has_run = trio.Event()

        async def other_task() -> None:
            has_run.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other_task)
            await receive_one_by_one(far, 100)
            assert has_run.is_set()

    run(scenario)


# --- endings ----------------------------------------------------------------------------


def test_the_peer_of_an_aborted_stream_reads_what_was_sent_and_then_the_end(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        await near.send([b"goodbye"])
        near.abort()
        assert await receive_rest(far) == b"goodbye"
        assert await far.receive_into(memoryview(bytearray(1))) == 0

    run(scenario)


def test_the_peer_is_reset_when_bytes_it_sent_were_never_received(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        await far.send([b"never received"])
        await trio.sleep(1.0 if run is not on_tcp else 0.01)
        near.abort()
        with pytest.raises(ConnectionResetError):
            await receive_rest(far)

    run(scenario)


def test_aborting_wakes_a_task_that_receives(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        near, _ = await wires.connected()

        async def receive() -> None:
            with pytest.raises(OSError, match="closed here"):
                await near.receive_into(memoryview(bytearray(1)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.sleep(0.01)
            near.abort()

    run(scenario)


def test_what_is_not_taken_at_once_is_handed_back_and_nothing_is_lost(run: Runner) -> None:
    sent = random.Random(8).randbytes(8 * MIB)

    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        assert near.send_nowait([b"a", b"", b"b"]) == ()
        rest = near.send_nowait([sent])
        assert 0 < sum(map(len, rest)) <= len(sent)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send, rest)
            assert await receive_exactly(far, 2 + len(sent)) == b"ab" + sent

    run(scenario)


def test_sending_at_once_on_a_closed_stream_is_refused(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        near, _ = await wires.connected()
        near.abort()
        with pytest.raises(OSError, match="closed here"):
            near.send_nowait([b"x"])

    run(scenario)


def test_aborting_wakes_a_task_that_sends(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        near, _far = await wires.connected()

        async def send() -> None:
            with pytest.raises(OSError, match="closed here"):
                await near.send([bytes(32 * MIB)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(0.05)
            near.abort()

    run(scenario)


def test_an_aborted_stream_refuses_everything_and_may_be_aborted_again(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        near, _ = await wires.connected()
        near.abort()
        near.abort()
        with pytest.raises(OSError, match="closed here"):
            await near.send([b"x"])
        with pytest.raises(OSError, match="closed here"):
            await near.receive_into(memoryview(bytearray(1)))

    run(scenario)


def test_sending_to_a_peer_that_is_gone_fails_before_long(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        near, far = await wires.connected()
        far.abort()

        async def ask_for_ever() -> None:
            while True:
                await near.send([b"anybody?"])
                await trio.sleep(0.001)

        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            await ask_for_ever()

    run(scenario)


# --- connecting and listening -----------------------------------------------------------


def test_connecting_where_nobody_listens_is_refused_and_names_the_address(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        listener = await wires.listen()
        listener.close()
        with pytest.raises(ConnectionRefusedError) as caught:
            await wires.near.connect(listener.address)
        assert str(listener.address) in str(caught.value)
        assert "refused" in str(caught.value)

    run(scenario)


def test_connecting_to_a_name_nobody_has_is_an_error_that_says_so(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        with pytest.raises(OSError, match=r"cannot resolve 'nobody\.invalid'"):
            await wires.near.connect(HostPort("nobody.invalid", 80))

    run(scenario)


def test_listening_on_a_port_in_use_is_refused_and_names_the_address(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        listener = await wires.listen()
        with pytest.raises(OSError, match="already in use") as caught:
            await wires.far.listen(listener.address)
        assert str(listener.address) in str(caught.value)
        listener.close()

    run(scenario)


def test_a_port_that_is_no_longer_listened_on_can_be_listened_on(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        first = await wires.listen()
        await wires.connect(first)
        first.close()
        again = await wires.far.listen(first.address)
        assert again.address == first.address
        again.close()

    run(scenario)


def test_port_zero_becomes_a_port_of_its_own(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        one = await wires.listen()
        other = await wires.listen()
        assert 0 < one.address.port != other.address.port > 0
        one.close()
        other.close()

    run(scenario)


def test_a_peer_has_a_name_with_a_port(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        listener = await wires.listen()
        near, far = await wires.connect(listener)
        assert near.peer_name == str(listener.address)
        host, _, port = far.peer_name.rpartition(":")
        assert host
        assert int(port) > 0
        listener.close()

    run(scenario)


def test_every_one_of_many_connections_is_accepted_and_is_its_own(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        listener = await wires.listen()
        answers: list[bytes] = []

        async def ask(number: int) -> None:
            stream = await wires.near.connect(listener.address)
            await stream.send([b"%03d" % number])
            answers.append(await receive_exactly(stream, 3))
            stream.abort()

        async def answer(stream: ByteStream) -> None:
            await stream.send([await receive_exactly(stream, 3)])
            stream.abort()

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)
            for _ in range(50):
                nursery.start_soon(answer, await listener.accept())
        assert sorted(answers) == [b"%03d" % number for number in range(50)]
        listener.close()

    run(scenario)


def test_closing_a_listener_wakes_who_accepts_and_leaves_connections_alone(run: Runner) -> None:
    async def scenario(wires: Wires) -> None:
        listener = await wires.listen()
        near, far = await wires.connect(listener)

        async def accept() -> None:
            with pytest.raises(OSError, match="closed here"):
                await listener.accept()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await trio.sleep(0.01)
            listener.close()
        await near.send([b"still here"])
        assert await receive_exactly(far, 10) == b"still here"

    run(scenario)
