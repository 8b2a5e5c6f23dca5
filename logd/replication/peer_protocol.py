"""What brokers say to each other, and how it is framed.

A link is one-way: the node that dials sends, the node that accepted only answers the
greeting.  Each pair of nodes therefore has a link in either direction per lane, and a
network that is cut one way looks exactly like that.

The consensus messages are defined in ``logd.raft.messages``; the rest are here.  Batches of
an append request are the frame's body.  See docs/wire_protocol.md, "Between brokers".
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, unique
from typing import Final, Literal

import msgspec
from xxhash import xxh3_64_intdigest

from logd.raft.messages import (
    AppendRequest,
    AppendResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from logd.raft.messages import Message as RaftMessage
from logd.wire.frame import PEER_KIND_MIN
from logd.wire.messages import Kind

PEER_PROTOCOL_VERSION: Final = 1
"""The highest version that is spoken here."""

PEER_PROTOCOL_VERSION_MIN: Final = 1
"""The lowest.  While a cluster is upgraded, brokers of two versions speak the older one."""

assert 1 <= PEER_PROTOCOL_VERSION_MIN <= PEER_PROTOCOL_VERSION

Lane = Literal["main", "bulk"]
"""``main`` carries votes, appends and liveness; ``bulk`` what is read back from files, so
that a follower catching up never delays a heartbeat."""


@unique
class PeerKind(IntEnum):
    """Frame kinds between brokers; disjoint from those of clients.  Never reuse a number."""

    PEER_HELLO = 128
    PING = 129
    CLAIMS = 130
    VOTE_REQUEST = 131
    VOTE_RESPONSE = 132
    APPEND_REQUEST = 133
    APPEND_RESPONSE = 134
    TIMEOUT_NOW = 135
    FORWARD = 136
    FORWARD_RESULT = 137
    REPAIR_REQUEST = 138
    REPAIR_RESPONSE = 139
    SNAPSHOT_CHUNK = 140
    JOIN_REQUEST = 141
    JOIN_RESPONSE = 142
    STATE_REQUEST = 143
    STATE_RESPONSE = 144
    REPORT_REQUEST = 148
    REPORT_RESPONSE = 149


# What is for one listener means nothing on the other.
assert max(Kind) < PEER_KIND_MIN <= min(PeerKind)


class PeerMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Between two brokers, not about one group's consensus."""


class ClusterView(PeerMessage, frozen=True, kw_only=True):
    """What a node knows about the cluster it belongs to: the matter of bootstrap."""

    node: int
    directory_id: str
    cluster_list: str
    """The listed voters, canonical text; two nodes with different lists refuse each other."""
    cluster_id: str | None = None
    members: dict[int, str] | None = None
    """Voter → directory id, once this node has seen all of them; None before."""


class PeerHello(PeerMessage, frozen=True, kw_only=True):
    """First frame of a link, and the answer to it."""

    protocol: int
    """In a greeting the highest version that its sender speaks, in an answer the one that both
    use on this link from here on."""
    protocol_min: int | None = None
    """In a greeting the lowest; None: no other than ``protocol``."""
    view: ClusterView
    incarnation: int
    lane: Lane = "main"
    refused: str | None = None
    """In an answer: why the link is refused.  The connection is closed behind it."""
    is_passing: bool = False
    """With ``refused``: that is about to end by itself."""


class Ping(PeerMessage, frozen=True, kw_only=True):
    """Sent at a fixed interval on the main lane; any received byte is life, this makes some.

    ``view`` is present until the cluster is formed.
    """

    view: ClusterView | None = None
    claims_digest: int | None = None
    """Of the claims as the sender has announced them, every few seconds: see ``digest_of``."""
    wants_claims: bool = False
    """The last digest did not match what is known here: announce them again."""
    disk_full: bool | None = None
    """Whether the sender takes no records, since little is left on its disk; None: as before."""
    disk_failing: bool = False
    """Of replicas there one or more had to stop.  Counts where ``disk_full`` is said."""
    is_crowded: bool = False
    """The sender refuses clients for want of descriptors, or did a while ago."""


class Claims(PeerMessage, frozen=True, kw_only=True):
    """All groups this node leads, with their terms.  Sent on each change and connection, and
    when a peer finds that it has missed some.

    A group that is missing has been given up: the receiver stops waiting for this leader.
    Receivers that are no members of a group learn its leader from here too.
    """

    groups: list[tuple[int, int]]


def version_in_common(highest: int, lowest: int | None) -> int | None:
    """The highest version that a peer and this node both speak, or None."""
    common = min(highest, PEER_PROTOCOL_VERSION)
    is_spoken = common >= max(highest if lowest is None else lowest, PEER_PROTOCOL_VERSION_MIN)
    return common if is_spoken else None


def versions_text(highest: int, lowest: int | None) -> str:
    """A range of versions for people."""
    return f"{highest}" if lowest in (None, highest) else f"{lowest} to {highest}"


OUR_VERSIONS: Final = versions_text(PEER_PROTOCOL_VERSION, PEER_PROTOCOL_VERSION_MIN)


def digest_of(claims: Iterable[tuple[int, int]]) -> int:
    """What two nodes compare to find out whether they mean the same claims."""
    return xxh3_64_intdigest(msgspec.msgpack.encode(sorted(claims)))


class Forward(PeerMessage, frozen=True, kw_only=True):
    """A metadata command for the controller."""

    request_id: int
    command: bytes
    timeout_ms: int


