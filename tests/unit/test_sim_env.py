"""A simulated node's environment keeps the promises of the real one, and crashes like it."""

from __future__ import annotations

import random
import threading
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from logd.env import Env, FileSystem
from logd.runtime.env import RealEnv, open_real_env
from tests.sim.env import EPOCH_MS, BlockingConditions, SimEnv
from tests.sim.files import SimulatedFileSystem
from tests.sim.incarnation import Crashed, Incarnation
from tests.sim.network import SimNetwork
from tests.sim.run import run_deterministic

SLOW = BlockingConditions(latency_s_min=10.0, latency_s_mean=0.0, spike_probability=0.0)


def boot(
    network: SimNetwork,
    number: int = 1,
    *,
    seed: int = 1,
    blocking: BlockingConditions | None = None,
    clock_skew_ms: int = 0,
) -> SimEnv:
    return SimEnv(
        seed=seed,
        incarnation=Incarnation("node-1", number),
        network=network,
        files=SimulatedFileSystem(random.Random(1)),  # Not used by these tests.
        boot_id="boot",
        blocking=blocking,
        clock_skew_ms=clock_skew_ms,
    )


def play(scenario: Callable[[SimNetwork], Awaitable[None]]) -> None:
    async def main() -> None:
        network = SimNetwork(random.Random(1))
        await scenario(network)

    run_deterministic(main, seed=1, time_limit_s=600)


def both_are_environments(simulated: SimEnv, real: RealEnv) -> tuple[Env, Env]:
    """For the type checker: it would refuse one that is not."""
    return simulated, real


def test_each_component_draws_from_its_own_generator() -> None:
    async def scenario(network: SimNetwork) -> None:
        env = boot(network)
        undisturbed = random.Random("1:node-1:1:raft").random()
        env.rng("liveness").random()
        assert env.rng("raft").random() == undisturbed
        assert env.rng("raft") is env.rng("raft")

    play(scenario)


def test_each_life_draws_anew() -> None:
    async def scenario(network: SimNetwork) -> None:
        first = boot(network, 1)
        drawn = first.rng("raft").random()
        first.crash()
        assert boot(network, 2).rng("raft").random() != drawn

    play(scenario)


def test_the_wall_clock_follows_virtual_time_and_may_be_wrong() -> None:
    async def scenario(network: SimNetwork) -> None:
        env = boot(network, clock_skew_ms=500)
        await trio.sleep(2.0)
        assert env.wall_clock_ms() == EPOCH_MS + 2000 + 500
        env.clock_skew_ms = -3_600_000
        assert env.wall_clock_ms() == EPOCH_MS + 2000 - 3_600_000

    play(scenario)


def test_a_blocking_call_takes_time_and_returns_or_raises_what_the_function_does() -> None:
    async def scenario(network: SimNetwork) -> None:
        env = boot(network, blocking=SLOW)
        assert await env.run_blocking(divmod, 17, 5) == (3, 2)
        assert trio.current_time() == 10.0
        with pytest.raises(ZeroDivisionError):
            await env.run_blocking(divmod, 1, 0)

    play(scenario)


def test_a_cancelled_caller_still_gets_the_result_of_a_call_that_began() -> None:
    async def scenario(network: SimNetwork) -> None:
        env = boot(network, blocking=SLOW)
        result = (0, 0)
        with trio.move_on_after(1.0):
            result = await env.run_blocking(divmod, 17, 5)
        assert result == (3, 2)
        assert trio.current_time() == 10.0

    play(scenario)


def test_a_cancelled_caller_does_not_begin_a_call() -> None:
    async def scenario(network: SimNetwork) -> None:
        env = boot(network, blocking=SLOW)
        called: list[int] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            await env.run_blocking(called.append, 1)
        assert called == []

    play(scenario)


@pytest.mark.parametrize(("crash_after_s", "has_run"), [(2.0, False), (7.0, True)])
def test_a_crash_ends_a_blocking_call_before_or_after_the_function_ran(
    crash_after_s: float, has_run: bool
) -> None:
    async def scenario(network: SimNetwork) -> None:
        env = boot(network, blocking=SLOW)
        called: list[int] = []
        returned: list[str] = []

        async def call() -> None:
            await env.run_blocking(called.append, 1)
            returned.append("returned")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(crash_after_s)
            env.crash(vanish=True)
            nursery.cancel_scope.cancel()
        assert (called == [1]) is has_run
        assert returned == []
        assert trio.current_time() == crash_after_s

    play(scenario)


