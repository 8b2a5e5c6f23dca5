"""Every hard limit, and the relations between them.

Limits live together because they depend on one another: a frame that cannot hold the
largest batch is a bug that no unit test of either module would find.  The assertions run
at import, so an impossible combination cannot start.  What an operator may choose is in
``config.py``; nothing here is configurable.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- records and batches ---------------------------------------------------------------

RECORD_BYTES_MAX: Final = 1 * MIB
"""Key, value and headers of one record together."""

OFFSET_MAX: Final = 2**63 - 1
"""No caller may ask for more: what is u64 in a batch is a signed integer in many programs."""

NUMBER_MAX: Final = 2**63 - 1
"""Of revisions, items, tokens and what is counted: what the protocol's integers hold."""

RECORDS_PER_BATCH_MAX: Final = 65_536
HEADERS_PER_BATCH_MAX: Final = 262_144
"""Headers of all records of a batch together: bounds what a decoder allocates for them."""

BATCH_HEADER_BYTES: Final = 128
BATCH_BYTES_MAX: Final = 4 * MIB
"""Header and payload of one batch, as stored and sent (compressed, if it is)."""

PAYLOAD_DECODED_BYTES_MAX: Final = 16 * MIB
"""A batch's payload after decompression.  Bounds what 4 MiB of zstd can unfold to."""

# --- frames ----------------------------------------------------------------------------

FRAME_PREFIX_BYTES: Final = 12
FRAME_BYTES_MAX: Final = 8 * MIB
FRAME_HEADER_BYTES_MAX: Final = 64 * KIB
FRAME_UNAUTHENTICATED_BYTES_MAX: Final = 8 * KIB
"""Largest frame accepted before the handshake is complete."""

# --- connections -----------------------------------------------------------------------

CONNECTIONS_MAX: Final = 4096
"""Client connections of one broker; the next one is closed at once, with a reason."""

DESCRIPTORS_SPARE: Final = 256
"""Descriptors that client connections leave to files and other brokers, or a quarter of all:
a log that cannot open its next segment waits, and a replica that cannot save its vote."""

DESCRIPTORS_SPARE_OF_REPLICAS: Final = DESCRIPTORS_SPARE * 9 // 8
"""What replicas leave, which take one each at least: more, so that some clients can ask why others
stay shut."""

DESCRIPTORS_SPARE_OF_READING: Final = DESCRIPTORS_SPARE * 2
"""What sealed segments leave that stay open for who reads on: they are opened again for the asking,
and nothing else is."""

REQUESTS_IN_FLIGHT_MAX: Final = 1024
"""Requests of one connection that are not answered yet; beyond it the socket is not read."""

REQUEST_TASKS_MAX: Final = 16 * 1024
"""Those that have a task, of about 2 KiB, over all connections of a broker: all but appends, and
commands and questions to coordination.  Beyond it a connection is read only while it has fewer than
``REQUEST_TASKS_ALWAYS`` of them."""

REQUEST_TASKS_ALWAYS: Final = 4
"""What a connection may have whatever the others do: they use up nobody's share."""

REQUESTS_BEGUN_PER_TURN: Final = 64
"""Requests that have a task, begun in one turn of the event loop: thousands that came at once would
keep it from the disks, the other brokers and the clock until all of them are answered.  With fewer
each takes longer, for a turn costs something, too."""

DESCRIPTIONS_BEGUN_PER_TURN: Final = 16
"""Those besides whose answers may be large, of a broker or of the cluster."""

RECEIVE_BYTES: Final = 256 * KIB
"""What one read from a socket takes at most."""

CONNECTION_SEND_BYTES_MAX: Final = 16 * MIB
"""Responses and deliveries queued on one client connection, with the memory that each frame takes;
beyond it nothing is read from that connection and no subscription of it is served."""

CLIENTS_SEND_BYTES_MAX: Final = 256 * MIB
"""The same over all client connections.  Nothing more is found for anybody while so much waits."""

CONNECTION_SEND_BYTES_FREE: Final = 64 * KIB
"""What may wait on one client connection when half of that is used up; then it is given more,
``DELIVERY_BYTES`` at a time, only when it has taken the rest."""

SEND_PATIENCE_S: Final = 10.0
"""How long a client may take, while others wait for the memory, for what it is being sent: 2 MiB
at most, or one answer or delivery."""

