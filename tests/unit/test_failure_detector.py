"""A node is alive while it is heard, and dead at once when nobody is there any more."""

from __future__ import annotations

from logd.replication.failure_detector import Change, FailureDetector
from logd.types import NodeId

PEER = NodeId(2)
OTHER = NodeId(3)


def detector() -> FailureDetector:
    return FailureDetector((PEER, OTHER), timeout_ms=1000)


def test_nobody_is_alive_before_being_heard() -> None:
    assert detector().up() == []
    assert not detector().is_up(PEER)


def test_a_connection_brings_a_node_up_once() -> None:
    watched = detector()

    assert watched.accepted(PEER, incarnation=7, now_ms=0) is Change.UP
    assert watched.accepted(PEER, incarnation=7, now_ms=0) is None
    assert watched.up() == [PEER]


def test_a_silent_node_is_given_up_after_the_timeout_and_not_before() -> None:
    watched = detector()
    watched.accepted(PEER, incarnation=7, now_ms=0)
    watched.heard(PEER, now_ms=500)

    assert watched.expire(now_ms=1499) == []
    assert watched.expire(now_ms=1500) == [PEER]
    assert watched.expire(now_ms=2000) == []


def test_a_node_that_is_heard_again_is_up_again() -> None:
    watched = detector()
    watched.accepted(PEER, incarnation=7, now_ms=0)
    watched.expire(now_ms=1000)

    assert watched.heard(PEER, now_ms=1001) is Change.UP
    assert watched.heard(PEER, now_ms=1002) is None


def test_a_new_incarnation_was_gone_in_between() -> None:
    watched = detector()
    watched.accepted(PEER, incarnation=7, now_ms=0)

    assert watched.accepted(PEER, incarnation=8, now_ms=1) is Change.RESTARTED


def test_a_refused_connection_is_death_only_when_no_connection_stands() -> None:
    watched = detector()
    watched.accepted(PEER, incarnation=7, now_ms=0)

    assert watched.nobody_there(PEER) is None
    watched.closed(PEER)
    assert watched.nobody_there(PEER) is Change.DOWN
    assert watched.nobody_there(PEER) is None


def test_nodes_are_judged_apart() -> None:
    watched = detector()
    watched.accepted(PEER, incarnation=1, now_ms=0)
    watched.accepted(OTHER, incarnation=1, now_ms=900)

    assert watched.expire(now_ms=1000) == [PEER]
    assert watched.up() == [OTHER]
