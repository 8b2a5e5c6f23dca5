"""Everything that can go wrong, in one file.

Families differ by what the caller must do, because that is all a caller can act on:

    LogdError                      .code .retriable .may_have_applied
    ├── CorruptionError            bytes stored or received are not what was written
    │   └── MalformedBatchError    intact bytes, but not a batch this version can read
    ├── RequestError               a broker refused one request; ``code`` is on the wire
    │   ├── RetriableError         the same request may succeed later, perhaps elsewhere
    │   └── RefusedError           the same request will never succeed; fix the caller
    ├── ConnectionFailedError      no broker answered; says which address and why
    ├── DeliveryTimeoutError       not acknowledged in time; may have been applied
    ├── LeaseLostError             what was granted may be another's by now
    ├── StorageError               this node's disk or data directory cannot be used
    └── UsageError                 the local program misused the API or configuration

``may_have_applied`` is False only where the request certainly took no effect (P3).  A
broken invariant of our own is none of these: it is an ``AssertionError`` and it stops the
process.
"""

from __future__ import annotations

from typing import ClassVar, Final


class LogdError(Exception):
    """Anything logd reports.  ``code`` is stable: programs may switch on it."""

    code: ClassVar[int] = 0
    retriable: bool = False
    may_have_applied: bool = False


# --- bytes ------------------------------------------------------------------------------


class CorruptionError(LogdError):
    """Stored or received bytes fail validation.  Never ignored."""


class MalformedBatchError(CorruptionError):
    """A batch's checksum holds, but its payload cannot be read.

    ``base_offset`` and ``end_offset`` say which offsets it covers, so that a consumer can
    step over it knowingly (``on_malformed="skip"``).  Whoever reads many logs is told of which
    it is by ``log``, in the message.
    """

    def __init__(
        self, reason: str, *, base_offset: int = -1, end_offset: int = -1, log: str = ""
    ) -> None:
        whose = f"{log}: " if log else ""
        where = f" at offsets [{base_offset}, {end_offset})" if base_offset >= 0 else ""
        super().__init__(f"{whose}malformed batch{where}: {reason}")
        self.reason = reason
        self.base_offset = base_offset
        self.end_offset = end_offset


# --- refusals that travel ---------------------------------------------------------------


class RequestError(LogdError):
    """A broker refused a request.  ``code`` is part of the wire protocol: never reuse one."""


class RetriableError(RequestError):
    """Refresh metadata, back off, try again; the producer id keeps retries idempotent."""

    retriable = True


class RefusedError(RequestError):
    """Retrying cannot help."""


class UnknownServerError(RetriableError):
    """The broker met an error it has no code for; its log has the details."""

    code = 1
    may_have_applied = True


class InvalidRequestError(RefusedError):
    """A field is missing, of the wrong type or out of range."""

    code = 2


class UnsupportedVersionError(RefusedError):
    """The two sides share no version of this request, or of the protocol."""

    code = 3


class NotAuthorizedError(RefusedError):
    """The connection may not do this."""

    code = 4


class FrameTooLargeError(RefusedError):
    """A frame exceeds the limit for the state of its connection."""

    code = 5


class NotLeaderError(RetriableError):
    """This broker does not lead the partition (any more).  ``leader`` is a hint, or None."""

    code = 6

    def __init__(self, message: str = "not the leader", leader: int | None = None) -> None:
        super().__init__(message)
        self.leader = leader


class LeadershipLostError(RetriableError):
    """The leader stepped down before the batch was committed: the next one decides."""

    code = 7
    may_have_applied = True


class UnavailableError(RetriableError):
    """Not enough replicas are alive, or the broker is starting or stopping."""

    code = 8


class OverloadedError(RetriableError):
    """A bound was reached; nothing was done.  Back off."""

    code = 9


class RequestTimeoutError(RetriableError):
    """The deadline passed on the broker before the request was carried out."""

    code = 10
    may_have_applied = True


class StorageFailedError(RetriableError):
    """The leader's disk failed under the request; another replica takes over."""

    code = 11
    may_have_applied = True


class DiskFullError(RetriableError):
    """The broker refuses appends until space is freed.  Reads go on."""

    code = 12


class UnknownTopicError(RefusedError):
    """No topic of that name."""

    code = 20


class TopicExistsError(RefusedError):
    """A topic of that name exists."""

    code = 21


