"""Messages count in the singular and in the plural."""

from __future__ import annotations

from logd.wording import are, count_of, named, them


def test_one_is_singular_and_everything_else_plural() -> None:
    assert [count_of(n, "record") for n in (0, 1, 2000)] == [
        "0 records",
        "1 record",
        "2,000 records",
    ]
    assert [are(n) for n in (0, 1, 2)] == ["are", "is", "are"]
    assert [them(n) for n in (0, 1, 2)] == ["them", "it", "them"]


def test_what_is_named_is_counted_too() -> None:
    assert named("broker", [3]) == "broker 3"
    assert named("broker", [3, 4]) == "brokers 3, 4"
