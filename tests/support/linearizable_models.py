"""Objects of the coordination log as they would be if clients came one after the other.

``asked`` and ``answered`` of the operations are tuples, named at each model.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from tests.support.linearizability import Model, Operation

Value = bytes | None


def _key_step(value: Value, operation: Operation) -> Any:
    verb, *arguments = operation.asked
    known = operation.returned is not None
    match verb:
        case "get":
            return value if not known or operation.answered == value else _NO
        case "put":
            return arguments[0]
        case "delete":
            return None
        case "set":
            expected, new = arguments
            succeeded = value == expected
            if known and operation.answered != succeeded:
                return _NO
            return new if succeeded else value
        case "increment":
            after = b"%d" % (int(value or b"0") + arguments[0])
            return after if not known or operation.answered == after else _NO
        case _:
            raise AssertionError(f"no verb {verb!r}")


_NO: Final = object()
"""It could not have been answered so; None is a value."""


class Cell(NamedTuple):
    """A key's value: None is a value here, and no state of a model."""

    value: Value


def _cell_step(cell: Cell, operation: Operation) -> Cell | None:
    after = _key_step(cell.value, operation)
    return None if after is _NO else Cell(after)


KEY = Model(Cell(None), _cell_step)
"""``get`` → value; ``put`` value; ``delete``; ``set`` expected new → succeeded;
``increment`` by → value."""


class Held(NamedTuple):
    """An exclusive lock, or an election: whose it is, and the newest token there was."""

    holder: object
    newest: int


def _lock_step(lock: Held, operation: Operation) -> Held | None:
    verb, *arguments = operation.asked
    known = operation.returned is not None
    match verb:
        case "acquire":
            # Of unknown outcome: it holds with some token above, or is taken not to have been.
            if lock.holder is not None:
                return None
            token = operation.answered if known else lock.newest + 1
            return Held(operation.client, token) if token > lock.newest or not known else None
        case "release":
            is_holder = lock.holder == operation.client
            if known and operation.answered != is_holder:
                return None
            return Held(None, lock.newest) if is_holder else lock
        case "expire":
            return Held(None, lock.newest) if lock.holder == arguments[0] else lock
        case _:
            raise AssertionError(f"no verb {verb!r}")


LOCK = Model(Held(None, 0), _lock_step)
"""``acquire`` → token, called when asked for and returned when granted; ``release`` → whether the
client held it; ``expire`` client: what it held was given back.  ``client`` is the session."""


class Items(NamedTuple):
    """A work queue as a set: order is no promise among items without a key."""

    waiting: frozenset[int]
    claimed: frozenset[tuple[int, int]]
    """Item and token."""
    completed: frozenset[int]


def _queue_step(queue: Items, operation: Operation) -> Items | None:
    verb, *arguments = operation.asked
    known = operation.returned is not None
    match verb:
        case "put":
            return queue._replace(waiting=queue.waiting | {arguments[0]})
        case "claim":
            return _claimed(queue, operation.answered) if known else queue
        case "return":
            return _returned(queue, arguments[0])
        case "complete":
            claim = (arguments[0], arguments[1])
            succeeded = claim in queue.claimed
            if known and operation.answered != succeeded:
                return None
            if not succeeded:
                return queue
            return queue._replace(
                claimed=queue.claimed - {claim}, completed=queue.completed | {claim[0]}
            )
        case _:
            raise AssertionError(f"no verb {verb!r}")


def _claimed(queue: Items, claim: tuple[int, int] | None) -> Items | None:
    if claim is None:
        return queue if not queue.waiting else None
    if claim[0] not in queue.waiting:
        return None
    return queue._replace(waiting=queue.waiting - {claim[0]}, claimed=queue.claimed | {claim})


def _returned(queue: Items, claim: tuple[int, int]) -> Items | None:
    if claim not in queue.claimed:
        return queue
    return queue._replace(waiting=queue.waiting | {claim[0]}, claimed=queue.claimed - {claim})


QUEUE = Model(Items(frozenset(), frozenset(), frozenset()), _queue_step)
"""``put`` item; ``claim`` → (item, token), or None if nothing was waiting; ``complete`` item token
→ succeeded; ``return`` (item, token): the claim ended without completion."""