def test_a_task_that_shields_itself_from_the_crash_is_thrown_out_by_the_next_call() -> None:
    async def scenario(network: SimNetwork) -> None:
        env = boot(network, blocking=SLOW)
        after: list[str] = []

        async def stubborn() -> None:
            with trio.CancelScope(shield=True):
                try:
                    await env.run_blocking(len, "")
                finally:
                    with pytest.raises(Crashed):
                        await env.run_blocking(after.append, "from the grave")

        async def node() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stubborn)
                await trio.sleep(1.0)
                env.crash(vanish=True)
                nursery.cancel_scope.cancel()

        with pytest.raises(BaseExceptionGroup) as caught:
            await node()
        assert caught.group_contains(Crashed)
        assert after == []

    play(scenario)


def work_of_two_pieces(files: FileSystem, request: bytes, wait_s: Callable[[float], None]) -> bytes:
    """Two files, and neither of them if it does not come to its end."""
    try:
        files.open("/first", create=True).close()
        wait_s(5.0)
        files.open("/second", create=True).close()
    except BaseException:
        files.remove("/first")
        raise
    return request.upper()


def test_work_in_a_process_of_its_own_is_done_in_pieces_between_which_time_passes() -> None:
    async def scenario(network: SimNetwork) -> None:
        env = boot(network, blocking=SLOW)
        seen: list[list[str]] = []

        async def look() -> None:
            for _ in range(3):
                await trio.sleep(9.0)
                seen.append(env.files.list_directory("/"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            assert await env.run_apart(work_of_two_pieces, b"answer") == b"ANSWER"
            assert trio.current_time() == 25.0
        assert seen == [["first"], ["first"], ["first", "second"]]

    play(scenario)


@pytest.mark.parametrize("how", ["crash", "cancel"])
def test_work_in_a_process_of_its_own_that_is_ended_leaves_behind_what_it_has_done(
    how: str,
) -> None:
    async def scenario(network: SimNetwork) -> None:
        env = boot(network, blocking=SLOW)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(env.run_apart, work_of_two_pieces, b"")
            await trio.sleep(12.0)
            if how == "crash":
                env.crash(vanish=True)
            nursery.cancel_scope.cancel()
        assert env.files.list_directory("/") == ["first"]

    play(scenario)


def test_work_in_a_process_of_its_own_that_fails_says_why() -> None:
    def work(files: FileSystem, request: bytes, wait_s: Callable[[float], None]) -> bytes:
        wait_s(1.0)
        raise OSError(request.decode())

    async def scenario(network: SimNetwork) -> None:
        with pytest.raises(OSError, match="no room"):
            await boot(network).run_apart(work, b"no room")

    play(scenario)


def test_the_real_environment_is_a_machine() -> None:
    async def main() -> None:
        async with open_real_env(threads=1) as env:
            assert len(env.boot_id) == 36
            assert env.wall_clock_ms() > EPOCH_MS
            assert await env.run_blocking(divmod, 17, 5) == (3, 2)
            assert await env.run_computing(divmod, 17, 5) == (3, 2)
            assert env.rng("raft") is env.rng("raft")
            assert env.rng("raft").random() != env.rng("liveness").random()

    trio.run(main)


def test_what_is_computed_does_not_wait_for_calls_that_a_disk_does_not_answer() -> None:
    answered = threading.Event()

    async def main() -> None:
        async with open_real_env(threads=1) as env, trio.open_nursery() as nursery:
            nursery.start_soon(env.run_blocking, answered.wait, 5.0)
            await trio.testing.wait_all_tasks_blocked()
            try:
                began = trio.current_time()
                assert await env.run_computing(divmod, 17, 5) == (3, 2)
                assert trio.current_time() - began < 4.0
            finally:
                answered.set()

    trio.run(main)
