"""The small rules of the client: addresses, back-off, partitions, knowledge of the cluster,
options, refusals and the buffer."""

from __future__ import annotations

import random
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from xxhash import xxh3_64_intdigest

from logd.broker import session
from logd.errors import (
    ERROR_BY_CODE,
    CompactedError,
    LogdError,
    NotLeaderError,
    OffsetOutOfRangeError,
    UnexpectedOffsetError,
    UnknownServerError,
    UsageError,
)
from logd.types import GroupId, HostPort, NodeId
from logd.wire.messages import (
    BrokerInfo,
    ErrorResponse,
    MetadataResponse,
    PartitionInfo,
    TopicInfo,
)
from logd_client.backoff import BACKOFF_LIMIT_S, ELECTION_BOUND_S, Backoff
from logd_client.bootstrap import parse_bootstrap
from logd_client.budget import ByteBudget, Share
from logd_client.cluster import ClusterView
from logd_client.partitioner import RoundRobin, partition_for_key
from logd_client.producer import ProducerOptions
from logd_client.refusals import error_from_response

# --- bootstrap list ---------------------------------------------------------------------


def test_a_bootstrap_list_names_hosts_and_ports_each_once() -> None:
    parsed = parse_bootstrap(" a.example:1, [::1]:65535,127.0.0.1:7171,a.example:1,")

    assert parsed == (
        HostPort("a.example", 1),
        HostPort("::1", 65535),
        HostPort("127.0.0.1", 7171),
    )


@pytest.mark.parametrize(
    "text", ["", ",", "host", "host:", ":7171", "host:0", "host:65536", "host:x", "::1:7171"]
)
def test_anything_else_is_refused_and_named(text: str) -> None:
    with pytest.raises(UsageError, match="bootstrap"):
        parse_bootstrap(text)


def test_what_takes_addresses_for_urls_is_told_that_they_are_none() -> None:
    with pytest.raises(UsageError, match="is not HOST:PORT, without anything before it"):
        parse_bootstrap("http://127.0.0.1:7171")


# --- back-off ---------------------------------------------------------------------------


def test_delays_are_drawn_below_a_bound_that_doubles_but_for_an_election_stands_still() -> None:
    class Highest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            assert a == 0
            return b

    backoff = Backoff(Highest())

    delays = [backoff.next_delay_s() for _ in range(40)]

    assert delays[:2] == [0.02, 0.04]
    election = delays[2 : delays.index(0.16)]
    assert set(election) == {ELECTION_BOUND_S}
    assert sum(election) / 2 == pytest.approx(0.5, abs=0.1)
    assert delays[delays.index(0.16) :][:3] == [0.16, 0.32, BACKOFF_LIMIT_S]
    assert delays[-1] == BACKOFF_LIMIT_S
    backoff.reset()
    assert backoff.next_delay_s() == 0.02


# --- partitions -------------------------------------------------------------------------


def test_a_key_always_goes_to_the_partition_of_its_hash() -> None:
    assert partition_for_key(b"customer-1", 7) == xxh3_64_intdigest(b"customer-1") % 7


def test_round_robin_passes_over_what_is_not_usable_unless_nothing_is() -> None:
    turns = RoundRobin(4, 0)

    usable = [turns.advance(lambda partition: partition != 2) for _ in range(4)]
    unusable = [turns.advance(lambda _: False) for _ in range(2)]

    assert usable == [1, 3, 0, 1]
    assert unusable == [2, 3]


# --- knowledge of the cluster -----------------------------------------------------------

GROUP = GroupId(9)


def metadata(
    leader: int | None, term: int, topic_id: int = 1, metadata_offset: int = 0
) -> MetadataResponse:
    partition = PartitionInfo(partition=0, group=9, replicas=[2, 1], leader=leader, term=term)
    return MetadataResponse(
        cluster_id="c",
        controller=1,
        brokers=[
            BrokerInfo(node_id=1, host="a", port=1, alive=False),
            BrokerInfo(node_id=2, host="b", port=2),
        ],
        topics=[TopicInfo(name="orders", topic_id=topic_id, partitions=[partition])],
        metadata_offset=metadata_offset,
    )


def test_an_answer_of_an_older_term_does_not_bring_back_an_old_leader() -> None:
    view = ClusterView()
    view.learn(metadata(leader=2, term=5))

    view.learn(metadata(leader=1, term=4))

    assert view.leader(GROUP) == NodeId(2)


def test_a_broker_that_is_behind_brings_no_deleted_topic_back() -> None:
    view = ClusterView()
    view.learn(metadata(leader=2, term=5, metadata_offset=10))

    view.reached(12)
    view.forget_topic("orders")
    view.learn(metadata(leader=2, term=5, metadata_offset=11))

    assert view.topic("orders") is None
    assert view.metadata_offset == 12


