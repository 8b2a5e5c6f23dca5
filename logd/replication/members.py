"""Who replicates a group, and how that is changed.

The steps of a change, and whether one may be begun, are the core's to say (joint consensus:
``raft/leadership.py``).  Here a step is appended to the log and put in force there, whoever
asked is told what became of it, and the node is told of new members, so that it finds out who of
them lives.

A change is the group's, not that of the leader that began it: a later leader completes what
was committed of it.  Whoever waits with the old one is told that it is not known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import structlog
import trio

from logd.errors import LogdError, UnavailableError
from logd.raft.messages import Configuration
from logd.raft.quorum import is_voter
from logd.replication import log_events
from logd.replication.appending import CONTROL_BYTES_MAX
from logd.replication.opening import change_to
from logd.types import NodeId, Offset

if TYPE_CHECKING:
    from logd.raft.core import RaftCore
    from logd.replication.group import Group
    from logd.replication.seams import GroupHost

log = structlog.get_logger(__name__)


class MemberProgress(NamedTuple):
    """What a leader knows of one member, itself included."""

    node: NodeId
    is_voter: bool
    synced_end: Offset | None
    """Durable end of its log; None until it has told this leader."""
    is_caught_up: bool
    """It may be made a voter, if it is none."""
    bytes_behind: int | None
    """About how much it lacks."""


class _Change:
    """Somebody waits for a change of the members."""

    __slots__ = ("error", "is_begun", "settled", "wanted")

    def __init__(self, wanted: Configuration) -> None:
        self.wanted = wanted
        self.is_begun = False
        self.error: LogdError | None = None
        self.settled = trio.Event()

    def settle(self, error: LogdError | None) -> None:
        """Tell whoever waits, once."""
        if not self.settled.is_set():
            self.error = error
            self.settled.set()


class Members:
    """The members of one group."""

    __slots__ = ("_changes", "_core", "_group", "_host", "_introduced")

    def __init__(self, group: Group, host: GroupHost) -> None:
        self._group = group
        self._core: RaftCore = group.core
        self._host = host
        self._introduced = group.core.configuration.members
        """Those whose coming and going the core is told."""
        self._changes: list[_Change] = []

    # --- changing them ------------------------------------------------------------------------

    async def change_configuration(
        self, voters: tuple[NodeId, ...], learners: tuple[NodeId, ...]
    ) -> None:
        """Have ``voters`` vote and ``learners`` follow; return when that is committed.

        To be asked of the leader.  A node becomes a voter by way of a caught-up learner.  A
        leader that is left out hands over.  Asked for what is there already, or under way, it
        waits for that: repeating the call is harmless.

        Cancelling gives up the waiting, not the change: it is completed by this leader or a
        later one, or undone if it was not committed when the leader was lost.

        Raises:
            NotLeaderError: another node leads; nothing was begun.
            ChangeUnderWayError: another change has to be completed first.
            LearnerBehindError: a learner is not caught up yet.
            InvalidRequestError: no such configuration can be, or a voter would not have been
                a learner.
            UnavailableError: the leader is new or handing over, or too few of ``voters``
                follow it.
            LeadershipLostError: the leader stepped down; what is committed, the next one knows.
            OverloadedError: the leader's disk does not answer, and too many wait for that.
            DiskFullError: the leader's disk has no room for it; nothing was begun.
        """
        change = _Change(Configuration(voters, learners))
        self._changes.append(change)
        try:
            refused = self._group.ask_when_free(lambda: self._begin(change))
            if refused is not None:
                raise refused
            await change.settled.wait()
        finally:
            self._changes.remove(change)
        if change.error is not None:
            raise change.error

    def _begin(self, change: _Change) -> None:
        group, core = self._group, self._core
        if not group.is_leader:
            change.settle(group.leadership.not_leader())
            return
        current = core.configuration
        if change.wanted == current and core.configuration_is_committed:
            # By this leader's knowledge: a later one may have changed it since.
            group.leadership.confirm(change.settle)
        elif change.wanted == current.without_outgoing:
            change.is_begun = True
        else:
            try:
                first = core.first_step_to(change.wanted)
            except LogdError as error:
                change.settle(error)
                return
            if not group.make_room(CONTROL_BYTES_MAX):  # Else it would let go, and cannot be asked.
                change.settle(group.proposals.no_room())
                return
            change.is_begun = True
            self.append(first)

    def append(self, configuration: Configuration) -> None:
        """Append what puts ``configuration`` in force, which it is from then on."""
        group = self._group
        assert not group.is_held
        log.info(
            log_events.CONFIGURATION_CHANGED,
            group=group.group_id,
            voters=configuration.voters,
            learners=configuration.learners,
            voters_outgoing=configuration.voters_outgoing,
        )
        group.append_control(change_to(configuration), configuration)

    def take_back(self, configuration: Configuration) -> None:
        """Too few of the new voters are left to commit the change that would make them vote."""
        for change in self._changes:
            if change.is_begun:
                change.settle(
                    UnavailableError(
                        f"the change of {self._group.name} to voters {change.wanted.voters} was "
                        "taken back: too few of them were left before it was committed"
                    )
                )
                change.is_begun = False
        self.append(configuration)

    def put_in_force(self, offset: Offset, configuration: Configuration) -> None:
        """A configuration batch has been appended at ``offset``."""
        output = self._core.apply_configuration(offset, configuration, self._host.now_ms())
        assert output.persist is None
        for message in output.send_now:
            self._host.send(message)
        for read_id, _ in output.reads_confirmed:
            self._group.leadership.on_confirmed(read_id)
        self.introduce()

    def introduce(self) -> None:
        """The configuration in force may be another: learn who of its members is alive."""
        members = self._core.configuration.members
        added = tuple(node for node in members if node not in self._introduced)
        self._introduced = members
        if added:
            self._host.introduce_later(self._group, added)

    def settle_committed(self) -> None:
        """The commit offset has moved: tell those whose change is complete."""
        if not self._changes:
            return
        current = self._core.configuration
        if current.is_joint or not self._core.configuration_is_committed:
            return
        for change in self._changes:
            if change.is_begun:
                assert change.wanted == current, "one change at a time"
                change.settle(None)

    def give_up(self) -> None:
        """This node leads no more: what becomes of the changes is not known here."""
        leadership = self._group.leadership
        for change in self._changes:
            change.settle(leadership.lost() if change.is_begun else leadership.not_leader())

    # --- what is known of them ----------------------------------------------------------------

    def progress(self) -> tuple[MemberProgress, ...]:
        """How far each member is, as this leader knows it; empty unless leading."""
        if not self._group.is_leader:
            return ()
        configuration = self._core.configuration
        return tuple(
            self._progress_of(node, is_voter(configuration, node)) for node in configuration.members
        )

    def _progress_of(self, node: NodeId, votes: bool) -> MemberProgress:
        if node == self._host.node:
            end = self._core.synced_end
            return MemberProgress(node, votes, end, is_caught_up=True, bytes_behind=0)
        end_known = self._group.feeder.acknowledged_end(node)
        return MemberProgress(
            node,
            votes,
            end_known,
            is_caught_up=self._core.is_caught_up(node),
            bytes_behind=None if end_known is None else self._group.log.bytes_from(end_known),
        )
