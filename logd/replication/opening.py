"""Opens one replica from its directory, or creates it.  Blocking; runs off the event loop.

The log is the truth; everything else is derived.  The partition's state is loaded from the
newest checkpoint and brought up to the log's end by replaying headers, so that opening
takes as long as the last checkpoint is old, not as long as the log is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from logd.errors import CorruptionError, StorageError
from logd.partition.state import PartitionState
from logd.raft.core import RaftCore
from logd.raft.messages import HardState
from logd.raft.term_history import TermHistory
from logd.record.control import Control, decode_control
from logd.record.header import HEADER_BYTES, BatchHeader
from logd.storage.checkpoint import CheckpointStore
from logd.storage.hard_state import HardStateFile
from logd.storage.log import Log, LogIdentity, LogOptions
from logd.storage.whole_file import UNFINISHED_SUFFIX
from logd.types import GroupId, NodeId, Offset, Term

if TYPE_CHECKING:
    from logd.env import FileSystem
    from logd.storage.directory import DataDirectory


@dataclass(slots=True)
class OpenedGroup:
    """The files of one replica, open, and what was derived from them."""

    group_id: GroupId
    directory: str
    identity: LogIdentity
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
    damage: str | None = None
    """Why this replica may neither vote nor lead, and has no state; None if it is whole."""

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
        StorageError: the directory cannot be used, or a trimmed log has lost its checkpoints.
        CorruptionError: its small files are damaged beyond their redundancy.
    """
    path = directory.group_path(group_id)
    identity = LogIdentity(directory.directory_id, node, group_id)
    if not files.exists(path):
        _create(files, path, identity, options)
    if not files.exists(f"{path}/hard_state"):
        raise StorageError(
            f"{path} holds a replica without its votes (hard_state is missing): it may have "
            "voted, so it stays shut; restore the file, or remove the replica"
        )
    hard_state = HardStateFile.open(files, f"{path}/hard_state", identity)
    log = Log.open(files, path, identity, options)
    checkpoints = CheckpointStore(files, path, identity)
    term, voted_for = hard_state.load()
    damage = _damage(log)
    state, replayed = PartitionState(log.start_offset), 0
    terms: list[tuple[Term, Offset]] = []
    if damage is None:
        try:
            state, terms, replayed = _replay(log, checkpoints)
        except CorruptionError as error:
            damage = str(error)
        except StorageError:
            log.close()
            raise
    if terms and terms[-1][0] > term:
        log.close()
        raise CorruptionError(
            f"{path}: the log reaches term {terms[-1][0]}, the hard state term {term}: it has lost "
            "votes that were cast"
        )
    mark = log.mark
    return OpenedGroup(
        group_id=group_id,
        directory=path,
        identity=identity,
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
        damage=damage,
    )


def _damage(log: Log) -> str | None:
    if log.recovery.mark_lost:
        return "both synced marks are unreadable: what it acknowledged is not known"
    return "; ".join(log.recovery.damage) or None


def _create(files: FileSystem, path: str, identity: LogIdentity, options: LogOptions) -> None:
    """Make the files under another name, and give them theirs when all are there.

    So a directory of that name without its votes is damage, and never a creation that a crash
    cut short.
    """
    unfinished = f"{path}{UNFINISHED_SUFFIX}"
    if files.exists(unfinished):
        files.remove_tree(unfinished)
    files.make_directory(unfinished)
    Log.create(files, unfinished, identity, options).close()
    HardStateFile.create(files, f"{unfinished}/hard_state", identity)
    files.sync_directory(unfinished)
    files.rename(unfinished, path)
    files.sync_directory(path.rpartition("/")[0])


def _replay(
    log: Log, checkpoints: CheckpointStore
) -> tuple[PartitionState, list[tuple[Term, Offset]], int]:
    found = checkpoints.load(at_most=log.end_offset)
    if log.start_offset > 0 and (found is None or found[0] < log.start_offset):
        raise StorageError(
            f"the log begins at offset {log.start_offset}, and no checkpoint from there on can be "
            f"read: {'; '.join(checkpoints.damaged) or 'there is none'}"
        )
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
