"""What consensus costs per group of batches: steps of the pure core, without any I/O.

A round is what a leader of three does for batches that arrived together, or what a follower
does for one append request.  At 25,000 small appends a second in groups of 50 a leader has
500 rounds a second; a round of 100 µs would be a twentieth of its core.

    pytest bench/test_raft_bench.py --benchmark-enable
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from logd.raft.core import RaftCore
from logd.raft.messages import Appended, BatchSpan, Synced
from logd.types import NodeId, Offset
from tests.support.cores import SECOND, THIRD, accepted, lead, replica, request

BATCH_BYTES = 100_000


def answer(core: RaftCore, follower: NodeId) -> None:
    """``follower`` has everything."""
    enrolment = core.progress(follower).enrolment
    core.step(accepted(follower, core.term, core.log_end, enrolment=enrolment), 100)


@pytest.fixture
def leader() -> RaftCore:
    core = replica()
    lead(core)
    for follower in (SECOND, THIRD):
        answer(core, follower)
    assert core.commit_offset == core.log_end
    return core


@pytest.mark.parametrize("batches", [1, 50])
def test_a_leader_commits_a_group(
    benchmark: BenchmarkFixture, leader: RaftCore, batches: int
) -> None:
    def commit_a_group() -> None:
        start = leader.log_end
        spans = tuple(
            BatchSpan(Offset(start + at), Offset(start + at + 1), leader.term)
            for at in range(batches)
        )
        end = Offset(start + batches)
        leader.step(Appended(spans), 100)
        for follower in leader.sendable():
            leader.make_append(follower, end, BATCH_BYTES, 100)
        leader.step(Synced(end, leader.term), 100)
        answer(leader, SECOND)
        answer(leader, THIRD)

    benchmark(commit_a_group)

    assert leader.commit_offset == leader.log_end


@pytest.mark.parametrize("batches", [1, 50])
def test_a_follower_takes_a_request(benchmark: BenchmarkFixture, batches: int) -> None:
    follower = replica(term=1)

    def take_a_request() -> None:
        start = follower.log_end
        received = request(
            1, start, [1] * batches, prev_term=1 if start else 0, commit_offset=start
        )
        follower.step(received, 100)
        follower.step(Synced(follower.log_end, follower.term), 100)

    take_a_request()  # The next one commits it.
    benchmark(take_a_request)

    assert follower.log_end > follower.commit_offset > 0
