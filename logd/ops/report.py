"""What one broker says of itself to whichever broker shows the status page.

It travels between brokers as MessagePack and goes no further; a broker of another version
ignores fields that it does not know, and shows no numbers for those it misses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from logd import __version__
from logd.broker.peer_reports import reader_of
from logd.limits import REPORT_REPLICAS_MAX
from logd.ops.process_memory import resident_bytes
from logd.ops.replicas import ReplicaFacts, look_at_replicas
from logd.ops.sampler import NO_RATES, Rates, Sampler
from logd.wire.messages import EventInfo

if TYPE_CHECKING:
    from logd.broker.broker import Broker

EVENTS_REPORTED_MAX = 60


class LedPartition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition, as its leader knows it."""

    group: int
    term: int
    log_start: int
    log_end: int
    commit: int
    log_bytes: int
    voters: tuple[int, ...]
    in_sync: tuple[int, ...]
    follower_lag: int
    copied: float | None
    readers: int
    reader_lag: int
    rates: Rates


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that is shut, has failed, or is damaged."""

    group: int
    reason: str
    is_final: bool = False
    """It is shut, and nobody can mend it."""


class BrokerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One broker."""

    node: int
    version: str
    uptime_ms: int
    is_stopping: bool
    memory_bytes: int | None
    disk_free_bytes: int
    disk_room_bytes: int = 0
    """Of that: what may be filled before appends are refused.  0: its version does not say."""
    is_disk_full: bool
    connections: int
    subscriptions: int
    queued_bytes: int
    """For peers and clients together."""
    produce_bytes: int
    replicas: int
    led: list[LedPartition]
    led_left_out: int
    troubles: list[Trouble]
    history: list[Rates]
    """Of the last two minutes, newest last."""
    commit_p99_s: float | None
    sync_p99_s: float | None
    events: list[EventInfo]


_ENCODER = msgspec.msgpack.Encoder()


def encode_report(report: BrokerReport) -> bytes:
    """For the wire between brokers."""
    return _ENCODER.encode(report)


decode_report: Final = reader_of(BrokerReport)


async def make_report(broker: Broker, sampler: Sampler) -> BrokerReport:
    """Look at this broker, letting others run in between."""
    facts = await look_at_replicas(broker)
    led = sorted(
        (row for row in facts if row.is_leading and row.topic is not None),
        key=lambda row: (not row.is_under_replicated, row.group),
    )
    node = broker.node
    await trio.lowlevel.checkpoint()
    return BrokerReport(
        node=node.node,
        version=__version__,
        uptime_ms=node.now_ms() - broker.started_ms,
        is_stopping=broker.is_stopping,
        memory_bytes=resident_bytes(),
        disk_free_bytes=broker.disk.free_bytes,
        disk_room_bytes=broker.disk.room_bytes,
        is_disk_full=broker.disk.is_full,
        connections=len(broker.sessions),
        subscriptions=sum(row.readers for row in facts),
        queued_bytes=sum(node.queued_bytes().values())
        + sum(session.queued_bytes for session in broker.sessions),
        produce_bytes=broker.budget.bytes,
        replicas=len(facts),
        led=[_led(row, sampler) for row in led[:REPORT_REPLICAS_MAX]],
        led_left_out=max(0, len(led) - REPORT_REPLICAS_MAX),
        troubles=[
            *(Trouble(group=row.group, reason=row.reason) for row in facts if row.reason),
            *(
                Trouble(group=group, reason=shut.reason, is_final=shut.is_final)
                for group, shut in node.shut.items()
            ),
        ][:REPORT_REPLICAS_MAX],
        history=list(sampler.history),
        commit_p99_s=sampler.commit_p99_s,
        sync_p99_s=sampler.sync_p99_s,
        events=broker.events.told(broker.name_of, EVENTS_REPORTED_MAX),
    )


def _led(row: ReplicaFacts, sampler: Sampler) -> LedPartition:
    return LedPartition(
        group=row.group,
        term=row.term,
        log_start=row.log_start,
        log_end=row.log_end,
        commit=row.commit,
        log_bytes=row.log_bytes,
        voters=row.voters,
        in_sync=row.in_sync,
        follower_lag=row.follower_lag,
        copied=row.copied,
        readers=row.readers,
        reader_lag=row.reader_lag,
        rates=sampler.by_group.get(row.group, NO_RATES),
    )
