"""The three standard streams, any of which may be missing, full or of any length.

A program that is started with a stream closed gets ``None`` for it from Python, and its
descriptor would go to the next file or socket that is opened.  So ``fill_missing`` puts
``/dev/null`` there: what is written to a closed stream is lost, as its user chose.  Whoever
needs one asks here, and is told which is missing.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final

import click

from logd.cli.display import say
from logd.cli.lines import READ_BYTES, LineCutter
from logd.errors import UsageError
from logd.wording import count_of

STANDARD_INPUT: Final = "-"
OVERSIZED_SHOWN_MAX: Final = 10
_DESCRIPTORS: Final = range(3)


def fill_missing() -> None:
    """Put ``/dev/null`` where a standard stream was closed; ``sys.stdin`` stays None."""
    for descriptor in _DESCRIPTORS:
        with suppress(OSError):
            os.fstat(descriptor)
            continue
        # The lowest free one, and those below it are taken.
        opened = os.open(os.devnull, os.O_RDWR)
        assert opened == descriptor
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def escape_unencodable() -> None:
    """Have standard output escape what its encoding has no characters for, as standard error does:
    the lines of a table, for one, where the locale is not UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def is_output_closed() -> bool:
    """Whether we were started without a standard output."""
    return sys.__stdout__ is None


def standard_input(instead: str) -> BinaryIO:
    """Standard input; whoever is to type it is told so.

    Raises:
        UsageError: it is closed; ``instead`` says what to do.
    """
    if sys.stdin is None:
        raise UsageError(f"standard input is closed: {instead}")
    if is_typed():
        say(f"logd: reading standard input until Ctrl-D; or {instead}")
    return sys.stdin.buffer


def is_typed() -> bool:
    """Whether a person types standard input."""
    return sys.stdin is not None and sys.stdin.isatty()


def confirm(question: str) -> None:
    """Go on if whoever types says yes.

    Raises:
        KeyboardInterrupt: it was Ctrl-C that they answered with.
        Abort: it was no, or the end of their input.
    """
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort as aborted:
        if isinstance(aborted.__context__, KeyboardInterrupt):
            say("")  # The question's line is still open.
            raise KeyboardInterrupt from None
        raise


async def lines_of(
    name: str, cutter: LineCutter, *, instead: str = "name a file"
) -> AsyncIterator[list[bytes]]:
    """Lines of one file, or of standard input, in order, as many at a time as one read brought.

    Raises:
        UsageError: standard input is closed; ``instead`` says what to do.
    """
    import anyio

    with _opened(name, instead) as descriptor:
        while block := await anyio.to_thread.run_sync(
            os.read, descriptor, READ_BYTES, abandon_on_cancel=True
        ):
            lines = cutter.feed(block)
            if lines:
                yield lines
        last = cutter.finish()
        if last:
            yield last


@contextmanager
def _opened(name: str, instead: str) -> Iterator[int]:
    if name == STANDARD_INPUT:
        yield standard_input(instead).fileno()
        return
    descriptor = os.open(name, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def name_of(name: str) -> str:
    """What a person is told of it."""
    return "standard input" if name == STANDARD_INPUT else name


def report_oversized(name: str, cutter: LineCutter, limit: str) -> None:
    """Say which lines were left out because they were over ``limit``."""
    shown = name_of(name)
    for number, size in cutter.oversized[:OVERSIZED_SHOWN_MAX]:
        say(
            f"logd: {shown}, line {number}: {size} bytes are over {limit} of "
            f"{cutter.line_bytes_max}; left out"
        )
    more = len(cutter.oversized) - OVERSIZED_SHOWN_MAX
    if more > 0:
        say(f"logd: {shown}: {count_of(more, 'more line')} over the limit; left out")
