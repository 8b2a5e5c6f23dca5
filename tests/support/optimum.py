"""The fewest bytes that reach a balance, found by a solver for integer programs.

It solves the same problem as the planner, written down as constraints: as many replicas as
wanted, on brokers that may hold them, in different failure domains, loads within given ranges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from logd.metadata.rebalance.cluster import BrokerLoad, PartitionLoad
from logd.metadata.rebalance.shares import Ranges
from logd.types import NodeId


class Excess(NamedTuple):
    """How far out of their ranges the loads may be."""

    worst: float
    """Of one broker."""
    total: float
    """Of all brokers together."""


def fewest_bytes(
    brokers: Sequence[BrokerLoad],
    partitions: Sequence[PartitionLoad],
    ranges: Mapping[NodeId, Ranges],
    allowed: Sequence[Excess],
) -> int:
    """Bytes that must be copied to a layout within ``ranges``, but for what is ``allowed``."""
    targets = [broker for broker in brokers if broker.is_target]
    column = {
        (at, broker.node): len(targets) * at + place
        for at in range(len(partitions))
        for place, broker in enumerate(targets)
    }
    replica_columns = len(column)
    excess = {
        (kind, broker.node): replica_columns + kind * len(targets) + place
        for kind in range(3)
        for place, broker in enumerate(targets)
    }
    cost = np.zeros(replica_columns + len(excess))
    for (at, node), index in column.items():
        if node not in partitions[at].replicas:
            cost[index] = partitions[at].size_bytes
    rows: list[np.ndarray] = []
    least: list[float] = []
    most: list[float] = []

    def require(weights: Mapping[int, float], low: float, high: float) -> None:
        row = np.zeros(len(cost))
        for index, weight in weights.items():
            row[index] = weight
        rows.append(row)
        least.append(low)
        most.append(high)

    domains: dict[str, list[NodeId]] = {}
    for broker in targets:
        domains.setdefault(broker.failure_domain, []).append(broker.node)
    for at, partition in enumerate(partitions):
        wanted = partition.wanted_count
        require({column[at, broker.node]: 1 for broker in targets}, wanted, wanted)
        for nodes in domains.values():
            require({column[at, node]: 1 for node in nodes}, 0, math.ceil(wanted / len(domains)))
    weights = (
        [1] * len(partitions),
        [partition.size_bytes for partition in partitions],
        [partition.write_bytes_per_s for partition in partitions],
    )
    for kind, weight in enumerate(weights):
        scale = max(1.0, max(weight))
        for broker in targets:
            allowance = excess[kind, broker.node]
            load = {column[at, broker.node]: w / scale for at, w in enumerate(weight)}
            even = ranges[broker.node][kind]
            require({**load, allowance: -1}, -np.inf, even.high / scale)
            require({**load, allowance: 1}, even.low / scale, np.inf)
            require({allowance: 1}, 0, allowed[kind].worst / scale)
        require(
            {excess[kind, broker.node]: 1 for broker in targets}, 0, allowed[kind].total / scale
        )
    found = milp(
        cost,
        constraints=LinearConstraint(np.array(rows), least, most),
        integrality=np.array([1] * replica_columns + [0] * len(excess)),
        bounds=Bounds(0, np.array([1.0] * replica_columns + [np.inf] * len(excess))),
        options={"mip_rel_gap": 0.005, "time_limit": 20},
    )
    assert found.x is not None, found.message
    return round(float(found.fun))
