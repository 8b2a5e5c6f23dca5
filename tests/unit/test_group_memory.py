"""What a replica that rests on memory leaves behind for the next start, however it ends."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from logd.raft.messages import AppendResponse, DurabilityChosen
from logd.storage.hard_state import MEMORY_LOST, boot_number, rests_on_by
from logd.types import Offset, Term
from tests.support.replica import (
    GROUP,
    Replica,
    a_while,
    batch_of,
    open_replica,
    play,
    until,
)

BOOT = boot_number("boot")


@asynccontextmanager
async def in_memory() -> AsyncIterator[Replica]:
    """A follower that vouches for a batch which is in its page cache and not on its disk."""
    async with open_replica() as replica:
        group = replica.group
        group.post(DurabilityChosen(in_memory=True))
        replica.append([batch_of(Offset(0), Term(1))], term=Term(1))
        await until(lambda: rests_on(replica) == BOOT and group.core.vouches)
        await until(lambda: not group.syncer.needs_sync)
        replica.append([batch_of(Offset(1), Term(1))], term=Term(1))
        await until(lambda: group.log.end_offset == 2)
        assert group.syncer.needs_sync
        yield replica


def rests_on(replica: Replica) -> int:
    """What the next start will read."""
    return rests_on_by(replica.files, f"{replica.group.directory}/hard_state", GROUP)


def synced_end(replica: Replica) -> int:
    return replica.group.log.synced_end


def test_what_it_vouches_for_is_synced_soon_although_nobody_waits() -> None:
    async def story() -> None:
        async with in_memory() as replica:
            await until(lambda: synced_end(replica) == 2)

    play(story)


def test_what_could_not_be_written_is_not_vouched_for() -> None:
    async def story() -> None:
        async with in_memory() as replica:
            replica.node.sent.clear()
            replica.fail_disk("write", match=".log")
            replica.append([batch_of(Offset(2), Term(1))], term=Term(1))
            await until(lambda: replica.group.failure is not None)
            await a_while()

            assert max((m.received_end for m in replica.sent(AppendResponse)), default=0) <= 2
            assert max((m.synced_end for m in replica.sent(AppendResponse)), default=0) <= 2

    play(story)


def test_a_replica_that_was_not_restarted_from_what_was_left_speaks_of_no_loss() -> None:
    async def story() -> None:
        async with in_memory() as replica:
            await a_while()

            assert replica.group.possible_loss is None
            assert replica.group.counts.restarts_with_loss == 0

    play(story)


def test_closing_syncs_it_and_then_says_that_nothing_lies_in_memory() -> None:
    async def story() -> None:
        async with in_memory() as replica:
            await replica.node.remove_group(GROUP)
            replica.files.crash(random.Random(1))

            assert rests_on(replica) == 0
        async with open_replica(replica.files, life=2, boot_id="the next") as replica:
            assert replica.group.log.end_offset == 2
            assert not replica.group.core.is_doubtful

    play(story)


def test_closing_on_a_disk_that_refuses_is_noted_as_lost_memory() -> None:
    """The next sync would succeed, and the pages that failed may be gone from the cache."""

    async def story() -> None:
        async with in_memory() as replica:
            replica.fail_disk("sync", match=".log")
            await replica.node.remove_group(GROUP)

            assert rests_on(replica) == MEMORY_LOST

    play(story)


def test_one_that_is_closed_as_soon_as_it_fails_notes_it_all_the_same() -> None:
    async def story() -> None:
        async with in_memory() as replica:
            replica.group.fail(OSError(errno.EIO, "simulated failure"))
            await replica.node.remove_group(GROUP)

            assert rests_on(replica) == MEMORY_LOST

    play(story)


def test_a_failed_sync_is_noted_as_lost_memory_for_every_boot_that_comes() -> None:
    async def story() -> None:
        async with in_memory() as replica:
            replica.fail_disk("sync", match=".log")
            await until(lambda: rests_on(replica) == MEMORY_LOST)
            assert replica.group.failure is not None
            await replica.node.remove_group(GROUP)

            assert rests_on(replica) == MEMORY_LOST
            replica.files.on_operation = None
            replica.env.crash(vanish=False)
            replica.files.kill()
        async with open_replica(replica.files, life=2) as replica:  # The machine has run on.
            assert replica.group.core.is_doubtful

    play(story)


def test_a_replica_that_fails_before_its_log_does_notes_it_too() -> None:
    async def story() -> None:
        async with in_memory() as replica:
            replica.group.fail(OSError(errno.EIO, "simulated failure"))
            await until(lambda: rests_on(replica) == MEMORY_LOST)

    play(story)