PRODUCE_BYTES_IN_FLIGHT_MAX: Final = 128 * MIB
"""Produce requests that one broker holds unacknowledged, over all connections."""

SUBSCRIPTIONS_PER_CONNECTION_MAX: Final = 4096
SUBSCRIPTION_CREDIT_BYTES_MAX: Final = 64 * MIB
FETCH_BYTES_MAX: Final = 4 * MIB
HANDSHAKE_TIMEOUT_S: Final = 10.0
PROGRESS_TIMEOUT_S: Final = 30.0
"""A client's frame that has begun must arrive whole within this time."""

LARGE_FRAMES_BYTES_MAX: Final = 128 * MIB
"""Frames of clients that have begun, are not whole, and do not fit what one read takes, over all
connections; a frame counts with its whole size before it is read.  Smaller ones lie in the buffer
that each connection has.  Those of other brokers are bounded by their number: one at a time of
each broker and lane."""

FRAME_PATIENCE_S: Final = 2.0
"""How far a client's frame may fall behind the pace that makes it whole within
``PROGRESS_TIMEOUT_S`` while others wait for the memory it holds."""

PEER_CONNECTIONS_MAX: Final = 4096
"""Connections of other brokers, and of whoever has not greeted yet, to one broker."""

PEER_PROGRESS_TIMEOUT_S: Final = 120.0
"""A peer's frame that has begun must arrive whole within this time.  Longer than a client's:
a link so slow that its largest frames never fit would replicate nothing for ever."""

KEEP_ALIVE_IDLE_S: Final = 60
KEEP_ALIVE_INTERVAL_S: Final = 10
KEEP_ALIVE_PROBES: Final = 3
"""A quiet connection is probed by the kernel, and closed when nothing answers: else whoever
lost power would keep a connection for ever."""

ADMIN_TIMEOUT_MS_MAX: Final = 300_000
"""How long one request of an administrator is worked on at most."""

# --- names -----------------------------------------------------------------------------

NAME_CHARACTERS_MAX: Final = 200
REGISTERED_CHARACTERS_MAX: Final = 255
"""Host names (RFC 1035), failure domains, racks, versions and ids that brokers register."""

PORT_MAX: Final = 65_535
TOPICS_MAX: Final = 100_000
PARTITIONS_PER_TOPIC_MAX: Final = 2_000
"""What one command may create.  1,000 partitions of three replicas take seconds on a small
machine; 10,000 at once made more elections than two cores could hold."""

PARTITIONS_MAX: Final = 200_000
"""Partitions of one cluster: every broker keeps all metadata in memory."""

REPLICAS_MAX: Final = 7
BROKERS_MAX: Final = 1_000
PLAN_MOVES_MAX: Final = 10_000
"""Moves of one rebalance plan.  What it does not reach, the next plan does."""

PLAN_MOVES_AT_ONCE: Final = 100
"""A longer plan is sent in pieces of so many moves, which fit in one command whatever the moves are
and however much is said of each."""

LEARNERS_MAX: Final = BROKERS_MAX
"""Of one group: every broker that does not vote in the metadata log follows it as a learner."""

METADATA_VOTERS_MAX: Final = 5
METADATA_COMMAND_BYTES_MAX: Final = 32 * KIB
"""One command of the metadata log: bounds what one request can make every broker keep."""

METADATA_TOPICS_PER_ANSWER: Final = 1_000
METADATA_PARTITIONS_PER_ANSWER: Final = 4_000
"""What one answer describes; the client asks for the rest.  Small enough that a broker does
nothing else for some milliseconds only."""

TOPIC_NAMES_PER_REQUEST: Final = 256
BROKER_DESCRIBED_BYTES_MAX: Final = 4 * KIB
TOPIC_DESCRIBED_BYTES_MAX: Final = 1 * KIB
"""Without its partitions."""
PARTITION_DESCRIBED_BYTES_MAX: Final = 192

# --- storage ---------------------------------------------------------------------------

