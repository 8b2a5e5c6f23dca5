"""Structured logs: lines for a person on a terminal, JSON for everybody else.

Events have constant names and fields with units (each package's ``log_events.py``), so a
line can be searched and alerted on.  Loggers are made by ``structlog.get_logger()``; this
module only decides what happens to their events, once, before the broker starts.  Log lines
go to stderr: stdout belongs to data.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Literal, TextIO

import msgspec
import structlog

LogLevel = Literal["debug", "info", "warning", "error"]


def configure_logging(
    level: LogLevel,
    stream: TextIO | None = None,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
    facts: Mapping[str, object] | None = None,
) -> None:
    """Send every event of ``level`` or above to ``stream`` (default: stderr).

    Args:
        on_event: told of every event of level info or above, also where the log is quieter.
        facts: stand in every line.
    """
    stream = sys.stderr if stream is None else stream
    threshold: int = getattr(logging, level.upper())
    tellers = [] if on_event is None else [_Teller(on_event, threshold)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *tellers,
            *([_Facts(facts)] if facts else []),
            *(_for_a_person() if stream.isatty() else _for_programs()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            threshold if on_event is None else min(threshold, logging.INFO)
        ),
        logger_factory=lambda *_: _Writer(stream),
        cache_logger_on_first_use=True,
    )


class _Writer(structlog.WriteLogger):
    """Writes lines where they can be written.  Elsewhere they are lost: a broker whose log nobody
    reads any more, or lies on a full disk, serves on."""

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    debug = info = warning = error = critical = msg


class _Teller:
    """A processor that passes events on, and drops those that are too quiet for the log."""

    def __init__(self, on_event: Callable[[Mapping[str, Any]], None], threshold: int) -> None:
        self._on_event = on_event
        self._threshold = threshold

    def __call__(
        self, logger: object, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        level: int = getattr(logging, event["level"].upper())
        if level >= logging.INFO:
            self._on_event(event)
        if level < self._threshold:
            raise structlog.DropEvent
        return event


class _Facts:
    """A processor that adds the same to every event."""

    def __init__(self, facts: Mapping[str, object]) -> None:
        self._facts = facts

    def __call__(
        self, logger: object, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event.update(self._facts)
        return event


def _for_a_person() -> list[structlog.typing.Processor]:
    return [structlog.dev.ConsoleRenderer(colors=True)]


def _for_programs() -> list[structlog.typing.Processor]:
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(serializer=_encode),
    ]


def _encode(event: object, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
