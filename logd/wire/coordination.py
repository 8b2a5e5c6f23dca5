"""What can be asked of the coordination log: sessions, locks, elections, members, queues, keys.

One set of types serves three ends: a command travels from the client to a broker as the body
of a COORDINATE frame, lies in the log as it came, and is applied from there by every replica.
So the rules of a log hold here: fields are only added, with a default that means what their
absence used to mean; a tag is never used twice.

Everything lives in a *namespace*, and a namespace in one partition of the internal topic
``__coordination`` (``partition_of``).  So a namespace has one order of changes, and its
*revision*, the offset of the command that made a change, is what watches resume from, what
compare-and-set compares, and what fencing tokens are.

None of them can be part of a cycle, so the collector of cycles need not know them (``gc=False``):
hundreds of thousands may lie in a state.

Each command has an offset of its own, also where several lie in one batch.  A command of a
session carries the session's id and a sequence; the state keeps its result until the client says
that it has it (``acknowledged``), so that a repeated command is answered and not repeated.

The page for other languages is docs/coordination_messages.md; ``tests/docs`` compares the two.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
import xxhash

from logd.limits import FENCE_CLASSES

COORDINATION_TOPIC: Final = "__coordination"
DEFAULT_NAMESPACE: Final = "default"

LockMode = Literal["exclusive", "shared"]
Kind = Literal["key", "lock", "semaphore", "election", "member", "assignment", "queue"]
"""What an event, or a watch, is about."""


def partition_of(namespace: str, partition_count: int) -> int:
    """Where a namespace lives."""
    return xxhash.xxh64_intdigest(namespace.encode()) % partition_count


def fence_id_of(namespace: str, kind: Kind, name: str) -> int:
    """The number by which appends name a lock, an election or a shard (``fence_id``).  Never 0.

    The lowest byte is the namespace's alone: tokens of fences that differ in it may come from
    different partitions, and are not compared.
    """
    digest = xxhash.xxh3_64_intdigest(f"{namespace}/{kind}/{name}".encode())
    of_namespace = xxhash.xxh64_intdigest(namespace.encode())
    return digest - digest % FENCE_CLASSES + of_namespace % FENCE_CLASSES or 1


class _Command(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="c"
):
    """One change.  All of a command takes effect, at one revision, or none of it."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A part of a command, a result or an answer."""


# --- sessions -----------------------------------------------------------------------------


class OpenSession(_Command, frozen=True, kw_only=True, tag=1):
    """Answer: Opened.  Carries no session; ``token`` makes a repetition harmless."""

    token: bytes
    """16 random bytes, drawn by the client."""
    ttl_ms: int
    client: str = ""
    """Who it is, for people."""


class CloseSession(_Command, frozen=True, kw_only=True, tag=2):
    """Gives back all that the session holds.  Answer: Done."""


class ExpireSession(_Command, frozen=True, kw_only=True, tag=3):
    """Proposed by the partition's leader only: nothing was heard for the time to live."""

    session: int


class Advance(_Command, frozen=True, kw_only=True, tag=4):
    """Proposed by the leader only: something is due by the entry's log time."""


# --- keys ---------------------------------------------------------------------------------


class Compare(_Part, frozen=True, kw_only=True):
    """Holds if all that is given holds.  A key that is not there has revision 0."""

    key: bytes
    revision: int | None = None
    """Of its last change."""
    created: int | None = None
    """Revision at which it came to be."""
    value: bytes | None = None
    exists: bool | None = None


class Put(_Part, frozen=True, kw_only=True, tag_field="o", tag="put"):
    key: bytes
    value: bytes
    ephemeral: bool = False
    """It goes with the session."""


class Delete(_Part, frozen=True, kw_only=True, tag_field="o", tag="delete"):
    """One key, or ``[key, end)``; an empty ``end`` is behind all keys."""

    key: bytes
    end: bytes | None = None


class Get(_Part, frozen=True, kw_only=True, tag_field="o", tag="get"):
    """One key, or ``[key, end)`` in order of the keys; an empty ``end`` is behind all keys."""

    key: bytes
    end: bytes | None = None
    limit: int = 0
    """0: as many as the bounds allow."""
    keys_only: bool = False


class Increment(_Part, frozen=True, kw_only=True, tag_field="o", tag="increment"):
    """A decimal integer in a key; one that is not there counts as 0."""

    key: bytes
    by: int = 1


Operation = Put | Delete | Get | Increment


