"""The consensus core is safe under any schedule and faults, and live once they end.

Only cores and lists: no broker, no simulated network or files, so a seed takes some
milliseconds and a failing one is short to read.  Each seed is hostile in its own way (swarm
testing): it draws its size and how much is lost, doubled, reordered, cut, crashed.
"""

from __future__ import annotations

import contextlib
import random
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import pytest

from logd.errors import RequestError
from logd.raft.core import RaftOptions
from logd.raft.messages import (
    Configuration,
    Event,
    LeaderDisclaimed,
    Output,
    PeerConnected,
    PeerDown,
    PeerUp,
    ReadRequested,
    Resign,
    Tick,
    TransferLeadership,
)
from logd.raft.quorum import is_quorum
from logd.types import NodeId, Offset, Term
from tests.spec.replica import NO_OP, Batch, Disk, Envelope, Replica, Shipment, Value, end_of

SEEDS = range(120)
EVENTS = 2500
EVENTS_TO_HEAL = 30_000
QUEUE_MAX = 60

Link = tuple[NodeId, NodeId]


@dataclass(slots=True)
class Faults:
    """Weights and probabilities of everything that can go wrong."""

    loss: float
    duplication: float
    reordering: float
    crash: float
    crash_at_persist: float
    """Chance that a hard state never reaches the disk, because the node crashes there."""
    reset: float
    cut: float
    isolation: float
    slow_link: float
    """Chance of each link to deliver only now and then, so that what it brings is old."""
    false_alarm: float
    transfer: float
    resign: float
    reconfigure: float
    bereave: float
    """Those who are to vote by a change that is not committed yet are cut off."""
    trash: float
    """A replica that a committed change has left out is deleted, and may come back empty."""
    trim: float
    """A replica drops what is committed from the front of its log."""
    lose: float
    """All that a replica had is gone.  It is missed, and is back when it was left out since."""
    tail_kept: float
    """Chance that a crash keeps a given unsynced batch, if all before it are kept."""

    @classmethod
    def draw(cls, chance: random.Random) -> Faults:
        pick = chance.choice
        return cls(
            loss=pick([0.0, 0.0, 0.02, 0.2]),
            duplication=pick([0.0, 0.1, 0.3]),
            reordering=pick([0.0, 0.0, 0.2, 0.8]),
            crash=pick([0.0, 0.1, 0.3, 0.6]),
            crash_at_persist=pick([0.0, 0.0, 0.1]),
            reset=pick([0.0, 0.1, 0.5]),
            cut=pick([0.0, 0.1, 0.3]),
            isolation=pick([0.0, 0.2, 0.5]),
            slow_link=pick([0.0, 0.0, 0.3]),
            false_alarm=pick([0.0, 0.1, 0.5]),
            transfer=pick([0.0, 0.1, 0.5]),
            resign=pick([0.0, 0.1]),
            reconfigure=pick([0.0, 2.0, 10.0]),
            trash=pick([0.0, 0.5, 2.0]),
            bereave=pick([0.0, 5.0, 50.0]),
            trim=pick([0.0, 0.5, 5.0]),
            tail_kept=pick([0.0, 0.5, 0.9]),
            lose=pick([0.0, 0.5, 2.0]),
        )

    @classmethod
    def none(cls) -> Faults:
        return cls(**dict.fromkeys(cls.__slots__, 0.0))


