"""``--from`` says where to begin, and never guesses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from logd.cli.start import FromEnd, FromOffset, FromStart, FromTime, Start, parse_start

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("start", FromStart()),
        ("end", FromEnd()),
        ("0", FromOffset(0)),
        ("9223372036854775807", FromOffset(2**63 - 1)),
        ("-15m", FromTime(NOW - timedelta(minutes=15))),
        ("-90s", FromTime(NOW - timedelta(seconds=90))),
        ("-2h", FromTime(NOW - timedelta(hours=2))),
        ("-7d", FromTime(NOW - timedelta(days=7))),
        ("2026-02-28T10:00:00Z", FromTime(datetime(2026, 2, 28, 10, tzinfo=UTC))),
        ("2026-02-28T10:00:00+02:00", FromTime(datetime(2026, 2, 28, 8, tzinfo=UTC))),
    ],
)
def test_every_form_is_read(text: str, start: Start) -> None:
    assert parse_start(text, NOW) == start


@pytest.mark.parametrize("text", ["2026-02-28T10:00:00", "2026-02-28"])
def test_a_timestamp_without_a_zone_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r"names no time zone: write 2026-02-28T\d\d:00:00Z"):
        parse_start(text, NOW)


@pytest.mark.parametrize("text", ["1969-12-31T23:59:59Z", "-30000d", "-99999999999999999999d"])
def test_times_before_1970_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="before 1970"):
        parse_start(text, NOW)


@pytest.mark.parametrize("text", ["", "begin", "-5", "1.5", "-15", "-15 m", "١٢", "1e3", "+1"])
def test_anything_else_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="expected start, end, an offset, a timestamp"):
        parse_start(text, NOW)


@pytest.mark.parametrize("text", ["9223372036854775808", "9" * 5000])
def test_an_offset_beyond_64_bits_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="an offset is at most 9223372036854775807"):
        parse_start(text, NOW)
