"""What goes into the consensus core and what comes out of it.

The field names of ``Output`` *are* the contract between the core and its driver: each says
when it may be carried out.  Messages are frozen msgspec structs because they also travel;
events and outputs stay in the process.

Offsets: ``end_offset`` is exclusive.  ``prev_term`` is the term of the batch that ends at
``start_offset`` (0 for an empty prefix): the paper's prevLogTerm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import msgspec

from logd.types import GroupId, NodeId, Offset, Term


class Role(IntEnum):
    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


@dataclass(frozen=True, slots=True)
class HardState:
    """What must survive a crash for the node to keep its promises."""

    term: Term
    voted_for: NodeId | None
    is_newcomer: bool = False
    """An empty replica on a node whose earlier one was removed.  Term and vote are those of the
    earlier one; its log is gone.  It neither votes nor campaigns until it has caught up."""
    rests_on: int = 0
    """The boot of the machine in whose memory some of what this replica vouches for may lie; 0:
    the disk alone.  Of another boot than the present one: that memory is gone, and the replica
    is *doubtful* until a leader has caught it up."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Who replicates a group.

    ``voters`` is in preference order: the first campaigns first.  While ``voters_outgoing``
    is not empty the group is in joint consensus and needs a majority of both sets.
    """

    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()
    voters_outgoing: tuple[NodeId, ...] = ()

    @property
    def members(self) -> tuple[NodeId, ...]:
        """Everybody, each once, voters first."""
        return tuple(dict.fromkeys(self.voters + self.voters_outgoing + self.learners))

    @property
    def electors(self) -> tuple[NodeId, ...]:
        """Who votes, each once, in order of preference."""
        return tuple(dict.fromkeys(self.voters + self.voters_outgoing))

    @property
    def is_joint(self) -> bool:
        return bool(self.voters_outgoing)

    @property
    def without_outgoing(self) -> Configuration:
        """What a joint configuration leads to."""
        return Configuration(self.voters, self.learners)

    @property
    def taken_back(self) -> Configuration:
        """What a joint configuration came from, with those that were to vote as learners again."""
        newcomers = tuple(node for node in self.voters if node not in self.voters_outgoing)
        learners = tuple(node for node in self.learners if node not in self.voters_outgoing)
        return Configuration(self.voters_outgoing, newcomers + learners)


class BatchSpan(NamedTuple):
    """One batch as the core sees it: where it lies and which leader appended it."""

    base_offset: Offset
    end_offset: Offset
    term: Term


# --- messages ---------------------------------------------------------------------------


class RaftMessage(msgspec.Struct, frozen=True, kw_only=True):
    """From one replica of a group to another."""

    group: GroupId
    source: NodeId
    target: NodeId
    term: Term


class VoteRequest(RaftMessage, frozen=True, kw_only=True):
    """Asks to lead ``term`` on the strength of a log ending at (last_term, end_offset).

    With ``pre_vote`` nothing is promised yet and ``term`` is the one that would be
    campaigned for.  With ``transfer`` the old leader asked for this: stickiness is waived.
    """

    last_term: Term
    end_offset: Offset
    pre_vote: bool = False
    transfer: bool = False
    restart: bool = False
    """A majority has lost its memory: doubtful voters vote too, by what is on their disks."""


class VoteResponse(RaftMessage, frozen=True, kw_only=True):
    """For a granted pre-vote ``term`` is the requested one, else the responder's own."""

    granted: bool
    pre_vote: bool = False
    doubtful: bool = False
    """The voter has lost its memory.  Its pre-vote says only that its log is not the longer one."""


class AppendRequest(RaftMessage, frozen=True, kw_only=True, omit_defaults=True):
    """Batches [start_offset, end_offset); empty (start = end) to probe, announce, confirm.

    The batches themselves travel as the frame's body.
    """

    start_offset: Offset
    end_offset: Offset
    prev_term: Term
    commit_offset: Offset
    round: int
    """Echoed in the answer; a quorum of echoes confirms leadership (ReadIndex)."""
    expects_answer: bool = True
    """False: it only tells the commit offset, and is answered only if it is refused."""
    enrolment: Offset
    """Where this leader made the follower a member, or began to lead with it as one.  Echoed:
    what a replica said before it was removed is not taken for what its successor has."""
    doubt: int = 0
    """The doubt of the follower (see the response) that this leader has taken note of."""
    whole_end: Offset = Offset(0)
    """Where this leader's log ended then: durable below it, the follower is whole again."""


class AppendResponse(RaftMessage, frozen=True, kw_only=True, omit_defaults=True):
    """Accepted: everything below ``synced_end`` equals the leader's log and is durable here;
    everything below ``received_end`` equals it and is in memory at least.

    Refused: the logs differ at the request's start.  ``conflict_term`` is the largest term
    in the follower's log that is not above the request's ``prev_term``, ``conflict_end``
    where that term ends there: the leader resolves the divergence in one round trip.
    """

    round: int
    accepted: bool
    synced_end: Offset = Offset(0)
    received_end: Offset = Offset(0)
    received_term: Term = Term(0)
    """Of the batch that ends at ``received_end``; 0: it is not told.  The leader has the same
    there, unless the group was restarted with loss while the follower was away."""
    conflict_term: Term = Term(0)
    conflict_end: Offset = Offset(0)
    enrolment: Offset
    held_end: Offset = Offset(0)
    """Below it the follower vouches for everything, some of it in memory; 0: it vouches for what
    is durable."""
    doubt: int = 0
    """The boot in which the follower found that it had lost its memory; 0: it is whole."""


