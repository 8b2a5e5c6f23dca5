"""Every message between a client and a broker, and the kinds that name them.

A message is a frame's header: a MessagePack map of the fields below.  Unknown fields are
ignored and missing ones take their default, so that fields can be added; a field of the
wrong type is refused.  Raw batches travel behind the header as the frame's body and are
never decoded here.

The page for other languages is docs/wire_protocol.md; ``tests/docs`` compares the two.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final, Literal

import msgspec

from logd.wire import coordination

PROTOCOL_VERSION: Final = 1


@unique
class Kind(IntEnum):
    """What a frame carries.  Part of the protocol: never reuse a number."""

    HELLO = 1
    METADATA = 2
    PRODUCE = 3
    INIT_PRODUCER = 4
    SUBSCRIBE = 5
    CREDIT = 6
    DELIVER = 7
    UNSUBSCRIBE = 8
    FETCH = 9
    OFFSETS = 10
    CREATE_TOPIC = 11
    DELETE_TOPIC = 12
    ALTER_TOPIC = 13
    DESCRIBE_PARTITION = 14
    TRANSFER_LEADER = 15
    SUBSCRIPTION_ENDED = 16
    DESCRIBE_BROKER = 17
    TRIM_PARTITION = 18
    ALTER_BROKER = 19
    START_PLAN = 20
    CANCEL_PLAN = 21
    SET_REBALANCING = 22
    DESCRIBE_REBALANCE = 23
    COORDINATE = 24
    QUERY = 25
    KEEP_ALIVE = 26
    WATCH = 27
    WATCH_EVENTS = 28
    WATCH_ENDED = 29
    UNWATCH = 30
    RAISE_FENCE = 31
    WATCH_CREDIT = 32
    RAISE_FEATURE_LEVEL = 33
    CANCEL_MOVE = 34


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A header.  ``omit_defaults`` keeps the hot ones small."""


# --- handshake --------------------------------------------------------------------------


class HelloRequest(Message, frozen=True, kw_only=True):
    """First frame of a client connection."""

    client: str
    """Name and version of the client, for logs."""
    protocol_min: int = PROTOCOL_VERSION
    protocol_max: int = PROTOCOL_VERSION
    cluster_id: str | None = None
    """Refused when it is set and the broker belongs to another cluster, or to none yet."""
    auth_mechanism: str = "none"
    auth_data: bytes = b""


class HelloResponse(Message, frozen=True, kw_only=True):
    protocol: int
    cluster_id: str | None
    node_id: int
    version: str
    kinds: dict[int, tuple[int, int]] = {}
    """Request kind → lowest and highest version this broker answers."""
    features: dict[str, int] = {}


class ErrorResponse(Message, frozen=True, kw_only=True):
    """Answers any request that was refused; the frame has the ERROR flag."""

    code: int
    message: str
    may_have_applied: bool = False
    details: dict[str, int | None] = {}
    """``leader``, ``log_start``, ``log_end``: where the error class has such a field."""


# --- metadata ---------------------------------------------------------------------------


class MetadataRequest(Message, frozen=True, kw_only=True):
    topics: list[str] | None = None
    """Names to describe; None for all."""
    at_least: int = 0
    """The answer is to know of everything below this offset of the metadata log: a client
    that passes the largest ``metadata_offset`` it was told reads its own writes, from any
    broker.  One that cannot get there in time refuses with Unavailable."""
    start: str = ""
    """Only topics of this name or behind it, in order of their names."""


class BrokerInfo(Message, frozen=True, kw_only=True):
    node_id: int
    host: str
    port: int
    rack: str = ""
    failure_domain: str = ""
    """Replicas of one partition are not put on one failure domain while there is another."""
    alive: bool = True
    """As the answering broker sees it."""
    draining: bool = False
    """Nothing is placed on it, and what it holds is to go."""
    version: str = ""
    feature_level_max: int = 1
    """The highest feature level that it supports."""


class PartitionInfo(Message, frozen=True, kw_only=True):
    partition: int
    group: int
    replicas: list[int]
    """Node ids; the first is the preferred leader."""
    target: list[int] | None = None
    """Node ids that it is being moved to, if it is."""
    leader: int | None = None
    term: int = 0


