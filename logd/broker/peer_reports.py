"""Asking all peers how they are, for the part of their reports that one wants to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

if TYPE_CHECKING:
    from logd.replication.node import Node
    from logd.types import NodeId

T = TypeVar("T")

TIMEOUT_S: Final = 2.0


def reader_of(part: type[T]) -> Callable[[bytes], T | None]:
    """Reads ``part`` of a report; None: its sender is of a version that reports something else."""
    decoder = msgspec.msgpack.Decoder(part)

    def read(report: bytes) -> T | None:
        try:
            return decoder.decode(report)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    return read


async def ask_peers(
    node: Node, read: Callable[[bytes], T | None], timeout_s: float = TIMEOUT_S
) -> dict[NodeId, T]:
    """Ask all peers that are alive; what they say, by peer.

    Who does not answer in time, or nothing that can be read, is left out.
    """
    found: dict[NodeId, T] = {}

    async def ask(peer: NodeId) -> None:
        answer = await node.reports.ask(peer, timeout_s)
        report = None if answer is None else read(answer)
        if report is not None:
            found[peer] = report

    async with trio.open_nursery() as nursery:
        for peer in node.peers_up():
            nursery.start_soon(ask, peer)
    return found
