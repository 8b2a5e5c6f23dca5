"""The blocking client offers what the asynchronous one does, in the same words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import logd_client
from logd.wire.coordination import QueueOptions
from logd_client import sync
from logd_client.coordination import (
    assignments,
    elections,
    keys,
    leases,
    locks,
    members,
    queues,
    recipes,
    watches,
)

PAIRS: dict[type, type] = {
    logd_client.Client: sync.Client,
    logd_client.Admin: sync.Admin,
    logd_client.Producer: sync.Producer,
    logd_client.Consumer: sync.Consumer,
    leases.Lease: sync.Lease,
    elections.Leadership: sync.Leadership,
    locks.Lock: sync.Lock,
    locks.Semaphore: sync.Lock,
    elections.Election: sync.Election,
    members.Group: sync.Group,
    members.Membership: sync.Membership,
    assignments.Assignments: sync.Assignments,
    queues.Queue: sync.Queue,
    queues.Claim: sync.Claim,
    keys.KeyValues: sync.KeyValues,
    watches.Watch: sync.Watch,
    recipes.Barrier: sync.Barrier,
    recipes.DoubleBarrier: sync.DoubleBarrier,
    recipes.Latch: sync.Latch,
    recipes.Counter: sync.Counter,
    recipes.NumberSequence: sync.NumberSequence,
}

BETWEEN_OURSELVES = {
    logd_client.Producer: {"check", "require_settled"},
    logd_client.Consumer: {
        *("is_open", "on_arrival", "on_change", "wait_for_batch"),
    },
    leases.Lease: {"end", "fence_id", "lost_error"},
    elections.Leadership: {"end", "fence_id", "lost_error"},
    members.Group: {"watch_for_gaps"},
    members.Membership: {"lost_error"},
    assignments.Assignments: {"worker"},
    queues.Claim: {"asked_at", "item", "queue", "session", "visibility_s"},
    keys.KeyValues: {"session_id"},
    watches.Watch: {
        *("forget_arrived", "move_to", "on_failed", "on_pushed", "take_arrived", "trouble"),
        "wait_for_news",
    },
}
"""Parts of the client use these of each other, or they say what the blocking one says otherwise."""

ONLY_BLOCKING = {"timeout_s"}
"""A thread has no other way to stop waiting."""

ONLY_ASYNCHRONOUS = {
    (assignments.Assignments, "watch"): {"tells_gaps"},
    (keys.KeyValues, "watch"): {"tells_gaps"},
    (queues.Queue, "watch"): {"tells_gaps"},
    (queues.Queue, "work"): {"batch", "tally"},
}


def verbs(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")} - {"kind", "aclose"}


def parameters(function: Callable[..., Any]) -> dict[str, tuple[object, object]]:
    given = inspect.signature(function).parameters.values()
    return {one.name: (one.kind, one.default) for one in given if one.name != "self"}


@pytest.mark.parametrize("cls", PAIRS, ids=lambda cls: cls.__name__)
def test_the_blocking_client_has_every_verb(cls: type) -> None:
    wanted = verbs(cls) - BETWEEN_OURSELVES.get(cls, set())

    assert wanted - verbs(PAIRS[cls]) == set()


@pytest.mark.parametrize("cls", PAIRS, ids=lambda cls: cls.__name__)
def test_a_verb_of_the_blocking_client_takes_the_same_arguments(cls: type) -> None:
    for name in verbs(cls) & verbs(PAIRS[cls]):
        verb = getattr(cls, name)
        if not callable(verb):
            continue
        there, here = parameters(verb), parameters(getattr(PAIRS[cls], name))
        for dropped in ONLY_ASYNCHRONOUS.get((cls, name), set()):
            del there[dropped]
        for added in ONLY_BLOCKING & here.keys() - there.keys():
            del here[added]

        assert here == there, name


def test_connecting_takes_the_same_arguments() -> None:
    here = parameters(sync.connect)
    del here["backend"]

    assert here == parameters(logd_client.connect)


def test_a_queue_takes_the_options_that_there_are_and_tells_their_defaults() -> None:
    configure = queues.Queue.configure
    told = inspect.getdoc(configure) or ""

    assert list(parameters(configure)) == list(QueueOptions.__struct_fields__)
    for name, default in msgspec.structs.asdict(QueueOptions()).items():
        assert re.search(rf"{name}: [^.]*default: {default:,}\.", told), name
