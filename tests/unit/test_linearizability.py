"""The checker itself: a check that never fails is decoration."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from tests.support.linearizability import (
    Model,
    NotLinearizableError,
    Operation,
    UndecidedError,
    by_key,
    check,
    check_each,
)
from tests.support.linearizable_models import KEY, LOCK, QUEUE


def get(value: bytes | None, called: float, returned: float | None) -> Operation:
    return Operation(("get",), value, called, returned)


def put(value: bytes, called: float, returned: float | None) -> Operation:
    return Operation(("put", value), None, called, returned)


def test_what_overlaps_may_stand_in_either_order() -> None:
    history = [put(b"1", 0, 10), get(None, 1, 2), get(b"1", 3, 4)]

    order = check(history, KEY)

    assert [operation.asked[0] for operation in order] == ["get", "put", "get"]


def test_a_read_of_what_was_overwritten_before_is_found() -> None:
    history = [put(b"1", 0, 1), put(b"2", 2, 3), get(b"1", 4, 5)]

    with pytest.raises(NotLinearizableError) as found:
        check(history, KEY)

    assert found.value.misfit == history[2]
    assert len(found.value.explained) == 2


def test_two_readers_that_disagree_on_the_order_are_found() -> None:
    history = [put(b"1", 0, 10), get(b"1", 1, 2), get(None, 3, 4)]

    with pytest.raises(NotLinearizableError):
        check(history, KEY)


def test_what_touches_in_time_may_have_overlapped() -> None:
    check([put(b"1", 0, 1), get(None, 1, 2)], KEY)

    with pytest.raises(NotLinearizableError):
        check([put(b"1", 0, 1), get(None, 1.5, 2)], KEY)


def test_an_unknown_outcome_may_come_late_or_never() -> None:
    unknown = put(b"1", 0, None)

    check([unknown, get(None, 1, 2), get(b"1", 3, 4)], KEY)
    check([unknown, get(None, 1, 2)], KEY)
    with pytest.raises(NotLinearizableError):
        check([unknown, get(b"1", 1, 2), get(None, 3, 4)], KEY)
    with pytest.raises(NotLinearizableError):
        check([get(b"1", 1, 2), put(b"1", 3, None)], KEY)


def test_compare_and_set_succeeds_for_one() -> None:
    def compare_and_set(new: bytes, succeeded: bool) -> Operation:
        return Operation(("set", None, new), succeeded, 0, 10)

    check([compare_and_set(b"a", True), compare_and_set(b"b", False)], KEY)
    with pytest.raises(NotLinearizableError):
        check([compare_and_set(b"a", True), compare_and_set(b"b", True)], KEY)


def test_an_increment_that_was_done_twice_is_found() -> None:
    def increment(answered: bytes, called: float) -> Operation:
        return Operation(("increment", 1), answered, called, called + 1)

    check([increment(b"1", 0), increment(b"2", 2)], KEY)
    with pytest.raises(NotLinearizableError):
        check([increment(b"1", 0), increment(b"3", 2)], KEY)


def lock_operation(
    client: str, verb: str, answered: object, called: float, returned: float | None
) -> Operation:
    return Operation((verb,), answered, called, returned, client)


def test_a_lock_that_two_hold_is_found() -> None:
    first = lock_operation("a", "acquire", 1, 0, 1)
    second = lock_operation("b", "acquire", 5, 0, 3)

    check([first, lock_operation("a", "release", True, 1.5, 2), second], LOCK)
    with pytest.raises(NotLinearizableError):
        check([first, second], LOCK)


def test_a_lock_passes_on_when_its_session_expires_not_before() -> None:
    first = lock_operation("a", "acquire", 1, 0, 1)
    second = lock_operation("b", "acquire", 5, 0, 3)

    check([first, second, Operation(("expire", "a"), None, 2, None)], LOCK)
    with pytest.raises(NotLinearizableError):
        check([first, second, Operation(("expire", "a"), None, 4, None)], LOCK)


def test_a_token_that_does_not_grow_is_found() -> None:
    history = [
        lock_operation("a", "acquire", 7, 0, 1),
        lock_operation("a", "release", True, 2, 3),
        lock_operation("b", "acquire", 7, 4, 5),
    ]

    with pytest.raises(NotLinearizableError):
        check(history, LOCK)


def test_an_item_that_is_completed_twice_or_claimed_after_it_is_found() -> None:
    def queue_operation(asked: tuple[object, ...], answered: object, at: int) -> Operation:
        return Operation(asked, answered, at, at + 0.5)

    started = [
        queue_operation(("put", 1), None, 0),
        queue_operation(("claim",), (1, 10), 1),
        queue_operation(("return", (1, 10)), None, 2),
        queue_operation(("claim",), (1, 11), 3),
    ]
    stale = queue_operation(("complete", 1, 10), False, 4)
    done = queue_operation(("complete", 1, 11), True, 5)

    check([*started, stale, done, queue_operation(("claim",), None, 6)], QUEUE)
    for wrong in (
        [*started, stale._replace(answered=True), done],
        [*started, done, queue_operation(("complete", 1, 11), True, 6)],
        [*started, done, queue_operation(("claim",), (1, 12), 6)],
        [*started[:1], queue_operation(("claim",), None, 1)],
    ):
        with pytest.raises(NotLinearizableError):
            check(wrong, QUEUE)


def test_each_object_is_checked_by_itself_and_named() -> None:
    history = [
        Operation(("put", b"1"), None, 0, 1, "x"),
        Operation(("get",), None, 2, 3, "y"),
    ]

    check_each(by_key(history, lambda operation: operation.client), KEY)
    with pytest.raises(NotLinearizableError) as found:
        check_each(by_key(history, lambda operation: "both"), KEY)
    assert "both" in found.value.__notes__[0]


def test_a_search_without_end_is_given_up() -> None:
    history = [put(b"%d" % at, 0, None) for at in range(20)]

    with pytest.raises(UndecidedError):
        check([*history, get(b"none of them", 1, 2)], KEY, steps_max=10_000)


def test_a_long_history_of_few_clients_takes_few_steps() -> None:
    chance = random.Random(1)
    value: bytes | None = None
    history = []
    for at in range(3_000):
        called, returned = at - chance.random(), at + chance.random()
        if chance.random() < 0.5:
            value = b"%d" % at
            history.append(put(value, called, returned))
        else:
            history.append(get(value, called, returned))

    assert len(check(history, KEY, steps_max=100_000)) == len(history)


def brute_force(history: list[Operation], model: Model[Any]) -> bool:
    """Try all orders of all subsets that hold every operation that returned."""
    optional = [o for o in history if o.returned is None]
    required = [o for o in history if o.returned is not None]
    for count in range(len(optional) + 1):
        for some in itertools.combinations(optional, count):
            for order in itertools.permutations([*required, *some]):
                if in_time(order) and explains(order, model):
                    return True
    return False


def in_time(order: tuple[Operation, ...]) -> bool:
    return all(
        later.returned is None or earlier.called <= later.returned
        for earlier, later in itertools.combinations(order, 2)
    )


def explains(order: tuple[Operation, ...], model: Model[Any]) -> bool:
    state = model.initial
    for operation in order:
        state = model.step(state, operation)
        if state is None:
            return False
    return True


@pytest.mark.parametrize("seed", range(150))
def test_it_says_what_trying_every_order_says(seed: int) -> None:
    chance = random.Random(seed)
    history = []
    for _ in range(chance.randint(1, 5)):
        called = chance.randint(0, 6)
        returned = None if chance.random() < 0.2 else called + chance.randint(0, 4)
        value = chance.choice([b"1", b"2"])
        asked, answered = chance.choice(
            [
                (("put", value), None),
                (("get",), value),
                (("get",), None),
                (("set", value, b"3"), chance.random() < 0.5),
            ]
        )
        history.append(Operation(asked, answered, called, returned))

    try:
        check(history, KEY)
        found = True
    except NotLinearizableError:
        found = False

    assert found == brute_force(history, KEY)
