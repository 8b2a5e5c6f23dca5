"""``logd queue work``: what the command does with its input decides nothing; its exit code does."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from click.testing import CliRunner

from logd.cli import root
from logd.cli.claims import adopted
from logd.cli.item_command import run_for
from logd.errors import UnknownNameError
from logd.limits import VALUE_BYTES_MAX
from logd.wire.coordination import ClaimedItem, QueueOptions, QueueStatistics
from logd_client.coordination.names import parse_name
from logd_client.coordination.queues import Claim, ItemFailedError, Queue
from logd_client.coordination.session import Session
from logd_client.coordination.sessions import Sessions

ENOUGH_S = 10
"""A test that waits so long has failed."""


def claim_of(payload: bytes) -> Claim:
    queue = Queue(cast(Sessions, None), parse_name("jobs"))
    item = ClaimedItem(item=7, token=9, payload=payload)
    return Claim(queue, cast(Session, None), item, None, 0.0)


def test_by_claim_results_are_acknowledged_in_the_session_that_queue_claim_left() -> None:
    class Calls:
        environment = SimpleNamespace(wall_clock_ms=lambda: 10**12, identities=random.Random(1))
        routing = SimpleNamespace(environment=environment)

        def lease_clock(self) -> float:
            return 0.0

        async def group_of(self, namespace: str) -> int:
            return 5

    async def adopt() -> Claim:
        sessions = Sessions(cast(Any, Calls()), "client", 30_000)
        client = SimpleNamespace(queue=lambda name: Queue(sessions, parse_name(name)))
        return await adopted(cast(Any, client), "jobs", (7, 9, 3))

    claim = anyio.run(adopt, backend="trio")

    assert (claim.id, claim.token, claim.session.id) == (7, 9, 3)
    assert claim.session.acknowledged > 0


def work_on(payload: bytes, *command: str) -> None:
    anyio.run(run_for, claim_of(payload), command, "jobs", "127.0.0.1:1", backend="trio")


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


@pytest.mark.parametrize(
    ("number", "reason"), [(9, "ended by SIGKILL oops"), (40, "ended by signal 40 oops")]
)
def test_the_reason_of_a_command_that_a_signal_ended_is_that_signal(
    number: int, reason: str
) -> None:
    with pytest.raises(ItemFailedError, match=f"^{reason}$"):
        work_on(b"x", "sh", "-c", f"echo oops >&2; kill -{number} $$")


class Unheard:
    """A standard error that nobody reads any more."""

    @property
    def buffer(self) -> Unheard:
        return self

    def write(self, data: bytes) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def flush(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_what_a_command_says_decides_nothing_also_if_nobody_hears_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr", Unheard())

    work_on(b"x", "sh", "-c", "echo done >&2")

    with pytest.raises(ItemFailedError, match=r"^code 3 oops$"):
        work_on(b"x", "sh", "-c", "echo oops >&2; exit 3")


def test_what_a_command_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)

    # It ends when it is written to, and has opened the pipe before the command ends.
    work_on(b"x", "sh", "-c", 'exec 3<>"$0"; read line <&3 & exit 0', str(pipe))

    os.write(held, b"\n")
    os.close(held)


def test_a_command_whose_item_is_taken_away_is_asked_to_end_with_all_that_it_started(
    tmp_path: Path,
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = 'exec 3>"$0"; trap "echo ended >&3; exit" TERM; sleep 20 & echo begun >&3; wait'
    command = ("sh", "-c", script, str(pipe))

    async def take_away() -> None:
        in_thread = partial(anyio.to_thread.run_sync, abandon_on_cancel=True)
        with anyio.fail_after(ENOUGH_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_for, claim_of(b"x"), command, "jobs", "127.0.0.1:1")
                with await in_thread(pipe.open) as told:
                    assert await in_thread(told.readline) == "begun\n"
                    tasks.cancel_scope.cancel()
                    with anyio.CancelScope(shield=True):
                        assert await in_thread(told.read) == "ended\n"

    anyio.run(take_away, backend="trio")


def cancelled_while_it_runs(
    tmp_path: Path, script: str, *, visibility_s: float | None = None, ttl_s: float = 15
) -> bool:
    """Whether ``script``, of a worker that is told to end once it has written to descriptor 3, has
    completed its item all the same."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = ("sh", "-c", f'exec 3>"$0"; {script}', str(pipe))
    claim = claim_of(b"x")
    claim.visibility_s = visibility_s
    completed: list[bool] = []

    async def work() -> None:
        await run_for(claim, command, "jobs", "127.0.0.1:1", ttl_s)
        completed.append(True)

    async def stop() -> None:
        in_thread = partial(anyio.to_thread.run_sync, abandon_on_cancel=True)
        with anyio.fail_after(ENOUGH_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work)
                with await in_thread(pipe.open) as told:
                    await in_thread(told.readline)
                    tasks.cancel_scope.cancel()

    anyio.run(stop, backend="trio")
    return completed == [True]