class InvalidNameError(RefusedError):
    """Names are 1 to 200 characters of A-Z a-z 0-9 . _ - and not '.' or '..'."""

    code = 22


class InvalidPartitionError(RefusedError):
    """The topic has no such partition, or the count asked for is out of range."""

    code = 23


class NotEnoughBrokersError(RefusedError):
    """More replicas were asked for than brokers are registered."""

    code = 24


class InvalidConfigError(RefusedError):
    """A topic option is unknown or its value does not fit."""

    code = 25


class UnknownBrokerError(RefusedError):
    """No broker with that id is registered."""

    code = 26


class NotAReplicaError(RefusedError):
    """The broker asked, or named, holds no replica of the partition."""

    code = 27


class OffsetOutOfRangeError(RefusedError):
    """The offset is outside the log.  The valid range is [``log_start``, ``log_end``]."""

    code = 30

    def __init__(self, message: str, log_start: int = -1, log_end: int = -1) -> None:
        super().__init__(message)
        self.log_start = log_start
        self.log_end = log_end


class RecordTooLargeError(RefusedError):
    """A record or batch exceeds the limit; nothing of it was sent or stored."""

    code = 31


class UnexpectedOffsetError(RefusedError):
    """``expected_offset`` did not hold: data lies at or above it, or it is past the end."""

    code = 32

    def __init__(self, message: str, log_end: int = -1) -> None:
        super().__init__(message)
        self.log_end = log_end


class OutOfSequenceError(RefusedError):
    """A producer's batch does not follow the last one the partition knows.

    ``may_have_applied`` is set per error: the batch itself was refused, but where the
    producer is unknown (forgotten) an earlier attempt may have been stored.
    """

    code = 33


class ProducerFencedError(RefusedError):
    """A newer epoch of this producer has appended: this one is a zombie.

    A partition remembers no batches of an older epoch, and sets ``may_have_applied``.
    """

    code = 34


class FencedError(RefusedError):
    """The append carried a fencing token older than the newest the partition knows."""

    code = 35


class InvalidBatchError(RefusedError):
    """The leader refuses the batch: its seal, size, counts or kind are not acceptable."""

    code = 36


class ReplicaDamagedError(RetriableError):
    """The replica that was asked found the range damaged; another replica has it."""

    code = 37


class SubscriptionLostError(RetriableError):
    """The broker ended a subscription (leader change, topic deleted); subscribe again."""

    code = 38


class ChangeUnderWayError(RetriableError):
    """The group is changing its members already: one change at a time."""

    code = 50


class LearnerBehindError(RetriableError):
    """A learner is not caught up with its leader yet, and cannot become a voter."""

    code = 51


class RebalanceConflictError(RefusedError):
    """Another plan or move is under way, or the cluster has changed since the plan was made."""

    code = 52


class BrokerInUseError(RefusedError):
    """The broker still holds replicas; drain it first."""

    code = 53


class SessionExpiredError(RefusedError):
    """The session is unknown, closed or expired, and all that it held has been given back.

    The command took no effect now.  Whoever sent it more than once cannot know whether an
    earlier copy did, and sets ``may_have_applied``.
    """

    code = 60


class NotHeldError(RefusedError):
    """The ticket or claim is not, or no longer, this session's: the lease is lost."""

    code = 61


class ConflictError(RefusedError):
    """It does not fit what is there: another capacity, another's member, not a number."""

    code = 62


class CompactedError(RefusedError):
    """The events that were asked for are no longer kept.  Read the state, then watch from there.

    ``oldest`` is the first revision from which a watch can still begin.
    """

    code = 63

    def __init__(self, message: str, oldest: int = -1) -> None:
        super().__init__(message)
        self.oldest = oldest


class QuotaExceededError(RefusedError):
    """A namespace, or what holds it, is full.  The message says of what, and the figure."""

    code = 64


class WouldWaitError(RetriableError):
    """The lock cannot be had at once, and the caller did not want to queue."""

    code = 65


class UnknownNameError(RefusedError):
    """Nothing of that name is there."""

    code = 66


# --- local ------------------------------------------------------------------------------


class ConnectionFailedError(LogdError):
    """No broker could be reached, or the connection was lost before a request was sent."""

    code = 100
    retriable = True