SEGMENT_HEADER_BYTES: Final = 4 * KIB
SEGMENT_BYTES_MIN: Final = 64 * KIB
SEGMENT_BYTES_MAX: Final = 2**31
SEGMENT_MS_MIN: Final = 1_000
RETENTION_BYTES_MAX: Final = 2**50
RETENTION_MS_MAX: Final = 100 * 366 * 24 * 3600 * 1000
BATCHES_PER_CHECKPOINT: Final = 50_000
"""A partition's state is checkpointed at least this often, so that recovery replays few."""

# --- replication -----------------------------------------------------------------------

APPEND_BYTES_MAX: Final = 1 * MIB
"""Batches in one append request, unless a single batch is larger."""

PEER_WINDOW_BYTES_MAX: Final = 16 * MIB
"""Append requests one follower of one group may have unacknowledged."""

UNSYNCED_BYTES_MAX: Final = 4 * MIB
"""A log that rests on memory is synced when so much of it is not."""

UNSYNCED_S_MAX: Final = 0.1
"""And when the first of it has waited this long."""

UNSYNCED_BYTES_BEHIND_MAX: Final = 64 * MIB
"""With so much to be synced, because the disk does not keep up, its leader takes no more."""

DISK_PATIENCE_S: Final = 10.0
"""A replica that has waited for its disk for so long says so.  If it leads, and the others can go
on without it, one of them shall lead.  A disk that is only slow has answered before."""

COMPACTION_KEYS_MAX: Final = 500_000
"""Keys that one compaction remembers; about 150 bytes each, in a process of its own."""

PEER_QUEUE_BYTES_MAX: Final = 64 * MIB
"""Frames queued to one peer, over all groups; beyond it groups wait for the queue."""

TAIL_CACHE_BYTES_MAX: Final = 64 * MIB
"""Recently appended batches kept in memory for followers and tailing consumers."""

LEARNER_LAG_BYTES_MAX: Final = 1 * MIB
"""A learner that lacks no more than this, all of it on its way, may become a voter."""

# --- what an operator sees --------------------------------------------------------------

HTTP_CONNECTIONS_MAX: Final = 64
"""Of one broker; the next one is closed at once.  Scrapers and browsers keep theirs."""

HTTP_REQUEST_BYTES_MAX: Final = 8 * KIB
"""Request line and headers together.  No request has a body."""

METRIC_TOPICS_MAX: Final = 200
"""Topics with series of their own, by name; the others are added up as one.  Bounds what a
scrape costs the broker, and what it stores."""

REPORT_REPLICAS_MAX: Final = 2_000
"""Partitions in one broker's report to the status page, those in trouble first."""

STATUS_PARTITIONS_MAX: Final = 2_000
"""Partitions on a status page, those in trouble first."""

RECENT_EVENTS_MAX: Final = 200
"""Events kept in memory for people who ask what happened."""

COMMANDS_PER_SNAPSHOT: Final = 1_000
"""A broker keeps the state of the metadata on its disk each time so many commands more have been
applied, and drops the log below the state that it kept the time before."""

SNAPSHOT_BYTES_MAX: Final = 256 * MIB
"""State shipped to one replica whose log begins anew; in memory while it is put together."""

SNAPSHOT_CHUNK_BYTES: Final = MIB // 4

# --- idempotence -----------------------------------------------------------------------

BATCHES_IN_FLIGHT_PER_PRODUCER_MAX: Final = 16
"""Batches that one producer may have unacknowledged in one partition."""

PRODUCER_BATCHES_REMEMBERED: Final = 32
"""Batches per producer and partition whose original offsets a retry can still ask for."""

PRODUCERS_PER_PARTITION_MAX: Final = 16_384
FENCES_PER_PARTITION_MAX: Final = 16_384
FENCE_CLASSES: Final = 256
"""Classes of fences by their ids' lowest byte: only within one are forgotten tokens compared."""

PRODUCER_EXPIRY_MS: Final = 24 * 3600 * 1000
"""A producer idle for this long, by append time, is forgotten by a partition."""

SILENCE_PER_BATCH_MS_MAX: Final = 3600 * 1000
"""The most that the time between two batches counts of that.  A leader whose wall clock is days
ahead stamps its first batch days after the last one, and nobody has been silent for that long."""

DELIVERY_TIMEOUT_MS_MAX: Final = 3600 * 1000
"""The longest delivery deadline a producer may choose."""

PRODUCER_IDS_PER_BLOCK: Final = 1_000

# --- coordination ----------------------------------------------------------------------

