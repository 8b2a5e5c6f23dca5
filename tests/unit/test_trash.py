"""What was deleted leaves the disk in pieces, and nothing that was cut comes back to a log."""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from structlog.testing import capture_logs

from logd.broker import trash_emptying
from logd.broker.trash_emptying import FASTER_EVERY_S, TrashEmptying
from logd.errors import StorageError
from logd.limits import KIB
from logd.storage.trash import Trash
from tests.sim.env import BlockingConditions, SimEnv
from tests.sim.files import SimulatedFileSystem
from tests.sim.incarnation import Incarnation
from tests.sim.network import SimNetwork
from tests.sim.run import run_deterministic

GROUPS = "/data/groups"
GROUP = f"{3:020}"
SEGMENT = f"{0:020}.log"
TRIMMED = f"{GROUP}-{SEGMENT}"
DELETED = f"{GROUP}-0"
ROUND_S = 2.0


@pytest.fixture
def trash(disk: SimulatedFileSystem) -> Trash:
    disk.make_directory("/data/trash")
    disk.make_directory(GROUPS)
    disk.sync_directory("/")
    disk.sync_directory("/data")
    return Trash(disk, "/data/trash", GROUPS)


def put(disk: SimulatedFileSystem, path: str, size: int) -> None:
    file = disk.open(path, create=True)
    file.truncate(size)
    file.sync()


def size_of(disk: SimulatedFileSystem, path: str) -> int:
    return len(disk.content(path))


# --- piece by piece ---------------------------------------------------------------------


def test_a_segment_leaves_in_pieces_from_its_end(disk: SimulatedFileSystem, trash: Trash) -> None:
    put(disk, f"{trash.path}/{TRIMMED}", 25 * KIB)

    sizes = []
    while trash.remove_piece([TRIMMED], 10 * KIB):
        sizes += [size_of(disk, f"{trash.path}/{name}") for name in trash.names()]

    assert sizes == [15 * KIB, 5 * KIB]
    assert trash.names() == []


def test_a_group_leaves_file_by_file_and_its_directory_last(
    disk: SimulatedFileSystem, trash: Trash
) -> None:
    disk.make_directory(f"{trash.path}/{DELETED}")
    for base in range(3):
        put(disk, f"{trash.path}/{DELETED}/{base:020}.log", 8 * KIB)

    pieces = []
    while removed := trash.remove_piece([DELETED], 10 * KIB):
        pieces.append(removed)

    assert trash.names() == []
    assert len(pieces) == 4
    assert max(pieces) <= 16 * KIB
    assert sum(pieces) >= 24 * KIB


def test_an_index_goes_whole_because_somebody_may_have_mapped_it(
    disk: SimulatedFileSystem, trash: Trash
) -> None:
    disk.make_directory(f"{trash.path}/{DELETED}")
    put(disk, f"{trash.path}/{DELETED}/{SEGMENT}.index", 25 * KIB)

    trash.remove_piece([DELETED], 10 * KIB)

    assert disk.list_directory(f"{trash.path}/{DELETED}") == []


def test_what_was_not_named_stays(disk: SimulatedFileSystem, trash: Trash) -> None:
    put(disk, f"{trash.path}/{TRIMMED}", KIB)

    assert trash.remove_piece([DELETED], 10 * KIB) == 0
    assert trash.names() == [TRIMMED]


def test_a_disk_that_fails_is_named(disk: SimulatedFileSystem, trash: Trash) -> None:
    put(disk, f"{trash.path}/{TRIMMED}", KIB)

    with disk.failing_after(0):
        with pytest.raises(StorageError, match="cannot look into /data/trash"):
            trash.names()
        with pytest.raises(StorageError, match="cannot sync what leads to /data/trash"):
            trash.settle([TRIMMED])
        with pytest.raises(StorageError, match="cannot empty /data/trash"):
            trash.remove_piece([TRIMMED], KIB)


# --- at its own pace --------------------------------------------------------------------


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trash_emptying, "PIECE_BYTES", 1 * KIB)
    monkeypatch.setattr(trash_emptying, "BYTES_PER_S", 10 * KIB)


