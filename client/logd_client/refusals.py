"""Error frames as exceptions: the class by its wire code, with what the broker said about it.

A code we do not know comes from a newer broker.  It is reported as an unknown error, with
its number, and with the broker's own word on whether the request may have been applied.

That is said of one request: whoever shares an error with others gets a copy.
"""

from __future__ import annotations

from typing import Final

from logd.errors import (
    ERROR_BY_CODE,
    CompactedError,
    LogdError,
    NotLeaderError,
    OffsetOutOfRangeError,
    UnexpectedOffsetError,
    UnknownServerError,
)
from logd.wire.messages import ErrorResponse

UNKNOWN: Final = -1
"""Stands for a detail that the broker did not tell."""


def error_from_response(response: ErrorResponse, broker: str) -> LogdError:
    """The exception for an error frame; ``broker`` says who sent it."""
    error = _construct(response, f"{response.message} (from {broker})")
    error.may_have_applied = response.may_have_applied
    return error


def same_error(error: LogdError, *, may_have_applied: bool) -> LogdError:
    """A copy for one of several whom it concerns, since the doubt is each one's own."""
    same = type(error).__new__(type(error), *error.args)  # Some are made of more than a text.
    same.__dict__.update(error.__dict__)
    same.may_have_applied = may_have_applied
    return same


def _construct(response: ErrorResponse, text: str) -> LogdError:
    found = ERROR_BY_CODE.get(response.code)
    if found is None:
        return UnknownServerError(f"error code {response.code}, unknown to this client: {text}")
    if issubclass(found, NotLeaderError):
        return found(text, leader=response.details.get("leader"))
    if issubclass(found, OffsetOutOfRangeError):
        return found(text, log_start=_detail(response, "log_start"),
                     log_end=_detail(response, "log_end"))  # fmt: skip
    if issubclass(found, UnexpectedOffsetError):
        return found(text, log_end=_detail(response, "log_end"))
    if issubclass(found, CompactedError):
        return found(text, oldest=_detail(response, "oldest"))
    return found(text)


def _detail(response: ErrorResponse, name: str) -> int:
    value = response.details.get(name)
    return UNKNOWN if value is None else value
