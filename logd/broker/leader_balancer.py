"""Spreads leadership evenly over the brokers that are alive and caught up.

Leaders gather where brokers stay up: each restart takes its leaders away and nothing brings
them back.  Every broker looks at its own share now and then, and hands over a few partitions
while it leads at least two more than the replica they would go to.  A difference of one is left
alone, so that a leader moved by hand stays where it was put and nothing goes to and fro.  And
what goes to one broker at once is a part of the difference, since others may be looking at the
same moment.  Only followers that are fed from memory are considered: a broker that is still
catching up would make the partition wait.  A draining broker leads nothing and is given nothing;
nor does one whose disk is full, or that has to refuse clients, for the others can take what it
has to refuse.  Where replicas have failed, what is left is not added to: each would fail as it
stands for election.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
import trio

from logd.broker import log_events
from logd.raft.messages import TransferLeadership
from logd.types import METADATA_GROUP, GroupId, NodeId

if TYPE_CHECKING:
    from logd.broker.broker import Broker

log = structlog.get_logger(__name__)

DIFFERENCE_MIN: Final = 2
TRANSFERS_AT_ONCE: Final = 16
"""Each holds up its partition for some milliseconds, and not all shall be held up together."""

DIFFERENCE_PER_TRANSFER: Final = 4
"""Of a difference of up to so many one goes at once, of up to twice as many two, and so on."""

DEPARTURES_AT_ONCE: Final = 8
DEPARTURE_INTERVAL_S: Final = 0.5
LOOK_S: Final = 2.0
"""That the disk is full, or clients are refused, is noticed within so long."""


class Led(NamedTuple):
    """A partition that this broker leads, and who could take it over, preferred first."""

    group: GroupId
    successors: Sequence[NodeId]


def choose_transfers(
    node: NodeId, led: Sequence[Led], leader_counts: Mapping[NodeId, int]
) -> list[tuple[GroupId, NodeId]]:
    """The hand-overs that even out most; none if the spread is even enough.

    Args:
        leader_counts: partitions led, per broker; brokers that lead none may be missing.
    """
    counts = dict(leader_counts)
    ours = counts.setdefault(node, 0)
    chosen: list[tuple[GroupId, NodeId]] = []
    given: Counter[NodeId] = Counter()
    left = list(led)

    def may_give(successor: NodeId) -> bool:
        difference = ours - leader_counts.get(successor, 0)
        return (
            counts[node] - counts.get(successor, 0) >= DIFFERENCE_MIN
            and given[successor] * DIFFERENCE_PER_TRANSFER < difference
        )

    while len(chosen) < TRANSFERS_AT_ONCE:
        possible = [(each, to) for each in left for to in each.successors if may_give(to)]
        if not possible:
            break
        handed_over, successor = min(possible, key=lambda pair: counts.get(pair[1], 0))
        left.remove(handed_over)
        chosen.append((handed_over.group, successor))
        given[successor] += 1
        counts[node] -= 1
        counts[successor] = counts.get(successor, 0) + 1
    return chosen


def choose_departures(
    led: Sequence[Led], leader_counts: Mapping[NodeId, int]
) -> list[tuple[GroupId, NodeId]]:
    """Hand-overs of a broker that shall lead nothing, each to who leads least by then."""
    counts = dict(leader_counts)
    chosen: list[tuple[GroupId, NodeId]] = []
    for group, successors in led:
        if successors and len(chosen) < DEPARTURES_AT_ONCE:
            successor = min(successors, key=lambda node: (counts.get(node, 0), node))
            counts[successor] = counts.get(successor, 0) + 1
            chosen.append((group, successor))
    return chosen


async def leave_leaders(broker: Broker) -> None:
    """While this broker had better lead nothing, hand over whatever it leads, until cancelled."""
    while True:
        why = _reason_to_leave(broker)
        if why:
            chosen = choose_departures(_led(broker), broker.leader_counts())
            _hand_over(broker, chosen, why)
            await trio.sleep(DEPARTURE_INTERVAL_S)
        else:
            with trio.move_on_after(LOOK_S):
                await broker.metadata.changed()


def _reason_to_leave(broker: Broker) -> str:
    known = broker.metadata.state.broker(broker.node.node)
    if known is not None and known.is_draining:
        return "to be drained"
    if broker.disk.is_full:
        return "for its disk is full"
    return "for it has to refuse clients" if broker.node.fitness.is_crowded else ""


async def balance_leaders(broker: Broker) -> None:
    """Look every interval, until cancelled."""
    interval_s = broker.config.leader_balance_interval_ms / 1000
    if interval_s == 0:
        return
    rng = broker.env.rng("leader balancer")
    while True:
        # Not all at once: two brokers that act on one picture would overshoot.
        await trio.sleep(interval_s * rng.uniform(0.75, 1.25))
        chosen = choose_transfers(broker.node.node, _led(broker), broker.leader_counts())
        _hand_over(broker, chosen, "to even out leaders")


def _hand_over(broker: Broker, chosen: list[tuple[GroupId, NodeId]], why: str) -> None:
    for group_id, successor in chosen:
        log.info(log_events.LEADER_MOVED, group=group_id, to=successor, why=why)
        broker.node.groups[group_id].post(TransferLeadership(successor))


def _led(broker: Broker) -> list[Led]:
    node = broker.node
    unfit = {known.node for known in broker.metadata.state.brokers if known.is_draining}
    unfit.update(node.fitness.full_disks)
    unfit.update(node.fitness.failing_disks)
    unfit.update(node.fitness.crowded_peers)
    unfit.add(node.node)
    return [
        Led(
            group.group_id,
            [
                voter
                for voter in group.core.configuration.voters
                if voter not in unfit and node.is_up(voter) and group.feeder.is_in_sync(voter)
            ],
        )
        for group in node.groups.values()
        # The metadata log is not counted: moving it would change nothing.
        if group.group_id != METADATA_GROUP and group.is_ready and not group.core.is_transferring
    ]