class TimeoutNow(RaftMessage, frozen=True, kw_only=True):
    """Leadership transfer: campaign at once."""


Message = VoteRequest | VoteResponse | AppendRequest | AppendResponse | TimeoutNow


# --- events -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: the driver calls when ``RaftCore.deadline_ms`` is reached."""

    has_room: bool = True
    """False: what begins a term would find no room in the log, so there is nothing to be won."""


@dataclass(frozen=True, slots=True)
class Received:
    """A peer's message, authenticated and decoded, with the batches of an append request."""

    message: Message
    batches: tuple[BatchSpan, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotReceived:
    """The leader of ``term`` has shipped state, because its log begins behind what we lack.

    The driver has it whole, and installs it when the output says so.
    """

    source: NodeId
    term: Term
    enrolment: Offset
    """As in an append request."""
    start_offset: Offset
    """Where the leader's log begins, and ours will."""
    term_rows: tuple[tuple[Term, Offset], ...]
    """The term history below it: at least the term of the batch that ends there."""
    configuration: Configuration
    """One that was committed: as of the state that was shipped."""


@dataclass(frozen=True, slots=True)
class Appended:
    """The driver has written this leader's own batches to its log (not yet synced)."""

    batches: tuple[BatchSpan, ...]
    is_configuration: bool = False
    """What the batch puts in force is told next; before that it does not count as committed."""


@dataclass(frozen=True, slots=True)
class Synced:
    """This node's log is durable below ``end_offset``, whose last batch has ``last_term``.

    A sync may end after its range was truncated and written anew; the term tells.
    """

    end_offset: Offset
    last_term: Term


@dataclass(frozen=True, slots=True)
class PeerUp:
    """The failure detector hears this node (again), perhaps in a new incarnation."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The failure detector has given this node up, or it restarted: stickiness to it ends."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """A new connection *to* this node: messages sent before may be lost.

    A leader probes it again; a follower of it repeats its acknowledgement.
    """

    node: NodeId


@dataclass(frozen=True, slots=True)
class LeaderDisclaimed:
    """``node`` is alive but does not claim to lead this group in our term (any more)."""

    node: NodeId
    term: Term


@dataclass(frozen=True, slots=True)
class TransferLeadership:
    """Hand over to ``target``; None: to the most caught-up voter that is alive."""

    target: NodeId | None


@dataclass(frozen=True, slots=True)
class ReadRequested:
    """Confirm leadership by a round begun now (ReadIndex)."""

    read_id: int


@dataclass(frozen=True, slots=True)
class Resign:
    """Step down without a successor: the log failed, or the broker is stopping."""

    may_campaign: bool
    """False: never again in this process (a node that cannot write does not campaign)."""


@dataclass(frozen=True, slots=True)
class DurabilityChosen:
    """What the group's batches are to rest on, by its committed options."""

    in_memory: bool
    """In the memory of a quorum is enough (``durability=replicated``)."""


Event = (
    Tick
    | Received
    | SnapshotReceived
    | Appended
    | Synced
    | PeerUp
    | PeerDown
    | PeerConnected
    | LeaderDisclaimed
    | TransferLeadership
    | ReadRequested
    | Resign
    | DurabilityChosen
)


@dataclass(slots=True)
class Output:
    """What the driver owes the core after one step, in this order.

    1. ``send_now`` at any time: nothing it says depends on this step's persistence or appends.
    2. ``persist`` durable, before 6.
    3. ``truncate_to``: cut the log there.  The core never asks to go below the commit offset.
    4. ``install_snapshot``: put the shipped state and an empty log in place of what there is,
       durably, before 6.
    5. ``append_from``: write the request's batches from this index on (None: none).
    6. ``send_after_persist``, when 2 and 4 are durable and 5 is written.
    7. the rest are facts to act on: commit offset, reads, role.
    """

    send_now: tuple[Message, ...] = ()
    persist: HardState | None = None
    truncate_to: Offset | None = None
    install_snapshot: bool = False
    append_from: int | None = None
    send_after_persist: tuple[Message, ...] = ()
    commit_offset: Offset | None = None
    """The new commit offset, if it moved."""
    became_leader: bool = False
    """The driver appends the no-op of the new term next, before any other batch."""
    restarted: bool = False
    """It became leader although a majority had lost its memory: what rested on that may be lost."""
    contradicted: bool = False
    """The leader's log differs from what is committed here: the group was restarted without this
    replica.  Its driver stops it."""
    lost_leadership: bool = False
    """To be acted on before ``commit_offset``, which another leader may have told."""
    handed_over: bool = False
    """It lost its leadership to a successor that it had named: another will lead in a moment."""
    left_out: bool = False
    """It leads no more because ``commit_offset`` commits a change that leaves it out.  To be
    acted on after that: what it proposed is committed."""
    reads_confirmed: tuple[tuple[int, Offset], ...] = ()
    """(read_id, offset): serve the read when ``offset`` is applied."""
    reads_failed: tuple[int, ...] = ()
    taken_back: Configuration | None = None
    """The driver appends it next: the change that is under way cannot be completed."""
    snapshot_wanted: NodeId | None = None
    """A follower that needs batches below the log start: ship it state.  Said again with each
    probe that it refuses."""

    def send(self, messages: Sequence[Message]) -> None:
        """Send ``messages`` as early as may be, once all else that they may rest on is in here."""
        # Without anything to persist or to write both are the same; with it, none may be early.
        is_early = self.persist is None and self.append_from is None
        if is_early and not self.install_snapshot:
            self.send_now = tuple(messages)
        else:
            self.send_after_persist = tuple(messages)