SESSION_TTL_MS_MIN: Final = 1_000
SESSION_TTL_MS_MAX: Final = 24 * 3600 * 1000
KEY_BYTES_MAX: Final = KIB
VALUE_BYTES_MAX: Final = 64 * KIB
"""Of a key, or the payload of a queue's item."""

DATA_BYTES_MAX: Final = 4 * KIB
"""What a candidate, a holder or a member shows of itself."""

TEXT_BYTES_MAX: Final = 200
"""A client's description of itself, the reason of a failed item."""

PERMITS_MAX: Final = 1_000_000
OPERATIONS_PER_TRANSACTION_MAX: Final = 512
"""Comparisons and operations of both branches, together."""

KEYS_DELETED_MAX: Final = 10_000
"""By one operation: a larger range is deleted in parts, so that no command takes long."""

DELAY_MS_MAX: Final = 366 * 24 * 3600 * 1000
VISIBILITY_MS_MIN: Final = 100
VISIBILITY_MS_MAX: Final = 24 * 3600 * 1000
ATTEMPTS_MAX: Final = 10_000
PRIORITY_MAX: Final = 2**31 - 1
"""Either way from 0."""

DEAD_ITEMS_MAX: Final = 100_000
"""Of one queue, whatever its options say."""

ITEMS_PER_COMMAND_MAX: Final = 1_024
DUE_PER_COMMAND_MAX: Final = 1_000
"""Items whose time has come that one command moves; the next one goes on."""

COMMAND_BYTES_MAX: Final = 3 * MIB
"""Keys, values and payloads of one command."""

RESULT_BYTES_MAX: Final = MIB
"""Keys, values and payloads in the result of one command, unless the first alone is larger."""

ANSWER_BYTES_MAX: Final = 4 * MIB
ANSWER_ENTRIES_MAX: Final = 10_000
"""Of what a question finds; whoever wants more asks again from where it ended."""

HOLDERS_PER_ANSWER_MAX: Final = 500
NAMES_PER_ANSWER_MAX: Final = 1_000

RESULTS_PER_SESSION_MAX: Final = 1_024
"""Results that a session has not acknowledged.  A client's window must be smaller."""

NAMESPACES_PER_PARTITION_MAX: Final = 4_096
SESSIONS_PER_NAMESPACE_MAX: Final = 20_000
KEYS_PER_NAMESPACE_MAX: Final = 200_000
KEY_BYTES_PER_NAMESPACE_MAX: Final = 64 * MIB
"""Keys with their values."""

TICKETS_PER_NAMESPACE_MAX: Final = 50_000
"""Of locks, semaphores and elections: who holds and who waits."""

CLAIM_WAITS_PER_TICKET_MAX: Final = 8
"""Questions about one ticket whose answers are held back: its client has one, and another for each
connection that it has lost."""

DATA_BYTES_PER_NAMESPACE_MAX: Final = 32 * MIB
"""Data of holders, candidates and members."""

MEMBERS_PER_GROUP_MAX: Final = 1_000
MEMBERS_PER_NAMESPACE_MAX: Final = 20_000
SHARDS_PER_GROUP_MAX: Final = 10_000
SHARDS_PER_NAMESPACE_MAX: Final = 50_000
QUEUES_PER_NAMESPACE_MAX: Final = 1_000
ITEMS_PER_NAMESPACE_MAX: Final = 500_000
"""Waiting, claimed and dead, of all queues."""

ITEM_BYTES_PER_NAMESPACE_MAX: Final = 64 * MIB
RESULT_BYTES_PER_NAMESPACE_MAX: Final = 32 * MIB
"""Results kept for sessions that have not acknowledged them."""

RESULT_BYTES_PER_PARTITION_MAX: Final = 64 * MIB
"""The same over all namespaces of a partition.  Beyond that nothing is refused for being too much,
but everything until some are acknowledged."""

STATE_BYTES_PER_PARTITION_MAX: Final = 160 * MIB
"""All of that over all namespaces of a partition, as counted for quotas."""

RECORD_OVERHEAD_BYTES: Final = 64
"""What quotas count for anything that is kept, besides its bytes.  Names and texts count as if they
were as long as they may be."""