def test_a_broker_that_is_behind_may_know_of_a_newer_leader() -> None:
    view = ClusterView()
    view.learn(metadata(leader=2, term=5, metadata_offset=10))

    view.learn(metadata(leader=1, term=6, metadata_offset=9))

    assert view.leader(GROUP) == NodeId(1)


def test_a_hint_is_taken_at_once_and_overruled_by_the_next_answer() -> None:
    view = ClusterView()
    view.learn(metadata(leader=2, term=5))

    view.note_leader(GROUP, NodeId(1))
    hinted = view.leader(GROUP)
    view.learn(metadata(leader=2, term=5))

    assert (hinted, view.leader(GROUP)) == (1, 2)


def test_a_hint_to_an_unknown_broker_only_says_who_does_not_lead() -> None:
    view = ClusterView()
    view.learn(metadata(leader=2, term=5))

    view.note_leader(GROUP, NodeId(77))

    assert view.leader(GROUP) is None


def test_while_nobody_leads_the_replicas_are_asked_in_turn() -> None:
    view = ClusterView()
    view.learn(metadata(leader=None, term=5))

    assert [view.likely_leader(GROUP, attempt) for attempt in range(3)] == [2, 1, 2]


def test_brokers_believed_alive_come_first() -> None:
    view = ClusterView()
    view.learn(metadata(leader=2, term=1))

    assert view.nodes() == [2, 1]


def test_a_topic_created_again_is_not_replaced_by_news_of_the_deleted_one() -> None:
    view = ClusterView()
    view.learn(metadata(leader=2, term=1, topic_id=8))

    view.learn(metadata(leader=1, term=9, topic_id=3))

    known = view.topic("orders")
    assert known is not None
    assert known.topic_id == 8


# --- options ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"linger_ms": -1},
        {"batch_bytes": 10},
        {"batch_bytes": 2**30},
        {"buffer_bytes": 1000},
        {"delivery_timeout_ms": 0},
        {"batches_in_flight": 0},
        {"batches_in_flight": 17},
        {"compression": "gzip"},
    ],
)
def test_producer_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        ProducerOptions(**options)  # type: ignore[arg-type]  # wrong on purpose


# --- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(ERROR_BY_CODE))
def test_every_wire_code_becomes_its_error_with_the_brokers_doubt(code: int) -> None:
    error = error_from_response(
        ErrorResponse(code=code, message="why", may_have_applied=True), "node 1"
    )

    assert type(error) is ERROR_BY_CODE[code]
    assert error.may_have_applied
    assert str(error) == "why (from node 1)"


def test_details_reach_the_error() -> None:
    hint = error_from_response(ErrorResponse(code=6, message="", details={"leader": 3}), "")
    bounds = error_from_response(
        ErrorResponse(code=30, message="", details={"log_start": 5, "log_end": 9}), ""
    )

    assert isinstance(hint, NotLeaderError)
    assert hint.leader == 3
    assert isinstance(bounds, OffsetOutOfRangeError)
    assert (bounds.log_start, bounds.log_end) == (5, 9)


@pytest.mark.parametrize(
    "refusal",
    [
        NotLeaderError("why", leader=3),
        OffsetOutOfRangeError("why", log_start=5, log_end=9),
        UnexpectedOffsetError("why", log_end=9),
        CompactedError("why", oldest=7),
    ],
)
def test_whatever_a_broker_knows_with_its_refusal_the_client_knows(refusal: LogdError) -> None:
    """Where to go on, from where to read, what to expect, from where to watch."""
    told = error_from_response(session._error_message(refusal), "node 1")

    assert type(told) is type(refusal)
    assert vars(told) == {**vars(refusal), "may_have_applied": False}


def test_a_code_of_a_newer_broker_is_reported_with_its_number() -> None:
    error = error_from_response(ErrorResponse(code=999, message="new"), "node 1")

    assert isinstance(error, UnknownServerError)
    assert "999" in str(error)
    assert not error.may_have_applied


# --- the buffer -------------------------------------------------------------------------


def test_an_empty_buffer_takes_anything_and_a_full_one_nothing() -> None:
    budget = ByteBudget(10)
    share = budget.add_share()

    assert budget.take_now(share, 25)
    assert not budget.take_now(share, 1)
    budget.give_back(share, 25)
    assert budget.take_now(share, 10)


