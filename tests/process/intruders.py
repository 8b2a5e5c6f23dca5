"""Connections that do not speak the protocol of the port they came to.

Each intruder names the words that the broker's log must have about it: a connection that is
closed without a reason is a riddle for whoever looks after the cluster.
"""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass
from typing import Final, Literal

from logd.cli.local_cluster import LocalBroker
from logd.limits import FRAME_BYTES_MAX, FRAME_UNAUTHENTICATED_BYTES_MAX, HANDSHAKE_TIMEOUT_S
from logd.replication.peer_protocol import ClusterView, PeerHello, PeerKind, Ping
from logd.wire.frame import encode_message, frame_prefix
from logd.wire.messages import HelloRequest, Kind, MetadataRequest
from tests.process.harness import logged_bytes, wait_for_event

Port = Literal["client", "peer"]
CLOSE_TIMEOUT_S: Final = 0.8 * HANDSHAKE_TIMEOUT_S
"""Before anybody is shut out for having said nothing."""


@dataclass(frozen=True, kw_only=True)
class Intruder:
    """What is sent to which port, and what the log must say about it."""

    name: str
    port: Port
    sends: bytes
    reason: str
    greets: bool = False
    """First says a proper client's hello and reads the answer."""
    leaves: bool = False
    """Closes its half behind what it sent, instead of waiting for the broker to do so."""
    closed_within_s: float = CLOSE_TIMEOUT_S

    def __str__(self) -> str:
        return f"{self.name}-{self.port}"


_HTTP: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"
_TLS: Final = bytes.fromhex("16030100c8010000c40303") + bytes(range(190))
_NOISE: Final = b"\xd7" + random.Random(1).randbytes(70_000)
_HELLO: Final = encode_message(Kind.HELLO, HelloRequest(client="intruder"), 1)
_METADATA: Final = encode_message(Kind.METADATA, MetadataRequest(), 2)
_STRANGER: Final = PeerHello(
    protocol=1,
    view=ClusterView(node=77, directory_id="elsewhere", cluster_list="77=10.0.0.1:1"),
    incarnation=1,
)
_PEER_HELLO: Final = encode_message(PeerKind.PEER_HELLO, _STRANGER, 0)
_PEER_PING: Final = encode_message(PeerKind.PING, Ping(), 0)


def _claiming(length: int) -> bytes:
    """A frame's beginning that says it has this length."""
    return length.to_bytes(4, "big") + b"\x01\0\0\x04\0\0\0\x01"


def _for_both_ports(
    name: str, sends: bytes, reason: str, *, leaves: bool = False
) -> list[Intruder]:
    return [
        Intruder(name=name, port=port, sends=sends, reason=reason, leaves=leaves)
        for port in ("client", "peer")
    ]


INTRUDERS: Final = (
    *_for_both_ports("http", _HTTP, "an HTTP request"),
    *_for_both_ports("tls", _TLS, "a TLS hello"),
    *_for_both_ports("noise", _NOISE, "limit"),
    *_for_both_ports("longer-than-allowed", _claiming(FRAME_UNAUTHENTICATED_BYTES_MAX), "limit"),
    *_for_both_ports("shorter-than-itself", _claiming(3), "3"),
    *_for_both_ports("header-longer-than-frame", _claiming(9), "header"),
    Intruder(
        name="no-message",
        port="client",
        sends=frame_prefix(Kind.HELLO, 0, b"\xc1\xc1", 1),
        reason="HelloRequest: MessagePack data is malformed",
    ),
    Intruder(
        name="no-message",
        port="peer",
        sends=frame_prefix(PeerKind.PEER_HELLO, 0, b"\xc1\xc1", 1),
        reason="PeerHello: MessagePack data is malformed",
    ),
    Intruder(
        name="half-a-frame", port="client", sends=_HELLO[:15], reason="within a frame", leaves=True
    ),
    Intruder(
        name="half-a-frame", port="peer", sends=_PEER_HELLO[:15], reason="greeting", leaves=True
    ),
    Intruder(name="peer-frame", port="client", sends=_PEER_HELLO, reason="frame kind 128"),
    Intruder(name="client-frame", port="peer", sends=_HELLO, reason="frame kind 1 "),
    Intruder(name="stranger", port="peer", sends=_PEER_HELLO, reason="77"),
    Intruder(name="no-greeting", port="client", sends=_METADATA, reason="before the greeting"),
    Intruder(name="no-greeting", port="peer", sends=_PEER_PING, reason="expected a greeting"),
    Intruder(
        name="peer-frame-later",
        port="client",
        sends=_PEER_PING,
        reason="frame kind 129",
        greets=True,
    ),
    Intruder(
        name="longer-than-allowed-later",
        port="client",
        sends=_claiming(FRAME_BYTES_MAX),
        reason="limit",
        greets=True,
    ),
    Intruder(
        name="half-a-frame-later",
        port="client",
        sends=frame_prefix(Kind.PRODUCE, 0, b"", 3, body_bytes=1_000_000) + bytes(500_000),
        reason="within a frame, after 500012 bytes",
        greets=True,
        leaves=True,
    ),
)
"""Closed at once."""

IDLERS: Final = (
    Intruder(name="silent", port="client", sends=b"", reason="no progress", closed_within_s=15.0),
    Intruder(
        name="silent", port="peer", sends=b"", reason="no greeting within", closed_within_s=15.0
    ),
    Intruder(
        name="promises-more",
        port="client",
        sends=_claiming(4000),
        reason="no progress",
        closed_within_s=15.0,
    ),
    Intruder(
        name="promises-more",
        port="peer",
        sends=_claiming(4000),
        reason="no greeting within",
        closed_within_s=15.0,
    ),
    Intruder(
        name="promises-more-later",
        port="client",
        sends=_claiming(7_000_000),
        reason="no progress",
        greets=True,
        closed_within_s=40.0,
    ),
)
"""Closed after the time that a handshake, or the progress of a frame, may take."""


def intrude(broker: LocalBroker, intruder: Intruder) -> str:
    """Connect, send, and wait for the broker to close; return the reason it logged.

    Raises:
        AssertionError: it did not close the connection, or logged nothing about it.
    """
    address = broker.address if intruder.port == "client" else broker.peer_address
    # Who came from the same port earlier, and was shut out for another reason, is not meant.
    already_logged = logged_bytes(broker)
    with socket.create_connection((address.host, address.port)) as connection:
        ours = "{}:{}".format(*connection.getsockname())
        connection.settimeout(intruder.closed_within_s)
        if intruder.greets:
            connection.sendall(_HELLO)
            assert connection.recv(65_536), "the greeting was not answered"
        try:
            connection.sendall(intruder.sends)
            if intruder.leaves:
                connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass
        except TimeoutError:
            raise AssertionError(
                f"{intruder} was not closed within {intruder.closed_within_s} s"
            ) from None
    event = "client_refused" if intruder.port == "client" else "peer_refused"
    return str(wait_for_event(broker, already_logged, event=event, address=ours)["reason"])