class ConnectionLostError(ConnectionFailedError):
    """The connection ended while a request was under way."""

    code = 101
    may_have_applied = True


class ProtocolError(ConnectionFailedError):
    """The other side does not speak our protocol, or broke it; the connection is closed."""

    code = 102


class DeliveryTimeoutError(LogdError):
    """Not acknowledged within the delivery deadline; the producer has given the record up.

    Where it was certainly not stored it can be appended again (``retriable``).  Where it may have
    been (``may_have_applied``), to append it again is to store another record.
    """

    code = 103
    may_have_applied = True


class WouldBlock(LogdError):  # noqa: N818 - the name is part of the public surface
    """The producer's buffer is full, or the partition's share of it: nothing was queued."""

    code = 104
    retriable = True


class AcquireTimeoutError(LogdError):
    """The lock was not granted in time; the place in its queue was given back."""

    code = 106
    retriable = True


class LeaseLostError(LogdError):
    """What was granted ended without having been given back: its session was lost, and somebody
    else may have been granted it.  What was written with its fence is refused from then on."""

    code = 107


class CompareFailedError(LogdError):
    """The key is not as it was expected to be; nothing was changed.

    ``revision`` is that of its last change as it is now, 0 if there is no such key.
    """

    code = 108

    def __init__(self, message: str, revision: int = 0) -> None:
        super().__init__(message)
        self.revision = revision


class ClaimLostError(NotHeldError):
    """The item's claim does not hold: it ran out, or the item was completed or released before.

    What the client makes of a broker's answer, whichever it is: no broker sends this code.
    """

    code = 109


class StorageError(LogdError):
    """This node's disk or data directory cannot be used."""

    code = 110


class NoRoomError(StorageError):
    """The disk is full, or no file can be opened, and nothing was changed: the same may be done
    when there is room."""

    code = 115


class DirectoryLockedError(StorageError):
    """Another process uses the data directory."""

    code = 111

    def __init__(self, path: str, holder_pid: int | None) -> None:
        holder = f"process {holder_pid}" if holder_pid is not None else "another process"
        super().__init__(f"data directory lock {path} is held by {holder}")
        self.holder_pid = holder_pid


class ForeignDirectoryError(StorageError):
    """The data directory belongs to another node or cluster."""

    code = 112


class NewerFormatError(StorageError):
    """The data was written by a newer version than this one can read."""

    code = 113


class BeyondRepairError(StorageError):
    """What a replica promised can no longer be told from its files: no peer can mend it.

    Another replica can take its place.
    """

    code = 114


class UsageError(LogdError):
    """The local program misused the API, or its configuration does not fit."""

    code = 120


class PartialAppendError(LogdError):
    """Some records of one ``append_many`` were not acknowledged.

    ``acks`` are the ranges that were committed; ``failures`` pairs each failed range of
    input positions ``(start, end)`` with its error.
    """

    code = 105

    def __init__(
        self, acks: tuple[object, ...], failures: tuple[tuple[int, int, LogdError], ...]
    ) -> None:
        assert failures
        start, end, first = failures[0]
        count = sum(e - s for s, e, _ in failures)
        super().__init__(
            f"1 record was not acknowledged, input {start}: {first}"
            if count == 1
            else f"{count} records were not acknowledged; "
            f"the first are inputs [{start}, {end}): {first}"
        )
        self.acks = acks
        self.failures = failures
        self.retriable = all(error.retriable for _, _, error in failures)
        self.may_have_applied = any(error.may_have_applied for _, _, error in failures)


def _codes(base: type[LogdError]) -> dict[int, type[LogdError]]:
    found: dict[int, type[LogdError]] = {}
    for cls in base.__subclasses__():
        if "code" in cls.__dict__:
            assert cls.code not in found, f"error code {cls.code} is used twice"
            found[cls.code] = cls
        for code, sub in _codes(cls).items():
            assert code not in found, f"error code {code} is used twice"
            found[code] = sub
    return found


LOCAL_CODES_BEGIN: Final = 100
"""Lower ones are on the wire."""

ERROR_BY_CODE: Final = {
    code: cls for code, cls in _codes(RequestError).items() if code < LOCAL_CODES_BEGIN
}
"""Wire code → class.  Documented in docs/wire_protocol.md; a test compares the two."""

_ALL_CODES: Final = _codes(LogdError)  # Import fails if a local code clashes with a wire code.