def play(disk: SimulatedFileSystem, trash: Trash, story: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        env = SimEnv(
            seed=1,
            incarnation=Incarnation("a", 1),
            network=SimNetwork(random.Random(1)),
            files=disk,
            boot_id="boot",
            blocking=BlockingConditions(latency_s_mean=0, spike_probability=0),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(TrashEmptying(env, trash, int(ROUND_S * 1000)).run)
            await story()
            nursery.cancel_scope.cancel()

    run_deterministic(main, seed=1, time_limit_s=600)


@pytest.mark.usefixtures("pace")
def test_what_was_thrown_away_lies_for_a_round_before_it_goes(
    disk: SimulatedFileSystem, trash: Trash
) -> None:
    async def story() -> None:
        await trio.sleep(ROUND_S / 2)
        put(disk, f"{trash.path}/{TRIMMED}", KIB)
        await trio.sleep(ROUND_S)  # It has been seen once.

        assert trash.names() == [TRIMMED]
        await trio.sleep(ROUND_S)
        assert trash.names() == []

    play(disk, trash, story)


@pytest.mark.usefixtures("pace")
def test_it_goes_at_a_bounded_rate(disk: SimulatedFileSystem, trash: Trash) -> None:
    async def story() -> None:
        put(disk, f"{trash.path}/{TRIMMED}", 40 * KIB)
        await trio.sleep(ROUND_S + 2)  # Two seconds of ten KiB each.

        left = size_of(disk, f"{trash.path}/{TRIMMED}")
        assert 19 * KIB <= left <= 21 * KIB

    play(disk, trash, story)


@pytest.mark.usefixtures("pace")
def test_what_takes_long_goes_faster_and_faster(disk: SimulatedFileSystem, trash: Trash) -> None:
    async def story() -> None:
        put(disk, f"{trash.path}/{TRIMMED}", 200 * KIB)
        await trio.sleep(ROUND_S + 2 * FASTER_EVERY_S)  # 50 KiB, then 100.

        left = size_of(disk, f"{trash.path}/{TRIMMED}")
        assert 45 * KIB <= left <= 55 * KIB

    play(disk, trash, story)


@pytest.mark.usefixtures("pace")
def test_a_round_that_fails_is_reported_and_the_next_goes_on(
    disk: SimulatedFileSystem, trash: Trash
) -> None:
    def refuse(operation: str, path: str) -> None:
        if operation == "remove":
            raise OSError(errno.EIO, "simulated failure", path)

    async def story() -> None:
        put(disk, f"{trash.path}/{TRIMMED}", KIB)
        disk.on_operation = refuse
        await trio.sleep(1.5 * ROUND_S)
        assert trash.names() == [TRIMMED]
        disk.on_operation = None
        await trio.sleep(ROUND_S)
        assert trash.names() == []

    with capture_logs() as logs:
        play(disk, trash, story)

    assert [entry["event"] for entry in logs] == ["trashing_failed"]


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("seed", range(20))
def test_a_segment_that_was_cut_does_not_come_back_to_its_log_after_a_power_cut(
    disk: SimulatedFileSystem, trash: Trash, seed: int
) -> None:
    disk.make_directory(f"{GROUPS}/{GROUP}")
    disk.sync_directory(GROUPS)
    put(disk, f"{GROUPS}/{GROUP}/{SEGMENT}", 25 * KIB)
    disk.sync_directory(f"{GROUPS}/{GROUP}")

    async def story() -> None:
        # Whoever moved it has not come to syncing yet.
        disk.rename(f"{GROUPS}/{GROUP}/{SEGMENT}", f"{trash.path}/{TRIMMED}")
        await trio.sleep(ROUND_S + 1)
        assert size_of(disk, f"{trash.path}/{TRIMMED}") < 25 * KIB

    play(disk, trash, story)
    disk.crash(random.Random(seed))

    assert disk.list_directory(f"{GROUPS}/{GROUP}") == []
    assert trash.names() == [TRIMMED]