class TopicInfo(Message, frozen=True, kw_only=True):
    name: str
    topic_id: int
    partitions: list[PartitionInfo]
    config: dict[str, str] = {}


class MetadataResponse(Message, frozen=True, kw_only=True):
    cluster_id: str
    controller: int | None
    """Leader of the metadata log: creates and deletes topics."""
    brokers: list[BrokerInfo]
    topics: list[TopicInfo]
    unknown: list[str] = []
    """Requested names that do not exist."""
    metadata_offset: int = 0
    """How much of the metadata log the answering broker has applied (exclusive)."""
    next: str | None = None
    """There are more topics: ask again with this as ``start``."""
    feature_level: int = 1
    """What came with a higher level is refused."""
    feature_level_available: int = 1
    """The highest that all registered brokers support."""


# --- produce ----------------------------------------------------------------------------

Durability = Literal["synced", "replicated"]


class ProduceRequest(Message, frozen=True, kw_only=True):
    """The body is exactly one sealed batch with a zeroed leader's part."""

    group: int
    timeout_ms: int = 30_000
    """The broker answers within this time, with RequestTimeout if need be."""
    expected_offset: int | None = None
    """Append only if this is not above the log end and no data batch lies at or above it."""


class ProduceResponse(Message, frozen=True, kw_only=True):
    base_offset: int
    end_offset: int
    append_time_ms: int
    durability: Durability = "synced"
    duplicate: bool = False
    """The batch was already stored by an earlier attempt; this is its original place."""


class InitProducerRequest(Message, frozen=True, kw_only=True):
    pass


class InitProducerResponse(Message, frozen=True, kw_only=True):
    producer_id: int


# --- consume ----------------------------------------------------------------------------


class SubscribeRequest(Message, frozen=True, kw_only=True):
    subscription: int
    """Chosen by the client, unique on its connection."""
    generation: int
    """Echoed in every delivery; raised on each subscribe, so stale frames can be dropped."""
    group: int
    start: Literal["offset", "earliest", "latest", "time"] = "offset"
    value: int = 0
    """An offset, or milliseconds since 1970 for ``time``."""
    credit_bytes: int = 0
    any_replica: bool = False
    """Serve from this broker's replica below its commit offset, leader or not."""


class SubscribeResponse(Message, frozen=True, kw_only=True):
    position: int
    log_start: int
    commit_offset: int


class Credit(Message, frozen=True, kw_only=True):
    """One-way: the consumer can take this many more bytes."""

    subscription: int
    generation: int
    bytes: int


class Deliver(Message, frozen=True, kw_only=True):
    """Pushed, correlation id 0.  The body is whole batches; the first may begin below the
    position, and control batches are included."""

    subscription: int
    generation: int
    next_offset: int
    """Position after this delivery, also over offsets that hold no data."""
    commit_offset: int


class SubscriptionEnded(Message, frozen=True, kw_only=True):
    """Pushed, correlation id 0: no more deliveries for this generation."""

    subscription: int
    generation: int
    error: ErrorResponse


class UnsubscribeRequest(Message, frozen=True, kw_only=True):
    subscription: int


class UnsubscribeResponse(Message, frozen=True, kw_only=True):
    pass


class FetchRequest(Message, frozen=True, kw_only=True):
    """A long poll for clients that do not subscribe."""

    group: int
    offset: int
    bytes_max: int = 1_048_576
    wait_ms: int = 0
    any_replica: bool = False


class FetchResponse(Message, frozen=True, kw_only=True):
    """The body is whole batches, at least one if any is committed at or above ``offset``."""

    next_offset: int
    log_start: int
    commit_offset: int


class OffsetsRequest(Message, frozen=True, kw_only=True):
    group: int
    time_ms: int | None = None
    """Also find the first offset appended at or after this time."""
    any_replica: bool = False


class OffsetsResponse(Message, frozen=True, kw_only=True):
    log_start: int
    commit_offset: int
    data_end: int
    """End of the last committed data batch: lag is measured to here."""
    time_offset: int | None = None


# --- admin ------------------------------------------------------------------------------


