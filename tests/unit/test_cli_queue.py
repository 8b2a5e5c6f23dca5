"""``logd queue work``: what the command does with its input decides nothing; its exit code does."""

from __future__ import annotations

from typing import cast

import anyio
import pytest
from click.testing import CliRunner

from logd.cli import root
from logd.cli.queue import run_for
from logd.limits import VALUE_BYTES_MAX
from logd.wire.coordination import ClaimedItem
from logd_client.coordination.names import parse_name
from logd_client.coordination.queues import Claim, ItemFailedError, Queue
from logd_client.coordination.session import Session, Sessions


def work_on(payload: bytes, *command: str) -> None:
    queue = Queue(cast(Sessions, None), parse_name("jobs"))
    item = ClaimedItem(item=7, token=9, payload=payload)
    claim = Claim(queue, cast(Session, None), item, None, 0.0)

    anyio.run(run_for, claim, command, "jobs", "127.0.0.1:1", backend="trio")


@pytest.mark.parametrize("command", [("true",), ("head", "-c", "1"), ("sh", "-c", "exec <&-")])
def test_a_command_need_not_read_its_payload(command: tuple[str, ...]) -> None:
    work_on(b"x" * VALUE_BYTES_MAX, *command)


def test_a_command_finds_its_payload_and_whose_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    work_on(b"one", "sh", "-c", 'cat; echo " $LOGD_QUEUE $LOGD_ITEM"')

    assert capfd.readouterr().out == "one jobs 7\n"


def test_the_reason_of_a_failure_is_its_code_and_last_words(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ItemFailedError, match=r"^code 3 oops$"):
        work_on(b"x" * VALUE_BYTES_MAX, "sh", "-c", "echo first >&2; echo oops >&2; exit 3")

    assert capfd.readouterr().err == "first\noops\n"


def test_a_command_that_cannot_be_run_fails_with_why() -> None:
    with pytest.raises(ItemFailedError, match=r"^/no/such/command: No such file or directory$"):
        work_on(b"x", "/no/such/command")


@pytest.mark.parametrize(
    ("command", "told"),
    [("no-such-command", "No such file or directory"), ("/", "Permission denied")],
)
def test_without_a_command_no_item_is_claimed(command: str, told: str) -> None:
    result = CliRunner().invoke(
        root, ["queue", "work", "jobs", "--bootstrap", "127.0.0.1:1", "--", command]
    )

    assert (result.exit_code, result.stderr) == (127, f"logd: {command}: {told}\n")
