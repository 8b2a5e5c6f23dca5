"""What can go wrong, when it does in one seed, and how it ends again.

A seed's faults are planned before it runs: each has a number, a time, a kind and a generator
of its own.  So the same seed can be run with some of its faults left out and the others
unchanged, which is how a failing one is made small (``shrink.py``).

Each fault undoes what it did, after a while, whatever else goes on meanwhile.  ``heal`` makes
sure in the end.  No fault takes more from the cluster than it promises to survive: what was
synced stays, on a disk whose sync failed too.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from logd.errors import LogdError
from logd.limits import KIB, MIB
from logd.storage.offline import SegmentWalk, find_segments
from logd.types import METADATA_GROUP, GroupId, NodeId
from logd.wire.messages import PartitionInfo, PlannedMoveInfo
from logd_client import Client
from tests.sim.cluster import DATA_DIR, SimCluster, SimNode
from tests.sim.env import BlockingConditions
from tests.sim.files import CAPACITY_BYTES_DEFAULT
from tests.sim.network import Link

if TYPE_CHECKING:
    from tests.sim.settings import Settings

JOINING_MAX = 2
"""So many brokers come in one seed at most."""

BROKERS_MAX = 6
"""So many are there at once at most: what they say to each other grows with the square."""

REPLICAS_MIN = 3
"""Of a partition that is moved: one of them may have a dead disk."""

ATTEMPTS_MAX = 5
"""To begin a move: whoever is to receive something has to be alive."""

REMOVAL_S = 12.0
"""A broker that has not given away all it holds by then stays a member."""

OPERATOR_TIMEOUT_S = 3.0
"""A broker that was asked for something has given up by then."""

LASTS_S = (0.2, 1.0, 2.0, 5.0)
DOWN_S = (0.0, 0.1, 0.5, 2.0)
QUICK_DISK = BlockingConditions(latency_s_mean=0.000_1, spike_probability=0.0)
SLOW_DISK = BlockingConditions(
    latency_s_min=0.5, latency_s_mean=0.8, spike_probability=0.1, spike_s_max=4.0
)

ROOMS = (0, 0, 500, 5_000, 30 * KIB, 60 * KIB, 100 * KIB, 300 * KIB, 3 * MIB)
"""Bytes that a full disk has left: of the last a broker concludes that it is full no more."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong in a seed."""

    number: int
    at_s: float
    """Since the faults began."""
    kind: str

    def __str__(self) -> str:
        return f"{self.number:>3}  at {self.at_s:6.2f} s  {self.kind}"


def plan_faults(seed: int, settings: Settings) -> list[Fault]:
    """The seed's faults, numbered from 1 in the order they begin."""
    chance = random.Random(f"{seed}:faults")
    kinds, weights = list(settings.faults), list(settings.faults.values())
    planned: list[Fault] = []
    at_s = 0.0
    while True:
        at_s += chance.expovariate(1.0) * settings.fault_interval_s
        if at_s > settings.fault_s:
            return planned
        (kind,) = chance.choices(kinds, weights)
        if not planned and "join" in kinds:
            kind = "join"  # Moves and drains have nowhere to go before.
        planned.append(Fault(len(planned) + 1, at_s, kind))