class CreateTopicRequest(Message, frozen=True, kw_only=True):
    name: str
    partitions: int = 1
    replicas: int | None = None
    """None: min(3, registered brokers)."""
    config: dict[str, str] = {}
    timeout_ms: int = 30_000


class CreateTopicResponse(Message, frozen=True, kw_only=True):
    topic: TopicInfo
    metadata_offset: int = 0
    """Behind the command; as in MetadataResponse."""


class DeleteTopicRequest(Message, frozen=True, kw_only=True):
    name: str
    timeout_ms: int = 30_000


class DeleteTopicResponse(Message, frozen=True, kw_only=True):
    metadata_offset: int = 0
    """Behind the command; as in MetadataResponse."""


class AlterTopicRequest(Message, frozen=True, kw_only=True):
    name: str
    config: dict[str, str | None]
    """Options to set; None resets one to its default."""
    partitions: int | None = None
    """How many it shall have: more than it has."""
    timeout_ms: int = 30_000


class AlterTopicResponse(Message, frozen=True, kw_only=True):
    topic: TopicInfo
    metadata_offset: int = 0
    """Behind the command; as in MetadataResponse."""


class DescribePartitionRequest(Message, frozen=True, kw_only=True):
    group: int


class ReplicaInfo(Message, frozen=True, kw_only=True):
    node_id: int
    synced_end: int | None
    """Durable end of its log as the leader knows it."""
    in_sync: bool
    alive: bool
    voter: bool = True
    """False: it follows, and does not count (yet)."""
    bytes_behind: int | None = None
    """About how much it lacks; None: not heard of yet."""


class DescribePartitionResponse(Message, frozen=True, kw_only=True):
    """From the leader; other replicas answer NotLeader."""

    group: int
    leader: int
    term: int
    replicas: list[ReplicaInfo]
    log_start: int
    log_end: int
    commit_offset: int
    data_end: int
    size_bytes: int = 0
    """Of its log on the leader's disk."""


class TransferLeaderRequest(Message, frozen=True, kw_only=True):
    group: int
    target: int | None = None
    """None: the most caught-up other voter."""
    timeout_ms: int = 10_000


class TransferLeaderResponse(Message, frozen=True, kw_only=True):
    leader: int


class TrimPartitionRequest(Message, frozen=True, kw_only=True):
    """Exactly one of the two says before what."""

    group: int
    before_offset: int | None = None
    """Refused if it is above the commit offset."""
    before_time_ms: int | None = None
    """Before the first record appended at this time or later."""
    timeout_ms: int = 10_000


class TrimPartitionResponse(Message, frozen=True, kw_only=True):
    log_start: int
    """Nobody reads below it any more."""


class DescribeBrokerRequest(Message, frozen=True, kw_only=True):
    pass


class LocalReplicaInfo(Message, frozen=True, kw_only=True):
    group: int
    role: Literal["leader", "follower", "candidate", "pre_candidate", "learner", "stopped"]
    term: int
    log_start: int
    log_end: int
    commit_offset: int
    reason: str = ""
    """Why it is stopped, if it is."""
    size_bytes: int = 0
    """Of its log."""
    bytes_in: int = 0
    """Appended here as the leader since the broker started."""


class EventInfo(Message, frozen=True, kw_only=True):
    """Something that happened on a broker."""

    at_ms: int
    level: Literal["info", "warning", "error"]
    name: str
    text: str


class QuotaInfo(Message, frozen=True, kw_only=True):
    """How much of a quota is used, in the coordination partitions of one broker."""

    namespace: str
    """Empty: all that share a partition."""
    quota: str
    used: float
    """1: nothing more fits."""


class DescribeBrokerResponse(Message, frozen=True, kw_only=True):
    node_id: int
    version: str
    uptime_ms: int
    replicas: list[LocalReplicaInfo]
    peers_alive: list[int]
    events: list[EventInfo] = []
    disk_full: bool = False
    """Appends to what it leads are refused for want of space."""
    disk_free_bytes: int = 0
    disk_room_bytes: int = 0
    """Of that: what may be filled before appends are refused.  0: its version does not say."""
    fullest_quota: QuotaInfo | None = None
    """Of the coordination partitions that it leads; None if nothing is kept there."""
    disk_failing: bool = False
    """A replica there had to stop: plans put nothing on it."""


