"""The real world behind the seam: what ``logd.env.Env`` is on a machine.

Wired by the command line; the broker sees only the protocol.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

from logd.env import ApartWork, File, FileSystem, Network
from logd.runtime.apart import run_apart
from logd.runtime.files import RealFile, RealFileSystem
from logd.runtime.kernel_syncs import KernelSyncs, open_kernel_syncs
from logd.runtime.network import TcpNetwork
from logd.runtime.threads import BLOCKING_THREADS, BlockingPool, open_blocking_pool

T = TypeVar("T")

BRIEF_CALL_S: Final = 0.05
"""A small fdatasync takes 0.1-0.3 ms, and as much again for the way to a thread and back.  On
a machine with more to do than processors both take several; a disk in trouble takes longer."""

COMPUTING_THREADS: Final = 2
"""They take turns at the interpreter: of two, a short call need not wait for a long one to end."""

BOOT_ID_PATH: Final = Path("/proc/sys/kernel/random/boot_id")


class RealEnv:
    """``logd.env.Env`` over sockets, files, threads and the system clock."""

    def __init__(
        self,
        *,
        network: Network,
        files: FileSystem,
        pool: BlockingPool,
        computing: BlockingPool,
        syncs: KernelSyncs | None,
        boot_id: str,
    ) -> None:
        self._network = network
        self._files = files
        self._pool = pool
        self._computing = computing
        self._syncs = syncs
        self._boot_id = boot_id
        self._seed = random.SystemRandom().getrandbits(128)
        self._generators: dict[str, random.Random] = {}

    @property
    def network(self) -> Network:
        return self._network

    @property
    def files(self) -> FileSystem:
        return self._files

    @property
    def boot_id(self) -> str:
        return self._boot_id

    @property
    def brief_call_s(self) -> float:
        return BRIEF_CALL_S

    def rng(self, component: str) -> random.Random:
        """The component's generator; asking again gives the same one.  Not for secrets."""
        if component not in self._generators:
            self._generators[component] = random.Random(f"{self._seed}:{component}")
        return self._generators[component]

    def wall_clock_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def run_blocking(self, function: Callable[..., T], *args: object) -> T:
        """As ``Env.run_blocking``: cancelled before the call it is not begun, later it is
        waited for and its result returned."""
        return await self._pool.run(function, *args)

    async def run_computing(self, function: Callable[..., T], *args: object) -> T:
        """As ``Env.run_computing``."""
        return await self._computing.run(function, *args)

    async def sync_file(self, file: File) -> None:
        """As ``Env.sync_file``."""
        is_done = False
        if self._syncs is not None and isinstance(file, RealFile):
            is_done = await self._syncs.sync(file.descriptor)
        if not is_done:
            await self._pool.run(file.sync)

    async def run_apart(self, work: ApartWork, request: bytes) -> bytes:
        """As ``Env.run_apart``."""
        return await run_apart(work, request)


@asynccontextmanager
async def open_real_env(threads: int = BLOCKING_THREADS) -> AsyncIterator[RealEnv]:
    """The machine, for the length of the block.

    Leaving waits for blocking calls under way and joins their threads; sockets and files
    are closed by whoever opened them.
    """
    async with (
        open_blocking_pool(threads) as pool,
        open_blocking_pool(COMPUTING_THREADS) as computing,
        open_kernel_syncs() as syncs,
    ):
        yield RealEnv(
            network=TcpNetwork(),
            files=RealFileSystem(),
            pool=pool,
            computing=computing,
            syncs=syncs,
            boot_id=BOOT_ID_PATH.read_text(encoding="ascii").strip(),
        )
