"""A sync that the kernel makes ends like one of ours: done, failed, or left to us."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from logd.runtime.env import open_real_env
from logd.runtime.kernel_syncs import SYNCS_MAX, KernelSyncs, open_kernel_syncs

Story = Callable[[KernelSyncs], Awaitable[None]]


def with_kernel_syncs(story: Story) -> None:
    async def main() -> None:
        async with open_kernel_syncs() as syncs:
            if syncs is None:
                pytest.skip("this kernel lets nobody do that")
            with trio.fail_after(30):
                await story(syncs)

    trio.run(main)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def test_files_are_synced_several_at_once_and_again(path: Path) -> None:
    async def story(syncs: KernelSyncs) -> None:
        done = 0

        async def sync() -> None:
            nonlocal done
            with path.open("r+b") as file:
                for _ in range(3):
                    assert await syncs.sync(file.fileno())
                    done += 1

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(sync)
        assert done == 24

    with_kernel_syncs(story)


def test_what_is_no_open_file_is_an_error(path: Path) -> None:
    async def story(syncs: KernelSyncs) -> None:
        descriptor = os.open(path, os.O_RDWR)
        os.close(descriptor)
        with pytest.raises(OSError, match="Bad file") as error:
            await syncs.sync(descriptor)
        assert error.value.errno == errno.EBADF

    with_kernel_syncs(story)


def test_what_the_kernel_cannot_sync_and_what_is_too_much_is_left_to_others(path: Path) -> None:
    async def story(syncs: KernelSyncs) -> None:
        read_end, write_end = os.pipe()
        assert not await syncs.sync(write_end)
        os.close(read_end)
        os.close(write_end)
        answers: list[bool] = []

        async def sync(descriptor: int) -> None:
            answers.append(await syncs.sync(descriptor))

        with path.open("r+b") as file:
            async with trio.open_nursery() as nursery:
                for _ in range(SYNCS_MAX + 10):
                    nursery.start_soon(sync, file.fileno())
        assert answers.count(False) == 10
        assert answers.count(True) == SYNCS_MAX

    with_kernel_syncs(story)


def test_a_sync_that_was_begun_is_waited_for_when_cancelled_and_else_not_begun(
    path: Path,
) -> None:
    async def story(syncs: KernelSyncs) -> None:
        answers: list[bool] = []

        async def sync(descriptor: int, begins: trio.Event) -> None:
            begins.set()  # Whoever waits for that runs once the sync is under way.
            answers.append(await syncs.sync(descriptor))

        with path.open("r+b") as file:
            for _ in range(20):  # Some are done before they are cancelled.
                begins = trio.Event()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(sync, file.fileno(), begins)
                    await begins.wait()
                    nursery.cancel_scope.cancel()
            assert answers == [True] * 20
            with trio.CancelScope() as scope:
                scope.cancel()
                await sync(file.fileno(), trio.Event())
        assert scope.cancelled_caught
        assert answers == [True] * 20

    with_kernel_syncs(story)


def test_the_environment_syncs_its_files_one_way_or_the_other(path: Path) -> None:
    async def main() -> None:
        async with open_real_env(threads=1) as env:
            file = env.files.open(str(path))
            await env.sync_file(file)
            file.close()
            with pytest.raises(OSError, match="Bad file"):
                await env.sync_file(file)

    trio.run(main)
