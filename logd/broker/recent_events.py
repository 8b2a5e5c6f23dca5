"""The last things that happened, as sentences, for the status page and ``cluster status``.

They are the log's events: whatever is worth a line there at level warning, and those of level
info that a person asks for first (who leads, who is up, what was repaired).  A broker that
fails over leads hundreds of partitions at once, which would push everything else out: events
of one kind that follow one another closely are one entry with a count.  So is what comes again
and again, such as a broker that was removed and still runs.

The ring is fed by the logging set-up (``logd.ops.logging``); nothing here reads a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from logd.broker import log_events as broker_events
from logd.limits import RECENT_EVENTS_MAX
from logd.replication import log_events as replication_events
from logd.types import GroupId
from logd.wire.messages import EventInfo

TOGETHER: Final = timedelta(seconds=5)
"""Events of one kind this close to each other are one entry."""

TEXT_CHARACTERS_MAX: Final = 300
LOUD_LEVELS: Final = ("warning", "error", "critical")

NameOfGroup = Callable[[GroupId], str]
"""What people call a group: ``topic/number``, mostly."""


class Sentence(NamedTuple):
    """How an event is told: fields of the event stand in braces, ``{partition}`` is found."""

    one: str
    many: str = ""
    """Of ``{count}`` of them; without it each tells the last one."""


SENTENCES: Final[dict[str, Sentence]] = {
    broker_events.BROKER_STARTED: Sentence("started"),
    broker_events.BROKER_STOPPING: Sentence("is stopping"),
    broker_events.BROKER_REGISTERED: Sentence("joined the cluster at {address}"),
    broker_events.WAITING_FOR_NODES: Sentence("waits for brokers {missing}"),
    broker_events.CLUSTER_FORMED: Sentence("became part of cluster {cluster_id}"),
    broker_events.LEADER_MOVED: Sentence(
        "hands {partition} to broker {to}, {why}", "hands {count} partitions to others, {why}"
    ),
    broker_events.PARTITION_DAMAGED: Sentence("{partition} stays shut: {reason}"),
    broker_events.PARTITION_WAITS: Sentence("{partition} waits to be opened: {reason}"),
    broker_events.PARTITION_TRASHED: Sentence(
        "removed a copy that belongs here no more",
        "removed {count} copies that belong here no more",
    ),
    broker_events.REPLICA_RETIRED: Sentence(
        "cleared away its copy of {partition}, which has moved",
        "cleared away {count} copies of partitions that have moved",
    ),
    broker_events.MOVE_BEGUN: Sentence(
        "moves {partition} from {replicas} to {target}: {reason}",
        "moves {count} partitions, the last {partition} to {target}: {reason}",
    ),
    broker_events.MOVE_FINISHED: Sentence(
        "has moved {partition} to {replicas}",
        "has moved {count} partitions, the last {partition} to {replicas}",
    ),
    broker_events.MOVE_SKIPPED: Sentence("gives up a move of {partition}: {reason}"),
    broker_events.MOVE_LEFT: Sentence(
        "waits no longer for the cancelled move of {partition} to {target}: nobody leads it"
    ),
    broker_events.PLAN_STARTED: Sentence("starts a plan by itself (moves: {moves}): {reason}"),
    broker_events.PLAN_GIVES_WAY: Sentence(
        "ends plan {plan} ({reason}): somebody has asked for something"
    ),
    broker_events.ACCEPT_FAILED: Sentence("has to refuse clients: {reason}"),
    broker_events.METADATA_NOT_KEPT: Sentence("cannot keep the state of the metadata: {reason}"),
    broker_events.METADATA_UNREADABLE: Sentence("cannot read the metadata log: {reason}"),
    broker_events.COORDINATION_NOT_KEPT: Sentence("cannot keep the state of {partition}: {reason}"),
    broker_events.COORDINATION_UNREADABLE: Sentence("cannot read {partition}: {reason}"),
    broker_events.FEATURE_LEVEL_RAISED: Sentence("has raised the feature level to {feature_level}"),
    broker_events.METADATA_VOTER_REPLACED: Sentence(
        "has broker {heir} vote in the metadata log in place of broker {lost}, which stays away"
    ),
    broker_events.REPLACEMENT_IMPOSSIBLE: Sentence("cannot do all it should: {reason}"),
    broker_events.CLIENT_REFUSED: Sentence(
        "refused {address}: {reason}", "refused {count} clients, the last {address}: {reason}"
    ),
    broker_events.DISK_FULL: Sentence("disk full, appends are refused: {free_bytes} bytes free"),
    broker_events.DISK_USABLE_AGAIN: Sentence("disk usable again: {free_bytes} bytes free"),
    broker_events.DISK_SPACE_UNKNOWN: Sentence("cannot tell the free disk space: {reason}"),
    replication_events.RESTARTED_WITH_LOSS: Sentence(
        "restarted {partition} from offset {log_end}: a majority had lost power, and records "
        "acknowledged as replicated may be lost"
    ),
    replication_events.GROUP_FAILED: Sentence("{partition} has failed: {error}"),
    replication_events.NO_ROOM: Sentence("{partition} waits for room on the disk: {reason}"),
    replication_events.NO_DESCRIPTOR: Sentence("{partition} waits for descriptors: {reason}"),
    replication_events.GROUP_HELD: Sentence(
        "has waited for the disk of {partition} for {seconds} s",
        "has waited for the disks of {count} partitions for {seconds} s",
    ),
    replication_events.LEADER_ELECTED: Sentence(
        "leads {partition} in term {term}", "leads {count} more partitions, {partition} among them"
    ),
    replication_events.LEADERSHIP_LOST: Sentence(
        "no longer leads {partition}", "no longer leads {count} partitions"
    ),
    replication_events.LOG_TRUNCATED: Sentence(
        "cut {partition} back to offset {start}, from {end}"
    ),
    replication_events.DAMAGE_FOUND: Sentence("found damage in {partition}: {hole}"),
    replication_events.DAMAGE_REPAIRED: Sentence("repaired {partition}: {hole}"),
    replication_events.PEER_UP: Sentence("hears broker {peer}"),
    replication_events.PEER_DOWN: Sentence("lost broker {peer}"),
    replication_events.PEER_REFUSED: Sentence(
        "refused a peer: {reason}", "refused peers {count} times, the last: {reason}"
    ),
}
"""Events of level info that are not here are left out; louder ones are told by their name."""

RECURRING: Final = frozenset({replication_events.PEER_REFUSED, replication_events.DAMAGE_FOUND})
"""What stays as it is comes again in the same words, and is told once, when it came last."""


@dataclass(slots=True)
class _Entry:
    name: str
    level: str
    began: datetime
    at: datetime
    fields: dict[str, Any]
    count: int = 1


class RecentEvents:
    """A bounded ring, oldest first."""

    def __init__(self, entries_max: int = RECENT_EVENTS_MAX) -> None:
        self._entries: deque[_Entry] = deque(maxlen=entries_max)

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take one structured log event; ``timestamp`` is ISO 8601."""
        name, level = str(event["event"]), str(event["level"])
        if name not in SENTENCES and level not in LOUD_LEVELS:
            return
        fields = {
            key: ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            for key, value in event.items()
            if isinstance(value, str | int | list | tuple)
        }
        at = datetime.fromisoformat(event["timestamp"])
        last = self._entries[-1] if self._entries else None
        if last is not None and last.name == name and at - last.began < TOGETHER:
            last.at, last.fields, last.count = at, fields, last.count + 1
            return
        entry = _Entry(name, level, at, at, fields)
        if name in RECURRING:
            for earlier in self._entries:
                if earlier.name == name and _is_said_alike(earlier, entry):
                    self._entries.remove(earlier)
                    entry.count += earlier.count
                    break
        self._entries.append(entry)

    def told(self, name_of: NameOfGroup, entries_max: int = RECENT_EVENTS_MAX) -> list[EventInfo]:
        """The newest entries as sentences, newest first."""
        newest = list(self._entries)[: -entries_max - 1 : -1]
        return [
            EventInfo(
                at_ms=int(entry.at.timestamp() * 1000),
                level=_level(entry.level),
                name=entry.name,
                text=_told(entry, name_of),
            )
            for entry in newest
        ]


