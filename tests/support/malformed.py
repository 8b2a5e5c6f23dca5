"""A batch that every checksum vouches for and nobody can read."""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

from logd.record.batch import seal_opaque
from logd.record.header import BatchKind, verify_seal


def malformed_batch() -> bytearray:
    """Intact, as a producer sends it; its payload is not columns."""
    batch = bytearray(seal_opaque(b"junk", kind=BatchKind.DATA, timestamp_ms=1))
    batch[50] = 1  # payload format: columns
    batch[32:40] = xxh3_64_intdigest(bytes(batch[40:])).to_bytes(8, "little")
    verify_seal(batch)
    return batch