class Transact(_Command, frozen=True, kw_only=True, tag=10):
    """If all comparisons hold ``then`` is done, else ``otherwise``.  Answer: Transacted."""

    compare: list[Compare] = []
    then: list[Operation] = []
    otherwise: list[Operation] = []


# --- locks, semaphores, elections ---------------------------------------------------------


class Acquire(_Command, frozen=True, kw_only=True, tag=20):
    """Take a place in the queue of a lock, semaphore or election.  Answer: Claim.

    The *ticket* is the revision of this command; the fencing token the revision at which
    it was granted, the same one if nobody stood before it.
    """

    kind: Literal["lock", "semaphore", "election"]
    name: str
    mode: LockMode = "exclusive"
    permits: int = 1
    """How many of a semaphore's."""
    capacity: int = 0
    """Of a semaphore, at least 1: set by the first, refused with Conflict if it differs while
    anybody holds or waits."""
    queue: bool = True
    """False: only if it can be had now, else refused with WouldWait."""
    data: bytes = b""
    """A candidate's, shown to observers; a holder's, for people."""


class Release(_Command, frozen=True, kw_only=True, tag=21):
    """Give back what is held, or give up waiting.  Answer: Done."""

    kind: Literal["lock", "semaphore", "election"]
    name: str
    ticket: int


class Proclaim(_Command, frozen=True, kw_only=True, tag=22):
    """Change the data of a candidate, leader or not.  Answer: Done."""

    name: str
    ticket: int
    data: bytes


class HandOver(_Command, frozen=True, kw_only=True, tag=23):
    """The leader steps back in favour of ``to`` (a ticket), or of who is next.  Answer: Done;
    refused with Conflict if nobody is there to hand over to: then it still leads."""

    name: str
    ticket: int
    to: int | None = None


# --- membership and assignments -----------------------------------------------------------


class Join(_Command, frozen=True, kw_only=True, tag=30):
    """Be a member of a group while the session lives.  Again: the data change.  Answer: Done."""

    group: str
    member: str
    data: bytes = b""


class Leave(_Command, frozen=True, kw_only=True, tag=31):
    group: str
    member: str


class Assign(_Command, frozen=True, kw_only=True, tag=32):
    """Spread shards over the members of a group of the same name, from now on.  Answer: Done.

    Sticky and incremental: what need not move stays; what moves is first *revoked*, and has
    its new owner once the old one has let go (``LetGo``) or its session is gone.
    """

    group: str
    shards: list[str] = []
    """Replaces the shards; an empty list ends the assignment."""
    weights: list[float] = []
    """One per shard, or none: all alike."""


class LetGo(_Command, frozen=True, kw_only=True, tag=33):
    """An owner has stopped working on shards that were revoked from it.  Answer: Done."""

    group: str
    member: str
    shards: list[str]


class ReportLoad(_Command, frozen=True, kw_only=True, tag=34):
    """What shards cost, as their owner sees it; the next spreading weighs by it.  Answer: Done."""

    group: str
    member: str
    loads: dict[str, float]


# --- work queues --------------------------------------------------------------------------


class QueueOptions(_Part, frozen=True, kw_only=True):
    attempts_max: int = 10
    """After so many claims that were not completed an item is dead."""
    backoff_ms: int = 1_000
    """Before the second attempt; doubled with each, up to ``backoff_max_ms``."""
    backoff_max_ms: int = 60_000
    visibility_ms: int = 30_000
    """How long a claim holds unless it is renewed."""
    dead_items_max: int = 10_000
    """The oldest dead items go first."""


class ConfigureQueue(_Command, frozen=True, kw_only=True, tag=40):
    """Make a queue, or change its options.  A put makes one with the defaults.  Answer: Done."""

    queue: str
    options: QueueOptions
    changed: list[str] | None = None
    """Names of the options to change; the others stay as they are.  None: all of them change."""


class Item(_Part, frozen=True, kw_only=True):
    payload: bytes
    key: bytes = b""
    """Items of one key are handed out one at a time, in order; without a key there is no order."""
    delay_ms: int = 0
    priority: int = 0
    """Higher first, among those that are due."""


class PutItems(_Command, frozen=True, kw_only=True, tag=41):
    """Answer: ItemsPut."""

    queue: str
    items: list[Item]


class ClaimItems(_Command, frozen=True, kw_only=True, tag=42):
    """Take up to ``count`` items that are due.  Answer: ItemsClaimed, perhaps of none."""

    queue: str
    count: int = 1
    visibility_ms: int | None = None


class ItemClaim(_Part, frozen=True, kw_only=True):
    item: int
    token: int


