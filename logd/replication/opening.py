"""Opens one replica from its directory, or creates it.  Blocking; runs off the event loop.

The log is the truth; everything else is derived.  The partition's state is loaded from the
newest checkpoint and brought up to the log's end by replaying headers, so that opening
takes as long as the last checkpoint is old, not as long as the log is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from logd.errors import BeyondRepairError, CorruptionError, NoRoomError, StorageError
from logd.partition.state import PartitionState, StateSnapshot
from logd.raft.core import RaftCore
from logd.raft.messages import Configuration, HardState
from logd.raft.term_history import TermHistory
from logd.record.control import ConfigurationChange, decode_control
from logd.record.header import HEADER_BYTES
from logd.replication.installing import begin_install, finish_install, has_begun
from logd.storage.checkpoint import CheckpointStore, application_store
from logd.storage.hard_state import HardStateFile
from logd.storage.log import Log, LogIdentity, LogOptions
from logd.storage.room import is_no_descriptor
from logd.storage.whole_file import UNFINISHED_SUFFIX, parent, write_in_new_directory
from logd.types import GroupId, NodeId, Offset, Term

if TYPE_CHECKING:
    from collections.abc import Callable

    from logd.env import FileSystem
    from logd.raft.options import RaftOptions
    from logd.replication.snapshot import Snapshot
    from logd.storage.directory import DataDirectory
    from logd.storage.kept_open import KeptOpen


def configuration_of(change: ConfigurationChange) -> Configuration:
    """What a configuration batch puts in force."""
    return Configuration(change.voters, change.learners, change.voters_outgoing)


def change_to(configuration: Configuration) -> ConfigurationChange:
    """The configuration batch that puts ``configuration`` in force."""
    return ConfigurationChange(
        voters=configuration.voters,
        learners=configuration.learners,
        voters_outgoing=configuration.voters_outgoing,
    )


@dataclass(slots=True)
class OpenedGroup:
    """The files of one replica, open, and what was derived from them."""

    group_id: GroupId
    directory: str
    identity: LogIdentity
    log: Log
    hard_state: HardStateFile
    checkpoints: CheckpointStore
    applications: CheckpointStore
    """State of the state machine that is fed from the log, if there is one."""
    options: LogOptions
    kept_open: KeptOpen
    """Which files of all logs stay open behind a read."""
    state: PartitionState
    terms: list[tuple[Term, Offset]]
    """Where each term begins in the log."""
    configuration: Configuration | None
    """In force below the checkpoint; None: what the group began with is."""
    configuration_changes: list[tuple[Offset, Configuration]]
    """Those behind it."""
    loaded_hard_state: HardState
    commit_offset: Offset
    """From the synced mark: what certainly was committed."""
    boot: int = 0
    """The present boot of the machine, in whose memory the log may lie."""
    batches_replayed: int = 0
    damage: str | None = None
    """Why this replica may neither vote nor lead, and has no state; None if it is whole."""

    def replay_state(self) -> PartitionState:
        """The state at the log's end, from the newest checkpoint and the headers behind it."""
        self.state = _replay(self.log, self.checkpoints).state
        return self.state

    def check_replay(self, end: Offset) -> None:
        """See whether the state could be replayed from the log if that ended at ``end``.

        Raises:
            CorruptionError: what it would be replayed from is damaged.
        """
        found = self.checkpoints.load(at_most=end)
        start = self.log.start_offset if found is None else found[0]
        if self.log.start_offset <= start < end:
            for header, _ in self.log.replay(start):
                if header.end_offset >= end:
                    break

    def install(self, files: FileSystem, snapshot: Snapshot) -> None:
        """Put ``snapshot`` in the place of the log and of what was derived from it.

        Raises:
            NoRoomError: the disk has none: the same is to be done again, and nothing else before.
            StorageError: the disk failed: the replica must stop, and a restart finds out.
        """
        if not has_begun(files, self.directory):
            begin_install(files, self.directory, self.identity, snapshot)
        self.log.close()
        finish_install(files, self.directory, self.identity, self.options)
        self.log = Log.open(
            files, self.directory, self.identity, self.options, kept_open=self.kept_open
        )
        self.replay_state()

    def snapshot_state(self, state: PartitionState, core: RaftCore) -> StateSnapshot:
        """A checkpoint of ``state``, which is at the log's end, with what the core knows of it."""
        assert state.end_offset == core.log_end
        return state.snapshot(
            term_rows=core.term_history.rows, configuration=change_to(core.configuration)
        )

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
    boot: int = 0,
) -> OpenedGroup:
    """Open the replica's directory, creating it if there is none.

    Raises:
        StorageError: the directory cannot be used.
        BeyondRepairError: its directory, its votes or its log are gone, or a trimmed log has lost
            its checkpoints.
        CorruptionError: an earlier replica's promises are damaged beyond their redundancy.
        OSError: the disk failed, or does not say what is there.
    """
    path = directory.group_path(group_id)
    identity = LogIdentity(directory.directory_id, node, group_id)
    is_new = not files.exists(path)
    if is_new:
        if directory.is_noted(group_id):
            raise BeyondRepairError(
                f"{path} is gone: it held a replica that may have voted and acknowledged, so "
                "none is made there as if there had been none"
            )
        _create(files, path, identity, directory.promises_path(group_id))
    elif not directory.is_noted(group_id):
        # Whoever made it may have been refused at the last step, and it promises from now on.
        files.sync_directory(parent(path))
    # Also one that was made before, and for whose note there was no room then.
    directory.note_group(group_id)
    if not files.exists(f"{path}/hard_state"):
        raise BeyondRepairError(
            f"{path} holds a replica without its votes (hard_state is missing): it may have "
            "voted, so it stays shut"
        )
    try:
        hard_state = HardStateFile.open(files, f"{path}/hard_state", identity, is_new=is_new)
    except CorruptionError as error:
        raise BeyondRepairError(str(error)) from error
    finish_install(files, path, identity, options)
    log = Log.open(files, path, identity, options, is_new=is_new, kept_open=directory.kept_open)
    checkpoints = CheckpointStore(files, path, identity)
    term, voted_for = hard_state.load()
    damage = _damage(log)
    replayed = _Replayed(PartitionState(log.start_offset))
    if damage is None:
        try:
            replayed = _replay(log, checkpoints)
        except CorruptionError as error:
            damage = str(error)
        except (OSError, StorageError):
            log.close()
            raise
    terms = replayed.terms
    if terms and terms[-1][0] > term:
        log.close()
        raise BeyondRepairError(
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
        applications=application_store(files, path, identity),
        options=options,
        kept_open=directory.kept_open,
        state=replayed.state,
        terms=terms,
        configuration=replayed.configuration,
        configuration_changes=replayed.configuration_changes,
        loaded_hard_state=HardState(term, voted_for, hard_state.is_newcomer, hard_state.rests_on),
        boot=boot,
        commit_offset=log.start_offset
        if mark is None
        else max(log.start_offset, min(mark.commit_offset, log.end_offset)),
        batches_replayed=replayed.count,
        damage=damage,
    )


