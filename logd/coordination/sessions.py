"""Sessions: who a command comes from, what it was answered, and what goes when it goes.

A session keeps the results that its client has not acknowledged, so a command that is sent again
is answered with what it was answered before.  Sequences may be applied in any order (a client
pipelines, and a lost command is sent again behind later ones), each once.

The bound on results is no client's fate: its window is smaller.  A command beyond the bound is
refused without a trace, so that it can be sent again once older results were acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from logd.coordination import quotas
from logd.coordination.quotas import Usage
from logd.errors import InvalidRequestError, OverloadedError
from logd.limits import (
    KIB,
    RECORD_OVERHEAD_BYTES,
    RESULT_BYTES_PER_NAMESPACE_MAX,
    RESULT_BYTES_PER_PARTITION_MAX,
    RESULTS_PER_SESSION_MAX,
)
from logd.wire.coordination import (
    Claim,
    Done,
    ItemsClaimed,
    ItemsPut,
    ItemsSettled,
    Opened,
    Refused,
    Result,
    Transacted,
)

_ID_BYTES: Final = 9
_MESSAGE_BYTES: Final = KIB
"""As long as a refusal's may be.  How long it is depends on the Python of the replica: each version
knows more characters that it shows as they are."""
_WITHOUT_CONTENTS: Final = frozenset((Done, Claim, Opened))


class Session:
    """One client's, in one namespace.

    What it holds is kept as sets without order: whatever is given back is sorted first, so that
    a restored replica does it in the same order.
    """

    __slots__ = (
        "acknowledged",
        "claims",
        "client",
        "keys",
        "members",
        "opened_ms",
        "results",
        "session",
        "tickets",
        "token",
        "ttl_ms",
    )

    def __init__(
        self, session: int, *, token: bytes, client: str, ttl_ms: int, opened_ms: int
    ) -> None:
        self.session = session
        self.token = token
        self.client = client
        self.ttl_ms = ttl_ms
        self.opened_ms = opened_ms
        self.acknowledged = 1
        self.results: dict[int, Result] = {}
        self.keys: set[bytes] = set()
        self.tickets: dict[int, tuple[str, str]] = {}
        """Ticket → kind and name."""
        self.members: set[tuple[str, str]] = set()
        """Group and member."""
        self.claims: set[tuple[str, int]] = set()
        """Queue and item."""

    @property
    def holds(self) -> int:
        return len(self.keys) + len(self.tickets) + len(self.members) + len(self.claims)

    def earlier_result(self, sequence: int) -> Result | None:
        """What this command was answered, if it was applied before.

        Raises:
            InvalidRequestError: it was applied, and its result acknowledged.
        """
        known = self.results.get(sequence)
        if known is None and sequence < self.acknowledged:
            raise InvalidRequestError(
                f"the result of command {sequence} of session {self.session} was acknowledged: "
                "it is not applied again"
            )
        return known

    def check_room(self, usage: Usage) -> None:
        """Raise OverloadedError unless one more result can be kept."""
        if len(self.results) >= RESULTS_PER_SESSION_MAX:
            raise OverloadedError(
                f"session {self.session} has {len(self.results)} results that it has not "
                f"acknowledged, at most {RESULTS_PER_SESSION_MAX} are kept"
            )
        if usage.count(quotas.RESULT_BYTES) > RESULT_BYTES_PER_NAMESPACE_MAX:
            raise OverloadedError(
                f"the namespace holds {usage.count(quotas.RESULT_BYTES):,} {quotas.RESULT_BYTES}, "
                f"at most {RESULT_BYTES_PER_NAMESPACE_MAX:,} are kept"
            )
        if usage.partition.result_bytes > RESULT_BYTES_PER_PARTITION_MAX:
            raise OverloadedError(
                f"the namespaces that share a partition hold {usage.partition.result_bytes:,} "
                f"{quotas.RESULT_BYTES}, at most {RESULT_BYTES_PER_PARTITION_MAX:,} are kept"
            )


def keep_result(session: Session, sequence: int, result: Result, usage: Usage) -> None:
    session.results[sequence] = result
    usage.add_results(result_bytes(result))


def acknowledge(session: Session, acknowledged: int, usage: Usage) -> None:
    """Forget the results below ``acknowledged``."""
    if acknowledged <= session.acknowledged:
        return
    results = session.results
    below: Iterable[int] = range(session.acknowledged, acknowledged)
    if acknowledged - session.acknowledged > len(results):
        below = [sequence for sequence in results if sequence < acknowledged]
    freed = 0
    for sequence in below:
        result = results.pop(sequence, None)
        if result is not None:
            freed += result_bytes(result)
    if freed:
        usage.add_results(-freed)
    session.acknowledged = acknowledged


def forget_results(session: Session, usage: Usage) -> None:
    """The session ends: nobody can ask for its results any more."""
    for result in session.results.values():
        usage.add_results(-result_bytes(result))
    session.results.clear()


def result_bytes(result: Result) -> int:
    """As counted for quotas."""
    if type(result) in _WITHOUT_CONTENTS:
        return RECORD_OVERHEAD_BYTES
    contents, records = 0, 1
    if isinstance(result, Transacted):
        records += len(result.results)
        for part in result.results:
            if part.found:
                records += len(part.found)
                contents += sum(len(entry.key) + len(entry.value) for entry in part.found)
    elif isinstance(result, ItemsClaimed):
        contents = sum(len(item.key) + len(item.payload) for item in result.items)
        records += len(result.items)
    elif isinstance(result, ItemsPut):
        contents = _ID_BYTES * len(result.items)
    elif isinstance(result, ItemsSettled):
        contents = _ID_BYTES * (len(result.settled) + len(result.stale))
    elif isinstance(result, Refused):
        contents = _MESSAGE_BYTES
    return contents + RECORD_OVERHEAD_BYTES * records
