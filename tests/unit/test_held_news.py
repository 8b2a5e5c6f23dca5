"""What a held group has to be told waits in order; what others would repeat, up to a bound."""

from __future__ import annotations

from logd.replication.held_news import HELD_MESSAGES_MAX, HeldNews


def test_news_is_taken_up_in_the_order_in_which_it_came() -> None:
    held, told = HeldNews(), list[str]()
    held.add(lambda: told.append("a peer is down"))
    held.add_message(lambda: told.append("a vote"))
    held.add(lambda: told.append("synced"))

    while held:
        held.take_up_next()

    assert told == ["a peer is down", "a vote", "synced"]


def test_messages_beyond_the_bound_are_dropped_and_what_nobody_would_repeat_is_not() -> None:
    held, told = HeldNews(), list[str]()
    for _ in range(HELD_MESSAGES_MAX + 10):
        held.add_message(lambda: told.append("message"))
    assert len(held) == HELD_MESSAGES_MAX

    held.add(lambda: told.append("synced"))
    assert len(held) == HELD_MESSAGES_MAX + 1

    held.take_up_next()
    held.add_message(lambda: told.append("there was room for it"))
    while held:
        held.take_up_next()

    assert told.count("message") == HELD_MESSAGES_MAX
    assert told[-2:] == ["synced", "there was room for it"]
