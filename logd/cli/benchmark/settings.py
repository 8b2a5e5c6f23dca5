"""What a benchmark was asked to do; reported with its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Durability = Literal["synced", "replicated"]
Api = Literal["many", "nowait"]
Form = Literal["batches", "records"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One run.  A field that a workload does not know keeps its default."""

    brokers: int | None
    """Of the cluster started for the run; None: a cluster that was there."""
    records: int
    record_bytes: int
    record_bytes_max: int | None = None
    """Sizes are mixed: from ``record_bytes`` to this."""
    keys: int | None = None
    """Each record has one of so many keys; None: no record has any."""
    batch_bytes: int | None = None
    linger_ms: int = 0
    durability: Durability = "synced"
    producers: int = 1
    partitions: int = 1
    consumers: int = 1
    rate: int | None = None
    """Records offered per second; None: as many as are acknowledged."""
    api: Api = "many"
    form: Form = "batches"
