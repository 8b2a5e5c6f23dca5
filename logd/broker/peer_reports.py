"""Asking all peers how they are, for the part of their reports that one wants to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

if TYPE_CHECKING:
    from logd.replication.node import Node
    from logd.types import NodeId

T = TypeVar("T")

TIMEOUT_S: Final = 2.0


async def ask_peers(node: Node, part: type[T]) -> dict[NodeId, T]:
    """Ask all peers that are alive; what they say, by peer.

    Who does not answer in time, or is of a version whose reports have no such part, is left out.
    """
    found: dict[NodeId, T] = {}

    async def ask(peer: NodeId) -> None:
        answer = await node.reports.ask(peer, TIMEOUT_S)
        if answer is None:
            return
        try:
            found[peer] = msgspec.msgpack.decode(answer, type=part)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # Of another version.

    async with trio.open_nursery() as nursery:
        for peer in node.peers_up():
            nursery.start_soon(ask, peer)
    return found
