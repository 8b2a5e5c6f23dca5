"""What applying a command of the coordination log costs: the pure state, without any I/O.

Every replica applies every command on its event loop, so this is a bound on commands a second of
one partition, and the part of a broker's core that they take.

    pytest bench/test_coordination_bench.py --benchmark-enable
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from logd.wire.coordination import (
    Acquire,
    Claim,
    ClaimItems,
    Command,
    Compare,
    CompleteItems,
    Item,
    ItemClaim,
    ItemsClaimed,
    Put,
    PutItems,
    QueueStatistics,
    ReadQueue,
    Release,
    Transact,
)
from tests.support.coordination import NAMESPACE, Partition

ROUND = 500
"""Commands, or pairs, that one round applies."""


class Load(Partition):
    """A partition that keeps no history of what it applied."""

    def __init__(self, sessions: int = 1) -> None:
        super().__init__()
        self.all = [self.open() for _ in range(sessions)]

    def do_one(self, session: int, command: Command) -> object:
        self.entries.clear()
        result = self.do(session, command)
        self.state.take_events()
        return result


def put_a_key(load: Load) -> None:
    (session,) = load.all
    for at in range(ROUND):
        load.do_one(session, Transact(then=[Put(key=b"key-%d" % (at * 7919 % 5000), value=b"v")]))


def compare_and_set(load: Load) -> None:
    (session,) = load.all
    for at in range(ROUND):
        load.do_one(
            session,
            Transact(
                compare=[Compare(key=b"k", exists=True)],
                then=[Put(key=b"k", value=b"%d" % at)],
                otherwise=[Put(key=b"k", value=b"")],
            ),
        )


def acquire_and_release(load: Load) -> None:
    (session,) = load.all
    for at in range(ROUND // 2):
        name = f"lock-{at}"
        claim = load.do_one(session, Acquire(kind="lock", name=name))
        assert isinstance(claim, Claim)
        load.do_one(session, Release(kind="lock", name=name, ticket=claim.ticket))


def work(load: Load) -> None:
    """Put, claim and complete, ten items at a time: three commands."""
    (session,) = load.all
    items = [Item(payload=bytes(100))] * 10
    for _ in range(ROUND // 3):
        load.do_one(session, PutItems(queue="q", items=items))
        claimed = load.do_one(session, ClaimItems(queue="q", count=10))
        assert isinstance(claimed, ItemsClaimed)
        claims = [ItemClaim(item=item.item, token=item.token) for item in claimed.items]
        load.do_one(session, CompleteItems(queue="q", claims=claims))


@pytest.mark.parametrize("round_of", [put_a_key, compare_and_set, acquire_and_release, work])
def test_commands(benchmark: BenchmarkFixture, round_of: Callable[[Load], None]) -> None:
    """Time is of ``ROUND`` commands, entries made included."""
    load = Load()

    benchmark(round_of, load)


def test_a_full_queue_costs_no_more(benchmark: BenchmarkFixture) -> None:
    load = Load()
    for _ in range(200):
        load.do_one(load.all[0], PutItems(queue="q", items=[Item(payload=bytes(100))] * 1_000))

    benchmark(work, load)

    answer = load.state.answer(NAMESPACE, ReadQueue(queue="q"))
    assert isinstance(answer, QueueStatistics)
    assert answer.ready == 200_000


def test_freezing_a_full_queue(benchmark: BenchmarkFixture) -> None:
    load = Load()
    for _ in range(200):
        load.do_one(load.all[0], PutItems(queue="q", items=[Item(payload=bytes(100))] * 1_000))

    benchmark(load.state.freeze)
