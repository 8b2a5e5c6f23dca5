"""A partition of the coordination log without a log: commands are applied as they come."""

from __future__ import annotations

from logd.coordination.state import CoordinationState
from logd.errors import ERROR_BY_CODE, RequestError
from logd.types import Offset
from logd.wire.coordination import (
    Advance,
    Command,
    Entry,
    Event,
    ExpireSession,
    Opened,
    OpenSession,
    Refused,
    Result,
)

NAMESPACE = "test"


class Partition:
    """Numbers what it applies, as the clients and the leader would."""

    def __init__(self) -> None:
        self.state = CoordinationState()
        self.revision = 0
        self.now_ms = 1_000_000
        self.sequences: dict[int, int] = {}
        self.entries: list[tuple[Entry, Offset]] = []

    def apply(self, entry: Entry) -> Result:
        self.revision += 1
        self.entries.append((entry, Offset(self.revision)))
        return self.state.apply(entry, Offset(self.revision))

    def open(self, namespace: str = NAMESPACE, ttl_ms: int = 10_000, client: str = "") -> int:
        token = (self.revision + 1).to_bytes(16, "big")
        command = OpenSession(token=token, ttl_ms=ttl_ms, client=client)
        opened = self.apply(Entry(namespace, 0, 0, 0, self.now_ms, command))
        assert isinstance(opened, Opened), opened
        self.sequences[opened.session] = 0
        return opened.session

    def entry(self, session: int, command: Command, namespace: str = NAMESPACE) -> Entry:
        """The session's next; it has seen all results before."""
        sequence = self.sequences[session] = self.sequences.get(session, 0) + 1
        return Entry(namespace, session, sequence, sequence, self.now_ms, command)

    def do(self, session: int, command: Command, namespace: str = NAMESPACE) -> Result:
        return self.apply(self.entry(session, command, namespace))

    def expire(self, session: int, namespace: str = NAMESPACE) -> Result:
        command = ExpireSession(session=session)
        return self.apply(Entry(namespace, 0, 0, 0, self.now_ms, command))

    def sleep(self, ms: int) -> None:
        """Time passes; the leader proposes what is due."""
        end_ms = self.now_ms + ms
        while (due_ms := self.state.due_ms) is not None and due_ms <= end_ms:
            self.now_ms = max(due_ms, self.now_ms)
            self.apply(Entry(NAMESPACE, 0, 0, 0, self.now_ms, Advance()))
        self.now_ms = end_ms

    def events(self) -> list[Event]:
        return [event for _, event in self.state.take_events()]


def error_of(result: object) -> type[RequestError]:
    """Which refusal it is."""
    assert isinstance(result, Refused), result
    error = ERROR_BY_CODE[result.code]
    assert issubclass(error, RequestError)
    return error