class RenewItems(_Command, frozen=True, kw_only=True, tag=43):
    """Hold claims for longer, from now.  All or none.  Answer: Done."""

    queue: str
    claims: list[ItemClaim]
    visibility_ms: int | None = None


class CompleteItems(_Command, frozen=True, kw_only=True, tag=44):
    """Done with these: they are never handed out again.  Answer: ItemsSettled."""

    queue: str
    claims: list[ItemClaim]


class ReleaseItems(_Command, frozen=True, kw_only=True, tag=45):
    """Give claims back.  Answer: ItemsSettled."""

    queue: str
    claims: list[ItemClaim]
    reason: str = ""
    delay_ms: int | None = None
    """None: the queue's back-off, or none if uncounted."""
    dead: bool = False
    """To the dead letters at once."""
    uncounted: bool = False
    """The claims are no attempts: their worker was stopped, which says nothing of the items."""


class RedriveItems(_Command, frozen=True, kw_only=True, tag=46):
    """Dead items begin anew; none named: all.  Answer: ItemsSettled."""

    queue: str
    items: list[int] = []


class DeleteQueue(_Command, frozen=True, kw_only=True, tag=47):
    """Answer: Done."""

    queue: str


Command = (
    OpenSession
    | CloseSession
    | ExpireSession
    | Advance
    | Transact
    | Acquire
    | Release
    | Proclaim
    | HandOver
    | Join
    | Leave
    | Assign
    | LetGo
    | ReportLoad
    | ConfigureQueue
    | PutItems
    | ClaimItems
    | RenewItems
    | CompleteItems
    | ReleaseItems
    | RedriveItems
    | DeleteQueue
)


# --- results of commands ------------------------------------------------------------------


class _Result(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="r"
):
    """What applying a command returned, the same on every replica."""

    revision: int
    """Of the command."""


class Done(_Result, frozen=True, kw_only=True, tag=1):
    pass


class Refused(_Result, frozen=True, kw_only=True, tag=2):
    """It was judged and took no effect."""

    code: int
    """As in ErrorResponse."""
    message: str


class Opened(_Result, frozen=True, kw_only=True, tag=3):
    session: int
    ttl_ms: int


class KeyValue(_Part, frozen=True, kw_only=True):
    key: bytes
    value: bytes
    revision: int
    created: int
    session: int = 0
    """Whose it is, if it is ephemeral."""


class OperationResult(_Part, frozen=True, kw_only=True):
    """Of one operation: what a get found, what a delete removed, what an increment left."""

    found: list[KeyValue] = []
    count: int = 0
    """Keys removed, or in the range although the limit left them out."""


class Transacted(_Result, frozen=True, kw_only=True, tag=4):
    succeeded: bool
    results: list[OperationResult] = []


class Claim(_Result, frozen=True, kw_only=True, tag=5):
    ticket: int
    token: int | None = None
    """None: still waiting."""
    position: int = 0
    """How many hold or wait before it."""


class ItemsPut(_Result, frozen=True, kw_only=True, tag=6):
    items: list[int]
    """Their ids, in the order of the command."""


class ClaimedItem(_Part, frozen=True, kw_only=True):
    item: int
    token: int
    """Grows with each claim of an item."""
    payload: bytes
    key: bytes = b""
    attempt: int = 1
    put_ms: int = 0
    """Log time at which it was put."""


class ItemsClaimed(_Result, frozen=True, kw_only=True, tag=7):
    items: list[ClaimedItem] = []


class ItemsSettled(_Result, frozen=True, kw_only=True, tag=8):
    """Which of the named items were settled, and which claims had been lost before."""

    settled: list[int] = []
    stale: list[int] = []


Result = Done | Refused | Opened | Transacted | Claim | ItemsPut | ItemsClaimed | ItemsSettled


# --- questions and answers ----------------------------------------------------------------


class _Query(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="q"
):
    """Reads at the answering leader's applied state, once its leadership is confirmed."""


class ReadKeys(_Query, frozen=True, kw_only=True, tag=1):
    """Answer: Keys."""

    get: Get


class ReadClaim(_Query, frozen=True, kw_only=True, tag=2):
    """Where a ticket stands.  Answer: Claim; refused with NotHeld if it is gone."""

    kind: Literal["lock", "semaphore", "election"]
    name: str
    ticket: int


class ReadLock(_Query, frozen=True, kw_only=True, tag=3):
    """Who holds, who waits.  Answer: Holders."""

    kind: Literal["lock", "semaphore", "election"]
    name: str