def _level(level: str) -> Literal["info", "warning", "error"]:
    match level:
        case "debug" | "info":
            return "info"
        case "warning":
            return "warning"
        case _:
            return "error"


def _is_said_alike(one: _Entry, other: _Entry) -> bool:
    said = [
        (each.fields.get("group"), SENTENCES[each.name].one.format_map(_Words(each.fields)))
        for each in (one, other)
    ]
    return said[0] == said[1]


def _told(entry: _Entry, name_of: NameOfGroup) -> str:
    sentence = SENTENCES.get(entry.name) or _unknown(entry)
    text = sentence.many if entry.count > 1 and sentence.many else sentence.one
    words = _Words(entry.fields)
    words["count"] = entry.count
    group = entry.fields.get("group")
    if "partition" not in words and isinstance(group, int):
        words["partition"] = name_of(GroupId(group))
    told = " ".join(text.format_map(words).split())
    return told if len(told) <= TEXT_CHARACTERS_MAX else f"{told[: TEXT_CHARACTERS_MAX - 1]}…"


def _unknown(entry: _Entry) -> Sentence:
    reason = next((key for key in ("reason", "error") if key in entry.fields), None)
    words = entry.name.replace("_", " ").replace("{", "").replace("}", "")
    return Sentence(f"{words}: {{{reason}}}" if reason else words)


class _Words(dict[str, Any]):
    """Fields for a sentence; one that the event does not have is a dash."""

    def __missing__(self, key: str) -> str:
        return "-"
