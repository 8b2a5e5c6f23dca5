"""Sizes that no operator may choose, drawn small: what is rare in production happens all the time.

A log that rolls with every few batches, a follower that is sent one batch at a time, a window
that is always full: the code on both sides of each bound runs in every seed.  They are
constants in the brokers, replaced where they are used for the time of a run.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

from logd import config, limits
from logd.broker import metadata_service, partitions, server, subscriptions
from logd.broker.coordination import commands, kept_state, partition
from logd.limits import KIB
from logd.raft.options import RaftOptions
from logd.replication import answering, compacting, feeding, group, repairer, shipping
from logd.storage import compaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """As in production, unless they are drawn."""

    batches_per_checkpoint: int = limits.BATCHES_PER_CHECKPOINT
    append_bytes: int = limits.APPEND_BYTES_MAX
    """One append request, or one answer to a replica that repairs itself."""

    window_bytes: int = limits.PEER_WINDOW_BYTES_MAX
    delivery_bytes: int = subscriptions.DELIVERY_BYTES
    fetch_bytes: int = limits.FETCH_BYTES_MAX
    """Of a log that is applied, read at a time."""

    scrub_piece_bytes: int = repairer.SCRUB_PIECE_BYTES
    commands_per_snapshot: int = limits.COMMANDS_PER_SNAPSHOT
    """Of the metadata; the log behind is dropped."""

    snapshot_chunk_bytes: int = limits.SNAPSHOT_CHUNK_BYTES

    @property
    def coordination_bytes_per_snapshot(self) -> int:
        """Small where the metadata's are kept often: a draw of its own would move all others."""
        if self.commands_per_snapshot == limits.COMMANDS_PER_SNAPSHOT:
            return limits.COORDINATION_BYTES_PER_SNAPSHOT
        return 2 * KIB * self.commands_per_snapshot

    @property
    def entries_at_once(self) -> int:
        """Of the coordination log: packed into a batch, and applied without a pause."""
        return 2 if self.fetch_bytes == 1 else limits.COORDINATION_ENTRIES_PER_BATCH_MAX

    @classmethod
    def draw(cls, chance: random.Random) -> Knobs:
        """Each as it is in production, small, or as small as it gets."""
        usual = cls()
        return cls(
            batches_per_checkpoint=chance.choice(
                [3, 50, usual.batches_per_checkpoint, usual.batches_per_checkpoint]
            ),
            append_bytes=chance.choice([1, 2 * KIB, usual.append_bytes]),
            window_bytes=chance.choice([1, 4 * KIB, usual.window_bytes]),
            delivery_bytes=chance.choice([1, 2 * KIB, usual.delivery_bytes]),
            fetch_bytes=chance.choice([1, usual.fetch_bytes]),
            scrub_piece_bytes=chance.choice([16 * KIB, usual.scrub_piece_bytes]),
            commands_per_snapshot=chance.choice([1, 4, usual.commands_per_snapshot]),
            snapshot_chunk_bytes=chance.choice([64, usual.snapshot_chunk_bytes]),
        )

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Brokers that run meanwhile go by these."""
        replaced = [
            # What is smaller than the smallest segment an operator may choose rolls more often.
            (config, "SEGMENT_BYTES_MIN", 0),
            (group, "BATCHES_PER_CHECKPOINT", self.batches_per_checkpoint),
            (feeding, "APPEND_BYTES_MAX", self.append_bytes),
            (answering, "APPEND_BYTES_MAX", self.append_bytes),
            (
                partitions,
                "RaftOptions",
                functools.partial(RaftOptions, window_bytes_max=self.window_bytes),
            ),
            (subscriptions, "DELIVERY_BYTES", self.delivery_bytes),
            (
                metadata_service,
                "PIECE_BYTES",
                min(self.fetch_bytes, metadata_service.PIECE_BYTES),
            ),
            # Time passes, and whatever happens happens, in the middle of a compaction.
            (compaction, "_PAUSE_BYTES", 4 * KIB),
            (repairer, "SCRUB_PIECE_BYTES", self.scrub_piece_bytes),
            (metadata_service, "COMMANDS_PER_SNAPSHOT", self.commands_per_snapshot),
            (shipping, "SNAPSHOT_CHUNK_BYTES", self.snapshot_chunk_bytes),
            (answering, "SNAPSHOT_CHUNK_BYTES", self.snapshot_chunk_bytes),
            (kept_state, "COORDINATION_BYTES_PER_SNAPSHOT", self.coordination_bytes_per_snapshot),
            (partition, "APPLIED_AT_ONCE_MAX", self.entries_at_once),
            (
                partition,
                "CAUGHT_UP_AT_ONCE_MAX",
                min(self.entries_at_once, partition.CAUGHT_UP_AT_ONCE_MAX),
            ),
            (partition, "FETCH_BYTES_MAX", self.fetch_bytes),
            (commands, "COORDINATION_ENTRIES_PER_BATCH_MAX", self.entries_at_once),
        ]
        if self.scrub_piece_bytes < repairer.SCRUB_PIECE_BYTES:
            # As above.  So few keys at a time that it takes several compactions.
            replaced.append((compacting, "COMPACTION_KEYS_MAX", 5))
        if self.delivery_bytes == 1:
            # Not a draw of its own, which would move all others.  A test may have set it.
            replaced.append((server, "CLIENTS_SEND_BYTES_MAX", 4 * KIB))
        with ExitStack() as stack:
            for module, name, value in replaced:
                stack.enter_context(mock.patch.object(module, name, value))
            yield
