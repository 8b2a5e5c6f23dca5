"""``logd.env.Env`` for one life of one simulated node.

Each life draws from generators of its own, seeded with run, host, life and component, so
that a new draw somewhere does not shift all others.

Blocking calls take virtual time: some before the function runs and some after it, so that a
crash can come between a sync that completed and the caller who never heard of it.  Like the
real pool they are not abandoned on cancellation; only a crash ends one early.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import outcome
import trio

from logd.env import ApartWork, File
from tests.sim.apart import ApartProcess
from tests.sim.clock import current_clock
from tests.sim.files import SimulatedFileSystem
from tests.sim.incarnation import Incarnation
from tests.sim.network import SimHostNetwork, SimNetwork

T = TypeVar("T")

BRIEF_LATENCY_S: Final = 0.000_2

EPOCH_MS: Final = 1_700_000_000_000
"""Wall-clock time at virtual time 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockingConditions:
    """How long blocking calls take, syncs above all."""

    latency_s_min: float = 0.000_05
    latency_s_mean: float = 0.000_5
    """Added to the minimum, exponentially distributed, anew for every call."""

    spike_probability: float = 0.002
    spike_s_max: float = 0.5

    @classmethod
    def draw(cls, chance: random.Random) -> BlockingConditions:
        """Disks with a character of their own; some take seconds now and then."""
        return cls(
            latency_s_mean=chance.choice([0.000_1, 0.000_5, 0.003, 0.02]),
            spike_probability=chance.choice([0.0, 0.002, 0.02]),
            spike_s_max=chance.choice([0.1, 0.5, 5.0]),
        )


class SimEnv:
    """Everything one incarnation of a node is given.

    ``files`` must belong to the same life; whoever crashes the node ends this first
    (``crash``), then the files', then cancels the node's tasks.
    """

    def __init__(
        self,
        *,
        seed: int | str,
        incarnation: Incarnation,
        network: SimNetwork,
        files: SimulatedFileSystem,
        boot_id: str,
        blocking: BlockingConditions | None = None,
        clock_skew_ms: int = 0,
        clock_rate: float = 1.0,
    ) -> None:
        self.incarnation = incarnation
        self.clock_skew_ms = clock_skew_ms
        """Change it to make the node's wall clock jump."""
        self._clock_rate = clock_rate
        self.blocking = blocking or BlockingConditions()
        self.has_disk_trouble = False
        """In this life the disk has refused something: the broker may end by itself."""
        self.has_lacked_room = False
        """In this life the disk has been full: the broker may be unable to start."""
        self._seed = f"{seed}:{incarnation.host}:{incarnation.number}"
        self._sim_network = network
        self._network = network.attach(incarnation)
        self._files = files
        self._boot_id = boot_id
        self._generators: dict[str, random.Random] = {}
        self._calls: dict[_BlockingCall, None] = {}
        self._clock = current_clock()
        self._blocking_chance = random.Random(f"{self._seed}:blocking calls")

    @property
    def network(self) -> SimHostNetwork:
        return self._network

    @property
    def files(self) -> SimulatedFileSystem:
        return self._files

    @property
    def boot_id(self) -> str:
        return self._boot_id

    def rng(self, component: str) -> random.Random:
        """The component's generator; asking again gives the same one."""
        if component not in self._generators:
            self._generators[component] = random.Random(f"{self._seed}:{component}")
        return self._generators[component]

    def wall_clock_ms(self) -> int:
        return EPOCH_MS + int(self._clock.now * self._clock_rate * 1000) + self.clock_skew_ms

    @property
    def brief_call_s(self) -> float:
        """Only on a quick disk: a call made on the event loop takes no time at all here."""
        usual_s = self.blocking.latency_s_min + self.blocking.latency_s_mean
        return 0.001 if usual_s <= BRIEF_LATENCY_S else 0.0

    async def run_blocking(self, function: Callable[..., T], *args: object) -> T:
        """As ``Env.run_blocking``.  In a crash the call ends at once: cancelled if its task
        is, else with ``Crashed``; the function has run by then, or never will."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.incarnation.require_alive()
        call = _BlockingCall(self, function, args)
        self._calls[call] = None
        try:
            result: T = await trio.lowlevel.wait_task_rescheduled(call.refuse_to_abort)
        finally:
            del self._calls[call]
        if call.is_abandoned:
            await trio.lowlevel.checkpoint_if_cancelled()
            self.incarnation.require_alive()
        return result

    async def run_computing(self, function: Callable[..., T], *args: object) -> T:
        """As ``Env.run_computing``: takes no time here, whatever the disk is like."""
        await trio.lowlevel.checkpoint()
        self.incarnation.require_alive()
        return function(*args)

    async def sync_file(self, file: File) -> None:
        """As ``Env.sync_file``: a blocking call like another."""
        await self.run_blocking(file.sync)

    async def run_apart(self, work: ApartWork, request: bytes) -> bytes:
        """As ``Env.run_apart``, on the same disk: whenever the work waits, time passes, as long as
        a blocking call takes at least.  Cancelled, and in a crash, it is ended where it waits."""
        process = ApartProcess(self._files, work, request)
        try:
            while (pause_s := await self.run_blocking(process.go_on)) is not None:
                await trio.sleep(pause_s)
            return process.answer()
        finally:
            process.end()

    def crash(self, *, vanish: bool | None = None) -> None:
        """End this life: handles refuse, sockets die (``SimNetwork.crash``), blocking calls
        end.  The files' crash and the cancellation of the tasks come next."""
        self.incarnation.end()
        self._sim_network.crash(self.incarnation.host, vanish=vanish)
        for call in self._calls:
            call.abandon()

    def _call_latency(self) -> float:
        chance, blocking = self._blocking_chance, self.blocking
        seconds = blocking.latency_s_min + chance.expovariate(1.0) * blocking.latency_s_mean
        if chance.random() < blocking.spike_probability:
            seconds += chance.random() * blocking.spike_s_max
        return seconds / 2


class _BlockingCall:
    """One call under way: time passes, the function runs, time passes, the task goes on."""

    __slots__ = ("_args", "_env", "_function", "_is_settled", "_task", "is_abandoned")

    def __init__(
        self, env: SimEnv, function: Callable[..., object], args: tuple[object, ...]
    ) -> None:
        self.is_abandoned = False
        self._env = env
        self._function = function
        self._args = args
        self._is_settled = False
        self._task = trio.lowlevel.current_task()
        self._later(self._run)

    def refuse_to_abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        return trio.lowlevel.Abort.FAILED

    def abandon(self) -> None:
        """The process is gone: its function does not run any more."""
        if not self._is_settled:
            self._is_settled = True
            self.is_abandoned = True
            trio.lowlevel.reschedule(self._task)

    def _later(self, step: Callable[[], None]) -> None:
        env = self._env
        at_s = trio.current_time() + env._call_latency()
        env._clock.call_at(at_s, step, env.incarnation.host)

    def _run(self) -> None:
        if not self._is_settled:
            # In the context of who called, as a thread of the pool would.
            result = outcome.capture(self._task.context.run, self._function, *self._args)
            self._later(lambda: self._finish(result))

    def _finish(self, result: outcome.Outcome[object]) -> None:
        if not self._is_settled:
            self._is_settled = True
            trio.lowlevel.reschedule(self._task, result)
