"""What happened is told in sentences, newest first, and never takes more room than was given."""

from __future__ import annotations

import io
from collections.abc import Iterator
from string import Formatter

import pytest
import structlog

from logd.broker.recent_events import SENTENCES, RecentEvents
from logd.ops.logging import LogLevel, configure_logging
from logd.types import GroupId


@pytest.fixture(autouse=True)
def _defaults_afterwards() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def name_of(group: GroupId) -> str:
    return "orders/1" if group == 7 else f"group {group}"


def event(name: str, second: int = 0, level: str = "info", **fields: object) -> dict[str, object]:
    timestamp = f"2026-01-01T00:00:{second:02}.5Z"
    return {"event": name, "level": level, "timestamp": timestamp, **fields}


def texts(events: RecentEvents, entries_max: int = 100) -> list[str]:
    return [entry.text for entry in events.told(name_of, entries_max)]


def test_an_event_is_a_sentence_about_its_broker() -> None:
    events = RecentEvents()

    events.feed(event("leader_elected", group=7, term=3, log_end=10))

    (told,) = events.told(name_of)
    assert told.text == "leads orders/1 in term 3"
    assert (told.level, told.name, told.at_ms) == ("info", "leader_elected", 1767225600500)


def test_events_of_a_kind_that_come_together_are_one_entry() -> None:
    events = RecentEvents()
    for group in range(5, 8):
        events.feed(event("leader_elected", group, group=group, term=1))

    assert texts(events) == ["leads 3 more partitions, orders/1 among them"]


def test_events_that_come_one_by_one_stay_apart() -> None:
    events = RecentEvents()
    for second in (0, 20, 40):
        events.feed(event("peer_up", second, peer=second))

    assert texts(events) == ["hears broker 40", "hears broker 20", "hears broker 0"]


def test_what_comes_again_and_again_in_the_same_words_is_told_once_and_the_rest_stays() -> None:
    """A broker that was removed and still runs asks everybody every few seconds."""
    events = RecentEvents(entries_max=3)
    events.feed(event("leader_elected", 0, group=7, term=3))
    for second in range(0, 60, 10):
        events.feed(event("peer_refused", second, level="error", reason="node 4 was removed"))
        events.feed(event("damage_found", second, level="warning", group=7, hole="[1, 2)"))

    assert texts(events) == [
        "found damage in orders/1: [1, 2)",
        "refused peers 6 times, the last: node 4 was removed",
        "leads orders/1 in term 3",
    ]


def test_refusals_for_other_reasons_stay_apart() -> None:
    events = RecentEvents()
    for second, node in ((0, 4), (20, 5), (40, 4)):
        events.feed(event("peer_refused", second, level="error", reason=f"node {node} is gone"))

    assert texts(events) == [
        "refused peers 2 times, the last: node 4 is gone",
        "refused a peer: node 5 is gone",
    ]


def test_the_oldest_make_room() -> None:
    events = RecentEvents(entries_max=2)
    for second in (0, 20, 40):
        events.feed(event("peer_down", second, level="warning", peer=second))

    assert texts(events) == ["lost broker 40", "lost broker 20"]
    assert texts(events, entries_max=1) == ["lost broker 40"]


def test_what_is_quiet_and_unknown_is_left_out_and_what_is_loud_is_told() -> None:
    events = RecentEvents()

    events.feed(event("segment_rolled", 1))
    events.feed(event("something_{new}", 2, level="error", reason="of {braces} and all"))

    assert texts(events) == ["something new: of {braces} and all"]


def test_a_sentence_survives_a_missing_field_and_a_long_one() -> None:
    events = RecentEvents()

    events.feed(event("client_refused", level="warning", reason="x" * 10_000))

    (text,) = texts(events)
    assert text.startswith("refused -: xxx")
    assert len(text) == 300


@pytest.mark.parametrize("name", SENTENCES)
def test_every_sentence_can_be_told(name: str) -> None:
    events = RecentEvents()

    events.feed(event(name))
    events.feed(event(name))

    assert len(texts(events)) == 1
    assert all(field for text in SENTENCES[name] for _, field, *_ in Formatter().parse(text)
               if field is not None)  # fmt: skip


@pytest.mark.parametrize("name", SENTENCES)
def test_no_sentence_needs_a_field_that_logging_itself_sets(name: str) -> None:
    fields = {field for text in SENTENCES[name] for _, field, *_ in Formatter().parse(text)}

    assert not fields & {"event", "level", "timestamp"}


@pytest.mark.parametrize(("level", "lines"), [("info", 2), ("warning", 1), ("error", 0)])
def test_events_are_kept_however_quiet_the_log_is(level: LogLevel, lines: int) -> None:
    stream, events = io.StringIO(), RecentEvents()
    configure_logging(level, stream, events.feed)

    structlog.get_logger().debug("peer_up", peer=9)
    structlog.get_logger().info("peer_up", peer=2)
    structlog.get_logger().warning("peer_down", peer=2)

    assert texts(events) == ["lost broker 2", "hears broker 2"]
    assert len(stream.getvalue().splitlines()) == lines
