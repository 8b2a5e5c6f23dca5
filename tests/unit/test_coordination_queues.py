"""Work queues: who gets which item when, and that a completed one never comes back."""

from __future__ import annotations

import pytest

from logd.coordination.timers import Place, Timers
from logd.errors import InvalidRequestError, NotHeldError, UnknownNameError
from logd.limits import DUE_PER_COMMAND_MAX
from logd.types import Offset
from logd.wire.coordination import (
    Advance,
    ClaimedItem,
    ClaimItems,
    CompleteItems,
    ConfigureQueue,
    DeleteQueue,
    Done,
    Entry,
    Item,
    ItemClaim,
    ItemsClaimed,
    ItemsPut,
    ItemsSettled,
    PutItems,
    QueueOptions,
    QueueStatistics,
    ReadQueue,
    RedriveItems,
    ReleaseItems,
    RenewItems,
)
from tests.support.coordination import NAMESPACE, Partition, error_of

VISIBILITY_MS = 30_000
BACKOFF_MS = 1_000


def put(partition: Partition, session: int, *items: Item | bytes) -> list[int]:
    made = [item if isinstance(item, Item) else Item(payload=item) for item in items]
    result = partition.do(session, PutItems(queue="q", items=made))
    assert isinstance(result, ItemsPut), result
    return result.items


def claim(
    partition: Partition, session: int, count: int = 1, visibility_ms: int | None = None
) -> list[ClaimedItem]:
    result = partition.do(session, ClaimItems(queue="q", count=count, visibility_ms=visibility_ms))
    assert isinstance(result, ItemsClaimed), result
    return result.items


def payloads(claimed: list[ClaimedItem]) -> list[bytes]:
    return [item.payload for item in claimed]


def claims(*claimed: ClaimedItem) -> list[ItemClaim]:
    return [ItemClaim(item=item.item, token=item.token) for item in claimed]


def complete(partition: Partition, session: int, *claimed: ClaimedItem) -> ItemsSettled:
    result = partition.do(session, CompleteItems(queue="q", claims=claims(*claimed)))
    assert isinstance(result, ItemsSettled), result
    return result


def release(
    partition: Partition,
    session: int,
    *claimed: ClaimedItem,
    delay_ms: int | None = None,
    reason: str = "",
    dead: bool = False,
    uncounted: bool = False,
) -> ItemsSettled:
    result = partition.do(
        session,
        ReleaseItems(
            queue="q",
            claims=claims(*claimed),
            delay_ms=delay_ms,
            reason=reason,
            dead=dead,
            uncounted=uncounted,
        ),
    )
    assert isinstance(result, ItemsSettled), result
    return result


def statistics(partition: Partition, dead: int = 0) -> QueueStatistics:
    answer = partition.state.answer(NAMESPACE, ReadQueue(queue="q", dead=dead))
    assert isinstance(answer, QueueStatistics), answer
    return answer


def configure(partition: Partition, session: int, **options: int) -> None:
    command = ConfigureQueue(queue="q", options=QueueOptions(**options))
    assert isinstance(partition.do(session, command), Done)


def test_options_that_are_not_changed_stay_as_they_are_whatever_else_the_command_says() -> None:
    """As when two change options at the same time, and have read the same ones before."""
    partition = Partition()
    session = partition.open()

    for options in ({"attempts_max": 3}, {"backoff_ms": 7, "visibility_ms": 5_000}):
        command = ConfigureQueue(queue="q", options=QueueOptions(**options), changed=list(options))
        assert isinstance(partition.do(session, command), Done)

    found = partition.state.answer(NAMESPACE, ReadQueue(queue="q"))
    assert isinstance(found, QueueStatistics)
    assert found.options == QueueOptions(attempts_max=3, backoff_ms=7, visibility_ms=5_000)


def test_options_that_do_not_fit_those_that_stay_are_refused_and_make_no_queue() -> None:
    partition = Partition()
    session = partition.open()
    options = QueueOptions(backoff_ms=70_000, backoff_max_ms=80_000)
    command = ConfigureQueue(queue="q", options=options, changed=["backoff_ms"])

    assert error_of(partition.do(session, command)) is InvalidRequestError

    assert error_of(partition.state.answer(NAMESPACE, ReadQueue(queue="q"))) is UnknownNameError