@pytest.mark.anyio
async def test_waiters_get_their_bytes_in_the_order_they_came(anyio_backend: object) -> None:
    budget = ByteBudget(10)
    share = budget.add_share()
    budget.take_now(share, 10)
    order: list[str] = []

    async def take(name: str, size: int) -> None:
        await budget.take(share, size)
        order.append(name)

    async with anyio.create_task_group() as tasks:
        for name, size in (("large", 9), ("small", 1)):
            tasks.start_soon(take, name, size)
            await anyio.wait_all_tasks_blocked()
        budget.give_back(share, 1)
        await anyio.wait_all_tasks_blocked()
        before = list(order)
        budget.give_back(share, 9)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert before == []
    assert sorted(order) == ["large", "small"]
    assert budget.used_bytes == 10


@pytest.mark.anyio
async def test_a_cancelled_waiter_takes_nothing_and_lets_the_next_pass(
    anyio_backend: object,
) -> None:
    budget = ByteBudget(10)
    share = budget.add_share()
    budget.take_now(share, 5)

    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(0):
            await budget.take(share, 9)
        tasks.start_soon(budget.take, share, 5)

    assert budget.used_bytes == 10


def test_a_partition_leaves_some_of_the_buffer_to_the_others() -> None:
    budget = ByteBudget(100)
    one, other, third = (budget.add_share() for _ in range(3))

    while budget.take_now(one, 1):
        pass
    while budget.take_now(other, 1):
        pass

    assert one.held_bytes == 75
    assert budget.take_now(third, 1)
    assert one.held_bytes + other.held_bytes < 100


@pytest.mark.parametrize("size", [5, 25])
def test_the_first_of_a_partition_and_what_can_go_anywhere_need_only_room(size: int) -> None:
    budget = ByteBudget(100)
    one, other = budget.add_share(), budget.add_share()
    budget.take_now(one, 75)

    assert not budget.take_now(one, size)
    assert budget.take_now(one if size == 5 else other, size, is_bound=size != 5)


@pytest.mark.anyio
async def test_who_waits_for_a_partition_that_is_stuck_holds_up_nobody_else(
    anyio_backend: object,
) -> None:
    budget = ByteBudget(100)
    stuck, well = budget.add_share(), budget.add_share()
    budget.take_now(stuck, 75)
    order: list[str] = []

    async def take(name: str, share: Share, size: int, *, is_bound: bool = True) -> None:
        await budget.take(share, size, is_bound=is_bound)
        order.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take, "stuck", stuck, 1)
        await anyio.wait_all_tasks_blocked()
        assert budget.take_now(well, 20)
        tasks.start_soon(take, "well", well, 20)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(partial(take, is_bound=False), "anywhere", stuck, 20)
        await anyio.wait_all_tasks_blocked()
        assert order == []

        budget.give_back(well, 20)
        await anyio.wait_all_tasks_blocked()
        budget.give_back(well, 20)
        await anyio.wait_all_tasks_blocked()
        assert order == ["well", "anywhere"]

        budget.give_back(stuck, 75)  # All that it held before what could go anywhere.
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert order == ["well", "anywhere", "stuck"]
    assert (stuck.held_bytes, well.held_bytes) == (21, 0)


@pytest.mark.anyio
async def test_behind_a_cancelled_waiter_who_wants_less_of_its_partition_passes(
    anyio_backend: object,
) -> None:
    budget = ByteBudget(100)
    one, _ = budget.add_share(), budget.add_share()
    budget.take_now(one, 70)

    impatient = anyio.CancelScope()

    async def take_impatiently() -> None:
        with impatient:
            await budget.take(one, 20)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_impatiently)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(budget.take, one, 5)
        await anyio.wait_all_tasks_blocked()
        assert one.held_bytes == 70
        impatient.cancel()

    assert one.held_bytes == 75


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(20))
async def test_the_buffer_is_never_overdrawn_and_nobody_waits_for_ever(
    anyio_backend: object, seed: int
) -> None:
    chance = random.Random(seed)
    budget = ByteBudget(100)
    shares = [budget.add_share() for _ in range(chance.choice([1, 2, 5]))]
    held: list[tuple[Share, int]] = []
    waiting_count = 0

    async def take(share: Share, size: int, patience_s: float) -> None:
        nonlocal waiting_count
        with anyio.move_on_after(patience_s):
            await budget.take(share, size, is_bound=chance.random() < 0.8)
            held.append((share, size))
        waiting_count -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            if chance.random() < 0.6:
                patience_s = chance.choice([0, 60, 60])
                waiting_count += 1
                tasks.start_soon(take, chance.choice(shares), chance.randint(1, 60), patience_s)
            elif held:
                budget.give_back(*held.pop(chance.randrange(len(held))))
            await anyio.lowlevel.checkpoint()
            assert 0 <= budget.used_bytes <= 100
        with anyio.fail_after(30):
            while waiting_count or held:
                while held:
                    budget.give_back(*held.pop())
                await anyio.lowlevel.checkpoint()

    assert budget.used_bytes == 0
    assert [share.held_bytes for share in shares] == [0] * len(shares)