# --- rebalancing ------------------------------------------------------------------------


class AlterBrokerRequest(Message, frozen=True, kw_only=True):
    node_id: int
    action: Literal["drain", "resume", "remove"]
    timeout_ms: int = 30_000


class AlterBrokerResponse(Message, frozen=True, kw_only=True):
    broker: BrokerInfo
    metadata_offset: int = 0
    """Behind the command; as in MetadataResponse."""


class RaiseFeatureLevelRequest(Message, frozen=True, kw_only=True):
    """All brokers run a newer version: what came with it may be used."""

    level: int | None = None
    """None: the highest that all registered brokers support."""
    timeout_ms: int = 30_000


class RaiseFeatureLevelResponse(Message, frozen=True, kw_only=True):
    level: int
    metadata_offset: int = 0
    """Behind the command; as in MetadataResponse."""


MoveState = Literal["pending", "running", "done", "cancelled", "skipped"]


class PlannedMoveInfo(Message, frozen=True, kw_only=True):
    """One partition's new replicas."""

    group: int
    before: list[int]
    """Its replicas as the plan knows them; refused if they are others by now."""
    target: list[int]
    reason: str = ""
    size_bytes: int = 0
    """To be copied, for all new replicas together."""
    state: MoveState = "pending"


class StartPlanRequest(Message, frozen=True, kw_only=True):
    """Some moves of a plan; it runs when all have arrived."""

    token: str
    """Drawn by the client: a repeated request does not start a second plan."""
    purpose: str
    layout_version: int
    """As DescribeRebalance told it before the plan was made; refused if it is another by now."""
    move_count: int
    first: int = 0
    """Position of the first of ``moves`` in the plan."""
    moves: list[PlannedMoveInfo]
    timeout_ms: int = 30_000


class StartPlanResponse(Message, frozen=True, kw_only=True):
    plan_id: int


class CancelPlanRequest(Message, frozen=True, kw_only=True):
    plan_id: int
    gives_way: bool = False
    """It makes way for what a person wants: nobody has asked for it, and nobody minds it.  What of
    it is to be done is done later."""
    timeout_ms: int = 30_000


class CancelPlanResponse(Message, frozen=True, kw_only=True):
    state: Literal["arriving", "running", "cancelling", "done", "cancelled"]


class CancelMoveRequest(Message, frozen=True, kw_only=True):
    """One move of a plan is taken back unless it has arrived; the others go on."""

    plan_id: int
    group: int
    timeout_ms: int = 30_000


class CancelMoveResponse(Message, frozen=True, kw_only=True):
    state: MoveState
    """``running``: it is being taken back, or has arrived and the cluster does not know yet."""


class SetRebalancingRequest(Message, frozen=True, kw_only=True):
    """Changes the settings that are given, also of what is running."""

    throttle_bytes_per_s: int | None = None
    concurrency: int | None = None
    autonomous: bool | None = None
    timeout_ms: int = 30_000


class SetRebalancingResponse(Message, frozen=True, kw_only=True):
    throttle_bytes_per_s: int
    concurrency: int
    autonomous: bool


class DescribeRebalanceRequest(Message, frozen=True, kw_only=True):
    pass


class PlanInfo(Message, frozen=True, kw_only=True):
    plan_id: int
    purpose: str
    state: Literal["arriving", "running", "cancelling", "done", "cancelled"]
    move_count: int
    moves: list[PlannedMoveInfo]
    begun_ms: int
    ended_ms: int | None = None


class DescribeRebalanceResponse(Message, frozen=True, kw_only=True):
    """The plan that runs, or else the last one, as the answering broker has applied it."""

    layout_version: int
    throttle_bytes_per_s: int
    concurrency: int
    autonomous: bool
    plan: PlanInfo | None = None
    autonomy: list[str] = []
    """What the cluster does or will do by itself, and why; only the controller knows."""
    metadata_offset: int = 0
    """What it rests on; as in MetadataResponse."""


# --- coordination -----------------------------------------------------------------------