@pytest.mark.parametrize("changed", [["priority"], ["backoff_ms"] * 6])
def test_only_options_that_there_are_can_be_changed(changed: list[str]) -> None:
    partition = Partition()
    command = ConfigureQueue(queue="q", options=QueueOptions(), changed=changed)

    assert error_of(partition.do(partition.open(), command)) is InvalidRequestError


def test_items_are_claimed_in_order_and_each_by_one() -> None:
    partition = Partition()
    session, other = partition.open(), partition.open()
    put(partition, session, b"a", b"b", b"c")

    assert payloads(claim(partition, session, 2)) == [b"a", b"b"]
    assert payloads(claim(partition, other, 2)) == [b"c"]
    assert claim(partition, session) == []


def test_a_queue_that_is_not_there_has_nothing_to_claim_and_no_statistics() -> None:
    partition = Partition()
    session = partition.open()

    assert claim(partition, session) == []
    assert error_of(partition.state.answer(NAMESPACE, ReadQueue(queue="q"))) is UnknownNameError
    assert error_of(partition.do(session, DeleteQueue(queue="q"))) is UnknownNameError


def test_a_completed_item_never_comes_back() -> None:
    partition = Partition()
    session = partition.open()
    put(partition, session, b"a")
    (item,) = claim(partition, session)

    assert complete(partition, session, item).settled == [item.item]
    assert complete(partition, session, item).stale == [item.item]
    partition.sleep(2 * VISIBILITY_MS)
    partition.expire(session)
    assert claim(partition, partition.open()) == []
    assert statistics(partition).completed == 1


def test_a_claim_that_ran_out_is_stale_before_anybody_has_noticed() -> None:
    partition = Partition()
    session = partition.open()
    put(partition, session, b"a")
    (item,) = claim(partition, session)

    partition.now_ms += VISIBILITY_MS

    assert complete(partition, session, item).stale == [item.item]
    assert statistics(partition).completed == 0


def test_a_claim_holds_until_its_time_has_come() -> None:
    partition = Partition()
    session = partition.open()
    put(partition, session, b"a")
    (item,) = claim(partition, session)

    partition.now_ms += VISIBILITY_MS - 1

    assert complete(partition, session, item).settled == [item.item]


@pytest.mark.parametrize("by_the_same", [True, False])
def test_what_ran_out_is_claimed_again_with_a_greater_token_and_the_old_one_is_stale(
    by_the_same: bool,
) -> None:
    partition = Partition()
    session = partition.open()
    other = session if by_the_same else partition.open()
    put(partition, session, b"a")
    (old,) = claim(partition, session)
    partition.sleep(VISIBILITY_MS + BACKOFF_MS)
    (new,) = claim(partition, other)

    assert (new.item, new.attempt) == (old.item, 2)
    assert new.token > old.token
    assert complete(partition, session, old).stale == [old.item]
    assert release(partition, session, old, dead=True).stale == [old.item]
    assert complete(partition, other, new).settled == [new.item]


def test_another_s_claim_cannot_be_completed() -> None:
    partition = Partition()
    session, other = partition.open(), partition.open()
    put(partition, session, b"a")
    (item,) = claim(partition, session)

    assert complete(partition, other, item).stale == [item.item]
    assert complete(partition, session, item).settled == [item.item]


def test_a_renewed_claim_holds_longer_all_or_none() -> None:
    partition = Partition()
    session = partition.open()
    put(partition, session, b"a", b"b")
    first, second = claim(partition, session, 2)
    partition.now_ms += VISIBILITY_MS - 1

    renewed = partition.do(session, RenewItems(queue="q", claims=claims(first)))
    partition.now_ms += 1
    refused = partition.do(session, RenewItems(queue="q", claims=claims(first, second)))
    partition.now_ms += VISIBILITY_MS - 2

    assert isinstance(renewed, Done)
    assert error_of(refused) is NotHeldError
    assert complete(partition, session, first, second) == ItemsSettled(
        revision=partition.revision, settled=[first.item], stale=[second.item]
    )


