"""Every error a user can meet has one exit code and one line; a bug keeps its traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from logd import errors
from logd.cli.exits import ExitCode, describe, exit_code_for, expected_error, is_interrupt
from logd.cli.lazy import RootGroup


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), ExitCode.USAGE),
        (errors.InvalidNameError("x"), ExitCode.USAGE),
        (errors.UnknownTopicError("x"), ExitCode.NOT_FOUND),
        (errors.InvalidPartitionError("x"), ExitCode.NOT_FOUND),
        (errors.TopicExistsError("x"), ExitCode.CONFLICT),
        (errors.UnexpectedOffsetError("x"), ExitCode.CONFLICT),
        (errors.FencedError("x"), ExitCode.CONFLICT),
        (errors.LeaseLostError("x"), ExitCode.CONFLICT),
        (errors.AcquireTimeoutError("x"), ExitCode.CONFLICT),
        (errors.WouldWaitError("x"), ExitCode.CONFLICT),
        (errors.CompareFailedError("x"), ExitCode.CONFLICT),
        (errors.ClaimLostError("x"), ExitCode.CONFLICT),
        (errors.SessionExpiredError("x"), ExitCode.CONFLICT),
        (errors.UnknownNameError("x"), ExitCode.NOT_FOUND),
        (errors.ConnectionLostError("x"), ExitCode.UNREACHABLE),
        (errors.ProtocolError("x"), ExitCode.UNREACHABLE),
        (errors.UnavailableError("x"), ExitCode.UNREACHABLE),
        (errors.NotLeaderError("x"), ExitCode.UNREACHABLE),
        (errors.DeliveryTimeoutError("x"), ExitCode.UNREACHABLE),
        (errors.DiskFullError("x"), ExitCode.UNREACHABLE),
        (errors.NotEnoughBrokersError("x"), ExitCode.FAILED),
        (errors.ReplicaDamagedError("x"), ExitCode.FAILED),
        (errors.OffsetOutOfRangeError("x"), ExitCode.FAILED),
        (errors.DirectoryLockedError("x", 1), ExitCode.FAILED),
        (OSError(28, "No space left on device"), ExitCode.FAILED),
        (
            errors.PartialAppendError((), ((0, 1, errors.FencedError("x")),)),
            ExitCode.CONFLICT,
        ),
    ],
)
def test_the_exit_code_follows_from_the_class(error: Exception, code: ExitCode) -> None:
    assert exit_code_for(error) == code


def test_one_error_of_ours_speaks_for_a_group() -> None:
    ours = errors.UnknownTopicError("no such topic")
    group = ExceptionGroup("", [OSError("closed"), ExceptionGroup("", [ours])])

    assert expected_error(group) is ours


def test_a_bug_among_several_errors_is_not_hidden() -> None:
    group = ExceptionGroup("", [errors.UnknownTopicError("x"), AssertionError("bug")])

    assert expected_error(group) is None


def test_an_interrupt_is_found_in_a_group() -> None:
    assert is_interrupt(BaseExceptionGroup("", [KeyboardInterrupt(), ValueError()]))
    assert not is_interrupt(ValueError())


def test_an_operating_system_error_is_told_with_its_file() -> None:
    assert describe(FileNotFoundError(2, "No such file", "/x")) == "/x: No such file"
    assert describe(errors.LogdError("one\n two")) == "one two"


def run(raised: BaseException) -> tuple[int, str, str]:
    @click.group(cls=RootGroup)
    def root() -> None: ...

    @root.command("fail")
    def fail() -> None:
        raise raised

    result = CliRunner().invoke(root, ["fail"], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_an_error_is_one_line_on_stderr() -> None:
    error = errors.ConnectionFailedError("127.0.0.1:1: connection refused")

    assert run(error) == (5, "", "logd: 127.0.0.1:1: connection refused\n")


def test_a_closed_pipe_ends_quietly() -> None:
    assert run(BrokenPipeError(32, "Broken pipe")) == (0, "", "")


def test_ctrl_c_ends_as_shells_expect() -> None:
    assert run(BaseExceptionGroup("", [KeyboardInterrupt()])) == (130, "", "")


def test_a_broken_invariant_is_not_caught() -> None:
    with pytest.raises(AssertionError, match="bug"):
        run(AssertionError("bug"))


def test_a_doubt_is_told_once() -> None:
    assert describe(errors.ConnectionLostError("gone")) == "gone; it may have taken effect"
    assert (
        describe(errors.DeliveryTimeoutError("late, it may still be committed")).count("may") == 1
    )
    assert describe(errors.ConnectionFailedError("refused")) == "refused"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["topic", "--help"]])
def test_help_into_a_closed_pipe_ends_quietly(arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "logd", *arguments]
    with os.fdopen(write_end, "wb") as nobody:
        result = subprocess.run(
            command, stdout=nobody, stderr=subprocess.PIPE, timeout=30, check=False
        )

    assert (result.returncode, result.stderr) == (0, b"")