EVENTS_PER_NAMESPACE_MAX: Final = 10_000
EVENT_BYTES_PER_NAMESPACE_MAX: Final = 8 * MIB
"""Events that are kept for watches that resume; in memory only."""

COORDINATION_ENTRIES_PER_BATCH_MAX: Final = 512
"""Commands in one batch: bounds the time for which applying it holds the event loop."""

COORDINATION_BATCH_BYTES_MAX: Final = 1 * MIB
"""Bytes of commands in one batch, unless a single one is larger."""

COORDINATION_BATCHES_IN_FLIGHT_MAX: Final = 2
"""Batches of one partition that are not committed yet; what comes meanwhile gathers."""

COORDINATION_COMMANDS_PER_SNAPSHOT: Final = 20_000
COORDINATION_BYTES_PER_SNAPSHOT: Final = 64 * MIB
"""After so much of either a replica keeps its state anew, so that it starts quickly."""

COORDINATION_TIMEOUT_MS_MAX: Final = 300_000
COORDINATION_WAIT_MS_MAX: Final = 60_000
SESSIONS_PER_KEEP_ALIVE_MAX: Final = 4_096
WATCHES_PER_CONNECTION_MAX: Final = 4_096
WATCHES_PER_NAMESPACE_MAX: Final = 20_000
WATCH_EVENTS_BYTES: Final = 256 * KIB
"""What one push to a watch that catches up has, unless one revision has more."""

# --- how they depend on one another ----------------------------------------------------

# A record must fit a batch, with room for its column overhead and the header.
assert RECORD_BYTES_MAX + 64 * KIB + BATCH_HEADER_BYTES <= BATCH_BYTES_MAX
# A batch must decode: what is stored is never larger than what it may unfold to.
assert BATCH_BYTES_MAX <= PAYLOAD_DECODED_BYTES_MAX
# A frame must carry the largest batch, or a full append request, with its header.
assert FRAME_PREFIX_BYTES + FRAME_HEADER_BYTES_MAX + BATCH_BYTES_MAX <= FRAME_BYTES_MAX
assert FRAME_PREFIX_BYTES + FRAME_HEADER_BYTES_MAX + APPEND_BYTES_MAX <= FRAME_BYTES_MAX
# A description of the cluster always fits a frame, and a topic always fits an answer.
assert (
    BROKERS_MAX * BROKER_DESCRIBED_BYTES_MAX
    + METADATA_TOPICS_PER_ANSWER * TOPIC_DESCRIBED_BYTES_MAX
    + METADATA_PARTITIONS_PER_ANSWER * PARTITION_DESCRIBED_BYTES_MAX
    + 2 * FRAME_HEADER_BYTES_MAX
    <= FRAME_BYTES_MAX
)
assert DESCRIPTORS_SPARE < DESCRIPTORS_SPARE_OF_REPLICAS < DESCRIPTORS_SPARE_OF_READING