@pytest.mark.parametrize(("code", "is_completed"), [(0, True), (1, False)])
def test_what_a_worker_that_is_stopped_has_done_is_for_its_command_to_say(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], code: int, is_completed: bool
) -> None:
    script = f"trap 'echo ended >&2; exit {code}' TERM; sleep 20 & echo begun >&3; wait"

    assert cancelled_while_it_runs(tmp_path, script) is is_completed
    assert capfd.readouterr().err == "ended\n"


def test_a_command_does_not_outlive_its_claim_however_long_the_session_lives(
    tmp_path: Path,
) -> None:
    script = "trap '' TERM; echo begun >&3; sleep 20"

    assert not cancelled_while_it_runs(tmp_path, script, visibility_s=1, ttl_s=3600)


@pytest.mark.parametrize("ending", ["kill -TERM $$", "exit 130"])
def test_who_ends_a_command_may_be_ending_its_worker_too(tmp_path: Path, ending: str) -> None:
    # It is gone before its worker hears of that.
    script = f"echo begun >&3; {ending}"

    assert not cancelled_while_it_runs(tmp_path, script)


@pytest.mark.parametrize("ending", ["kill -TERM $$", "exit 130"])
def test_a_command_that_was_ended_alone_has_failed(ending: str) -> None:
    with pytest.raises(ItemFailedError, match=r"^(ended by SIGTERM|code 130)"):
        work_on(b"x", "sh", "-c", ending)


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


# --- deleting ---------------------------------------------------------------------------


class Queues:
    """A cluster with the queue ``jobs`` alone."""

    def __init__(self) -> None:
        self.asked = ""
        self.deleted: list[str] = []

    @asynccontextmanager
    async def connected(self, bootstrap: str, **options: Any) -> AsyncIterator[Queues]:
        yield self

    def leave_sessions_open(self) -> None:
        pass

    def queue(self, name: str) -> Queues:
        self.asked = name
        return self

    async def statistics(self) -> QueueStatistics:
        if self.asked != "jobs":
            raise UnknownNameError(f"there is no queue {self.asked!r}")
        return STATISTICS

    async def delete(self) -> None:
        self.deleted.append(self.asked)

    async def claim(self, count: int, *, visibility_s: float, wait_s: float) -> list[Claim]:
        return []

    async def work(self, handler: object, **options: object) -> None:
        pass


STATISTICS = QueueStatistics(
    revision=1,
    ready=1200,
    delayed=30,
    in_flight=2,
    dead=1,
    completed=9,
    oldest_ms=5,
    options=QueueOptions(),
)


@pytest.fixture
def queues(monkeypatch: pytest.MonkeyPatch) -> Queues:
    queues = Queues()
    monkeypatch.setattr("logd.cli.session.connected", queues.connected)
    return queues


def test_who_deletes_no_queue_is_asked_nothing(queues: Queues) -> None:
    result = CliRunner().invoke(root, ["queue", "delete", "jbos"], input="y\n")

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "logd: there is no queue 'jbos'\n"


@pytest.mark.parametrize(("answer", "deleted"), [("y", ["jobs"]), ("n", [])])
def test_who_deletes_a_queue_is_told_what_is_lost(
    queues: Queues, answer: str, deleted: list[str]
) -> None:
    result = CliRunner().invoke(root, ["queue", "delete", "jobs"], input=f"{answer}\n")

    assert "jobs holds 1,230 items to do, 2 being worked on and 1 dead; delete" in result.output
    assert queues.deleted == deleted


def test_who_is_sure_is_not_asked(queues: Queues) -> None:
    result = CliRunner().invoke(root, ["queue", "delete", "jobs", "--yes"])

    assert (result.exit_code, result.output, queues.deleted) == (0, "", ["jobs"])


# --- a queue that is not there -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("jobs", ""),
        ("jbos", "logd: there is no queue 'jbos' yet: the first item that is put makes it\n"),
    ],
)
def test_who_works_on_no_queue_is_told(queues: Queues, name: str, told: str) -> None:
    """It may be that nothing was put yet, so it is no failure."""
    result = CliRunner().invoke(root, ["queue", "work", name, "--until-empty", "--", "true"])

    assert (result.exit_code, result.stderr) == (0, told + "completed 0 items\n")


@pytest.mark.parametrize(
    ("name", "told"),
    [("jobs", "nothing is due in jobs"), ("jbos", "logd: there is no queue 'jbos'")],
)
def test_who_claims_from_no_queue_is_told(queues: Queues, name: str, told: str) -> None:
    result = CliRunner().invoke(root, ["queue", "claim", name])

    assert (result.exit_code, result.stderr) == (3, f"{told}\n")