def test_an_item_that_fails_waits_twice_as_long_each_time_up_to_a_bound() -> None:
    partition = Partition()
    session = partition.open()
    configure(partition, session, backoff_ms=100, backoff_max_ms=350)
    put(partition, session, b"a")
    waits = []

    for _ in range(4):
        (item,) = claim(partition, session)
        release(partition, session, item)
        began = partition.now_ms
        due = partition.state.due_ms
        assert due is not None
        partition.sleep(due - began)
        waits.append(due - began)

    assert waits == [100, 200, 350, 350]


def test_an_item_given_back_without_delay_is_ready_in_its_old_place() -> None:
    partition = Partition()
    session = partition.open()
    put(partition, session, b"a", b"b")
    (item,) = claim(partition, session)

    release(partition, session, item, delay_ms=0)

    assert payloads(claim(partition, session, 2)) == [b"a", b"b"]


def test_after_enough_attempts_an_item_is_dead_with_the_reason() -> None:
    partition = Partition()
    session = partition.open()
    configure(partition, session, attempts_max=2)
    put(partition, session, b"a")

    for _ in range(2):
        (item,) = claim(partition, session)
        release(partition, session, item, reason="no", delay_ms=0)

    found = statistics(partition, dead=5)
    assert (found.dead, found.ready, found.delayed, found.in_flight) == (1, 0, 0, 0)
    (dead,) = found.dead_items
    assert (dead.payload, dead.reason, dead.attempts) == (b"a", "no", 2)
    assert claim(partition, session) == []


def test_an_item_does_not_die_of_workers_that_were_stopped() -> None:
    partition = Partition()
    session = partition.open()
    configure(partition, session, attempts_max=2)
    put(partition, session, b"a", b"b")
    tokens = []

    release(partition, session, *claim(partition, session), delay_ms=0)
    for _ in range(5):
        (item,) = claim(partition, session)
        tokens.append(item.token)
        assert (item.payload, item.attempt) == (b"a", 2)
        assert release(partition, session, item, uncounted=True).settled == [item.item]
        assert complete(partition, session, item).stale == [item.item]
        partition.state.check_invariants()
    release(partition, session, *claim(partition, session), reason="no")

    assert tokens == sorted(set(tokens))
    assert [dead.attempts for dead in statistics(partition, dead=1).dead_items] == [2]


def test_an_uncounted_claim_leaves_no_back_off_and_waits_if_it_is_told_to() -> None:
    partition = Partition()
    session = partition.open()
    put(partition, session, Item(payload=b"x1", key=b"x"), Item(payload=b"x2", key=b"x"))

    release(partition, session, *claim(partition, session), uncounted=True)
    (item,) = claim(partition, session, 2)
    release(partition, session, item, uncounted=True, delay_ms=100)
    (due_ms, nothing) = (partition.state.due_ms, claim(partition, session, 2))
    partition.sleep(100)
    (again,) = claim(partition, session, 2)

    assert (due_ms, nothing) == (partition.now_ms, [])
    assert [(i.payload, i.attempt) for i in (item, again)] == [(b"x1", 1), (b"x1", 1)]


def test_an_item_cannot_die_of_a_claim_that_does_not_count() -> None:
    partition = Partition()
    session = partition.open()
    put(partition, session, b"a")
    (item,) = claim(partition, session)

    command = ReleaseItems(queue="q", claims=claims(item), dead=True, uncounted=True)

    assert error_of(partition.do(session, command)) is InvalidRequestError
    assert complete(partition, session, item).settled == [item.item]


def test_dead_items_begin_anew_when_they_are_redriven() -> None:
    partition = Partition()
    session = partition.open()
    first, second, alive = put(partition, session, b"a", b"b", b"c")
    release(partition, session, *claim(partition, session, 2), dead=True, reason="bad")

    redriven = partition.do(session, RedriveItems(queue="q", items=[second, alive]))
    assert isinstance(redriven, ItemsSettled)
    assert (redriven.settled, redriven.stale) == ([second], [alive])
    assert isinstance(partition.do(session, RedriveItems(queue="q")), ItemsSettled)

    found = claim(partition, session, 5)
    assert [item.item for item in found] == [alive, second, first]
    assert [item.attempt for item in found] == [1, 1, 1]


