"""What must hold of the brokers themselves at the end of a run, whatever clients saw.

Below the commit offset all replicas hold the same bytes, which are read out of the simulated
files with the tools that operators have; all brokers that have joined have applied the whole
metadata log, and have the same picture of the cluster.
"""

from __future__ import annotations

from collections import defaultdict

from logd.errors import LogdError
from logd.raft.messages import Configuration
from logd.storage.offline import SegmentWalk, check_chain, find_segments
from logd.types import GroupId, Offset
from tests.sim.cluster import DATA_DIR, SimCluster, SimNode


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


def check_replicas(cluster: SimCluster) -> list[str]:
    """Replicas' files are equal below the commit offset, and each is a log."""
    wrong: list[str] = []
    holders: dict[GroupId, list[SimNode]] = defaultdict(list)
    for node in cluster.alive():
        for group in node.groups:
            holders[group].append(node)
    for group, nodes in holders.items():
        known: dict[int, tuple[str, bytes]] = {}
        for node in nodes:
            try:
                batches = _committed_batches(node, group)
            except LogdError as error:
                wrong.append(f"{node.host}, group {group}: {error}")
                continue
            for offset, batch in batches.items():
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
