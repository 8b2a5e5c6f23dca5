"""Structured logs: lines for a person on a terminal, JSON for everybody else.

Events have constant names and fields with units (each package's ``log_events.py``), so a
line can be searched and alerted on.  Loggers are made by ``structlog.get_logger()``; this
module only decides what happens to their events, once, before the broker starts.  Log lines
go to stderr: stdout belongs to data.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, Literal, TextIO

import msgspec
import structlog

LogLevel = Literal["debug", "info", "warning", "error"]
LOG_LEVELS: Final[tuple[LogLevel, ...]] = ("debug", "info", "warning", "error")


def configure_logging(level: LogLevel, stream: TextIO | None = None) -> None:
    """Send every event of ``level`` or above to ``stream`` (default: stderr)."""
    stream = sys.stderr if stream is None else stream
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_for_a_person() if stream.isatty() else _for_programs()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )


def _for_a_person() -> list[structlog.typing.Processor]:
    return [structlog.dev.ConsoleRenderer(colors=True)]


def _for_programs() -> list[structlog.typing.Processor]:
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(serializer=_encode),
    ]


def _encode(event: object, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