class CoordinateRequest(Message, frozen=True, kw_only=True):
    """The body is one ``Command`` of ``wire/coordination.py``."""

    group: int
    """The partition of ``__coordination`` that the namespace lives in."""
    namespace: str
    session: int = 0
    sequence: int = 0
    """Per session, from 1; 0: a command that carries no session."""
    acknowledged: int = 0
    """The client has the results of all sequences below."""
    timeout_ms: int = 30_000


class CoordinateResponse(Message, frozen=True, kw_only=True):
    """The body is a ``Result``: the command is committed, and applied here."""


class QueryRequest(Message, frozen=True, kw_only=True):
    """The body is one ``Query``."""

    group: int
    namespace: str
    wait_ms: int = 0
    """For ReadClaim: hold the answer until the ticket is granted or gone, or this has passed."""
    timeout_ms: int = 30_000
    """Nothing is given up for it: a round that confirms the leader ends, at the latest when it is
    the leader no more."""


class QueryResponse(Message, frozen=True, kw_only=True):
    """The body is an ``Answer``: it knows of all that was acknowledged before the question."""


class KeepAliveRequest(Message, frozen=True, kw_only=True):
    """Renews sessions: each lives for its full time from when this arrived."""

    group: int
    sessions: list[int]


class KeepAliveResponse(Message, frozen=True, kw_only=True):
    """Sent once it is certain that this broker led when the request had arrived."""

    expired: list[int] = []
    """Those of them that are no more."""


class WatchRequest(Message, frozen=True, kw_only=True):
    """Push what changes from now on, or from a revision on."""

    watch: int
    """Chosen by the client, unique on its connection; an existing one is replaced."""
    generation: int
    """Echoed in every push; raised on each watch, so stale frames can be dropped."""
    group: int
    namespace: str
    kind: coordination.Kind
    start: bytes = b""
    """The first name."""
    end: bytes | None = None
    """Names below this one; None: exactly ``start``; empty: all from ``start`` on."""
    revision: int | None = None
    """From this one on, itself included; None: from now on."""
    credit_bytes: int = 0


class WatchResponse(Message, frozen=True, kw_only=True):
    revision: int
    """All events behind it are pushed: the last one, or the one before that asked for."""


class WatchEvents(Message, frozen=True, kw_only=True):
    """Pushed, correlation id 0.  The body is an array of ``Event``: all of their revisions."""

    watch: int
    generation: int
    revision: int
    """All events up to and with this revision have been delivered: resume behind it."""


class WatchEnded(Message, frozen=True, kw_only=True):
    """Pushed, correlation id 0: no more events for this generation."""

    watch: int
    generation: int
    error: ErrorResponse


class UnwatchRequest(Message, frozen=True, kw_only=True):
    watch: int


class UnwatchResponse(Message, frozen=True, kw_only=True):
    pass


class WatchCredit(Message, frozen=True, kw_only=True):
    """One-way: the client can take this many more bytes of events."""

    watch: int
    generation: int
    bytes: int


class RaiseFenceRequest(Message, frozen=True, kw_only=True):
    """Have a partition refuse appends with an older token of this fence from now on."""

    group: int
    """Any partition but those of topics that belong to logd."""
    fence_id: int
    token: int
    timeout_ms: int = 30_000


class RaiseFenceResponse(Message, frozen=True, kw_only=True):
    offset: int
    """One past the committed fence: who reads up to it has read all that older tokens wrote."""


Request = (
    HelloRequest
    | MetadataRequest
    | ProduceRequest
    | InitProducerRequest
    | SubscribeRequest
    | UnsubscribeRequest
    | FetchRequest
    | OffsetsRequest
    | CreateTopicRequest
    | DeleteTopicRequest
    | AlterTopicRequest
    | DescribePartitionRequest
    | TransferLeaderRequest
    | DescribeBrokerRequest
    | TrimPartitionRequest
    | AlterBrokerRequest
    | StartPlanRequest
    | CancelPlanRequest
    | SetRebalancingRequest
    | DescribeRebalanceRequest
    | CoordinateRequest
    | QueryRequest
    | KeepAliveRequest
    | WatchRequest
    | UnwatchRequest
    | RaiseFenceRequest
    | RaiseFeatureLevelRequest
    | CancelMoveRequest
)

