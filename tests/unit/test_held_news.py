"""What a held group has to be told waits in order, and there is no more of it than a bound."""

from __future__ import annotations

from logd.replication.held_news import HELD_MESSAGES_MAX, HELD_QUESTIONS_MAX, HeldNews


def test_news_is_taken_up_in_the_order_in_which_it_came() -> None:
    held, told = HeldNews(), list[str]()
    held.add("down", lambda: told.append("a peer is down"))
    held.add_message(lambda: told.append("a vote"))
    held.add_question(lambda: told.append("who leads?"))
    held.add("synced", lambda: told.append("synced"))

    while held:
        held.take_up_next()

    assert told == ["a peer is down", "a vote", "who leads?", "synced"]


def test_messages_beyond_the_bound_are_dropped_and_what_nobody_would_repeat_is_not() -> None:
    held, told = HeldNews(), list[str]()
    for _ in range(HELD_MESSAGES_MAX + 10):
        held.add_message(lambda: told.append("message"))
    assert len(held) == HELD_MESSAGES_MAX

    held.add("synced", lambda: told.append("synced"))
    assert len(held) == HELD_MESSAGES_MAX + 1

    held.take_up_next()
    held.add_message(lambda: told.append("there was room for it"))
    while held:
        held.take_up_next()

    assert told.count("message") == HELD_MESSAGES_MAX
    assert told[-2:] == ["synced", "there was room for it"]


def test_the_same_news_again_is_told_once_and_as_what_came_last() -> None:
    held, told = HeldNews(), list[str]()
    for number in range(1000):
        held.add("up", lambda number=number: told.append(f"up {number}"))  # type: ignore[misc]
        held.add("down", lambda number=number: told.append(f"down {number}"))  # type: ignore[misc]
    held.add("up", lambda: told.append("up"))
    assert len(held) == 2

    while held:
        held.take_up_next()

    assert told == ["down 999", "up"]


def test_questions_beyond_the_bound_are_refused_until_there_is_room() -> None:
    held, told = HeldNews(), list[str]()
    for _ in range(HELD_QUESTIONS_MAX):
        assert held.add_question(lambda: told.append("question"))

    assert not held.add_question(lambda: told.append("one too many"))
    held.add_message(lambda: told.append("message"))
    held.take_up_next()
    assert held.add_question(lambda: told.append("there was room for it"))
    while held:
        held.take_up_next()

    assert told == ["question"] * HELD_QUESTIONS_MAX + ["message", "there was room for it"]
