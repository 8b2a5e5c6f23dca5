"""``logd segment``: dump, verify, reindex.  Offline: they read files, and ask no broker.

``dump`` and ``verify`` change nothing and need no lock, so they may be used on a running
broker's directory; what it is writing at that moment shows as an unfinished end.  ``reindex``
writes, and so takes the directory's lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from logd.cli.display import cells_of, print_json, print_table, say, text_or_base64
from logd.cli.exits import ExitCode
from logd.cli.lazy import NounGroup
from logd.cli.options import output_option

if TYPE_CHECKING:
    from logd.env import FileSystem
    from logd.record.header import BatchHeader
    from logd.storage.offline import SegmentFile, SegmentWalk

ROWS_AT_ONCE = 1000
"""A table is laid out in memory: a long dump is printed as several."""

BATCH_COLUMNS = (
    "group",
    "base_offset",
    "end_offset",
    "term",
    "records",
    "kind",
    "producer_id",
    "producer_epoch",
    "base_sequence",
    "bytes",
    "codec",
    "append_time_ms",
    "position",
)
RECORD_COLUMNS = ("group", "offset", "timestamp_ms", "key", "value")


@click.group(cls=NounGroup)
def segment() -> None:
    """Dump, verify, reindex files offline."""


@segment.command("dump")
@click.argument("path", metavar="FILE")
@click.option("--records", is_flag=True, help="Records, one per line, instead of batches.")
@output_option
def dump(path: str, records: bool, output: str) -> None:
    """List the batches of a segment FILE, of a group's directory or of a data directory.

    Each batch is verified before it is shown.  JSON: one object per line.  Ends with exit
    code 1 if something is damaged that was once synced.
    """
    from logd.storage.offline import SegmentWalk, find_segments

    files = _file_system()
    is_damaged = False
    for found in find_segments(files, _existing(path)):
        walk = SegmentWalk(files, found)
        rows = _record_rows(found, walk) if records else _batch_rows(found, walk)
        _print_rows(rows, RECORD_COLUMNS if records else BATCH_COLUMNS, output)
        if found.header_error is not None:
            say(found.header_error)
            is_damaged = True
        if walk.stop is not None:
            say(f"{walk.stop.kind}: {walk.stop.reason}")
            is_damaged |= walk.stop.is_damage
    if is_damaged:
        raise click.exceptions.Exit(ExitCode.FAILED)


@segment.command("verify")
@click.argument("path", metavar="DIR")
@output_option
def verify(path: str, output: str) -> None:
    """Check every byte of every segment in DIR: a data directory or a group's.

    Prints each segment and what is wrong with it; exit code 1 if anything is or if there is
    nothing to check, 3 if there is no DIR.  What a crash left unfinished above the synced mark
    is not damage: the next start cuts it off.  Nor is surplus: bytes behind the last batch of a
    sealed segment.  Nothing reads them, and no broker leaves any there.
    """
    from logd.storage.offline import SegmentWalk, check_chain, find_segments

    files = _file_system()
    segments = find_segments(files, _existing(path))
    rows: list[dict[str, Any]] = []
    surplus: list[str] = []
    damage = check_chain(segments)
    for found in segments:
        walk = SegmentWalk(files, found)
        for _ in walk:
            pass
        wrong = [] if found.header_error is None else [found.header_error]
        if walk.stop is not None and walk.stop.is_damage:
            wrong.append(walk.stop.reason)
        if found.is_active and found.mark is None:
            wrong.append(f"{found.path}: both synced marks are unreadable")
        damage += wrong
        if walk.stop is not None and walk.stop.kind == "surplus":
            surplus.append(walk.stop.reason)
        rows.append(
            {
                "path": found.path,
                "group": found.group,
                "base_offset": found.base_offset,
                "end_offset": walk.end_offset,
                "batches": walk.batches,
                "bytes": walk.bytes,
                "state": "damaged" if wrong else walk.stop.kind if walk.stop else "ok",
            }
        )
    if output == "json":
        print_json({"segments": rows, "damage": damage, "surplus": surplus})
    else:
        columns = ("group", "base_offset", "end_offset", "batches", "bytes", "state", "path")
        shown = [[row[column] for column in columns] for row in rows]
        print_table(columns, shown, whole=("path",))
        for text in surplus:
            say(f"surplus: {text}")
        for text in damage:
            say(f"damaged: {text}")
    if damage:
        raise click.exceptions.Exit(ExitCode.FAILED)


@segment.command("reindex")
@click.argument("path", metavar="DIR")
@output_option
def reindex(path: str, output: str) -> None:
    """Build the index files of all segments in DIR anew.  The broker must not be running."""
    from logd.errors import CorruptionError
    from logd.storage.directory import LOCK_NAME
    from logd.storage.offline import find_segments, reindex

    files = _file_system()
    path = _existing(path)
    if not files.is_directory(path):
        raise click.UsageError(f"expected a directory, {path} is a file")
    lock = files.lock(f"{_data_directory_of(files, path)}/{LOCK_NAME}")
    try:
        rows: list[dict[str, Any]] = []
        damage: list[str] = []
        for found in find_segments(files, path):
            try:
                indexed_bytes = reindex(files, found)
            except CorruptionError as error:
                damage.append(str(error))
            else:
                rows.append({"path": found.path, "bytes": indexed_bytes})
    finally:
        lock.release()
    if output == "json":
        print_json({"segments": rows, "damage": damage})
    else:
        print_table(("path", "bytes"), [list(row.values()) for row in rows], whole=("path",))
        for text in damage:
            say(f"damaged: {text}")
    if damage:
        raise click.exceptions.Exit(ExitCode.FAILED)


# --- rows -------------------------------------------------------------------------------


def _batch_rows(found: SegmentFile, walk: SegmentWalk) -> Iterator[dict[str, Any]]:
    for position, header, _ in walk:
        yield _describe_batch(found, position, header)


def _describe_batch(found: SegmentFile, position: int, header: BatchHeader) -> dict[str, Any]:
    from logd.record.header import BatchKind, Codec

    return {
        "group": found.group,
        "base_offset": header.base_offset,
        "end_offset": header.end_offset,
        "term": header.term,
        "records": header.record_count,
        "kind": BatchKind(header.kind).name.lower(),
        "producer_id": header.producer_id,
        "producer_epoch": header.producer_epoch,
        "base_sequence": header.base_sequence,
        "bytes": header.size_bytes,
        "codec": Codec(header.codec).name.lower(),
        "append_time_ms": header.append_time_ms,
        "first_timestamp_ms": header.first_timestamp_ms,
        "max_timestamp_ms": header.max_timestamp_ms,
        "fence_id": header.fence_id,
        "fence_token": header.fence_token,
        "position": position,
    }


def _record_rows(found: SegmentFile, walk: SegmentWalk) -> Iterator[dict[str, Any]]:
    """Data records.  Control batches hold none."""
    from logd.errors import MalformedBatchError
    from logd.record.batch import decode_batch

    for _, header, batch in walk:
        if header.is_control:
            continue
        try:
            decoded = decode_batch(batch)
        except MalformedBatchError as error:
            say(str(error))
            continue
        columns = (
            decoded.offsets, decoded.timestamps_ms, decoded.keys, decoded.values, decoded.headers
        )  # fmt: skip
        for offset, timestamp_ms, key, value, headers in zip(*columns, strict=True):
            row: dict[str, Any] = {"group": found.group, "offset": offset}
            row["timestamp_ms"] = timestamp_ms
            row |= text_or_base64("key", key) | text_or_base64("value", value)
            if headers:
                row["headers"] = [
                    {"name": name} | text_or_base64("value", held) for name, held in headers
                ]
            yield row


def _print_rows(rows: Iterator[dict[str, Any]], columns: tuple[str, ...], output: str) -> None:
    import msgspec

    encoder = msgspec.json.Encoder()
    while some := list(islice(rows, ROWS_AT_ONCE)):
        if output == "json":
            click.echo(encoder.encode_lines(some), nl=False)
        else:
            print_table(columns, [cells_of(row, columns) for row in some])


# --- paths ------------------------------------------------------------------------------


def _file_system() -> FileSystem:
    from logd.runtime.files import RealFileSystem

    return RealFileSystem()


def _existing(path: str) -> str:
    absolute = os.path.abspath(path)
    if not os.path.exists(absolute):
        say(f"logd: {path}: no such file or directory")
        raise click.exceptions.Exit(ExitCode.NOT_FOUND)
    return absolute


def _data_directory_of(files: FileSystem, path: str) -> str:
    """The data directory itself, or the one that the group's directory lies in."""
    above = os.path.dirname(os.path.dirname(path))
    is_group = os.path.basename(os.path.dirname(path)) == "groups"
    return above if is_group and files.exists(f"{above}/meta") else path
