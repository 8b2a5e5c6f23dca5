"""What brokers say to each other, one line per message, for whoever follows a failing seed.

Shown where it is sent and where it arrives.  It looks into the brokers by replacing two of
their methods for the time of a run; the run itself does not notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from logd.raft.messages import AppendRequest, AppendResponse, VoteRequest, VoteResponse
from logd.raft.messages import Message as RaftMessage
from logd.replication.node import Node
from logd.replication.peer_link import PeerLink
from logd.replication.peer_protocol import TYPE_BY_KIND, AnyPeerMessage, Ping
from logd.types import Buffer
from logd.wire.frame import Frame, decode_message
from tests.sim.clock import HOST
from tests.sim.trace import Trace


@contextmanager
def show_messages(trace: Trace) -> Iterator[None]:
    """Put every message between brokers into the trace, without changing its digest."""
    link: Any = PeerLink
    node: Any = Node
    send, on_frame = link.send, node.on_frame

    def show_and_send(
        self: PeerLink, message: AnyPeerMessage, buffers: tuple[Buffer, ...] = ()
    ) -> None:
        if not isinstance(message, Ping):
            arrow = "→" if self.is_connected else "⇸"  # The second: there is no connection.
            trace.note(HOST.get("?"), f"{arrow} node{self.node} {describe(message)}")
        send(self, message, buffers)

    def show_and_take(self: Node, source: int, frame: Frame) -> None:
        message = decode_message(TYPE_BY_KIND[frame.kind], frame.header)
        if not isinstance(message, Ping):
            trace.note(HOST.get("?"), f"← node{source} {describe(message)}")
        on_frame(self, source, frame)

    link.send, node.on_frame = show_and_send, show_and_take
    try:
        yield
    finally:
        link.send, node.on_frame = send, on_frame


def describe(message: AnyPeerMessage) -> str:
    """One line: kind, group, term, and what matters of the rest."""
    name = type(message).__name__
    if not isinstance(message, RaftMessage):
        fields = " ".join(
            f"{key}={value}" for key, value in msgspec.structs.asdict(message).items()
        )
        return f"{name} {fields[:120]}"
    match message:
        case AppendRequest():
            details = (
                f"[{message.start_offset}, {message.end_offset}) after term {message.prev_term} "
                f"commit={message.commit_offset} round={message.round}"
            )
        case AppendResponse() if message.accepted:
            details = f"synced={message.synced_end} received={message.received_end}"
            details += f" round={message.round}"
        case AppendResponse():
            details = f"REFUSED conflict={message.conflict_term}@{message.conflict_end}"
        case VoteRequest():
            kind = "pre-vote" if message.pre_vote else "transfer" if message.transfer else "vote"
            details = f"{kind} log={message.last_term}@{message.end_offset}"
        case VoteResponse():
            kind = "pre-vote" if message.pre_vote else "vote"
            details = f"{kind} {'granted' if message.granted else 'refused'}"
        case _:
            details = ""
    return f"{name} group={message.group} term={message.term} {details}".rstrip()
