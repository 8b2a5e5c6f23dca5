"""Exit codes, and the one mapping from errors to them.

Scripts branch on the code, people read the line, so both are decided here and nowhere
else.  An error class that is not named falls to its base class; what is no error of ours
and no ``OSError`` is a bug and keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import click

from logd import errors
from logd.cli.display import printable


class ExitCode(IntEnum):
    """What the process tells the shell.  Part of the public surface."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    """Fenced, exists already, or an expected offset that did not hold."""
    UNREACHABLE = 5
    DEGRADED = 6


EXIT_CODES: Final[dict[type[errors.LogdError], ExitCode]] = {
    errors.LogdError: ExitCode.FAILED,
    errors.UsageError: ExitCode.USAGE,
    errors.InvalidNameError: ExitCode.USAGE,
    errors.InvalidConfigError: ExitCode.USAGE,
    errors.UnknownTopicError: ExitCode.NOT_FOUND,
    errors.InvalidPartitionError: ExitCode.NOT_FOUND,
    errors.UnknownBrokerError: ExitCode.NOT_FOUND,
    errors.NotAReplicaError: ExitCode.NOT_FOUND,
    errors.TopicExistsError: ExitCode.CONFLICT,
    errors.UnexpectedOffsetError: ExitCode.CONFLICT,
    errors.ProducerFencedError: ExitCode.CONFLICT,
    errors.FencedError: ExitCode.CONFLICT,
    errors.RebalanceConflictError: ExitCode.CONFLICT,
    errors.BrokerInUseError: ExitCode.CONFLICT,
    errors.UnknownNameError: ExitCode.NOT_FOUND,
    errors.ConflictError: ExitCode.CONFLICT,
    errors.NotHeldError: ExitCode.CONFLICT,
    errors.WouldWaitError: ExitCode.CONFLICT,
    errors.SessionExpiredError: ExitCode.CONFLICT,
    errors.AcquireTimeoutError: ExitCode.CONFLICT,
    errors.LeaseLostError: ExitCode.CONFLICT,
    errors.CompareFailedError: ExitCode.CONFLICT,
    errors.ClaimLostError: ExitCode.CONFLICT,
    errors.ConnectionFailedError: ExitCode.UNREACHABLE,
    errors.UnavailableError: ExitCode.UNREACHABLE,
    errors.NotLeaderError: ExitCode.UNREACHABLE,
    errors.DeliveryTimeoutError: ExitCode.UNREACHABLE,
    errors.DiskFullError: ExitCode.UNREACHABLE,
}


DOUBT: Final = "it may have taken effect"
"""Said of every command whose fate is not known: whoever repeats it should look first."""


def exit_code_for(error: BaseException) -> ExitCode:
    """The code of the nearest named class; an ``OSError`` is a plain failure."""
    if isinstance(error, errors.PartialAppendError):
        _, _, first = error.failures[0]
        return exit_code_for(first)
    for cls in type(error).__mro__:
        if issubclass(cls, errors.LogdError) and cls in EXIT_CODES:
            return EXIT_CODES[cls]
    return ExitCode.FAILED


def expected_error(raised: BaseException) -> Exception | None:
    """The error to report, out of any nesting of exception groups; None: it is a bug.

    Several tasks often fail for one cause.  The first error of ours speaks for all, unless
    any of them is a bug: then nothing is hidden.
    """
    leaves = _leaves(raised)
    expected = [leaf for leaf in leaves if isinstance(leaf, _EXPECTED)]
    if len(expected) != len(leaves):
        return None
    ours = [leaf for leaf in expected if isinstance(leaf, errors.LogdError)]
    return (ours or expected)[0]


def is_interrupt(raised: BaseException) -> bool:
    """Whether Ctrl-C is what ended the command."""
    return any(isinstance(leaf, KeyboardInterrupt) for leaf in _leaves(raised))


def describe(error: BaseException) -> str:
    """One line for a person."""
    return printable(_text_of(error))


def _text_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, errors.LogdError) and error.may_have_applied and "it may " not in text:
        return f"{text}; {DOUBT}"
    return text


_EXPECTED: Final = (
    errors.LogdError,
    OSError,
    click.ClickException,
    click.exceptions.Exit,
    click.Abort,
)


def _leaves(raised: BaseException) -> list[BaseException]:
    if isinstance(raised, BaseExceptionGroup):
        return [leaf for inner in raised.exceptions for leaf in _leaves(inner)]
    return [raised]
