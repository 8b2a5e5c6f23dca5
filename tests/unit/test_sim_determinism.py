"""One seed is one run: same events, same bytes, same times, in any process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable

import pytest
import trio

from logd.env import ByteStream
from logd.types import HostPort
from tests.sim.env import SimEnv
from tests.sim.files import SimulatedFileSystem
from tests.sim.incarnation import Crashed, Incarnation
from tests.sim.network import NetworkConditions, SimNetwork
from tests.sim.run import StuckError, run_deterministic
from tests.sim.trace import Trace

PORT = 7000
NAMES = ("ann", "bob", "cid")


class Gossip:
    """Three nodes that tell each other numbers while the network breaks under them."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(f"{seed}:world")
        self.seed = seed
        self.chance = chance
        self.trace = Trace()
        self.network = SimNetwork(
            random.Random(f"{seed}:network"),
            conditions=NetworkConditions.draw(chance),
            trace=self.trace,
        )
        self.lives = dict.fromkeys(NAMES, 0)

    async def play(self) -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._break_things)
            for name in NAMES:
                nursery.start_soon(self._keep_running, name)
            await trio.sleep(4.0)
            nursery.cancel_scope.cancel()
        return self.trace.digest

    async def _break_things(self) -> None:
        while True:
            await trio.sleep(self.chance.random())
            one, other = self.chance.sample(NAMES, 2)
            match self.chance.randrange(4):
                case 0:
                    self.network.cut(one, other)
                case 1:
                    self.network.clog(one, other, self.chance.random())
                case 2:
                    self.network.reset_random()
                case _:
                    self.network.heal()

    async def _keep_running(self, name: str) -> None:
        """Lives one after the other, each ended by a crash."""
        while True:
            self.lives[name] += 1
            env = SimEnv(
                seed=self.seed,
                incarnation=Incarnation(name, self.lives[name]),
                network=self.network,
                files=SimulatedFileSystem(random.Random(1)),
                boot_id="boot",
            )
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, env)
                    for other in NAMES:
                        nursery.start_soon(self._tell, env, other)
                    await trio.sleep(0.5 + 3.0 * self.chance.random())
                    env.crash()
                    nursery.cancel_scope.cancel()
            except* Crashed:
                self.trace.record(name, "task_outlived_node")
            await trio.sleep(0.5)

    async def _listen(self, env: SimEnv) -> None:
        listener = await env.network.listen(HostPort("0.0.0.0", PORT))
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._hear, env, await listener.accept())

    async def _hear(self, env: SimEnv, stream: ByteStream) -> None:
        buffer = bytearray(1000)
        try:
            while count := await stream.receive_into(memoryview(buffer)):
                await env.run_blocking(len, buffer)
                self.trace.record(env.incarnation.host, "heard", data=bytes(buffer[:count]))
        except OSError as error:
            self.trace.record(env.incarnation.host, "lost", reason=error)
        finally:
            stream.abort()

    async def _tell(self, env: SimEnv, other: str) -> None:
        """Equal pauses on purpose: timers that expire together must not depend on chance."""
        while True:
            await trio.sleep(0.1)
            try:
                stream = await env.network.connect(HostPort(other, PORT))
                for _ in range(20):
                    await stream.send([b"%d " % env.rng("gossip").randrange(10**6)])
                    await trio.sleep(0.05)
                stream.abort()
            except OSError as error:
                self.trace.record(env.incarnation.host, "failed", reason=error)


def digest_of(seed: int) -> str:
    async def main() -> str:
        return await Gossip(seed).play()

    return run_deterministic(main, seed=seed, time_limit_s=60)


def digest_in_new_process(seed: int, hash_seed: str) -> str:
    command = f"from tests.unit.test_sim_determinism import digest_of; print(digest_of({seed}))"
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_one_seed_gives_one_run_and_another_seed_another() -> None:
    assert digest_of(1) == digest_of(1) != digest_of(2)


def test_the_run_is_the_same_in_another_process_with_another_hash_seed() -> None:
    assert digest_of(3) == digest_in_new_process(3, "1") == digest_in_new_process(3, "2")


def test_scheduling_depends_on_the_seed_and_on_nothing_else() -> None:
    async def race() -> str:
        order: list[str] = []

        async def run(name: str) -> None:
            await trio.lowlevel.checkpoint()
            order.append(name)

        async with trio.open_nursery() as nursery:
            for name in "abcdef":
                nursery.start_soon(run, name)
        return "".join(order)

    orders = [run_deterministic(race, seed=seed) for seed in range(10)]

    assert orders == [run_deterministic(race, seed=seed) for seed in range(10)]
    assert len(set(orders)) > 1


def test_virtual_time_begins_at_zero_and_costs_no_real_time() -> None:
    async def sleep_a_day() -> float:
        assert trio.current_time() == 0.0
        await trio.sleep(24 * 3600)
        return trio.current_time()

    assert run_deterministic(sleep_a_day, seed=1, time_limit_s=1e6) == 24 * 3600


def test_a_run_in_which_everybody_waits_is_stuck_and_says_where() -> None:
    async def wait_for_nothing() -> None:
        await trio.Event().wait()

    with pytest.raises(StuckError, match=r"wait_for_nothing \(test_sim_determinism\.py"):
        run_deterministic(wait_for_nothing, seed=1)


def test_a_run_that_shields_itself_for_ever_is_ended_as_well() -> None:
    async def wait_shielded() -> None:
        with trio.CancelScope(shield=True):
            await trio.Event().wait()

    with pytest.raises(StuckError, match="wait_shielded"):
        run_deterministic(wait_shielded, seed=1)


async def go_round() -> None:
    while True:
        pass


async def go_round_and_let_others_run() -> None:
    while True:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("going_round", [go_round, go_round_and_let_others_run])
def test_a_run_in_which_no_time_passes_is_ended_and_fails(
    going_round: Callable[[], Awaitable[None]],
) -> None:
    with pytest.raises(StuckError, match=r"not over after 0\.1 s of processor time"):
        run_deterministic(going_round, seed=1, processor_limit_s=0.1)


def test_an_exception_leaves_the_run_as_itself() -> None:
    async def fail() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run_deterministic(fail, seed=1)


def test_a_warning_fails_the_run() -> None:
    async def warn() -> None:
        warnings.warn("careless", UserWarning, stacklevel=1)

    with pytest.raises(UserWarning, match="careless"):
        run_deterministic(warn, seed=1)


def test_a_coroutine_that_nobody_awaited_fails_the_run() -> None:
    async def forget() -> None:
        trio.sleep(1)  # type: ignore[unused-coroutine]

    with pytest.raises(AssertionError, match="never awaited"):
        run_deterministic(forget, seed=1)


def test_the_timeline_shows_the_last_events_and_the_digest_covers_all() -> None:
    async def record(first: str) -> tuple[str, str]:
        trace = Trace(events_max=2)
        for name in (first, "second", "third"):
            await trio.sleep(1.0)
            trace.record("node-1", name, term=4)
        return trace.timeline(), trace.digest

    timeline, digest = run_deterministic(record, "first", seed=1)
    _, other_digest = run_deterministic(record, "fist", seed=1)

    assert timeline.splitlines() == [
        "… 1 earlier events",
        "    2.000000  node-1        second                        term=4",
        "    3.000000  node-1        third                         term=4",
    ]
    assert digest != other_digest
