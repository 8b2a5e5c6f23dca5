"""What is kept of the coordination log's state, and what is dropped of its log."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from logd.broker.coordination.kept_state import KeptState
from logd.broker.log_events import COORDINATION_TRIMMED
from logd.coordination.state import CoordinationState
from logd.errors import StorageFailedError
from logd.record.batch import seal_batch
from logd.types import Offset
from tests.support.replica import OURSELVES, Replica, a_while, open_replica, play, until


async def grow(replica: Replica) -> Offset:
    """Commit some batches and begin a new segment; returns the commit offset."""
    for _ in range(5):
        batch = bytes(seal_batch(values=[b"v"], timestamps_ms=0))
        await replica.group.commit(batch, replica.node.now_ms() + 9_000)
    replica.group.roller.roll_soon()
    await a_while()
    return replica.group.commit_offset


def test_no_more_of_the_log_is_dropped_than_the_state_before_the_last_one_can_spare() -> None:
    """Also if a state could not be kept: the newest may be damaged one day."""

    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            await until(lambda: replica.group.is_ready)
            kept, state = KeptState(replica.group, replica.node, "/data/trash"), CoordinationState()
            before_the_last = await grow(replica)
            await kept.save(state, before_the_last)
            replica.fail_disk("write", match="application-")
            not_kept = await grow(replica)
            with pytest.raises(StorageFailedError):
                await kept.save(state, not_kept)
            replica.files.on_operation = None

            await kept.save(state, await grow(replica))

            assert 0 < replica.group.log.start_offset <= before_the_last

    play(story)


def test_the_log_is_not_said_to_be_trimmed_while_it_may_not_be() -> None:
    async def story() -> None:
        async with open_replica(voters=(OURSELVES,)) as replica:
            group = replica.group
            await until(lambda: group.is_ready)
            kept, state = KeptState(group, replica.node, "/data/trash"), CoordinationState()
            await kept.save(state, await grow(replica))
            end = await grow(replica)
            group.hold(is_disk_asked=True)  # Another log may be about to take its place, say.

            with capture_logs() as events:
                await kept.save(state, end)

            assert group.log.start_offset == 0
            assert [event for event in events if event["event"] == COORDINATION_TRIMMED] == []

    play(story)
