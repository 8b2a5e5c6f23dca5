"""A click group that imports a command's module when the command is used.

Importing every command to print a list of them would cost what the slowest import costs,
and the list is what people read most.  So the group is given name, place and help as data.

The root group is also where errors end: commands raise, and ``RootGroup.invoke`` turns
what they raise into one line on stderr and an exit code (``exits.py``).  A broken invariant
of our own is not caught: its traceback is the report.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import click

from logd.cli.display import say
from logd.cli.exits import ExitCode, describe, exit_code_for, expected_error, is_interrupt

INTERRUPTED_EXIT_CODE = 130
"""128 + SIGINT, as shells report a command that Ctrl-C ended."""


SENTENCE_CHARACTERS_MAX = 500
"""None has more: what click shortens ends in dots."""


class LazyCommand(NamedTuple):
    """One row of a group's table."""

    name: str
    place: str
    """``module:attribute`` of the click command."""
    help: str


class LazyGroup(click.Group):
    """A group whose commands are imported on use."""

    def __init__(
        self, *args: Any, commands_lazy: Sequence[LazyCommand] = (), **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._lazy = {command.name: command for command in commands_lazy}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table, which is the order of first use."""
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return the command."""
        row = self._lazy.get(cmd_name)
        if row is None:
            close = difflib.get_close_matches(cmd_name, self._lazy, n=1)
            if close:
                ctx.fail(f"No such command {cmd_name!r}.  Did you mean {close[0]!r}?")
            return super().get_command(ctx, cmd_name)
        module_name, _, attribute = row.place.partition(":")
        command = getattr(importlib.import_module(module_name), attribute)
        assert isinstance(command, click.Command), row.place
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(row.name, row.help) for row in self._lazy.values()])


class NounGroup(click.Group):
    """The commands of one noun; its help tells of each what its first sentence says, all of it."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands; where a sentence is too long for a line, on several."""
        rows = [
            (name, command.get_short_help_str(limit=SENTENCE_CHARACTERS_MAX))
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name)) is not None
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class RootGroup(LazyGroup):
    """The ``logd`` command: every error that a user can cause or meet ends here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options; ``--help`` and ``--version`` are printed here."""
        try:
            return super().parse_args(ctx, args)
        except OSError as error:
            _end_with(ctx, error)
        except click.UsageError as error:
            _end_with_usage(error)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error becomes one line on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except BaseException as raised:
            if is_interrupt(raised):
                ctx.exit(INTERRUPTED_EXIT_CODE)
            error = expected_error(raised)
            if error is None:
                raise
            if isinstance(error, click.UsageError):
                _end_with_usage(error)
            if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
                raise error from None
            _end_with(ctx, error)


def _end_with(ctx: click.Context, error: Exception) -> NoReturn:
    """One line, and the code."""
    if isinstance(error, BrokenPipeError):
        _discard_standard_output()
        ctx.exit(ExitCode.OK)
    say(f"logd: {describe(error)}")
    ctx.exit(exit_code_for(error))


def _end_with_usage(error: click.UsageError) -> NoReturn:
    """As click ends it, which names the command's usage first, but said by ``logd`` as all else."""
    if error.ctx is None or type(error).show is not click.UsageError.show:
        raise error from None
    hint = f"Try '{error.ctx.command_path} --help' for help."
    say(f"{error.ctx.get_usage()}\n{hint}\n\nlogd: {error.format_message()}")
    error.ctx.exit(error.exit_code)


def _discard_standard_output() -> None:
    """Nobody reads our output any more: let the interpreter's last flush go nowhere."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # Not a real file: output captured by a test.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