def test_the_oldest_dead_go_when_there_are_too_many() -> None:
    partition = Partition()
    session = partition.open()
    configure(partition, session, dead_items_max=2)
    put(partition, session, b"a", b"b", b"c")

    release(partition, session, *claim(partition, session, 3), dead=True)

    assert [dead.payload for dead in statistics(partition, dead=5).dead_items] == [b"c", b"b"]
    configure(partition, session, dead_items_max=1)
    assert statistics(partition).dead == 1
    partition.state.check_invariants()


def test_items_that_come_and_go_behind_an_old_one_leave_nothing_behind() -> None:
    """What is no longer true lies in the heaps behind what is, until they are cleared in time."""
    partition = Partition()
    session = partition.open()
    put(partition, session, b"old")
    claim(partition, session)
    for _ in range(500):
        partition.now_ms += 1
        put(partition, session, b"new")
        complete(partition, session, *claim(partition, session))

    queue = partition.state._namespaces[NAMESPACE].work._queues["q"]

    assert queue.in_flight == 1
    assert len(queue._claims) < 100
    assert len(queue._ages) < 100


def test_a_delayed_item_is_claimed_when_its_time_has_come() -> None:
    partition = Partition()
    session = partition.open()
    put(partition, session, Item(payload=b"late", delay_ms=500), b"now")

    assert payloads(claim(partition, session, 2)) == [b"now"]
    assert partition.state.due_ms == partition.now_ms + 500
    partition.now_ms += 500
    assert payloads(claim(partition, session, 2)) == [b"late"]


def test_higher_priorities_go_first_among_those_that_are_due() -> None:
    partition = Partition()
    session = partition.open()
    put(
        partition,
        session,
        Item(payload=b"low", priority=-1),
        b"a",
        Item(payload=b"high", priority=5),
        Item(payload=b"higher, later", priority=9, delay_ms=10),
        b"b",
    )

    assert payloads(claim(partition, session, 5)) == [b"high", b"a", b"b", b"low"]


def test_items_of_a_key_are_handed_out_one_at_a_time_in_order_keys_in_parallel() -> None:
    partition = Partition()
    session = partition.open()
    put(
        partition,
        session,
        Item(payload=b"x1", key=b"x"),
        Item(payload=b"x2", key=b"x", priority=9),
        Item(payload=b"y1", key=b"y"),
        b"free",
    )

    first, *others = claim(partition, session, 5)
    assert payloads([first, *others]) == [b"x1", b"y1", b"free"]
    assert claim(partition, session, 5) == []

    complete(partition, session, first)
    assert payloads(claim(partition, session, 5)) == [b"x2"]


def test_a_key_waits_while_its_first_is_delayed_or_retried_and_goes_on_when_that_is_dead() -> None:
    partition = Partition()
    session = partition.open()
    put(
        partition,
        session,
        Item(payload=b"x1", key=b"x", delay_ms=10),
        Item(payload=b"x2", key=b"x"),
    )

    assert claim(partition, session) == []
    partition.sleep(10)
    (item,) = claim(partition, session)
    release(partition, session, item)
    assert claim(partition, session) == []
    partition.sleep(BACKOFF_MS)
    (item,) = claim(partition, session)
    assert (item.payload, item.attempt) == (b"x1", 2)
    release(partition, session, item, dead=True)
    assert payloads(claim(partition, session)) == [b"x2"]


def test_a_lost_session_gives_its_claims_back_and_they_count_as_attempts() -> None:
    partition = Partition()
    session, other = partition.open(), partition.open()
    configure(partition, session, attempts_max=2)
    put(partition, session, b"a", b"b")
    claim(partition, session, 2)

    partition.expire(session)
    assert statistics(partition).delayed == 2
    partition.sleep(BACKOFF_MS)
    assert [item.attempt for item in claim(partition, other, 2)] == [2, 2]
    partition.expire(other)

    found = statistics(partition, dead=2)
    assert {dead.reason for dead in found.dead_items} == {"the session of the claim ended"}


def test_a_deleted_queue_s_items_and_claims_are_gone() -> None:
    partition = Partition()
    session = partition.open()
    put(partition, session, b"a")
    (old,) = claim(partition, session)

    assert isinstance(partition.do(session, DeleteQueue(queue="q")), Done)
    put(partition, session, b"b")

    assert complete(partition, session, old).stale == [old.item]
    (new,) = claim(partition, session)
    assert new.item != old.item
    partition.sleep(2 * VISIBILITY_MS)
    partition.state.check_invariants()


