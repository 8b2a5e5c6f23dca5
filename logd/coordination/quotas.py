"""What a namespace may hold, and how much of it there is.

Counted, not measured: a record counts its bytes and a constant for what stands around it, the
same on every replica, so that a refusal is.  Usage is derived: restoring a state counts anew.
"""

from __future__ import annotations

from typing import Final

from logd import limits
from logd.errors import QuotaExceededError

SESSIONS: Final = "sessions"
KEYS: Final = "keys"
KEY_BYTES: Final = "bytes of keys and values"
TICKETS: Final = "places at locks, semaphores and elections"
DATA_BYTES: Final = "bytes of what holders, candidates and members show"
MEMBERS: Final = "members"
SHARDS: Final = "shards"
QUEUES: Final = "queues"
ITEMS: Final = "items"
ITEM_BYTES: Final = "bytes of items"
RESULT_BYTES: Final = "bytes of results that were not acknowledged"
STATE_BYTES: Final = "bytes of all namespaces of a partition"
"""No namespace's own."""

QUOTAS: Final = {
    SESSIONS: limits.SESSIONS_PER_NAMESPACE_MAX,
    KEYS: limits.KEYS_PER_NAMESPACE_MAX,
    KEY_BYTES: limits.KEY_BYTES_PER_NAMESPACE_MAX,
    TICKETS: limits.TICKETS_PER_NAMESPACE_MAX,
    DATA_BYTES: limits.DATA_BYTES_PER_NAMESPACE_MAX,
    MEMBERS: limits.MEMBERS_PER_NAMESPACE_MAX,
    SHARDS: limits.SHARDS_PER_NAMESPACE_MAX,
    QUEUES: limits.QUEUES_PER_NAMESPACE_MAX,
    ITEMS: limits.ITEMS_PER_NAMESPACE_MAX,
    ITEM_BYTES: limits.ITEM_BYTES_PER_NAMESPACE_MAX,
    RESULT_BYTES: limits.RESULT_BYTES_PER_NAMESPACE_MAX,
}

_NAME: Final = limits.NAME_CHARACTERS_MAX
_RECORD: Final = limits.RECORD_OVERHEAD_BYTES

_BYTES_OF_ONE: Final = {
    SESSIONS: _RECORD + limits.TEXT_BYTES_MAX,
    KEYS: _RECORD,
    KEY_BYTES: 1,
    TICKETS: _RECORD + _NAME,
    DATA_BYTES: 1,
    MEMBERS: _RECORD + 2 * _NAME,
    SHARDS: _RECORD + 4 * _NAME,
    QUEUES: _RECORD + _NAME,
    ITEMS: _RECORD + limits.TEXT_BYTES_MAX,
    ITEM_BYTES: 1,
    RESULT_BYTES: 1,
}
"""As a snapshot would have it at most: a lock's name, a shard's group, owner and target, the reason
an item died of."""


class PartitionUsage:
    """Bytes of all namespaces together."""

    __slots__ = ("result_bytes", "state_bytes")

    def __init__(self) -> None:
        self.state_bytes = 0
        self.result_bytes = 0
        """Of these, what is refused in another way: whoever acknowledges makes room."""

    @property
    def used(self) -> float:
        """The part of what they may take together; above it every namespace is refused."""
        return self.state_bytes / limits.STATE_BYTES_PER_PARTITION_MAX


class Usage:
    """What one namespace holds."""

    __slots__ = ("_counts", "partition")

    def __init__(self, partition: PartitionUsage) -> None:
        self._counts = dict.fromkeys(QUOTAS, 0)
        self.partition = partition

    def count(self, what: str) -> int:
        return self._counts[what]

    @property
    def is_empty(self) -> bool:
        return not any(self._counts.values())

    def fullest(self) -> tuple[float, str]:
        """The largest part of a quota that is used, and of which one."""
        return max((count / QUOTAS[what], what) for what, count in self._counts.items())

    def require(self, what: str, more: int) -> None:
        """Raise QuotaExceededError unless there is room for ``more``."""
        if more <= 0:
            return
        if self._counts[what] + more > QUOTAS[what]:
            raise QuotaExceededError(
                f"the namespace holds {self._counts[what]:,} {what}, at most {QUOTAS[what]:,} "
                f"are allowed, {more:,} more were asked for"
            )
        needed = self.partition.state_bytes + more * _BYTES_OF_ONE[what]
        if needed > limits.STATE_BYTES_PER_PARTITION_MAX:
            raise QuotaExceededError(
                f"the namespaces that share a partition would hold {needed:,} bytes, "
                f"at most {limits.STATE_BYTES_PER_PARTITION_MAX:,} are allowed"
            )

    def add(self, what: str, more: int) -> None:
        """Count what came, or went (negative)."""
        count = self._counts[what] + more
        assert count >= 0
        self._counts[what] = count
        self.partition.state_bytes += more * _BYTES_OF_ONE[what]

    def add_results(self, more: int) -> None:
        """As ``add``, of bytes of results."""
        count = self._counts[RESULT_BYTES] + more
        assert count >= 0
        self._counts[RESULT_BYTES] = count
        self.partition.state_bytes += more
        self.partition.result_bytes += more
