"""How long compaction takes, and how much memory, on a log that is made for it.

    python scripts/compaction.py --records 10000000 --keys 100000

Makes a log of that many records with random keys, compacts it in a process of its own, as a broker
does, puts the result in place and reads it back.  Exit code 1 if it does not hold exactly the
last record of each key.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time

import msgspec
import trio

from logd.limits import COMPACTION_KEYS_MAX, MIB
from logd.record.batch import decode_batch, seal_batch
from logd.record.header import LEADER_PART_BYTES, leader_part
from logd.runtime.apart import run_apart
from logd.runtime.files import RealFileSystem
from logd.storage.compaction import (
    CompactionRequest,
    CompactionResult,
    compact_apart,
    read_answer,
)
from logd.storage.file_header import LogIdentity
from logd.storage.log import Log, LogBatch, LogOptions
from logd.types import DirectoryId, GroupId, NodeId, Offset, Term

RECORDS_PER_BATCH = 1_000
VALUE_BYTES = 100
IDENTITY = LogIdentity(DirectoryId("compaction"), NodeId(1), GroupId(1))


def main() -> int:
    """Measure; 0 if what is left is right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--segment-mib", type=int, default=256)
    parser.add_argument("--bytes-per-s", type=int, default=0, help="0: as fast as it can")
    arguments = parser.parse_args()
    if not 1 <= arguments.keys <= COMPACTION_KEYS_MAX:
        parser.error(f"--keys {arguments.keys}: one go takes 1 to {COMPACTION_KEYS_MAX}")
    if arguments.records < 1:
        parser.error(f"--records {arguments.records}: expected at least 1")
    with tempfile.TemporaryDirectory() as directory:
        return _measure(f"{directory}/log", f"{directory}/trash", arguments)


def _measure(directory: str, trash: str, arguments: argparse.Namespace) -> int:
    RealFileSystem().make_directory(trash)
    options = LogOptions(segment_bytes=arguments.segment_mib * MIB)
    log = Log.create(RealFileSystem(), directory, IDENTITY, options)
    began = time.monotonic()
    latest = _fill(log, arguments.records, arguments.keys)
    before = log.size_bytes
    print(
        f"made {log.end_offset:,} records of {arguments.keys:,} keys, {before / MIB:,.0f} MiB in "
        f"{len(log.segment_bases)} segments, in {time.monotonic() - began:.1f} s"
    )
    request = CompactionRequest(
        directory=directory,
        identity=IDENTITY,
        segments=log.sealed_segments(),
        dirty_from=Offset(0),
        tombstones_below=Offset(0),
        retried_since_ms=0,
        segment_bytes=options.segment_bytes,
        keys_max=COMPACTION_KEYS_MAX,
        bytes_per_s=arguments.bytes_per_s,
    )
    began = time.monotonic()
    answer = read_answer(trio.run(run_apart, compact_apart, msgspec.json.encode(request)))
    compacting_s = time.monotonic() - began
    assert isinstance(answer, CompactionResult), answer
    began = time.monotonic()
    for made in answer.segments:
        log.replace(made.replaces, made.path, trash)
    replacing_s = time.monotonic() - began
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"compacted in {compacting_s:.1f} s, {usage.ru_utime + usage.ru_stime:.1f} s of processor; "
        f"put in place in {replacing_s * 1000:.0f} ms; largest process "
        f"{usage.ru_maxrss / 1024:.0f} MiB; read {answer.records_read:,} records, kept "
        f"{answer.records_kept:,}; {before / MIB:,.0f} MiB became {log.size_bytes / MIB:,.1f} MiB"
    )
    found = _read_back(log)
    is_right = found == latest
    print(f"of {len(latest):,} keys the last record is kept: {'yes' if is_right else 'NO'}")
    log.close()
    return 0 if is_right else 1


def _fill(log: Log, records: int, keys: int) -> dict[bytes, int]:
    """Append, sealing every segment; which offset holds each key's last record."""
    chance = random.Random(1)
    latest: dict[bytes, int] = {}
    names = [b"key-%09d" % number for number in range(keys)]
    filler = bytes(VALUE_BYTES)
    while log.end_offset < records:
        base = log.end_offset
        chosen = chance.choices(names, k=min(RECORDS_PER_BATCH, records - base))
        sealed = seal_batch(values=[filler] * len(chosen), keys=chosen, timestamps_ms=0)
        part = leader_part(
            sealed, base_offset=base, term=Term(1), append_time_ms=base, group=IDENTITY.group
        )
        end = Offset(base + len(chosen))
        buffers = (part, memoryview(sealed)[LEADER_PART_BYTES:])
        log.append([LogBatch(base, end, Term(1), base, True, len(sealed), buffers)])
        latest.update(zip(chosen, range(base, end), strict=True))
        if log.needs_roll or end == records:
            log.sync(log.end_offset)
            log.roll()
    return latest


def _read_back(log: Log) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    count = 0
    offset = log.start_offset
    while offset < log.end_offset:
        batches = log.read(offset, log.end_offset, 4 * MIB, cached_only=False)
        assert batches
        for batch in batches:
            decoded = decode_batch(batch)
            count += len(decoded)
            found.update(zip(decoded.keys, decoded.offsets, strict=True))  # type: ignore[arg-type]
            offset = decoded.header.end_offset
    return found if count == len(found) else {}


if __name__ == "__main__":
    sys.exit(main())
