"""Events are JSON lines for programs and text for a terminal; levels below are dropped."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterator

import pytest
import structlog

from logd.ops.logging import configure_logging


@pytest.fixture(autouse=True)
def _defaults_afterwards() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Unwritable(io.StringIO):
    """A pipe that nobody reads any more, or a file on a full disk."""

    def __init__(self, why: int) -> None:
        super().__init__()
        self.attempts = 0
        self._why = why

    def flush(self) -> None:
        self.attempts += 1
        raise OSError(self._why, os.strerror(self._why))


def test_an_event_is_one_json_line_with_its_fields() -> None:
    stream = io.StringIO()
    configure_logging("info", stream)

    structlog.get_logger().info("raft_leader_elected", group=3, waited_ms=12)

    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "raft_leader_elected", "level": "info", "group": 3, "waited_ms": 12}


def test_an_error_keeps_its_traceback_and_strange_values_their_text() -> None:
    stream = io.StringIO()
    configure_logging("info", stream)

    try:
        raise ValueError("why")
    except ValueError:
        structlog.get_logger().exception("append_failed", where={1: object()})

    event = json.loads(stream.getvalue())
    assert "ValueError: why" in event["exception"]


def test_events_below_the_level_are_dropped() -> None:
    stream = io.StringIO()
    configure_logging("warning", stream)

    structlog.get_logger().info("segment_rolled")

    assert stream.getvalue() == ""


def test_a_terminal_gets_text() -> None:
    terminal = Terminal()
    configure_logging("debug", terminal)

    structlog.get_logger().debug("segment_rolled", size_bytes=7)

    assert "segment_rolled" in terminal.getvalue()
    assert "{" not in terminal.getvalue()


@pytest.mark.parametrize("why", [errno.EPIPE, errno.ENOSPC])
def test_a_log_that_cannot_be_written_makes_nothing_fail(why: int) -> None:
    stream = Unwritable(why)
    configure_logging("info", stream)
    logger = structlog.get_logger()

    logger.info("segment_rolled")
    logger.error("append_failed")

    assert stream.attempts == 2
