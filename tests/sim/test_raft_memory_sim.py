"""Groups that rest on the memory of a majority lose nothing while no majority loses its memory.

The schedules and faults are those of ``test_raft_sim``, and so are the checks: leader
completeness above all, whatever was committed by whom.  Added is what memory brings.  A crash
is the process dying, which keeps all that was written, or the power failing, which may lose
what was not synced; that never happens to so many that a group would have to be restarted.
And what the group rests on changes, at each replica in its own time.
"""

from __future__ import annotations

import pytest

from logd.raft.messages import Configuration, DurabilityChosen, Output
from logd.raft.quorum import is_quorum
from logd.types import NodeId, Offset
from tests.sim.test_raft_sim import (
    EVENTS,
    Cluster,
    _configurations_from,
    play,
)
from tests.spec.replica import Replica

SEEDS = range(120)


class MemoryCluster(Cluster):
    """As ``Cluster``; machines have boots, and memory that outlives their processes."""

    def __init__(self, seed: int) -> None:
        self.boots: dict[NodeId, int] = {}
        self.in_memory = True
        self.power_cuts = 0
        self.doubts = 0
        """Power cuts after which a replica could not vouch for what it had said."""
        self.commits_in_memory = 0
        self.choose = self.power = 0.0
        super().__init__(seed)
        self.choose = self.chance.choice([0.0, 0.0, 0.5, 2.0])
        self.power = self.chance.choice([0.2, 0.5, 0.9])
        self.faults.crash = self.chance.choice([0.1, 0.3, 1.0])
        self.faults.lose = 0.0  # Memory is lost here, and of that no more than a minority.
        self.weigh()

    def weigh(self) -> None:
        super().weigh()
        self.verbs.append(self.do_choose)
        self.weights.append(self.weights[-1] + self.choose)

    def boot_of(self, node: NodeId) -> int:
        return self.boots.setdefault(node, 1)

    def do_choose(self) -> None:
        """The topic's option changes, or one replica learns of the last change."""
        if self.chance.random() < 0.3:
            self.in_memory = not self.in_memory
        replica = self.any_running()
        if replica is not None:
            self.feed(replica, DurabilityChosen(self.in_memory))

    def start(self, node: NodeId) -> None:
        super().start(node)
        self.feed(self.running[node], DurabilityChosen(self.in_memory))

    def crash(self, replica: Replica) -> None:
        node, kept = replica.node, self.faults.tail_kept
        if self.chance.random() < self.power and self.may_lose_memory(node):
            self.power_cuts += 1
            self.boots[node] += 1
            self.doubts += self.is_doubtful(node)
        else:
            self.faults.tail_kept = 1.0  # The page cache stays.
        super().crash(replica)
        self.faults.tail_kept = kept

    def some_configuration(self, current: Configuration) -> Configuration:
        """Not one in which too many have lost their memory already."""
        found = super().some_configuration(current)
        return found if is_quorum(found, lambda node: not self.is_doubtful(node)) else current

    def is_doubtful(self, node: NodeId) -> bool:
        return self.disks[node].hard_state.rests_on not in (0, self.boot_of(node))

    def may_lose_memory(self, victim: NodeId) -> bool:
        """In each configuration that may count there is a quorum without the doubtful."""
        in_force = [self.initial, self.configuration_committed()]
        known = end_of_committed(self)
        for disk in self.disks.values():
            in_force += _configurations_from(disk.batches, known)
        for replica in self.running.values():
            in_force += _configurations_from(replica.batches, known)
            in_force.append(replica.core.configuration)
        return all(
            is_quorum(c, lambda node: node != victim and not self.is_doubtful(node))
            for c in in_force
        )

    def observe(self, replica: Replica, output: Output, commit_before: Offset) -> None:
        assert not output.restarted
        assert not output.contradicted
        self.observed = replica
        super().observe(replica, output, commit_before)

    def has_durably(self, node: NodeId) -> bool:
        core = self.observed.core
        if not core.is_leader or core.rests_on_memory(core.commit_offset):
            # By the leader's knowledge only: of a machine that has just rebooted it does not
            # know yet.  What that may not lead to, the check of each new leader tells.
            self.commits_in_memory += 1
            return True
        return super().has_durably(node)


def end_of_committed(cluster: Cluster) -> Offset:
    return cluster.committed[-1].span.end_offset if cluster.committed else Offset(0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--seed")
        metafunc.parametrize("seed", SEEDS if chosen is None else [chosen])


def test_what_rests_on_memory_survives_the_loss_of_a_minority_of_it(seed: int) -> None:
    play(MemoryCluster(seed), seed)


def test_the_simulation_exercises_what_it_checks() -> None:
    clusters = [MemoryCluster(seed) for seed in range(20)]
    for cluster in clusters:
        for _ in range(EVENTS):
            cluster.step_one()

    assert sum(len(cluster.leaders) for cluster in clusters) > 40
    assert sum(cluster.power_cuts for cluster in clusters) > 40
    assert sum(cluster.doubts for cluster in clusters) > 10
    assert sum(cluster.commits_in_memory for cluster in clusters) > 200
