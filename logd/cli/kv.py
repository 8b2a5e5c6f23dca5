"""``logd kv``: keys of a namespace."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from os import fsencode
from typing import TYPE_CHECKING, Any, Final

import click

from logd.cli import streams
from logd.cli.display import (
    cell_text,
    cells_of,
    print_json,
    print_table,
    printable,
    say,
    text_or_base64,
)
from logd.cli.exits import ExitCode
from logd.cli.lazy import NounGroup
from logd.cli.options import (
    REVISION,
    IntegerType,
    SettingType,
    bootstrap_option,
    namespace_option,
    output_option,
    watch_options,
)
from logd.errors import UsageError
from logd.limits import NUMBER_MAX, VALUE_BYTES_MAX

if TYPE_CHECKING:
    from logd.wire.coordination import Compare, KeyValue, Operation, Transacted
    from logd_client import Client
    from logd_client.coordination.watches import Watch

KEY_VALUE: Final = SettingType("KEY=VALUE")
KEY_REVISION: Final = SettingType("KEY=REVISION")
KEY_NUMBER: Final = SettingType("KEY=NUMBER")


@click.group(cls=NounGroup)
def kv() -> None:
    """Get, put, delete, compare and watch keys."""


@kv.command("get")
@click.argument("key")
@namespace_option
@bootstrap_option
@output_option
def get(key: str, namespace: str, bootstrap: str, output: str) -> None:
    """The value of KEY as it is, and a newline (with --output json also its revisions).

    Exits with 3 if there is no such key.
    """
    from logd.cli.session import connected, run_async

    async def fetch() -> KeyValue | None:
        async with connected(bootstrap) as client:
            return await client.kv(namespace).get(fsencode(key))

    found = run_async(fetch)
    if found is None:
        say(f"logd: no key {printable(key)} in namespace {namespace}")
        raise click.exceptions.Exit(ExitCode.NOT_FOUND)
    if output == "json":
        print_json(_row(found))
    else:
        sys.stdout.buffer.write(found.value + b"\n")


def _row(found: KeyValue) -> dict[str, Any]:
    return {
        **text_or_base64("key", found.key),
        **text_or_base64("value", found.value),
        "revision": found.revision,
        "created": found.created,
        "session": found.session or None,
    }


@kv.command("put")
@click.argument("key")
@click.argument("value", required=False)
@click.option("--if-revision", type=REVISION, help="Only if the key is at it; 0: new.")
@click.option("--if-value", help="Only if this is its value.")
@namespace_option
@bootstrap_option
@output_option
def put(
    key: str,
    value: str | None,
    if_revision: int | None,
    if_value: str | None,
    namespace: str,
    bootstrap: str,
    output: str,
) -> None:
    """Set KEY to VALUE, or to what standard input holds; prints the revision.

    Exits with 4 if a condition does not hold.
    """
    from logd.cli.session import connected, run_async

    stored = _value_of_standard_input() if value is None else fsencode(value)
    expected = None if if_value is None else fsencode(if_value)

    async def change() -> int:
        async with connected(bootstrap) as client:
            keys = client.kv(namespace)
            if if_revision is None and expected is None:
                return await keys.put(fsencode(key), stored)
            return await keys.cas(fsencode(key), stored, revision=if_revision, expected=expected)

    _tell("revision", run_async(change), output)


def _value_of_standard_input() -> bytes:
    value = streams.standard_input("give the value behind the key").read(VALUE_BYTES_MAX + 1)
    if len(value) > VALUE_BYTES_MAX:
        raise UsageError(
            f"a key's value has at most {VALUE_BYTES_MAX:,} bytes, standard input has more"
        )
    return value


@kv.command("delete")
@click.argument("key")
@click.option("--prefix", is_flag=True, help="All keys that begin with KEY.")
@namespace_option
@bootstrap_option
@output_option
def delete(key: str, prefix: bool, namespace: str, bootstrap: str, output: str) -> None:
    """Delete KEY; prints how many there were.  Exits with 3 if there was none."""
    from logd.cli.session import connected, run_async

    async def change() -> int:
        from logd_client.coordination.keys import prefix_end

        async with connected(bootstrap) as client:
            start = fsencode(key)
            end = prefix_end(start) if prefix else None
            return await client.kv(namespace).delete(start, end)

    count = run_async(change)
    _tell("deleted", count, output)
    if not count:
        raise click.exceptions.Exit(ExitCode.NOT_FOUND)


def _tell(what: str, number: int, output: str) -> None:
    if output == "json":
        print_json({what: number})
    else:
        click.echo(number)


@kv.command("list")
@click.argument("prefix", default="")
@click.option("--limit", type=IntegerType(1, NUMBER_MAX), help="At most so many.")
@click.option("--keys-only", is_flag=True, help="Without the values.")
@namespace_option
@bootstrap_option
@output_option
def list_keys(
    prefix: str, limit: int | None, keys_only: bool, namespace: str, bootstrap: str, output: str
) -> None:
    """Keys that begin with PREFIX, in order."""
    from logd.cli.session import connected, run_async

    async def fetch() -> None:
        async with connected(bootstrap) as client:
            keys = client.kv(namespace)
            found = await keys.prefix(fsencode(prefix), limit=limit or 0, keys_only=keys_only)
        rows = [_row(one) for one in found.found]
        if output == "json":
            print_json({"revision": found.revision, "count": found.count, "keys": rows})
            return
        columns = ("key", *(() if keys_only else ("value",)), "revision", "created", "session")
        print_table(
            columns,
            [cells_of(row, columns) for row in rows],
            empty=f"no keys in namespace {namespace}",
        )
        if found.count > len(rows):
            say(f"{len(rows)} of {found.count} keys are shown")

    run_async(fetch)


@kv.command("watch")
@click.argument("key")
@click.option("--prefix", is_flag=True, help="All keys that begin with KEY.")
@watch_options
@namespace_option
@bootstrap_option
@output_option
def watch(
    key: str,
    prefix: bool,
    revision: int | None,
    count: int | None,
    namespace: str,
    bootstrap: str,
    output: str,
) -> None:
    """Changes of KEY as they happen, in order, each once."""
    from logd.cli.events import show_watch

    def changes(client: Client) -> Watch:
        keys = client.kv(namespace)
        if prefix:
            return keys.watch(prefix=fsencode(key), revision=revision)
        return keys.watch(fsencode(key), revision=revision)

    show_watch(changes, count, bootstrap, output)


@kv.command("txn")
@click.option("--if", "values", type=KEY_VALUE, multiple=True, help="The key has that value.")
@click.option(
    "--if-revision",
    "revisions",
    type=KEY_REVISION,
    multiple=True,
    help="The key is at that revision; 0: there is no such key.",
)
@click.option("--if-exists", "present", multiple=True, metavar="KEY", help="There is such a key.")
@click.option("--if-missing", "missing", multiple=True, metavar="KEY", help="There is none.")
@click.option("--put", "puts", type=KEY_VALUE, multiple=True, help="Set it, if all hold.")
@click.option("--delete", "deletes", multiple=True, metavar="KEY", help="Delete it, if all hold.")
@click.option(
    "--add",
    "adds",
    type=KEY_NUMBER,
    multiple=True,
    help="Add to the number that the key holds, if all hold; one that is not there holds 0.",
)
@click.option("--get", "gets", multiple=True, metavar="KEY", help="Print it, if all hold.")
@click.option(
    "--else-put", "else_puts", type=KEY_VALUE, multiple=True, help="Set it, if one does not."
)
@click.option(
    "--else-delete",
    "else_deletes",
    multiple=True,
    metavar="KEY",
    help="Delete it, if one does not.",
)
@click.option(
    "--else-get", "else_gets", multiple=True, metavar="KEY", help="Print it, if one does not."
)
@namespace_option
@bootstrap_option
@output_option
def txn(namespace: str, bootstrap: str, output: str, **parts: tuple[Any, ...]) -> None:
    """Compare any keys and change any keys, at one revision.  Any option may be repeated.

    logd kv txn --if-missing lead --put lead=me --put since=now --else-get lead

    Exits with 4 if a condition did not hold (what --else… names is done then).
    """
    from logd.cli.session import connected, run_async

    compare = _comparisons(parts)
    then = _operations(parts, "puts", "deletes", "adds", "gets")
    otherwise = _operations(parts, "else_puts", "else_deletes", "", "else_gets")
    if not (then or otherwise):
        raise click.UsageError("nothing to do: give --put, --delete, --add or --get")

    async def change() -> Transacted:
        async with connected(bootstrap) as client:
            return await client.kv(namespace).transact(
                compare=compare, then=then, otherwise=otherwise
            )

    done = run_async(change)
    # What is added to and got as well is shown once, as it was found last.
    found = list({one.key: _row(one) for result in done.results for one in result.found}.values())
    if output == "json":
        print_json({"succeeded": done.succeeded, "revision": done.revision, "found": found})
    else:
        click.echo("done" if done.succeeded else "a condition did not hold")
        for row in found:
            key, value = map(cell_text, cells_of(row, ("key", "value")))
            click.echo(f"{key}={value}  revision {row['revision']}")
    if not done.succeeded:
        raise click.exceptions.Exit(ExitCode.CONFLICT)


def _comparisons(parts: dict[str, tuple[Any, ...]]) -> list[Compare]:
    from logd.wire.coordination import Compare

    revisions = _numbers(parts["revisions"], 0, "--if-revision takes KEY=REVISION")
    return [
        *(Compare(key=fsencode(key), value=fsencode(value)) for key, value in parts["values"]),
        *(Compare(key=fsencode(key), revision=revision) for key, revision in revisions),
        *(Compare(key=fsencode(key), exists=True) for key in parts["present"]),
        *(Compare(key=fsencode(key), exists=False) for key in parts["missing"]),
    ]


def _operations(
    parts: dict[str, tuple[Any, ...]], puts: str, deletes: str, adds: str, gets: str
) -> list[Operation]:
    from logd.wire.coordination import Delete, Get, Increment, Put

    numbers = _numbers(parts.get(adds, ()), -NUMBER_MAX, "--add takes KEY=NUMBER")
    return [
        *(Put(key=fsencode(key), value=fsencode(value)) for key, value in parts[puts]),
        *(Delete(key=fsencode(key)) for key in parts[deletes]),
        *(Increment(key=fsencode(key), by=number) for key, number in numbers),
        *(Get(key=fsencode(key)) for key in parts[gets]),
    ]


def _numbers(settings: Iterable[tuple[str, str]], least: int, form: str) -> list[tuple[str, int]]:
    numbers = []
    for key, text in settings:
        number = None
        with suppress(ValueError):
            number = int(text)
        if number is None or not least <= number <= NUMBER_MAX:
            raise click.UsageError(
                f"{form}, a whole number of {least} to {NUMBER_MAX}, found {text!r}"
            )
        numbers.append((key, number))
    return numbers
