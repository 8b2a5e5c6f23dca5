"""What must hold of the brokers themselves at the end of a run, whatever clients saw.

Below the commit offset all replicas hold the same bytes, which are read out of the simulated
files with the tools that operators have; all brokers that have joined have applied the whole
metadata log, and have the same picture of the cluster.

Where a log is compacted, replicas hold the same of each batch that several of them hold, as far
as they hold it; and at any time, what deletes a key is gone nowhere while anything that it deletes
is left anywhere.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

from logd.errors import LogdError
from logd.limits import MIB
from logd.raft.messages import Configuration
from logd.record.batch import decode_batch
from logd.record.header import BatchHeader, decode_header
from logd.replication.group import Group
from logd.storage.offline import SegmentWalk, check_chain, find_segments
from logd.types import GroupId, Offset
from tests.sim.cluster import DATA_DIR, SimCluster, SimNode
from tests.sim.history import Append, History, Outcome


def check_metadata(cluster: SimCluster) -> list[str]:
    """The metadata's own invariants on each broker, and that all of them have the same."""
    found: dict[tuple[Offset, bytes], list[str]] = defaultdict(list)
    for node in cluster.alive():
        if node.broker is None:
            continue
        metadata = node.broker.metadata
        if not metadata.is_known:
            continue  # The member that it was told to ask may be gone before it has joined.
        metadata.state.check_invariants()
        found[metadata.applied_offset, metadata.state.snapshot()].append(node.host)
    if len(found) <= 1:
        return []
    which = "; ".join(f"{', '.join(hosts)} at {at}" for (at, _), hosts in found.items())
    return [f"brokers differ about the metadata: {which}"]


def check_members(cluster: SimCluster) -> list[str]:
    """A partition is replicated by those whom the metadata name: nobody is left in its group who
    was on the way there, nor is a change of members left half-way."""
    wrong: list[str] = []
    for node in cluster.alive():
        state = None if node.broker is None else node.broker.metadata.state
        for group_id, group in node.groups.items():
            placement = None if state is None else state.placement(group_id)
            if placement is None or not group.is_ready:
                continue
            wanted = Configuration(placement.replicas)
            if placement.move is None and group.configuration != wanted:
                wrong.append(f"{placement.name} has members {group.configuration}, not {wanted}")
    return wrong


def check_replicas(cluster: SimCluster, compacted: GroupId | None = None) -> list[str]:
    """Replicas' files are equal below the commit offset, and each is a log."""
    wrong: list[str] = []
    holders: dict[GroupId, list[SimNode]] = defaultdict(list)
    for node in cluster.alive():
        for group in node.groups:
            holders[group].append(node)
    for group, nodes in holders.items():
        known: dict[object, tuple[str, object]] = {}
        for node in nodes:
            try:
                held = _committed_batches(node, group)
            except LogdError as error:
                wrong.append(f"{node.host}, group {group}: {error}")
                continue
            parts = _what_stays(held.values()) if group == compacted else held.items()
            for offset, batch in parts:
                host, other = known.setdefault(offset, (node.host, batch))
                if other != batch:
                    wrong.append(f"group {group}: {host} and {node.host} differ at {offset}")
                    break
    return wrong


def _committed_batches(node: SimNode, group: GroupId) -> dict[int, bytes]:
    """Base offset → batch, out of the files.  Raises LogdError if they are not a log."""
    commit_offset = node.groups[group].commit_offset
    segments = find_segments(node.files, f"{DATA_DIR}/groups/{group:020}")
    chain = check_chain(segments)
    if chain:
        raise LogdError("; ".join(chain))
    batches: dict[int, bytes] = {}
    append_time_ms = 0
    for segment in segments:
        walk = SegmentWalk(node.files, segment)
        for _, header, batch in walk:
            if header.base_offset >= commit_offset:
                break
            if header.append_time_ms < append_time_ms:
                raise LogdError(f"append time goes backwards at {header.base_offset}")
            append_time_ms = header.append_time_ms
            batches[header.base_offset] = bytes(batch)
        if walk.stop is not None and walk.stop.is_damage:
            raise LogdError(f"{segment.path}: {walk.stop.reason}")
        if walk.end_offset < commit_offset and segment.is_active:
            raise LogdError(f"ends at {walk.end_offset}, below its commit offset {commit_offset}")
    return batches


