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

import trio

from logd.env import FileSystem
from tests.sim.incarnation import Incarnation
from tests.sim.network import SimHostNetwork, SimNetwork

T = TypeVar("T")

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
        files: FileSystem,
        boot_id: str,
        blocking: BlockingConditions | None = None,
        clock_skew_ms: int = 0,
    ) -> None:
        self.incarnation = incarnation
        self.clock_skew_ms = clock_skew_ms
        """Change it to make the node's wall clock jump."""
        self.blocking = blocking or BlockingConditions()
        self._seed = f"{seed}:{incarnation.host}:{incarnation.number}"
        self._sim_network = network
        self._network = network.attach(incarnation)
        self._files = files
        self._boot_id = boot_id
        self._generators: dict[str, random.Random] = {}
        self._calls: dict[int, trio.CancelScope] = {}
        self._call_count = 0
        self._blocking_chance = random.Random(f"{self._seed}:blocking calls")

    @property
    def network(self) -> SimHostNetwork:
        return self._network

    @property
    def files(self) -> FileSystem:
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
        return EPOCH_MS + int(trio.current_time() * 1000) + self.clock_skew_ms

    async def run_blocking(self, function: Callable[..., T], *args: object) -> T:
        """As ``Env.run_blocking``.  In a crash the call ends at once: cancelled if its task
        is, else with ``Crashed``; the function has run by then, or never will."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.incarnation.require_alive()
        before_s, after_s = self._call_latency(), self._call_latency()
        await self._sleep_shielded(before_s)
        try:
            result = function(*args)
        except Exception:
            await self._sleep_shielded(after_s)
            raise
        await self._sleep_shielded(after_s)
        return result

    def crash(self, *, vanish: bool | None = None) -> None:
        """End this life: handles refuse, sockets die (``SimNetwork.crash``), blocking calls
        end.  The files' crash and the cancellation of the tasks come next."""
        self.incarnation.end()
        self._sim_network.crash(self.incarnation.host, vanish=vanish)
        for scope in self._calls.values():
            scope.cancel()

    def _call_latency(self) -> float:
        chance, blocking = self._blocking_chance, self.blocking
        seconds = blocking.latency_s_min + chance.expovariate(1.0) * blocking.latency_s_mean
        if chance.random() < blocking.spike_probability:
            seconds += chance.random() * blocking.spike_s_max
        return seconds / 2

    async def _sleep_shielded(self, seconds: float) -> None:
        self._call_count += 1
        number = self._call_count
        with trio.CancelScope(shield=True) as scope:
            self._calls[number] = scope
            await trio.sleep(seconds)
        del self._calls[number]
        if not self.incarnation.is_alive:
            await trio.lowlevel.checkpoint_if_cancelled()
            self.incarnation.require_alive()