def start_core(
    opened: OpenedGroup,
    first: Configuration,
    *,
    options: RaftOptions,
    draw: Callable[[], float],
    now_ms: int,
) -> RaftCore:
    """The consensus core of a replica that was opened.

    Args:
        first: what the group began with, or any configuration that was committed since: in
            force here until the log tells of another.
    """
    return RaftCore(
        node=opened.identity.node,
        group=opened.group_id,
        configuration=first if opened.configuration is None else opened.configuration,
        configuration_changes=opened.configuration_changes,
        hard_state=opened.loaded_hard_state,
        term_history=opened.term_history(),
        log_start=opened.log.start_offset,
        log_end=opened.log.end_offset,
        commit_offset=opened.commit_offset,
        options=options,
        draw=draw,
        now_ms=now_ms,
        boot=opened.boot,
    )


def _damage(log: Log) -> str | None:
    if log.recovery.mark_lost:
        return "both synced marks are unreadable: what it acknowledged is not known"
    return "; ".join(log.recovery.damage) or None


def _create(files: FileSystem, path: str, identity: LogIdentity, promises: str) -> None:
    """Make the files under another name, and give them theirs when all are there.

    So a directory of that name without its votes is damage, and never a creation that a crash
    cut short.  What an earlier replica of the group promised here holds for this one.
    """
    promised = None
    if files.exists(promises):
        promised = HardStateFile.open(files, promises, identity).load()
        files.sync_directory(parent(promises))
    unfinished = f"{path}{UNFINISHED_SUFFIX}"
    if files.exists(unfinished):
        files.remove_tree(unfinished)
    files.make_directory(unfinished)
    Log.lay_out(files, unfinished, identity)
    HardStateFile.create(
        files, f"{unfinished}/hard_state", identity, promised, write=write_in_new_directory
    )
    files.sync_directory(unfinished)
    files.rename(unfinished, path)
    files.sync_directory(parent(path))


@dataclass(slots=True)
class _Replayed:
    """What the newest checkpoint and the headers behind it tell."""

    state: PartitionState
    terms: list[tuple[Term, Offset]] = field(default_factory=list)
    configuration: Configuration | None = None
    configuration_changes: list[tuple[Offset, Configuration]] = field(default_factory=list)
    count: int = 0
    """Batches behind the checkpoint."""


def _replay(log: Log, checkpoints: CheckpointStore) -> _Replayed:
    replayed = _from_checkpoint(log, checkpoints)
    state, terms = replayed.state, replayed.terms
    if state.end_offset > log.end_offset:
        # It was shipped, and the log has not reached it yet: the batches below are in it.
        replayed.terms = [row for row in terms if row[1] < log.end_offset]
        return replayed
    for header, batch in log.replay(state.end_offset):
        if not terms or header.term != terms[-1][0]:
            terms.append((header.term, header.base_offset))
        control = None if batch is None else decode_control(batch[HEADER_BYTES:])
        state.note(header, control)
        if isinstance(control, ConfigurationChange):
            change = (header.base_offset, configuration_of(control))
            replayed.configuration_changes.append(change)
        replayed.count += 1
    if state.end_offset != log.end_offset:
        raise CorruptionError(f"the headers end at {state.end_offset}, the log at {log.end_offset}")
    return replayed


def _from_checkpoint(log: Log, checkpoints: CheckpointStore) -> _Replayed:
    found = checkpoints.load(at_most=log.end_offset)
    if log.start_offset > 0 and (found is None or found[0] < log.start_offset):
        found = checkpoints.load()
    if log.start_offset > 0 and (found is None or found[0] < log.start_offset):
        # Final only if it is gone: else the replica would be made anew, for a mode that is wrong.
        refusal: type[StorageError] = StorageError if checkpoints.refused else BeyondRepairError
        if is_no_descriptor(checkpoints.refused):
            refusal = NoRoomError
        raise refusal(
            f"the log begins at offset {log.start_offset}, and no checkpoint from there on can be "
            f"read: {'; '.join(checkpoints.damaged) or 'there is none'}"
        ) from checkpoints.refused
    if found is None:
        return _Replayed(PartitionState(log.start_offset))
    state, rows, change = PartitionState.decode(found[1])
    terms = [(row.term, row.start_offset) for row in rows]
    return _Replayed(state, terms, None if change is None else configuration_of(change))