def test_statistics_tell_depth_age_and_what_is_in_flight() -> None:
    partition = Partition()
    session = partition.open()
    put(partition, session, b"a", b"b", Item(payload=b"c", delay_ms=10_000))
    partition.now_ms += 100
    put(partition, session, b"d")
    (item,) = claim(partition, session)

    found = statistics(partition)
    assert (found.ready, found.delayed, found.in_flight, found.oldest_ms) == (2, 1, 1, 100)

    complete(partition, session, item, *claim(partition, session))
    partition.now_ms += 1
    partition.open()
    assert statistics(partition).oldest_ms == 101


def test_workers_that_found_nothing_are_told_when_there_is_something() -> None:
    partition = Partition()
    session = partition.open()
    told = []

    def changes() -> list[str]:
        return [event.change for event in partition.events()]

    put(partition, session, b"a")
    told.append(changes())
    put(partition, session, b"b")
    told.append(changes())
    items = claim(partition, session, 2)
    told.append(changes())
    release(partition, session, items[0], delay_ms=0)
    told.append(changes())
    claim(partition, session)
    partition.sleep(VISIBILITY_MS)
    told.append(changes())
    partition.sleep(BACKOFF_MS)
    told.append(changes())

    assert told == [["ready"], [], [], ["ready"], [], ["ready"]]


def test_a_claim_takes_as_many_as_a_result_can_hold() -> None:
    partition = Partition()
    session = partition.open()
    for _ in range(20):
        put(partition, session, bytes(64 * 1024))

    assert len(claim(partition, session, 20)) == 16


def test_what_is_due_is_moved_in_bounded_steps() -> None:
    partition = Partition()
    session = partition.open()
    count = DUE_PER_COMMAND_MAX + 10
    for start in range(0, count, 10):
        put(partition, session, *[Item(payload=b"%d" % start, delay_ms=count)] * 10)
    partition.now_ms += 2 * count

    def advance() -> None:
        command = Entry(NAMESPACE, 0, 0, 0, partition.now_ms, Advance())
        partition.apply(command)

    advance()
    assert statistics(partition).delayed == 10
    restored = type(partition.state).restore(partition.state.snapshot())
    assert restored.snapshot() == partition.state.snapshot()
    assert restored.due_ms == partition.state.due_ms is not None
    advance()
    assert statistics(partition).delayed == 0
    assert partition.state.due_ms is None


def test_a_claim_that_ran_out_with_too_many_others_to_be_moved_at_once_is_stale_too() -> None:
    partition = Partition()
    session = partition.open()
    put(partition, session, *[b""] * (DUE_PER_COMMAND_MAX + 1))
    claimed = claim(partition, session, DUE_PER_COMMAND_MAX + 1)

    partition.now_ms += VISIBILITY_MS

    assert complete(partition, session, claimed[-1]).stale == [claimed[-1].item]


def test_an_advance_before_its_time_changes_nothing() -> None:
    partition = Partition()
    session = partition.open()
    put(partition, session, Item(payload=b"a", delay_ms=100))

    partition.state.apply(Entry(NAMESPACE, 0, 0, 0, partition.now_ms + 99, Advance()), Offset(50))

    assert statistics(partition).delayed == 1


def test_timers_that_were_overtaken_do_not_pile_up() -> None:
    dues: dict[Place, int] = {("n", "q"): 1_000_000}
    timers = Timers(dues.get)
    timers.schedule(("n", "q"), 1_000_000)

    for now in range(1_000):
        dues["n", "q"] = now
        timers.schedule(("n", "q"), now)
        assert timers.first() == (now, ("n", "q"))
        dues["n", "q"] = 1_000_000
        assert timers.first() == (1_000_000, ("n", "q"))

    assert len(timers) < 100


def test_timers_of_queues_that_are_no_more_do_not_pile_up() -> None:
    timers = Timers(lambda _: None)
    timers.schedule(("n", "kept"), 10**9)
    for number in range(1_000):
        timers.schedule(("n", f"q{number}"), 10**12)
        timers.schedule(("n", f"q{number}"), None)

    assert len(timers) < 100