REQUEST_BY_KIND: Final[dict[Kind, type[Message]]] = {
    Kind.HELLO: HelloRequest,
    Kind.METADATA: MetadataRequest,
    Kind.PRODUCE: ProduceRequest,
    Kind.INIT_PRODUCER: InitProducerRequest,
    Kind.SUBSCRIBE: SubscribeRequest,
    Kind.CREDIT: Credit,
    Kind.UNSUBSCRIBE: UnsubscribeRequest,
    Kind.FETCH: FetchRequest,
    Kind.OFFSETS: OffsetsRequest,
    Kind.CREATE_TOPIC: CreateTopicRequest,
    Kind.DELETE_TOPIC: DeleteTopicRequest,
    Kind.ALTER_TOPIC: AlterTopicRequest,
    Kind.DESCRIBE_PARTITION: DescribePartitionRequest,
    Kind.TRANSFER_LEADER: TransferLeaderRequest,
    Kind.DESCRIBE_BROKER: DescribeBrokerRequest,
    Kind.TRIM_PARTITION: TrimPartitionRequest,
    Kind.ALTER_BROKER: AlterBrokerRequest,
    Kind.START_PLAN: StartPlanRequest,
    Kind.CANCEL_PLAN: CancelPlanRequest,
    Kind.SET_REBALANCING: SetRebalancingRequest,
    Kind.DESCRIBE_REBALANCE: DescribeRebalanceRequest,
    Kind.COORDINATE: CoordinateRequest,
    Kind.QUERY: QueryRequest,
    Kind.KEEP_ALIVE: KeepAliveRequest,
    Kind.WATCH: WatchRequest,
    Kind.UNWATCH: UnwatchRequest,
    Kind.RAISE_FENCE: RaiseFenceRequest,
    Kind.WATCH_CREDIT: WatchCredit,
    Kind.RAISE_FEATURE_LEVEL: RaiseFeatureLevelRequest,
    Kind.CANCEL_MOVE: CancelMoveRequest,
}
"""What a client may send."""

RESPONSE_BY_KIND: Final[dict[Kind, type[Message]]] = {
    Kind.HELLO: HelloResponse,
    Kind.METADATA: MetadataResponse,
    Kind.PRODUCE: ProduceResponse,
    Kind.INIT_PRODUCER: InitProducerResponse,
    Kind.SUBSCRIBE: SubscribeResponse,
    Kind.DELIVER: Deliver,
    Kind.UNSUBSCRIBE: UnsubscribeResponse,
    Kind.FETCH: FetchResponse,
    Kind.OFFSETS: OffsetsResponse,
    Kind.CREATE_TOPIC: CreateTopicResponse,
    Kind.DELETE_TOPIC: DeleteTopicResponse,
    Kind.ALTER_TOPIC: AlterTopicResponse,
    Kind.DESCRIBE_PARTITION: DescribePartitionResponse,
    Kind.TRANSFER_LEADER: TransferLeaderResponse,
    Kind.SUBSCRIPTION_ENDED: SubscriptionEnded,
    Kind.DESCRIBE_BROKER: DescribeBrokerResponse,
    Kind.TRIM_PARTITION: TrimPartitionResponse,
    Kind.ALTER_BROKER: AlterBrokerResponse,
    Kind.START_PLAN: StartPlanResponse,
    Kind.CANCEL_PLAN: CancelPlanResponse,
    Kind.SET_REBALANCING: SetRebalancingResponse,
    Kind.DESCRIBE_REBALANCE: DescribeRebalanceResponse,
    Kind.COORDINATE: CoordinateResponse,
    Kind.QUERY: QueryResponse,
    Kind.KEEP_ALIVE: KeepAliveResponse,
    Kind.WATCH: WatchResponse,
    Kind.WATCH_EVENTS: WatchEvents,
    Kind.WATCH_ENDED: WatchEnded,
    Kind.UNWATCH: UnwatchResponse,
    Kind.RAISE_FENCE: RaiseFenceResponse,
    Kind.RAISE_FEATURE_LEVEL: RaiseFeatureLevelResponse,
    Kind.CANCEL_MOVE: CancelMoveResponse,
}
"""What a broker may send, answers and pushes alike."""