# --- compacted logs ---------------------------------------------------------------------------


def _what_stays(batches: Iterable[bytes]) -> Iterator[tuple[object, object]]:
    """What is the same wherever it is held: of batches what producers' state rests on, and of
    records everything."""
    for batch in batches:
        header = decode_header(batch)
        if header.is_gap:
            continue
        yield header.base_offset, (header.end_offset, header.term, header.append_time_ms)
        yield (
            ("producer", header.base_offset),
            (header.producer_id, header.producer_epoch, header.base_sequence),
        )
        if _has_records(header):
            held = decode_batch(batch)
            rows = zip(held.keys, held.values, held.headers, held.timestamps_ms, strict=True)
            yield from zip((("record", offset) for offset in held.offsets), rows, strict=True)


def _has_records(header: BatchHeader) -> bool:
    return bool(header.record_count) and not header.is_control


class KeyWatch:
    """Whether what was deleted can come back, in one compacted group."""

    def __init__(self, cluster: SimCluster, group: GroupId) -> None:
        self.group = group
        self._cluster = cluster

    def wrong(self, history: History) -> list[str]:
        """Each key whose tombstone is gone from one replica while another one holds what it
        deletes."""
        leader = self._cluster.leader_of(self.group)
        if leader is None:
            return []
        members = leader.groups[self.group].configuration.members
        replicas: list[_HeldKeys] = []
        for node in self._cluster.alive():
            if node.node in members and self.group in node.groups:
                with node.files.trouble_suspended():  # It is the test that looks.
                    replicas.append(_HeldKeys(node.host, node.groups[self.group]))
        wrong: list[str] = []
        for key, offset in _deleted(history).items():
            gone = [replica.host for replica in replicas if replica.is_rid_of(key, offset)]
            left = [replica.host for replica in replicas if replica.has_before(key, offset)]
            # A later record takes its place, also where that has not arrived yet.
            is_replaced = any(replica.has_after(key, offset) for replica in replicas)
            if gone and left and not is_replaced:
                wrong.append(f"{key!r} was deleted at {offset}: {gone} forgot that, {left} has it")
        return wrong


def _deleted(history: History) -> dict[bytes, int]:
    """Key → where it was deleted, as far as the last that was acknowledged deletes it."""
    last: dict[bytes, Append] = {}
    for append in history.appends:
        if append.key is not None and append.outcome is Outcome.ACKNOWLEDGED:
            before = last.get(append.key)
            if before is None or before.offset < append.offset:
                last[append.key] = append
    return {key: append.offset for key, append in last.items() if append.deletes}


class _HeldKeys:
    """The keys in the committed part of one replica's log, as it stands."""

    def __init__(self, host: str, group: Group) -> None:
        self.host = host
        log = group.log
        self._start, self._end = log.start_offset, log.start_offset
        self._offsets: dict[bytes | None, list[int]] = defaultdict(list)
        if group.failure is not None or group.commit_offset <= log.start_offset:
            return
        with contextlib.suppress(LogdError):  # Damaged: it is seen as far as it can be read.
            while found := log.read(self._end, group.commit_offset, MIB, cached_only=False):
                for batch in found:
                    self._take(batch)

    def _take(self, batch: memoryview) -> None:
        header = decode_header(batch)
        self._end = header.end_offset
        if _has_records(header):
            held = decode_batch(batch, header)
            for key, offset in zip(held.keys, held.offsets, strict=True):
                self._offsets[key].append(offset)

    def is_rid_of(self, key: bytes, offset: int) -> bool:
        """Nothing is left of what the key was at ``offset``, nor of what came later."""
        is_covered = self._start <= offset < self._end
        return is_covered and not any(held >= offset for held in self._offsets[key])

    def has_after(self, key: bytes, offset: int) -> bool:
        return any(held > offset for held in self._offsets[key])

    def has_before(self, key: bytes, offset: int) -> bool:
        return any(held < offset for held in self._offsets[key])