assert PARTITIONS_PER_TOPIC_MAX <= METADATA_PARTITIONS_PER_ANSWER
assert TOPIC_NAMES_PER_REQUEST * (NAME_CHARACTERS_MAX + 2) + KIB < FRAME_HEADER_BYTES_MAX
# A window or a queue that cannot hold one frame would never open.
assert FRAME_BYTES_MAX <= PEER_WINDOW_BYTES_MAX <= PEER_QUEUE_BYTES_MAX
assert FRAME_BYTES_MAX <= CONNECTION_SEND_BYTES_MAX
# Nobody waits for another client longer than a frame may take.
assert SEND_PATIENCE_S < PROGRESS_TIMEOUT_S
# A few clients that take nothing leave room for the others, and so do all with what is free.
assert 8 * CONNECTION_SEND_BYTES_MAX <= CLIENTS_SEND_BYTES_MAX // 2
assert CONNECTIONS_MAX * CONNECTION_SEND_BYTES_FREE <= CLIENTS_SEND_BYTES_MAX
# What a fetch takes from there is room for what it finds, a batch at least.
assert BATCH_BYTES_MAX <= FETCH_BYTES_MAX <= CONNECTION_SEND_BYTES_MAX
assert FRAME_BYTES_MAX <= PRODUCE_BYTES_IN_FLIGHT_MAX
# Every frame can begin, the largest too.
assert FRAME_BYTES_MAX <= LARGE_FRAMES_BYTES_MAX
# Who sends nothing is cut off sooner when others wait, and who sends in time is not.
assert FRAME_PATIENCE_S < PROGRESS_TIMEOUT_S
# All smaller frames that have begun, over all connections.
assert CONNECTIONS_MAX * RECEIVE_BYTES <= GIB
# With what each connection may always have, there are twice as many tasks at most.
assert CONNECTIONS_MAX * REQUEST_TASKS_ALWAYS <= REQUEST_TASKS_MAX
# Each broker may have a connection per lane, and a stranger's takes no place of theirs.
assert 2 * BROKERS_MAX < PEER_CONNECTIONS_MAX
# A follower's window closes on what it has not synced: it must not wait for a sync that nobody
# asks for.
assert UNSYNCED_BYTES_MAX < PEER_WINDOW_BYTES_MAX <= UNSYNCED_BYTES_BEHIND_MAX
# What a learner may lack must fit the window, or it would never be on its way.
assert LEARNER_LAG_BYTES_MAX <= PEER_WINDOW_BYTES_MAX
# A chunk must fit a frame.
assert FRAME_PREFIX_BYTES + FRAME_HEADER_BYTES_MAX + SNAPSHOT_CHUNK_BYTES <= FRAME_BYTES_MAX
# Index entries store file positions in 32 bits, and a segment must hold the largest batch.
assert SEGMENT_BYTES_MAX + BATCH_BYTES_MAX < 2**32
# Every batch that can be in flight must still be known when it is retried.
assert BATCHES_IN_FLIGHT_PER_PRODUCER_MAX <= PRODUCER_BATCHES_REMEMBERED
# A producer may be forgotten only when none of its batches can still be retried.
assert DELIVERY_TIMEOUT_MS_MAX < PRODUCER_EXPIRY_MS
# Also if the clock leaps a dozen times meanwhile.
assert DELIVERY_TIMEOUT_MS_MAX + 12 * SILENCE_PER_BATCH_MS_MAX < PRODUCER_EXPIRY_MS
# The largest command fits a batch, with what stands around its bytes; and its result a frame.
assert COMMAND_BYTES_MAX + 256 * KIB < BATCH_BYTES_MAX
assert VALUE_BYTES_MAX + KEY_BYTES_MAX < RESULT_BYTES_MAX < ANSWER_BYTES_MAX
assert ANSWER_BYTES_MAX + ANSWER_ENTRIES_MAX * 64 + MIB < FRAME_BYTES_MAX
# A whole group, its shards, those who wait for a lock and all sessions fit an answer.
assert MEMBERS_PER_GROUP_MAX * (DATA_BYTES_MAX + KIB) < FRAME_BYTES_MAX - MIB
assert SHARDS_PER_GROUP_MAX * (2 * NAME_CHARACTERS_MAX + 64) < FRAME_BYTES_MAX - MIB
assert 2 * HOLDERS_PER_ANSWER_MAX * (DATA_BYTES_MAX + KIB) < FRAME_BYTES_MAX - MIB
assert SESSIONS_PER_NAMESPACE_MAX * (TEXT_BYTES_MAX + 64) < FRAME_BYTES_MAX - MIB
# A batch of commands fits, also one of a single large command, with its namespace.
assert COORDINATION_BATCH_BYTES_MAX < BATCH_BYTES_MAX
assert COORDINATION_ENTRIES_PER_BATCH_MAX <= RECORDS_PER_BATCH_MAX
# The sessions of a keep-alive fit the header of a frame.
assert SESSIONS_PER_KEEP_ALIVE_MAX * 9 + KIB < FRAME_HEADER_BYTES_MAX
# What is counted is at most what a snapshot may be, which has less around each record.
# Results may come when that is used up; the last one is kept whatever its size.
assert (
    STATE_BYTES_PER_PARTITION_MAX + RESULT_BYTES_PER_PARTITION_MAX + 2 * ANSWER_BYTES_MAX
    < SNAPSHOT_BYTES_MAX
)

FEATURE_LEVEL_MIN: Final = 1
"""The lowest feature level at which this version works; that of brokers that name none."""

FEATURE_LEVEL: Final = 9
"""The highest (``metadata/features.py``)."""

assert FEATURE_LEVEL_MIN <= FEATURE_LEVEL
