"""Opens one replica from its directory, or creates it.  Blocking; runs off the event loop.

The log is the truth; everything else is derived.  The partition's state is loaded from the
newest checkpoint and brought up to the log's end by replaying headers, so that opening
takes as long as the last checkpoint is old, not as long as the log is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from logd.errors import CorruptionError
from logd.partition.state import PartitionState
from logd.raft.core import RaftCore
from logd.raft.messages import HardState
from logd.raft.term_history import TermHistory
from logd.record.control import Control, decode_control
from logd.record.header import HEADER_BYTES, BatchHeader
from logd.storage.checkpoint import CheckpointStore
from logd.storage.hard_state import HardStateFile
from logd.storage.log import Log, LogIdentity, LogOptions
from logd.types import GroupId, NodeId, Offset, Term

if TYPE_CHECKING:
    from logd.env import FileSystem
    from logd.storage.directory import DataDirectory


@dataclass(slots=True)
class OpenedGroup:
    """The files of one replica, open, and what was derived from them."""

    group_id: GroupId
    log: Log
    hard_state: HardStateFile
    checkpoints: CheckpointStore
    state: PartitionState
    terms: list[tuple[Term, Offset]]
    """Where each term begins in the log."""
    loaded_hard_state: HardState
    commit_offset: Offset
    """From the synced mark: what certainly was committed."""
    batches_replayed: int = 0

    @property
    def damage(self) -> str | None:
        """Why this replica may neither vote nor lead; None if it is whole."""
        report = self.log.recovery
        if report.mark_lost:
            return "both synced marks are unreadable: what it acknowledged is not known"
        return "; ".join(report.damage) or None

    def replay_state(self) -> PartitionState:
        """The state at the log's end, from the newest checkpoint and the headers behind it."""
        self.state, self.terms, self.batches_replayed = _replay(self.log, self.checkpoints)
        return self.state

    def encode_state(self, state: PartitionState, core: RaftCore) -> bytes:
        """A checkpoint of ``state``, with the term history below its end."""
        rows = [row for row in core.term_history.rows if row[1] < state.end_offset]
        return state.encode(term_rows=rows)

    def term_history(self) -> TermHistory:
        """A fresh history for the core; it keeps it up to date from here on."""
        return TermHistory(self.terms)

    def close(self) -> None:
        """Close the files."""
        self.log.close()


def open_group(
    files: FileSystem,
    directory: DataDirectory,
    node: NodeId,
    group_id: GroupId,
    options: LogOptions,
) -> OpenedGroup:
    """Open the replica's directory, creating it if there is none.

    Raises:
        StorageError: the directory cannot be used.
        CorruptionError: its small files are damaged beyond their redundancy.
    """
    path = directory.group_path(group_id)
    identity = LogIdentity(directory.directory_id, node, group_id)
    if not files.exists(f"{path}/hard_state"):
        _create(files, path, identity, options)
    hard_state = HardStateFile.open(files, f"{path}/hard_state", identity)
    log = Log.open(files, path, identity, options)
    checkpoints = CheckpointStore(files, path, identity)
    term, voted_for = hard_state.load()
    state, terms, replayed = _replay(log, checkpoints)
    if terms and terms[-1][0] > term:
        log.close()
        raise CorruptionError(
            f"{path}: the log reaches term {terms[-1][0]}, the hard state term {term}: it has lost "
            "votes that were cast"
        )
    mark = log.mark
    return OpenedGroup(
        group_id=group_id,
        log=log,
        hard_state=hard_state,
        checkpoints=checkpoints,
        state=state,
        terms=terms,
        loaded_hard_state=HardState(term, voted_for),
        commit_offset=log.start_offset
        if mark is None
        else max(log.start_offset, min(mark.commit_offset, log.end_offset)),
        batches_replayed=replayed,
    )


def _create(files: FileSystem, path: str, identity: LogIdentity, options: LogOptions) -> None:
    """Create the files; the hard state comes last, because it says that all are there."""
    if files.exists(path):
        files.remove_tree(path)  # Left half-made by a crash: it never voted, it holds nothing.
    files.make_directory(path)
    Log.create(files, path, identity, options).close()
    HardStateFile.create(files, f"{path}/hard_state", identity)
    files.sync_directory(path)
    files.sync_directory(path.rpartition("/")[0])


def _replay(
    log: Log, checkpoints: CheckpointStore
) -> tuple[PartitionState, list[tuple[Term, Offset]], int]:
    found = checkpoints.load(at_most=log.end_offset)
    if found is None:
        state = PartitionState(log.start_offset)
        terms: list[tuple[Term, Offset]] = []
    else:
        state, rows, _ = PartitionState.decode(found[1])
        terms = [(row.term, row.start_offset) for row in rows]
    replayed = 0
    for header in log.headers(state.end_offset):
        if not terms or header.term != terms[-1][0]:
            terms.append((header.term, header.base_offset))
        state.note(header, _control(log, header))
        replayed += 1
    if state.end_offset != log.end_offset:
        raise CorruptionError(f"the headers end at {state.end_offset}, the log at {log.end_offset}")
    return state, terms, replayed


def _control(log: Log, header: BatchHeader) -> Control | None:
    if not header.is_control:
        return None
    found = log.read(header.base_offset, header.end_offset, 1, cached_only=False)
    assert found is not None
    return decode_control(found[0][HEADER_BYTES:])
