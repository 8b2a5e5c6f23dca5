"""A standard stream may be closed, full or endless: a command says so, or does without."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from functools import partial

import anyio
import click
import pytest

from logd.cli.lines import LineCutter
from logd.cli.moving import MoveBars
from logd.cli.plan_progress import PlanProgress
from logd.cli.progress import RecordProgress
from logd.cli.queue import PUT_BYTES_MAX, commands_of
from logd.cli.streams import STANDARD_INPUT, confirm, lines_of, standard_input
from logd.errors import UsageError
from logd.limits import ITEMS_PER_COMMAND_MAX, VALUE_BYTES_MAX

NOWHERE = ("--bootstrap", "127.0.0.1:1")


def in_a_shell(redirection: str, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "logd", *arguments]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["topic", "--help"]])
def test_help_on_a_full_disk_is_one_line(arguments: list[str]) -> None:
    code, _, told = in_a_shell(">/dev/full", *arguments)

    assert (code, told) == (1, "logd: No space left on device\n")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_no_closed_stream_makes_a_command_fail(redirection: str) -> None:
    code, _, told = in_a_shell(redirection, "config", "show", "--node-id", "1", "--data-dir", "x")

    assert (code, told) == (0, "")


@pytest.mark.parametrize("output", ["table", "json"])
def test_whose_disk_is_full_is_said(output: str) -> None:
    config = ("config", "show", "--node-id", "1", "--data-dir", "d", "--output", output)

    code, _, told = in_a_shell(">/dev/full", *config)

    assert (code, told) == (1, "logd: standard output: No space left on device\n")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_the_exit_code_is_told_although_nothing_else_can_be(redirection: str) -> None:
    code, _, _ = in_a_shell(redirection, "config", "show", "--node-id", "0", "--data-dir", "x")

    assert code == 2


def test_what_a_terminal_has_no_characters_for_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")

    code, table, _ = in_a_shell("", "config", "show", "--node-id", "1", "--data-dir", "x")

    assert code == 0
    assert set(table.splitlines()[1].split("\\")) == {"", "u2500"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["consume", "t"], "standard output is closed"),
        (["kv", "put", "k"], "standard input is closed: give the value behind the key"),
    ],
)
def test_a_stream_that_is_needed_and_closed_is_named(arguments: list[str], told: str) -> None:
    code, _, stderr = in_a_shell("<&- >&-", *arguments, *NOWHERE)

    assert code == 2
    assert told in stderr


def test_a_value_that_does_not_end_is_not_read_to_its_end() -> None:
    code, _, told = in_a_shell("</dev/zero", "kv", "put", "k", *NOWHERE)

    assert (code, told) == (
        2, "logd: a key's value has at most 65,536 bytes, standard input has more\n"
    )  # fmt: skip


def test_what_no_socket_may_get_is_a_descriptor_below_three() -> None:
    script = (
        "from logd.cli.streams import fill_missing\n"
        "import os, socket, sys\n"
        "fill_missing()\n"
        "sys.exit(0 if socket.socket().fileno() > 2 and sys.stdin is None else 1)\n"
    )

    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script], check=False
    )

    assert done.returncode == 0


def test_ctrl_c_during_the_first_moments_is_no_traceback() -> None:
    script = (
        "import sys\n"
        "from logd.__main__ import main\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "main()\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (130, b"")


def test_who_reads_standard_input_says_what_to_do_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def read(**options: str) -> None:
        async for _ in lines_of(STANDARD_INPUT, LineCutter(10), **options):
            pass

    monkeypatch.setattr(sys, "stdin", None)

    with pytest.raises(UsageError, match="standard input is closed: name a file"):
        anyio.run(read, backend="trio")
    with pytest.raises(UsageError, match="standard input is closed: give it otherwise"):
        anyio.run(partial(read, instead="give it otherwise"), backend="trio")


# --- items of a queue -------------------------------------------------------------------


def test_items_are_put_in_commands_that_are_not_too_large() -> None:
    small, large = [b"x"] * (ITEMS_PER_COMMAND_MAX + 1), [b"y" * VALUE_BYTES_MAX] * 20

    commands = list(commands_of([*small, *large]))

    assert [payload for command in commands for payload in command] == [*small, *large]
    assert max(map(len, commands)) == ITEMS_PER_COMMAND_MAX
    assert max(sum(map(len, command)) for command in commands) <= PUT_BYTES_MAX
    assert list(commands_of([])) == []


def test_a_line_of_an_item_ends_at_a_newline_and_at_nothing_else() -> None:
    cutter = LineCutter(VALUE_BYTES_MAX)

    lines = [*cutter.feed(b"a\r\nb\rc\x0bd\n" + b"x" * (VALUE_BYTES_MAX + 1)), *cutter.finish()]

    assert lines == [b"a\r", b"b\rc\x0bd"]
    assert cutter.oversized == [(3, VALUE_BYTES_MAX + 1)]


class Unheard(io.StringIO):
    """A standard error that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_a_word_of_waiting_that_nobody_hears_ends_no_append(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", Unheard())

    with RecordProgress("produce t") as progress:
        progress.say("logd: waiting: t/0 has no leader")


def test_a_line_of_progress_that_nobody_hears_ends_no_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", Unheard())
    begun = PlanProgress(
        plan_id=1, purpose="rebalance", state="running", moves=1, done=0, skipped=0, cancelled=0,
        bytes_done=0, bytes_total=1, running=[],
    )  # fmt: skip

    with MoveBars(is_shown=True) as bars:
        bars.show(begun)


def test_whoever_is_to_type_is_told_so_and_how_to_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen, terminal = os.openpty()
    with open(screen, "wb"), open(terminal) as typed:
        monkeypatch.setattr("sys.stdin", typed)

        standard_input("name a file")

    assert capsys.readouterr().err == (
        "logd: reading standard input until Ctrl-D; or name a file\n"
    )


def test_nobody_is_told_of_what_comes_from_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(os.devnull) as given:
        monkeypatch.setattr("sys.stdin", given)

        standard_input("name a file")

    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("answered", "raised"), [(KeyboardInterrupt, KeyboardInterrupt), (EOFError, click.Abort)]
)
def test_ctrl_c_at_a_question_ends_a_command_as_it_does_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
    answered: type[BaseException],
    raised: type[BaseException],
) -> None:
    def answer(_: str) -> str:
        raise answered

    monkeypatch.setattr("click.termui.visible_prompt_func", answer)

    with pytest.raises(raised):
        confirm("delete it?")