class ReadMembers(_Query, frozen=True, kw_only=True, tag=4):
    """Answer: Members."""

    group: str


class ReadAssignment(_Query, frozen=True, kw_only=True, tag=5):
    """Answer: Assignment."""

    group: str


class ReadQueue(_Query, frozen=True, kw_only=True, tag=6):
    """Answer: QueueStatistics."""

    queue: str
    dead: int = 0
    """Also so many of the dead items, the newest first."""


class ListNames(_Query, frozen=True, kw_only=True, tag=7):
    """What there is of a kind.  Answer: Names."""

    kind: Kind
    start: str = ""


class ReadSessions(_Query, frozen=True, kw_only=True, tag=8):
    """Answer: Sessions."""


Query = (
    ReadKeys
    | ReadClaim
    | ReadLock
    | ReadMembers
    | ReadAssignment
    | ReadQueue
    | ListNames
    | ReadSessions
)


class _Answer(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="r"
):
    """What a query was answered: told from results by its tags, which begin at 21."""

    revision: int
    """The state that was read holds all changes up to and with this one."""


class Keys(_Answer, frozen=True, kw_only=True, tag=21):
    found: list[KeyValue] = []
    count: int = 0


class Holder(_Part, frozen=True, kw_only=True):
    ticket: int
    token: int | None
    """None: waits."""
    session: int
    client: str
    since_ms: int
    """Log time at which it was granted, or began to wait."""
    mode: LockMode = "exclusive"
    permits: int = 1
    data: bytes = b""


class Holders(_Answer, frozen=True, kw_only=True, tag=22):
    holders: list[Holder] = []
    waiting: list[Holder] = []
    capacity: int = 1


class Member(_Part, frozen=True, kw_only=True):
    member: str
    session: int
    client: str
    joined: int
    data: bytes = b""


class Members(_Answer, frozen=True, kw_only=True, tag=23):
    members: list[Member] = []


class ShardOwner(_Part, frozen=True, kw_only=True):
    shard: str
    owner: str | None
    token: int
    """Revision at which this owner got it: its fencing token."""
    revoked: bool = False
    """The owner is to let go of it."""


class Assignment(_Answer, frozen=True, kw_only=True, tag=24):
    shards: list[ShardOwner] = []


class DeadItem(_Part, frozen=True, kw_only=True):
    item: int
    payload: bytes
    reason: str
    attempts: int
    died_ms: int
    key: bytes = b""


class QueueStatistics(_Answer, frozen=True, kw_only=True, tag=25):
    ready: int
    delayed: int
    in_flight: int
    dead: int
    completed: int
    """Since the queue was made."""
    oldest_ms: int | None
    """Age of the oldest item that is not completed."""
    options: QueueOptions
    dead_items: list[DeadItem] = []


class Names(_Answer, frozen=True, kw_only=True, tag=26):
    names: list[str]
    next: str | None = None


class SessionInfo(_Part, frozen=True, kw_only=True):
    session: int
    client: str
    ttl_ms: int
    opened_ms: int
    holds: int
    """Locks, permits, candidacies, memberships, ephemeral keys and claims."""


class Sessions(_Answer, frozen=True, kw_only=True, tag=27):
    sessions: list[SessionInfo] = []


Answer = (
    Keys | Holders | Members | Assignment | QueueStatistics | Names | Sessions | Claim | Refused
)


# --- watches ------------------------------------------------------------------------------


class Event(_Part, frozen=True, kw_only=True):
    """One change that a watch may be about.

    ``name`` is the key, lock, election, group (of members or shards) or queue.  ``change`` by kind:
    key: put, deleted; lock, semaphore, election: granted, released, data; member: joined,
    changed, left; assignment: owner, revoked, free; queue: ready.
    """

    revision: int
    kind: Kind
    name: bytes
    change: str
    value: bytes = b""
    """The key's value, the candidate's or the member's data."""
    subject: str = ""
    """The member, or the shard."""
    owner: str = ""
    """The shard's new owner."""
    ticket: int = 0
    token: int = 0
    session: int = 0


# --- frames -------------------------------------------------------------------------------


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A command as it lies in the log: a batch's payload is a MessagePack array of these, and
    entry i of a batch at base offset b has the revision b + i."""

    namespace: str
    session: int
    sequence: int
    """Per session, from 1; 0: the leader's own commands and OpenSession."""
    acknowledged: int
    """The client has the results of all sequences below."""
    time_ms: int
    """Log time; never decreasing."""
    command: Command