class Trouble:
    """Makes faults happen to a cluster."""

    def __init__(self, cluster: SimCluster, groups: Sequence[GroupId]) -> None:
        self._cluster = cluster
        self._network = cluster.network
        self._groups = groups
        """Whose leaders are worth attacking."""

    async def play(self, faults: Sequence[Fault], seconds: float) -> None:
        """Begin each fault at its time; return when ``seconds`` are over and all have ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, seconds)
            for fault in faults:
                nursery.start_soon(self._play_one, fault)

    async def _play_one(self, fault: Fault) -> None:
        await trio.sleep(fault.at_s)
        self._cluster.trace.record("test", f"fault_{fault.kind}", number=fault.number)
        chance = random.Random(f"{self._cluster.seed}:fault:{fault.number}")
        await FAULTS[fault.kind](self, chance)

    async def heal(self) -> None:
        """End whatever is left of any fault; what a fault broke for good is restarted.

        From here on network and disks are quick and steady, whatever the seed's are like: what is
        left is to see what became of everything, and that took longer than the faults had.
        """
        self._cluster.trace.record("test", "healing")
        self._network.heal()
        self._network.calm_down()
        for node in self._cluster.nodes.values():
            node.resume()
            if not node.has_dead_disk:
                node.files.on_operation = None
            node.files.capacity_bytes = CAPACITY_BYTES_DEFAULT
            node.files.is_cold = False
            node.set_blocking(QUICK_DISK)
            has_failed = any(group.failure is not None for group in node.groups.values())
            if node.has_dead_disk:
                continue  # The others must do without it.
            if node.is_alive and (node.has_disk_trouble or has_failed):
                await node.crash(power=False)
            self._start(node)

    async def replace_disks(self) -> None:
        """What a dead disk has kept of its writes is there again, and takes more."""
        for node in self._cluster.nodes.values():
            if node.has_dead_disk:
                node.has_dead_disk = False
                node.files.on_operation = None
                if node.is_alive:
                    await node.crash(power=True)
                self._start(node)

    # --- whom -----------------------------------------------------------------------------------

    def _any_alive(self, chance: random.Random) -> SimNode | None:
        """Some node; half the time one that leads something."""
        leader = self._some_leader(chance) if chance.random() < 0.5 else None
        alive = self._cluster.alive()
        return leader or (chance.choice(alive) if alive else None)

    def _some_leader(self, chance: random.Random) -> SimNode | None:
        return self._cluster.leader_of(chance.choice([METADATA_GROUP, *self._groups]))

    def _start(self, node: SimNode) -> None:
        if not node.is_running and not node.is_removed:
            node.start()

    # --- processes and machines -----------------------------------------------------------------

    async def kill(self, chance: random.Random) -> None:
        node = self._any_alive(chance)
        if node is not None:
            await node.crash(power=False)
            await trio.sleep(_around(chance, DOWN_S))
            self._start(node)

    async def kill_rapidly(self, chance: random.Random) -> None:
        """Again and again, before it has come up."""
        node = self._any_alive(chance)
        for _ in range(5):
            if node is not None and node.is_alive:
                await node.crash(power=chance.random() < 0.3)
                self._start(node)
                await trio.sleep(chance.random() * 0.3)

    async def power_cut(self, chance: random.Random) -> None:
        node = self._any_alive(chance)
        if node is not None:
            await node.crash(power=True)
            await trio.sleep(_around(chance, DOWN_S))
            self._start(node)

    async def blackout(self, chance: random.Random) -> None:
        """All lose power at once: only what was synced is left anywhere."""
        down = self._cluster.alive()
        for node in down:
            if node.is_alive:
                await node.crash(power=True)
        for node in down:
            await trio.sleep(_around(chance, DOWN_S) / 2)
            self._start(node)

    async def stop(self, chance: random.Random) -> None:
        node = self._any_alive(chance)
        if node is not None and not node.is_paused:
            await node.stop()
            await trio.sleep(_around(chance, DOWN_S))
            self._start(node)

    async def pause(self, chance: random.Random) -> None:
        """SIGSTOP for a while: of one, often a leader, or of a majority."""
        alive = [node for node in self._cluster.alive() if not node.is_paused]
        first = self._any_alive(chance)
        if first is None or first.is_paused:
            return
        victims = [first]
        if chance.random() < 0.3:
            others = [node for node in alive if node is not first]
            victims += chance.sample(others, len(others) // 2)
        lives = [(node, node.env) for node in victims]
        for node in victims:
            node.pause()
        for node, life in lives:
            await trio.sleep(_around(chance, LASTS_S))
            if node.env is life:
                node.resume()

    async def clock_jump(self, chance: random.Random) -> None:
        node = chance.choice(list(self._cluster.nodes.values()))
        jump_ms = chance.choice([-3_600_000, -50, 50, 3_600_000])
        node.set_clock_skew(node.clock_skew_ms + jump_ms)

    # --- the network ----------------------------------------------------------------------------

    async def _cut(self, chance: random.Random, links: Sequence[Link]) -> None:
        self._network.hold(links)
        await trio.sleep(_around(chance, LASTS_S))
        self._network.release(links)

    def _brokers(self, chance: random.Random) -> list[str]:
        """The brokers' hosts, in random order."""
        return chance.sample(self._cluster.hosts, len(self._cluster.hosts))

    def _sides(self, chance: random.Random, *sides: Sequence[str]) -> list[list[str]]:
        """The sides, with each client on one of them or, half the time, on none."""
        full = [list(side) for side in sides]
        if chance.random() < 0.5:
            for host in self._network.host_names:
                if host not in self._cluster.hosts:
                    chance.choice(full).append(host)
        return full

    async def isolate_one(self, chance: random.Random) -> None:
        """One broker alone, from the others or from everybody."""
        node = self._any_alive(chance)
        if node is not None:
            await self._cut(chance, _both_ways([node.host], self._others(chance, node)))

    async def isolate_leader(self, chance: random.Random) -> None:
        """The leader of a partition, or of the metadata, alone; then perhaps the next one."""
        for _ in range(chance.choice([1, 1, 3])):
            node = self._some_leader(chance)
            if node is not None:
                await self._cut(chance, _both_ways([node.host], self._others(chance, node)))

    async def one_way_in(self, chance: random.Random) -> None:
        """It can send and hears nothing."""
        node = self._any_alive(chance)
        if node is not None:
            await self._cut(chance, [(other, node.host) for other in self._others(chance, node)])

    async def one_way_out(self, chance: random.Random) -> None:
        """It hears all and nobody hears it."""
        node = self._any_alive(chance)
        if node is not None:
            await self._cut(chance, [(node.host, other) for other in self._others(chance, node)])

    def _others(self, chance: random.Random, node: SimNode) -> list[str]:
        hosts = self._cluster.hosts if chance.random() < 0.5 else self._network.host_names
        return [host for host in hosts if host != node.host]

    async def halves(self, chance: random.Random) -> None:
        """A majority and a minority, clients on either side or seeing both."""
        hosts = self._brokers(chance)
        minority = chance.randint(0, len(hosts) // 2)
        await self._cut(
            chance, _both_ways(*self._sides(chance, hosts[:minority], hosts[minority:]))
        )

    async def majorities_ring(self, chance: random.Random) -> None:
        """Everybody sees a majority, and no two the same one."""
        hosts = self._brokers(chance)
        count = len(hosts)
        reach = (count // 2 + 1) // 2  # On either side: with itself that is more than half.
        links = [
            (hosts[one], hosts[other])
            for one, other in itertools.permutations(range(count), 2)
            if min((one - other) % count, (other - one) % count) > reach
        ]
        if count == 3:
            links = [(hosts[0], hosts[2]), (hosts[2], hosts[0])]
        await self._cut(chance, links)

    async def bridge(self, chance: random.Random) -> None:
        """Two halves that see each other only through one broker."""
        _bridge, *rest = self._brokers(chance)
        middle = len(rest) // 2
        await self._cut(chance, _both_ways(rest[:middle], rest[middle:]))

    async def slow_links(self, chance: random.Random) -> None:
        """Everything from some hosts to some others takes long."""
        hosts = self._network.host_names
        slow_s = chance.choice([0.02, 0.1, 0.4])
        links = [link for link in itertools.permutations(hosts, 2) if chance.random() < 0.3]
        for link in links:
            self._network.slow(*link, slow_s)
        await trio.sleep(_around(chance, LASTS_S))
        for link in links:
            self._network.slow(*link, 0.0)

    async def clog(self, chance: random.Random) -> None:
        source, target = chance.sample(self._network.host_names, 2)
        self._network.clog(source, target, chance.choice([0.1, 1.5, 4.0]))

    async def reset(self, chance: random.Random) -> None:
        for _ in range(chance.randint(1, 4)):
            self._network.reset_random()

    async def half_open(self, chance: random.Random) -> None:
        for _ in range(chance.randint(1, 4)):
            self._network.half_open_random()

    # --- disks ----------------------------------------------------------------------------------

    async def disk_error(self, chance: random.Random) -> None:
        """Some operations on one replica's files, or on all, fail; later it is restarted."""
        node = self._any_alive(chance)
        if node is None or node.files.on_operation is not None or not self._may_trouble(node):
            return
        groups = [f"/groups/{group:020}/" for group in node.groups]
        where = chance.choice([*groups, DATA_DIR])
        operations = chance.choice([("sync",), ("write",), ("sync", "write"), ("read",)])
        failures = chance.choice([1, 1, 3, 1000])
        life = node.env
        node.is_in_danger = True

        def refuse(operation: str, path: str) -> None:
            nonlocal failures
            if failures and node.env is life and operation in operations and where in path:
                failures -= 1
                node.has_disk_trouble = True
                self._cluster.trace.record(node.host, "disk_refused", doing=operation, path=path)
                raise OSError(errno.EIO, "simulated failure", path)

        node.files.on_operation = refuse
        await trio.sleep(_around(chance, LASTS_S))
        node.files.on_operation = None
        await self._restart(chance, node)
        node.is_in_danger = False

    async def dead_disk(self, chance: random.Random) -> None:
        """A disk that takes nothing any more, for one replica or at all, until the very end:
        whatever it leads, others must take over."""
        node = self._one_victim()
        if (
            node is None
            or node.files.on_operation is not None
            or not self._may_trouble(node, for_good=True)
        ):
            return
        where = chance.choice([f"/groups/{chance.choice(self._groups):020}/", "/groups/", DATA_DIR])

        def refuse(operation: str, path: str) -> None:
            if operation in ("write", "sync", "allocate", "create") and where in path:
                raise OSError(errno.EIO, "simulated failure", path)

        node.has_dead_disk = node.has_disk_trouble = True
        node.files.on_operation = refuse

    def _may_trouble(self, node: SimNode, *, for_good: bool = False) -> bool:
        """A disk that refuses something takes the memory along, as a power cut does."""
        return self._cluster.may_lose_memory(node, and_disk=for_good)

    def _one_victim(self) -> SimNode | None:
        """Who suffers in this seed what only one of a majority may; None if there is none."""
        founders = self._cluster.founders
        if len(founders) < 3:
            return None
        return self._cluster.nodes.get(founders[self._cluster.seed % len(founders)])

    async def disk_full(self, chance: random.Random) -> None:
        """Hardly any room on one disk, on most or on all, and now more of it and now less; in the
        end there is enough, and it has cost nothing.

        Without room a broker may not be able to start: it is started again.
        """
        first = self._any_alive(chance)
        if first is None:
            return
        others = [node for node in self._cluster.nodes.values() if node is not first]
        count = chance.choice([0, 0, (len(others) + 1) // 2, len(others)])
        filled = [
            node
            for node in (first, *chance.sample(others, count))
            if node.files.capacity_bytes == CAPACITY_BYTES_DEFAULT
        ]
        for _ in range(chance.choice([1, 1, 3, 6])):
            for node in filled:
                self._leave_room(node, chance.choice(ROOMS))
            await trio.sleep(_around(chance, LASTS_S))
            if filled and chance.random() < 0.3:  # Started while it is still full.
                await self._restart(chance, chance.choice(filled))
        await trio.sleep(1.0)
        for node in filled:
            node.files.capacity_bytes = CAPACITY_BYTES_DEFAULT
            self._start(node)
            await trio.sleep(chance.choice([0.0, 0.0, 1.0]))

    def _leave_room(self, node: SimNode, room: int) -> None:
        node.files.capacity_bytes = node.files.used_bytes() + room
        node.has_lacked_room = True
        self._cluster.trace.record(node.host, "disk_filled", room=room)

    async def _restart(self, chance: random.Random, node: SimNode) -> None:
        if node.is_alive and not node.is_paused:
            match chance.randrange(3):
                case 0:
                    await node.stop()
                case 1:
                    await node.crash(power=False)
                case _:
                    await node.crash(power=True)
        self._start(node)
        node.has_disk_trouble = node.has_dead_disk

    async def slow_disk(self, chance: random.Random) -> None:
        """One disk takes seconds for everything."""
        node = self._any_alive(chance)
        if node is not None:
            node.set_blocking(SLOW_DISK)
            await trio.sleep(chance.choice([3.0, 6.0]))
            node.set_blocking(self._cluster.settings.blocking)

    async def cold_cache(self, chance: random.Random) -> None:
        """For a while all that is read comes from the disk."""
        node = chance.choice(list(self._cluster.nodes.values()))
        was_cold, node.files.is_cold = node.files.is_cold, True
        await trio.sleep(_around(chance, LASTS_S))
        node.files.is_cold = was_cold

    async def rot(self, chance: random.Random) -> None:
        """Bits flip in what a replica knows to be committed; half the time it then starts again,
        and has to find out before it votes.

        In one seed it is always the same node, so that the others have it whole.  Above what
        its synced mark says is committed nothing rots: there it may hold what was superseded
        meanwhile, which no peer can give back.
        """
        node = self._one_victim()
        if node is None or node.files.on_operation is not None:
            return
        directories = [
            f"{DATA_DIR}/groups/{group:020}" for group in (METADATA_GROUP, *self._groups)
        ]
        held = [directory for directory in directories if node.files.is_directory(directory)]
        directory = chance.choice(held or [""])
        with contextlib.suppress(LogdError):  # A log that is being made, or damaged already.
            committed = _committed_batches(node, directory) if held else []
            for _ in range(chance.choice([1, 1, 5, 30]) if committed else 0):
                path, start, size = chance.choice(committed)
                position = start + chance.randrange(size)
                node.files.flip(path, position, chance.randrange(8))
                self._cluster.trace.record(node.host, "bit_rotted", path=path, position=position)
        if chance.random() < 0.5 and node.is_alive:
            await node.crash(power=chance.random() < 0.5)
            await trio.sleep(_around(chance, DOWN_S))
            self._start(node)

    # --- members --------------------------------------------------------------------------------

    async def join(self, chance: random.Random) -> None:
        """A broker comes that was not there before; the metadata log may get another voter."""
        cluster = self._cluster
        if cluster.joined_count < JOINING_MAX and len(cluster.nodes) < BROKERS_MAX:
            cluster.join()

    async def move(self, chance: random.Random) -> None:
        """Partitions are to be replicated by others; now and then that is taken back."""
        async with self._operator() as client:
            for _ in range(ATTEMPTS_MAX):
                try:
                    await self._move(client, chance)
                except LogdError as error:
                    self._cluster.trace.note("test", "move_refused", reason=str(error))
                    await trio.sleep(1.0)
                else:
                    return

    async def _move(self, client: Client, chance: random.Random) -> None:
        admin = client.admin
        found = await admin.describe_rebalance()
        if found.plan is not None and found.plan.state == "running" and chance.random() < 0.3:
            if chance.random() < 0.5:
                await admin.cancel_plan(found.plan.plan_id)
            else:
                move = chance.choice(found.plan.moves)
                await admin.cancel_move(found.plan.plan_id, move.group)
            return
        if chance.random() < 0.3:
            await admin.set_rebalancing(throttle_bytes_per_s=64 * KIB)
        brokers = [broker.node_id for broker in (await admin.describe_cluster()).brokers]
        if len(brokers) < REPLICAS_MIN:
            return
        partitions = [
            partition
            for topic in await admin.list_topics()
            for partition in topic.partitions
            if GroupId(partition.group) in self._groups
        ]
        moves = [
            PlannedMoveInfo(
                group=partition.group,
                before=partition.replicas,
                target=chance.sample(
                    brokers, min(chance.choice([REPLICAS_MIN, REPLICAS_MIN, 4, 5]), len(brokers))
                ),
                reason="chance",
            )
            for partition in chance.sample(partitions, chance.randint(1, len(partitions)))
        ]
        plan_id = await admin.start_plan("chance", found.layout_version, moves)
        self._cluster.trace.note("test", "moving", targets=[move.target for move in moves])
        if chance.random() < 0.3:
            await trio.sleep(_around(chance, LASTS_S))
            await admin.cancel_plan(plan_id)

    async def drain(self, chance: random.Random) -> None:
        """A broker is to lead nothing for a while, and gets nothing new."""
        node = chance.choice(list(self._cluster.nodes))
        async with self._operator() as client:
            for action in ("drain", "resume"):
                with contextlib.suppress(LogdError):
                    await client.admin.alter_broker(node, action)
                await trio.sleep(_around(chance, LASTS_S))

    async def remove(self, chance: random.Random) -> None:
        """A broker gives all that it holds to others and is no member any more; for a while its
        process does not know.  One that cannot get rid of everything stays."""
        victim = self._one_victim()
        members = [node for node in self._cluster.nodes.values() if node is not victim]
        if len(members) < REPLICAS_MIN:
            return
        node = chance.choice(members)
        node.is_leaving = True
        async with self._operator() as client:
            with trio.move_on_after(REMOVAL_S) as removal:
                await self._empty_and_remove(client, chance, node)
            if removal.cancelled_caught:
                await trio.sleep(2 * OPERATOR_TIMEOUT_S)  # One that was asked for may yet be done.
            if await self._is_member(client, node.node):
                node.is_leaving = False
                with contextlib.suppress(LogdError):
                    await client.admin.alter_broker(node.node, "resume")
                return
        if not node.is_removed:  # Two may have wanted to be rid of it.
            self._cluster.forget(node)
        await trio.sleep(_around(chance, LASTS_S))
        if node.is_alive:
            await node.crash(power=False)

    async def _empty_and_remove(self, client: Client, chance: random.Random, node: SimNode) -> None:
        admin, leaving = client.admin, node.node
        while True:
            with contextlib.suppress(LogdError):
                await admin.alter_broker(leaving, "drain")
                found = await admin.describe_rebalance()
                brokers = (await admin.describe_cluster()).brokers
                others = [b.node_id for b in brokers if b.node_id != leaving and not b.draining]
                held = [
                    partition
                    for topic in await admin.list_topics()
                    for partition in topic.partitions
                    if leaving in (*partition.replicas, *(partition.target or ()))
                ]
                if not held:
                    await admin.alter_broker(leaving, "remove")
                    return
                moves = [_without(leaving, others, partition, chance) for partition in held]
                if found.plan is None or found.plan.state != "running":
                    await admin.start_plan("removal", found.layout_version, moves)
            await trio.sleep(0.5)

    async def _is_member(self, client: Client, node: NodeId) -> bool:
        """As the cluster sees it, once it says so; a removal that was not answered may be one."""
        while True:
            with contextlib.suppress(LogdError):
                brokers = (await client.admin.describe_cluster()).brokers
                return any(broker.node_id == node for broker in brokers)
            await trio.sleep(0.5)

    async def moves_have_ended(self, client: Client) -> None:
        """Nothing is being moved any more, and nothing is about to be."""
        while True:
            with contextlib.suppress(LogdError):
                plan = (await client.admin.describe_rebalance()).plan
                topics = await client.admin.list_topics()
                is_moving = any(p.target is not None for t in topics for p in t.partitions)
                if not is_moving and (plan is None or plan.state in ("done", "cancelled")):
                    return
            await trio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def _operator(self) -> AsyncIterator[Client]:
        """A client, as soon as there is a broker to reach."""
        async with contextlib.AsyncExitStack() as stack:
            client: Client | None = None
            while client is None:
                try:
                    made = self._cluster.client(request_timeout_ms=int(OPERATOR_TIMEOUT_S * 1000))
                    client = await stack.enter_async_context(made)
                except LogdError:
                    await trio.sleep(0.2)
            yield client


def _without(
    leaving: NodeId, others: Sequence[int], partition: PartitionInfo, chance: random.Random
) -> PlannedMoveInfo:
    """Somebody else in its place, if there is anybody."""
    rest = [replica for replica in partition.replicas if replica != leaving]
    free = [other for other in others if other not in rest]
    return PlannedMoveInfo(
        group=partition.group,
        before=partition.replicas,
        target=[*rest, *chance.sample(free, min(1, len(free)))],
        reason="chance",
    )


def _committed_batches(node: SimNode, directory: str) -> list[tuple[str, int, int]]:
    """Path, position and size of each batch that its log says is committed."""
    found: list[tuple[str, int, int]] = []
    segments = find_segments(node.files, directory)
    commit_offset = max((s.mark.commit_offset for s in segments if s.mark is not None), default=0)
    for segment in segments:
        for position, header, _ in SegmentWalk(node.files, segment):
            if header.end_offset <= commit_offset:
                found.append((segment.path, position, header.size_bytes))
    return found


def _around(chance: random.Random, seconds: Sequence[float]) -> float:
    return chance.choice(seconds) * (0.5 + chance.random())


def _both_ways(*sides: Sequence[str]) -> list[Link]:
    """All links between hosts of different sides."""
    return [
        link
        for one, other in itertools.permutations(sides, 2)
        for link in itertools.product(one, other)
    ]


FAULTS: Mapping[str, Callable[[Trouble, random.Random], Awaitable[None]]] = {
    fault.__name__: fault
    for fault in (
        Trouble.kill,
        Trouble.kill_rapidly,
        Trouble.power_cut,
        Trouble.blackout,
        Trouble.stop,
        Trouble.pause,
        Trouble.clock_jump,
        Trouble.isolate_one,
        Trouble.isolate_leader,
        Trouble.one_way_in,
        Trouble.one_way_out,
        Trouble.halves,
        Trouble.majorities_ring,
        Trouble.bridge,
        Trouble.slow_links,
        Trouble.clog,
        Trouble.reset,
        Trouble.half_open,
        Trouble.disk_error,
        Trouble.dead_disk,
        Trouble.disk_full,
        Trouble.slow_disk,
        Trouble.cold_cache,
        Trouble.rot,
        Trouble.join,
        Trouble.move,
        Trouble.drain,
        Trouble.remove,
    )
}
"""Kind of fault → what makes it."""

OF_MEMBERS = ("join", "move", "drain", "remove")
"""Those that change who is where."""