class Cluster:
    """Replicas, links that lose, and a record of what must never be contradicted."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        chance = self.chance
        self.faults = Faults.draw(chance)
        size = chance.choice([1, 2, 3, 3, 3, 5])
        learners = chance.choice([0, 0, 1])
        spares = chance.choice([0, 1, 2])
        members = size + learners
        self.nodes = [NodeId(i) for i in range(1, members + spares + 1)]
        self.initial = Configuration(
            voters=tuple(self.nodes[:size]), learners=tuple(self.nodes[size:members])
        )
        self.spares = dict.fromkeys(self.nodes[members:])
        """Nodes without a replica, or with one that nobody has heard of."""
        self.generations = dict.fromkeys(self.nodes, 0)
        """How often the replica of a node was deleted."""
        self.lost: dict[NodeId, Disk] = {}
        """What was on the disks of replicas that stay away because they have forgotten it."""
        self.forgotten: dict[NodeId, list[Disk]] = {node: [] for node in self.nodes}
        """The same, of all that came to that."""
        self.comebacks = 0
        self.changes = 0
        self.taken_back = 0
        self.returns = 0
        self.installs = 0
        self.options = RaftOptions(
            window_bytes_max=chance.choice([100, 300, 100_000]),
            check_quorum_ms=chance.choice([200, 1000]),
            campaign_stagger_ms=chance.choice([0, 0, 50]),
            campaign_jitter_ms=chance.choice([2, 20]),
        )
        self.deliver = chance.choice([20.0, 40.0, 80.0])
        self.sync = chance.choice([1.0, 5.0, 20.0])
        self.propose = chance.choice([1.0, 5.0, 10.0])
        self.detect = chance.choice([2.0, 5.0, 20.0])
        self.time = chance.choice([0.05, 0.2, 0.8])
        self.pace = chance.choice([0.1, 0.5, 1.0])
        self.batches_per_request = chance.choice([1, 2, 10])
        self.now_ms = 0
        self.disks = {node: Disk() for node in self.nodes}
        self.running: dict[NodeId, Replica] = {}
        self.links: dict[Link, deque[Envelope | Shipment]] = {
            (a, b): deque() for a in self.nodes for b in self.nodes if a != b
        }
        self.slow_links = [link for link in self.links if chance.random() < self.faults.slow_link]
        self.cuts: dict[Link, None] = {}
        self.unconnected: dict[Link, None] = {}
        self.seen_up: dict[Link, int] = {}  # (observer, peer) → incarnation believed up.
        self.incarnations = dict.fromkeys(self.nodes, 0)

        self.leaders: dict[Term, NodeId] = {}
        self.written: dict[tuple[Offset, Term], tuple[Batch, Term]] = {}
        self.committed: list[Batch] = []
        self.committed_in: list[Term] = []
        """The term of the leader that committed each."""
        self.voted: dict[tuple[NodeId, int, Term], NodeId] = {}
        self.reads: dict[tuple[NodeId, int, int], Offset] = {}
        self.proposals = 0
        self.reads_confirmed = 0
        self.weigh()
        for node in self.nodes:
            self.start(node)

    # --- one event --------------------------------------------------------------------

    def step_one(self) -> None:
        """One random thing happens, then everybody sends what there is to send."""
        self.now_ms += self.chance.random() < self.pace
        self.chance.choices(self.verbs, cum_weights=self.weights)[0]()

    def weigh(self) -> None:
        """Fix how often each thing happens."""
        faults = self.faults
        actions: list[tuple[Callable[[], None], float]] = [
            (self.do_deliver, self.deliver),
            (self.do_sync, self.sync),
            (self.do_time, self.time),
            (self.do_propose, self.propose),
            (self.do_read, 2.0),
            (self.do_detect, self.detect),
            (self.do_connect, self.detect),
            (self.do_disclaim, 1.0),
            (self.do_restart, 2.0),
            (self.do_crash, faults.crash),
            (self.do_reset, faults.reset),
            (self.do_cut, faults.cut),
            (self.do_isolate, faults.isolation),
            (self.do_mend, 0.5),
            (self.do_false_alarm, faults.false_alarm),
            (self.do_transfer, faults.transfer),
            (self.do_resign, faults.resign),
            (self.do_reconfigure, faults.reconfigure),
            (self.do_trash, faults.trash),
            (self.do_bereave, faults.bereave),
            (self.do_trim, faults.trim),
            (self.do_lose, faults.lose),
        ]
        self.verbs = [verb for verb, _ in actions]
        self.weights = list(accumulate(weight for _, weight in actions))

    def do_deliver(self) -> None:
        busy = [link for link, queue in self.links.items() if queue]
        if not busy:
            self.do_what_is_next()
            return
        link = self.chance.choice(busy)
        if link in self.slow_links and self.chance.random() < 0.95:
            return
        queue = self.links[link]
        at = 0
        if self.chance.random() < self.faults.reordering:
            at = self.chance.randrange(len(queue))
        envelope = queue[at]
        if self.chance.random() >= self.faults.duplication:
            del queue[at]
        replica = self.running.get(link[1])
        if replica is not None and self.chance.random() >= self.faults.loss:
            shipment = envelope if isinstance(envelope, Shipment) else None
            self.feed(replica, envelope.event, envelope.batches, shipment)

    def do_what_is_next(self) -> None:
        """Nothing is on its way: what would happen in no time happens, or else time moves."""
        if self.syncing():
            self.do_sync()
        elif self.connectable():
            self.do_connect()
        elif self.mistaken():
            self.do_detect()
        else:
            if self.chance.random() < 0.2:  # Digests come every few seconds.
                self.do_disclaim()
            self.do_time()

    def do_sync(self) -> None:
        syncing = self.syncing()
        if syncing:
            replica = self.chance.choice(syncing)
            if replica.syncs_done and self.chance.random() < 0.7:
                self.feed(replica, replica.syncs_done.popleft())
            elif not replica.complete_sync():
                replica.begin_sync()

    def do_time(self) -> None:
        """Time moves to the next deadline; who is due ticks, now or later."""
        deadlines = [
            deadline
            for replica in self.running.values()
            if (deadline := replica.core.deadline_ms) is not None
        ]
        self.now_ms = max(self.now_ms, min(deadlines, default=self.now_ms + 10))
        for replica in list(self.running.values()):
            deadline = replica.core.deadline_ms
            if deadline is not None and deadline <= self.now_ms and self.chance.random() < 0.9:
                self.feed(replica, Tick())

    def do_propose(self) -> None:
        leaders = [r for r in self.running.values() if r.core.is_leader]
        if leaders:
            replica = self.chance.choice(leaders)
            if not replica.core.is_transferring:
                self.proposals += 1
                self.append(replica, f"v{self.proposals}", self.chance.randint(1, 3))

    def do_read(self) -> None:
        """Somebody reads from a node that leads, or at least thinks so."""
        leaders = [replica for replica in self.running.values() if replica.core.is_leader]
        replica = self.chance.choice(leaders) if leaders else self.any_running()
        if replica is not None:
            read_id = len(self.reads)
            key = (replica.node, self.incarnations[replica.node], read_id)
            self.reads[key] = end_of(self.committed)
            self.feed(replica, ReadRequested(read_id))

    def do_detect(self) -> None:
        """One node's failure detector finds out the truth about one other."""
        mistaken = self.mistaken()
        if mistaken:
            observer, peer = self.chance.choice(mistaken)
            if self.seen_up.pop((observer, peer), None) is not None:
                self.feed(self.running[observer], PeerDown(peer))
            else:
                self.seen_up[(observer, peer)] = self.incarnations[peer]
                self.feed(self.running[observer], PeerUp(peer))

    def do_connect(self) -> None:
        connectable = self.connectable()
        if connectable:
            source, target = self.chance.choice(connectable)
            del self.unconnected[(source, target)]
            self.feed(self.running[source], PeerConnected(target))

    def do_disclaim(self) -> None:
        """A digest says that somebody does not lead, as its receiver believed it did."""
        for replica in self.running.values():
            leader = replica.core.leader
            if leader is None or leader == replica.node or leader not in self.running:
                continue
            claimed = self.running[leader].core
            if not (claimed.is_leader and claimed.term == replica.core.term):
                self.feed(replica, LeaderDisclaimed(leader, replica.core.term))

    def do_restart(self) -> None:
        stopped = [node for node in self.nodes if node not in {**self.running, **self.lost}]
        if stopped:
            self.start(self.chance.choice(stopped))

    def do_crash(self) -> None:
        replica = self.any_running()
        if replica is not None:
            self.crash(replica)

    def do_reset(self) -> None:
        if self.links:
            self.reset(self.chance.choice(list(self.links)))

    def do_cut(self) -> None:
        if self.links:
            link = self.chance.choice(list(self.links))
            self.cuts[link] = None
            self.reset(link)

    def do_isolate(self) -> None:
        """A node, rather a leader, hears nobody, or is heard by nobody, or both."""
        leaders = [node for node, replica in self.running.items() if replica.core.is_leader]
        victim = self.chance.choice(leaders or self.nodes)
        ends = self.chance.choice([(0,), (1,), (0, 1)])
        for link in self.links:
            if any(link[end] == victim for end in ends):
                self.cuts[link] = None
                self.reset(link)

    def do_mend(self) -> None:
        """All cuts of one node are mended."""
        node = self.chance.choice(self.nodes)
        for link in [link for link in self.cuts if node in link]:
            del self.cuts[link]

    def do_false_alarm(self) -> None:
        """A detector gives up a node that is alive, or a digest was out of date."""
        replica = self.any_running()
        if replica is None or len(self.nodes) == 1:
            return
        peer = self.chance.choice([node for node in self.nodes if node != replica.node])
        if self.chance.random() < 0.5:
            self.feed(replica, LeaderDisclaimed(peer, replica.core.term))
        elif self.seen_up.pop((replica.node, peer), None) is not None:
            self.feed(replica, PeerDown(peer))

    def do_transfer(self) -> None:
        replica = self.any_running()
        if replica is not None:
            target = self.chance.choice([None, *self.nodes])
            self.feed(replica, TransferLeadership(target))

    def do_resign(self) -> None:
        replica = self.any_running()
        if replica is not None:
            self.feed(replica, Resign(may_campaign=True))

    def do_reconfigure(self) -> None:
        """Somebody asks a leader for other members; the leader may refuse."""
        leaders = [replica for replica in self.running.values() if replica.core.is_leader]
        if not leaders:
            return
        replica = self.chance.choice(leaders)
        current = first = replica.core.configuration
        for _ in range(5):
            with contextlib.suppress(RequestError):
                first = replica.core.first_step_to(self.some_configuration(current))
        if first != current:
            self.changes += 1
            for node in first.members:
                self.returns += node in self.spares and self.generations[node] > 0
                self.spares.pop(node, None)
            self.append(replica, first, 1)

    def some_configuration(self, current: Configuration) -> Configuration:
        """Anything that can be reached: mostly one node more or less, sometimes all others."""
        chance = self.chance
        if self.lost and chance.random() < 0.5:  # What is lost is what somebody takes out.
            left = tuple(node for node in current.voters if node not in self.lost)
            learners = tuple(node for node in current.learners if node not in self.lost)
            return Configuration(left or current.voters, learners)
        votable = [*current.voters, *current.learners]
        if chance.random() < 0.5:
            voters = list(current.voters)
            if len(voters) > 1 and chance.random() < 0.5:
                voters.remove(chance.choice(voters))
            voters += [node for node in current.learners if chance.random() < 0.5]
        else:
            voters = chance.sample(votable, chance.randint(1, len(votable)))
        others = [n for n in (*votable, *self.spares) if n not in voters]
        return Configuration(tuple(voters), tuple(node for node in others if chance.random() < 0.5))

    def do_bereave(self) -> None:
        """In the middle of a change its new voters are cut off from all others, for a while."""
        for replica in list(self.running.values()):
            core = replica.core
            current = core.configuration
            if not core.is_leader or not current.is_joint or core.configuration_is_committed:
                continue
            lost: list[NodeId] = []
            for node in sorted(current.voters, key=lambda n: n in current.voters_outgoing):
                others = [n for n in current.voters_outgoing if n not in lost and n != node]
                if node != replica.node and 2 * len(others) > len(current.voters_outgoing):
                    lost.append(node)  # The old voters are still enough without it.
            for link in self.links:
                if (link[0] in lost) != (link[1] in lost):
                    self.cuts[link] = None
                    self.reset(link)
            for node in lost:
                if self.seen_up.pop((replica.node, node), None) is not None:
                    self.feed(replica, PeerDown(node))
            if self.chance.random() < 0.5:
                self.now_ms += self.options.check_quorum_ms
                self.feed(replica, Tick())

    def do_trash(self) -> None:
        """A replica that was left out for certain is deleted.  Its connections live on."""
        removed = [node for node in self.nodes if self.is_removed(node)]
        if not removed:
            return
        node = self.chance.choice(removed)
        # Of a lost one nothing is known: it comes back with what an empty disk promises.
        promised = self.disks[node].hard_state
        self.comebacks += self.lost.pop(node, None) is not None
        self.disks[node] = Disk(replace(promised, is_newcomer=True))
        self.generations[node] += 1
        self.spares[node] = None
        if self.running.pop(node, None) is not None:
            for link in self.links:
                if link[0] == node:
                    self.seen_up.pop(link, None)
            self.running[node] = self.opened(node)

    def do_trim(self) -> None:
        """Everything below some offset goes; a state from there on, or further on, is kept."""
        replica = self.any_running()
        if replica is None:
            return
        limit = min(replica.core.commit_offset, replica.disk.end)
        ends = [b.span.end_offset for b in replica.disk.batches if b.span.end_offset <= limit]
        if ends:
            offset, state_offset = sorted(self.chance.choices(ends, k=2))
            replica.trim(offset, state_offset)

    def do_lose(self) -> None:
        """A replica's directory was taken away, which is found when it is started again.

        One at a time: more than a minority of disks need not be survived.
        """
        is_one_behind = any(disk.hard_state.is_newcomer for disk in self.disks.values())
        members = [node for node in self.nodes if node not in self.spares]
        if self.lost or is_one_behind or len(members) < 3:
            return
        node = self.chance.choice(members)
        if node in self.running:
            self.crash(self.running[node])
        self.lost[node] = self.disks[node]
        self.forgotten[node].append(self.disks[node])
        self.disks[node] = Disk()

    def is_removed(self, node: NodeId) -> bool:
        """No configuration that is committed, or may yet be, knows of ``node``.

        What whoever deletes a replica has to know: the change that removes it was committed,
        and none that would add it is under way.
        """
        if node in self.spares:
            return False
        in_force = [self.configuration_committed()]
        known = end_of(self.committed)
        for disk in self.disks.values():
            in_force += _configurations_from(disk.batches, known)
        for replica in self.running.values():
            in_force += _configurations_from(replica.batches, known)
        return not any(node in configuration.members for configuration in in_force)

    # --- what events are made of ------------------------------------------------------

    def feed(
        self,
        replica: Replica,
        event: Event,
        batches: tuple[Batch, ...] = (),
        shipment: Shipment | None = None,
    ) -> None:
        before = replica.core.commit_offset
        output = replica.core.step(event, self.now_ms)
        if output.persist is not None and self.chance.random() < self.faults.crash_at_persist:
            self.post([Envelope(message) for message in output.send_now])
            self.crash(replica)
            return
        envelopes = replica.carry_out(output, batches, self.now_ms, shipment)
        self.installs += output.install_snapshot
        if output.append_from is not None:
            self.check_written(replica, len(batches) - output.append_from)
        self.observe(replica, output, before)
        self.post(envelopes)
        if output.became_leader:
            self.check_leader(replica)
            self.append(replica, NO_OP, 1)
        if output.snapshot_wanted is not None:
            wanted = replica.ship(output.snapshot_wanted)
            self.post([wanted] if wanted is not None else [])
        due = replica.core.configuration_due
        if due is not None:
            self.append(replica, due, 1)
        if output.taken_back is not None:
            self.taken_back += 1
            self.append(replica, output.taken_back, 1)
        self.post(replica.pump(self.batches_per_request, self.now_ms))

    def append(self, replica: Replica, value: Value, span_offsets: int) -> None:
        before = replica.core.commit_offset
        output, envelopes = replica.append(value, span_offsets, self.now_ms)
        self.check_written(replica, 1)
        self.observe(replica, output, before)
        self.post(envelopes)
        self.post(replica.pump(self.batches_per_request, self.now_ms))

    def post(self, envelopes: Sequence[Envelope | Shipment]) -> None:
        for envelope in envelopes:
            link = (envelope.message.source, envelope.message.target)
            if link not in self.cuts and link not in self.unconnected:
                queue = self.links[link]
                queue.append(envelope)
                if len(queue) > QUEUE_MAX:
                    queue.popleft()

    def connectable(self) -> list[Link]:
        return [
            (source, target)
            for source, target in self.unconnected
            if source in self.running and target in self.running
            if (source, target) not in self.cuts
        ]

    def syncing(self) -> list[Replica]:
        return [r for r in self.running.values() if r.unsynced or r.syncs_done]

    def mistaken(self) -> list[Link]:
        return [
            (observer, peer)
            for observer, peer in self.links
            if observer in self.running
            if self.seen_up.get((observer, peer)) != self.incarnation_heard(observer, peer)
        ]

    def incarnation_heard(self, observer: NodeId, peer: NodeId) -> int | None:
        is_heard = peer in self.running and (peer, observer) not in self.cuts
        return self.incarnations[peer] if is_heard else None

    def any_running(self) -> Replica | None:
        return self.chance.choice(list(self.running.values())) if self.running else None

    def start(self, node: NodeId) -> None:
        self.incarnations[node] += 1
        self.running[node] = self.opened(node)
        for link in self.links:
            if node in link:
                self.reset(link)

    def opened(self, node: NodeId) -> Replica:
        """With what metadata tells of the members: of another time than the log's, perhaps."""
        known = self.chance.choice([self.initial, self.configuration_committed()])
        return Replica(
            node,
            known,
            self.disks[node],
            options=self.options,
            draw=self.chance.random,
            now_ms=self.now_ms,
            boot=self.boot_of(node),
        )

    def boot_of(self, node: NodeId) -> int:
        return 0  # Nothing rests on memory.

    def crash(self, replica: Replica) -> None:
        """The disk is kept, and of what was not synced some first part."""
        del self.running[replica.node]
        for batch in replica.unsynced:
            if self.chance.random() >= self.faults.tail_kept:
                break
            replica.disk.batches.append(batch)
        for link in self.links:
            if replica.node in link:
                self.reset(link)
            if link[0] == replica.node:
                self.seen_up.pop(link, None)

    def reset(self, link: Link) -> None:
        self.links[link].clear()
        self.unconnected[link] = None

    def configuration_committed(self) -> Configuration:
        changes = list(_configurations_from(self.committed, Offset(0)))
        return changes[-1] if changes else self.initial

    # --- what must hold ---------------------------------------------------------------

    def observe(self, replica: Replica, output: Output, commit_before: Offset) -> None:
        hard_state = replica.disk.hard_state
        assert hard_state == replica.core.hard_state
        if hard_state.voted_for is not None:  # One vote per node and term, across crashes.
            key = (replica.node, len(self.forgotten[replica.node]), hard_state.term)
            assert self.voted.setdefault(key, hard_state.voted_for) == hard_state.voted_for
        if replica.core.commit_offset != commit_before:
            self.check_committed(replica, commit_before)
        for read_id, offset in output.reads_confirmed:
            # Linearizable: all that anybody knew to be committed when it was asked for.
            key_of_read = (replica.node, self.incarnations[replica.node], read_id)
            assert offset >= self.reads[key_of_read]
            self.reads_confirmed += 1

    def check_leader(self, replica: Replica) -> None:
        """Election safety and leader completeness."""
        assert self.leaders.setdefault(replica.core.term, replica.node) == replica.node
        first = self.first_of(replica.disk)
        # Votes may be late: a leader need not have what a later one has committed already.
        known = bisect_left(self.committed_in, replica.core.term)
        assert replica.batches[: max(0, known - first)] == self.committed[first:known]

    def first_of(self, disk: Disk) -> int:
        """Which of the committed batches a log begins with."""
        ends = [batch.span.end_offset for batch in self.committed]
        return bisect_right(ends, disk.start)

    def check_written(self, replica: Replica, count: int) -> None:
        """Log matching, by induction: same place and term, same batch and predecessor."""
        first = len(replica.batches) - count
        for at in range(first, len(replica.batches)):
            batch = replica.batches[at]
            previous = replica.core.term_history.term_at(batch.span.base_offset - 1)
            key = (batch.span.base_offset, batch.span.term)
            assert self.written.setdefault(key, (batch, previous)) == (batch, previous)

    def check_committed(self, replica: Replica, before: Offset) -> None:
        """State machine safety; and what a leader commits is durable on a quorum."""
        commit_offset = replica.core.commit_offset
        assert commit_offset > before
        first = self.first_of(replica.disk)
        held = sum(batch.span.base_offset < commit_offset for batch in replica.batches)
        assert (end_of(replica.batches[:held]) or replica.disk.start) == commit_offset
        known = min(first + held, len(self.committed))
        assert replica.batches[: known - first] == self.committed[first:known]
        if first + held > known:
            news = replica.batches[known - first : held]
            self.committed += news
            self.committed_in += [replica.core.term] * len(news)
            assert is_quorum(replica.core.configuration, self.has_durably)

    def has_durably(self, node: NodeId) -> bool:
        """Whether all that is committed lies on the disk of ``node``, or lay there."""
        return any(map(self.has_all, [self.disks[node], *self.forgotten[node]]))

    def has_all(self, disk: Disk) -> bool:
        first = self.first_of(disk)
        return disk.batches[: len(self.committed) - first] == self.committed[first:]

    # --- healing ----------------------------------------------------------------------

    def heal(self) -> None:
        """All faults end; everybody runs, is connected, and is soon known to be."""
        self.faults = Faults.none()
        self.disks.update(self.lost)  # What was taken away is put back.
        self.lost.clear()
        self.cuts.clear()
        self.slow_links.clear()
        self.deliver, self.sync, self.propose, self.detect = 60.0, 20.0, 0.0, 10.0
        self.time, self.batches_per_request = 0.1, 20
        self.weigh()
        for node in self.nodes:
            if node not in self.running:
                self.start(node)
        for link in self.links:
            self.reset(link)

    def converged(self, value: str) -> bool:
        """Whether every member has committed ``value`` and everything before it."""
        ready = [r for r in self.running.values() if r.core.is_ready]
        if not ready or not any(batch.value == value for batch in self.committed):
            return False
        members = max(ready, key=lambda r: r.core.term).core.configuration.members
        return all(
            self.running[node].core.commit_offset == end_of(self.committed) for node in members
        )


