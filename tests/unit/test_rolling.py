"""A segment is sealed while its group is held; never if it is empty or no other can follow it."""

from __future__ import annotations

import errno

import pytest
import trio
from structlog.testing import capture_logs

from logd.errors import StorageFailedError
from logd.limits import KIB
from logd.replication import log_events
from logd.replication.group import Group
from tests.support.replica import OURSELVES, a_while, offset_of, open_replica, play, until

ALONE = (OURSELVES,)


def test_what_is_proposed_while_a_segment_is_sealed_is_the_first_of_the_next() -> None:
    async def story() -> None:
        async with open_replica(voters=ALONE) as replica:
            await replica.lead()
            group = replica.group
            replica.slow_down(5.0)
            group.roller.roll_soon()
            outcomes = replica.propose()
            await a_while()
            assert (group.is_held, group.roller.is_rolling, outcomes) == (True, True, [])

            await until(lambda: group.commit_offset == 2)

            assert not group.roller.is_rolling
            assert group.log.segment_bases == (0, 1)
            assert offset_of(outcomes) == 1

    play(story)


def test_a_roll_that_comes_after_another_one_leaves_the_empty_segment_alone() -> None:
    """Retention judges in a thread; by the time it asks, the segment it saw may be sealed."""

    async def story() -> None:
        async with open_replica(voters=ALONE) as replica:
            await replica.lead()
            group = replica.group
            group.roller.roll_soon()
            await a_while()
            group.roller.roll_soon()
            outcomes = replica.propose()
            await until(lambda: group.commit_offset == 2)

            assert offset_of(outcomes) == 1
            assert group.log.segment_bases == (0, 1)

    play(story)


@pytest.mark.parametrize(
    ("reason", "told"),
    [(errno.ENOSPC, log_events.NO_ROOM), (errno.EMFILE, log_events.NO_DESCRIPTOR)],
)
def test_a_segment_that_cannot_be_followed_by_another_is_appended_to_and_sealed_later(
    reason: int, told: str
) -> None:
    """There is no room for it, or no descriptor, and it is said which."""

    async def story() -> None:
        async with open_replica(segment_bytes=8 * KIB) as replica:
            group = replica.group
            await replica.lead()

            def refuse(operation: str, path: str) -> None:
                if operation == "create" and path.endswith(".log.tmp"):
                    raise OSError(reason, "simulated failure", path)

            replica.files.on_operation = refuse
            rolled: list[Group] = []
            replica.node.on_segment_rolled = rolled.append
            with capture_logs() as logs:
                for _ in range(3):
                    replica.propose(bytes(8 * KIB))
                    await a_while()
                    await replica.commit()
            assert sum(entry["event"] == told for entry in logs) == 1
            assert (group.is_ready, len(group.log.segment_bases), rolled) == (True, 1, [])

            replica.files.on_operation = None
            replica.propose()
            await until(lambda: len(group.log.segment_bases) == 2)
            await replica.commit()

            assert group.is_ready
            assert rolled == [group]

    play(story)


@pytest.mark.parametrize("refused", ["sync_directory", "open"])
def test_a_segment_that_was_begun_is_gone_on_with_when_there_are_descriptors_for_that(
    refused: str,
) -> None:
    """It has its name: what were appended to the one before could not be found behind it."""

    async def story() -> None:
        async with open_replica(voters=ALONE) as replica:
            await replica.lead()
            group = replica.group

            def refuse(operation: str, path: str) -> None:
                if operation == refused and path != f"{group.directory}/hard_state":
                    raise OSError(errno.EMFILE, "simulated failure", path)

            replica.files.on_operation = refuse
            with capture_logs() as logs:
                group.roller.roll_soon()
                outcomes = replica.propose()
                await trio.sleep(5)
            assert sum(entry["event"] == log_events.NO_DESCRIPTOR for entry in logs) == 1
            assert (group.failure, group.is_held, outcomes) == (None, True, [])
            assert not group.io_lock.locked()

            replica.files.on_operation = None

            await until(lambda: group.commit_offset == 2)
            assert offset_of(outcomes) == 1
            assert group.log.segment_bases == (0, 1)

    play(story)


def test_a_disk_that_fails_while_a_segment_is_sealed_ends_the_replica() -> None:
    async def story() -> None:
        async with open_replica(voters=ALONE) as replica:
            await replica.lead()
            replica.fail_disk("create", match=".log.tmp")

            replica.group.roller.roll_soon()
            await until(lambda: replica.group.failure is not None)

            assert isinstance(replica.group.failure, StorageFailedError)

    play(story)