class ForwardResult(PeerMessage, frozen=True, kw_only=True):
    """Where the command was committed; every node finds its result by applying it."""

    request_id: int
    offset: int | None = None
    error_code: int = 0
    error: str = ""


class RepairRequest(PeerMessage, frozen=True, kw_only=True):
    """Asks for the batches of a range that is damaged on the asking node.

    An empty range asks for none, only for what the answer says of the replica.
    """

    request_id: int
    group: int
    start_offset: int
    end_offset: int
    """The answer may end before it; it never begins behind the start."""


class RepairResponse(PeerMessage, frozen=True, kw_only=True):
    """The body is whole batches, verified and committed; empty when refused."""

    request_id: int
    refused: str = ""
    log_start: int = 0
    """Where the answering replica's log begins: what lies below it was let go by a committed
    rule, and need not be anywhere."""
    settled_to: int = 0
    """Below it the answering replica's log has been compacted for as long as tombstones are kept:
    it holds nothing any more of what they delete."""
    members: list[int] = []
    """Who replicates the group, as far as the answering replica knows, in order."""


class StateRequest(PeerMessage, frozen=True, kw_only=True):
    """Asks for the state in place of batches that the answering replica has trimmed: for one
    whose log is damaged there.  Any replica may answer, not only the leader."""

    request_id: int
    group: int
    position: int = 0
    """The piece that is wanted begins here; 0 begins anew."""


class StateResponse(PeerMessage, frozen=True, kw_only=True):
    """The body is a piece of a snapshot; empty when refused."""

    request_id: int
    refused: str = ""
    total_bytes: int = 0
    checksum: int = 0
    """xxh3_64 of the whole: pieces of another one do not go together with those before."""


class ReportRequest(PeerMessage, frozen=True, kw_only=True):
    """Asks a broker how it is, for a status page that somebody looks at."""

    request_id: int


class ReportResponse(PeerMessage, frozen=True, kw_only=True):
    """The body is the report; empty if there is none."""

    request_id: int


class JoinRequest(PeerMessage, frozen=True, kw_only=True):
    """In place of a greeting: a broker asks a member to be registered.  Answered, once."""

    protocol: int
    """The highest version that the broker speaks."""
    command: bytes
    """Its registration."""
    protocol_min: int | None = None
    """The lowest; None: no other."""
    cluster_id: str | None = None
    """Where its data directory belongs already, if anywhere."""
    instead_of: int | None = None
    """The incarnation of the registration that is to be replaced, as an answer has told it."""


class KnownPeer(PeerMessage, frozen=True, kw_only=True):
    """Where a broker listens for others, and the directory that it is."""

    host: str
    port: int
    directory_id: str


class JoinResponse(PeerMessage, frozen=True, kw_only=True):
    """What a new broker needs to begin, or why it is refused."""

    refused: str = ""
    is_final: bool = False
    """Asking again cannot help."""
    cluster_id: str = ""
    members: dict[int, str] = {}
    """The founders: directory id by node."""
    peers: dict[int, KnownPeer] = {}
    """Those who vote in the metadata log."""
    registered: int | None = None
    """With ``refused``: the incarnation of the registration that holds.  Whoever asks is to name
    it: a request that was under way for long, while its sender was started again, does not."""


class SnapshotChunk(PeerMessage, frozen=True, kw_only=True):
    """A piece of the state that a leader ships to a follower; the body is its bytes.

    Never answered: an installed snapshot is acknowledged like batches are.
    """

    group: int
    term: int
    enrolment: int
    """As in an append request."""
    position: int
    """Of the body in the whole; 0 begins anew."""
    total_bytes: int
    checksum: int
    """xxh3_64 of the whole."""


AnyPeerMessage = (
    RaftMessage
    | PeerHello
    | Ping
    | Claims
    | Forward
    | ForwardResult
    | RepairRequest
    | RepairResponse
    | StateRequest
    | StateResponse
    | ReportRequest
    | ReportResponse
    | SnapshotChunk
    | JoinRequest
    | JoinResponse
)

TYPE_BY_KIND: Final[dict[int, type[AnyPeerMessage]]] = {
    PeerKind.PEER_HELLO: PeerHello,
    PeerKind.PING: Ping,
    PeerKind.CLAIMS: Claims,
    PeerKind.VOTE_REQUEST: VoteRequest,
    PeerKind.VOTE_RESPONSE: VoteResponse,
    PeerKind.APPEND_REQUEST: AppendRequest,
    PeerKind.APPEND_RESPONSE: AppendResponse,
    PeerKind.TIMEOUT_NOW: TimeoutNow,
    PeerKind.FORWARD: Forward,
    PeerKind.FORWARD_RESULT: ForwardResult,
    PeerKind.REPAIR_REQUEST: RepairRequest,
    PeerKind.REPAIR_RESPONSE: RepairResponse,
    PeerKind.REPORT_REQUEST: ReportRequest,
    PeerKind.REPORT_RESPONSE: ReportResponse,
    PeerKind.SNAPSHOT_CHUNK: SnapshotChunk,
    PeerKind.JOIN_REQUEST: JoinRequest,
    PeerKind.JOIN_RESPONSE: JoinResponse,
    PeerKind.STATE_REQUEST: StateRequest,
    PeerKind.STATE_RESPONSE: StateResponse,
}

KIND_BY_TYPE: Final[dict[type[AnyPeerMessage], int]] = {t: k for k, t in TYPE_BY_KIND.items()}