def _configurations_from(batches: Sequence[Batch], start: Offset) -> Iterator[Configuration]:
    for batch in batches:
        if batch.span.base_offset >= start and isinstance(batch.value, Configuration):
            yield batch.value


def play(cluster: Cluster, seed: int) -> None:
    """Let everything go wrong, then heal the cluster, and see it agree before long."""
    for _ in range(EVENTS):
        cluster.step_one()

    cluster.heal()
    healed_at_ms = cluster.now_ms
    final = 0
    for event in range(EVENTS_TO_HEAL):
        cluster.step_one()
        if event % 50 == 0:
            leaders = [r for r in cluster.running.values() if r.core.is_ready]
            if leaders and not any(b.value == f"final {final}" for b in leaders[-1].batches):
                final += 1
                cluster.append(leaders[-1], f"final {final}", 1)
            if cluster.converged(f"final {final}"):
                break
    else:
        pytest.fail(f"no progress after healing, seed {seed}")
    assert cluster.now_ms - healed_at_ms < 30_000


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--seed")
        metafunc.parametrize("seed", SEEDS if chosen is None else [chosen])


def test_consensus_is_safe_always_and_live_when_healed(seed: int) -> None:
    play(Cluster(seed), seed)


def test_the_simulation_exercises_what_it_checks() -> None:
    clusters = [Cluster(seed) for seed in range(40)]
    for cluster in clusters:
        for _ in range(EVENTS):
            cluster.step_one()

    assert sum(len(cluster.leaders) for cluster in clusters) > 40
    assert sum(len(cluster.committed) for cluster in clusters) > 500
    assert sum(cluster.reads_confirmed for cluster in clusters) > 100
    assert sum(cluster.changes for cluster in clusters) > 40
    assert sum(cluster.returns for cluster in clusters) > 5
    assert sum(cluster.comebacks for cluster in clusters) > 1
    assert sum(cluster.taken_back for cluster in clusters) > 2
    assert sum(cluster.installs for cluster in clusters) > 5
