"""Partitions move between brokers while they are written and read, whatever breaks meanwhile.

A plan always ends as it was meant to or cleanly cancelled, every acknowledged record is read
exactly once and in order, and what is left on the disks is what the metadata says.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections import Counter
from typing import Any

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from logd.broker import log_events, rebalancing
from logd.broker.autonomy import DRAIN_GRACE_S, Autonomy
from logd.cli.cancelling import cancel_move
from logd.cli.plan_progress import names_of, plan_progress
from logd.cli.plans import move_plan, start_plan
from logd.cli.running_plans import make_way
from logd.errors import (
    InvalidRequestError,
    LogdError,
    RebalanceConflictError,
    RequestTimeoutError,
    UnavailableError,
    UnknownBrokerError,
    UnsupportedVersionError,
)
from logd.limits import APPEND_BYTES_MAX, KIB, MIB, NAME_CHARACTERS_MAX
from logd.metadata.commands import BeginMove, Command, StartPlan
from logd.metadata.features import ONE_MOVE_LEVEL
from logd.metadata.moves import REASON_CHARACTERS_MAX, PlannedMove
from logd.raft.messages import TransferLeadership
from logd.types import METADATA_GROUP, GroupId, NodeId
from logd.wire.messages import CancelPlanRequest, PlanInfo, PlannedMoveInfo, StartPlanRequest
from logd_client import Client
from logd_client.admin import Admin
from tests.sim import stories
from tests.sim.checks import check_members
from tests.sim.cluster import ClusterSettings, SimCluster
from tests.sim.files import CAPACITY_BYTES_DEFAULT
from tests.sim.moves import (
    PARTITIONS,
    TOPIC,
    check,
    ended,
    partitions_of,
    play,
    rotated,
    start,
    under_load,
)
from tests.sim.network import CALM

pytestmark = pytest.mark.sim


def test_partitions_move_to_other_brokers_under_load() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        targets = {
            at: rotated(partition.replicas, 1)
            for at, partition in enumerate(await partitions_of(client))
        }

        async def work() -> None:
            await start(client, targets)
            assert (await ended(client)).state == "done"

        await under_load(client, work)

        assert {at: p.replicas for at, p in enumerate(await partitions_of(client))} == targets
        await check(cluster, client)

    play(story)


def test_a_partition_goes_to_brokers_none_of_which_had_it_and_back() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before = (await partitions_of(client))[0].replicas
        elsewhere = sorted(set(range(1, 6)) - set(before))

        async def work() -> None:
            for target in (elsewhere, before, elsewhere):
                await start(client, {0: target})
                assert (await ended(client)).state == "done"

        await under_load(client, work)

        assert (await partitions_of(client))[0].replicas == elsewhere
        await check(cluster, client)

    play(story)


def test_who_is_made_the_first_of_the_replicas_is_the_next_to_lead() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        partition = (await partitions_of(client))[0]
        group = GroupId(partition.group)
        leader = cluster.leader_of(group)
        assert leader is not None
        second, third = (node for node in partition.replicas if node != leader.node)
        await start(client, {0: [third, leader.node, second]})
        assert (await ended(client)).state == "done"
        await trio.sleep(10)
        assert cluster.leader_of(group) is leader

        await leader.crash(power=False)
        await trio.sleep(5)

        successor = cluster.leader_of(group)
        assert successor is not None
        assert successor.node == third

    play(story)


def test_a_cancelled_plan_leaves_every_partition_where_it_was_or_was_to_go() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before = {at: p.replicas for at, p in enumerate(await partitions_of(client))}
        targets = {at: rotated(replicas, 2) for at, replicas in before.items()}
        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * 1024, concurrency=2)

        async def work() -> None:
            await trio.sleep(3)
            plan_id = await start(client, targets)
            await trio.sleep(0.3)
            await client.admin.cancel_plan(plan_id)
            assert (await ended(client)).state == "cancelled"

        await under_load(client, work)

        for at, partition in enumerate(await partitions_of(client)):
            assert partition.replicas in (before[at], targets[at])
        await check(cluster, client)

    play(story)


def test_one_move_of_a_plan_that_is_cancelled_goes_back_and_the_others_arrive() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before = {at: p.replicas for at, p in enumerate(await partitions_of(client))}
        targets = {at: rotated(replicas, 2) for at, replicas in before.items()}
        groups = [p.group for p in await partitions_of(client)]
        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * 1024, concurrency=2)

        async def work() -> None:
            await trio.sleep(10)
            plan_id = await start(client, targets)
            with trio.fail_after(5):
                while await states_of(client) != ["running", "running", "pending", "pending"]:
                    await trio.sleep(0.05)
            assert await client.admin.cancel_move(plan_id, groups[0]) == "running"
            assert await client.admin.cancel_move(plan_id, groups[0]) == "running"
            assert await client.admin.cancel_move(plan_id, groups[3]) == "cancelled"
            plan = await ended(client)
            assert [move.state for move in plan.moves] == ["cancelled", "done", "done", "cancelled"]
            assert plan.state == "done"
            assert await client.admin.cancel_move(plan_id, groups[1]) == "done"  # Too late.

        await under_load(client, work)

        after = {at: p.replicas for at, p in enumerate(await partitions_of(client))}
        assert after == {0: before[0], 1: targets[1], 2: targets[2], 3: before[3]}
        await check(cluster, client)

    play(story)


async def led_by(cluster: SimCluster, group: GroupId, node: NodeId) -> None:
    """Have ``node`` lead ``group``."""
    with trio.fail_after(60):
        while (leader := cluster.leader_of(group)) is None or leader.node != node:
            if leader is not None:
                leader.groups[group].post(TransferLeadership(node))
            await trio.sleep(0.5)


def test_a_leader_that_goes_by_metadata_of_the_past_leaves_nobody_in_the_group() -> None:
    """It takes up a move that was ended by the leader before it, until it hears of that."""

    async def story(cluster: SimCluster, client: Client) -> None:
        partition = (await partitions_of(client))[0]
        group = GroupId(partition.group)
        first, second, _ = map(NodeId, partition.replicas)
        controller, newcomer = (NodeId(n) for n in range(1, 6) if n not in partition.replicas)
        await led_by(cluster, METADATA_GROUP, controller)
        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * 1024)
        async with client.producer(TOPIC) as producer:
            for _ in range(50):
                await producer.append(bytes(20_000), partition=0)
        await led_by(cluster, group, first)
        cut = [(f"node{second}", f"node{controller}"), (f"node{controller}", f"node{second}")]

        plan_id = await start(client, {0: [first, second, newcomer]})
        successor = cluster.nodes[second]
        with trio.fail_after(20):
            while successor.broker is None or not successor.broker.metadata.state.moving:
                await trio.sleep(0.01)
        cluster.network.hold(cut)
        await client.admin.cancel_move(plan_id, partition.group)
        assert (await ended(client)).state == "done"
        assert cluster.nodes[first].groups[group].configuration.learners == ()
        await led_by(cluster, group, second)
        await trio.sleep(2)
        cluster.network.release(cut)

        await check(cluster, client)
        await trio.sleep(20)
        assert check_members(cluster) == []

    play(story)


def test_whoever_cancels_a_move_is_told_where_the_partition_is_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before = (await partitions_of(client))[0].replicas
        target = [*before[:2], min(set(range(1, 6)) - set(before))]
        with pytest.raises(RebalanceConflictError, match="t/0 is not being moved"):
            await cancel_move(client, TOPIC, 0, "table", detach=False)
        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * 1024)
        async with client.producer(TOPIC) as producer:
            for _ in range(50):
                await producer.append(bytes(20_000), partition=0)

        await start(client, {0: target})
        await cancel_move(client, TOPIC, 0, "table", detach=False)

        assert capsys.readouterr().out == f"t/0 stays on {','.join(map(str, before))}\n"
        assert (await partitions_of(client))[0].target is None
        assert [move.state for move in (await ended(client)).moves] == ["cancelled"]
        with pytest.raises(RebalanceConflictError, match="t/0 is not being moved"):
            await cancel_move(client, TOPIC, 0, "table", detach=False)
        await check(cluster, client)

    play(story)


def test_whoever_cancels_a_move_too_late_is_told_how_to_move_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before = (await partitions_of(client))[0].replicas
        target = rotated(before, 2)
        cancel = Admin.cancel_move

        async def cancel_late(admin: Admin, plan_id: int, group: int) -> str:
            await ended(client)
            return await cancel(admin, plan_id, group)

        monkeypatch.setattr(Admin, "cancel_move", cancel_late)
        await start(client, {0: target})
        there, back = (",".join(map(str, replicas)) for replicas in (target, before))
        told = f"too late: t/0 has arrived on {there}; `logd partition move t/0 --to {back}` moves"

        with pytest.raises(RebalanceConflictError, match=re.escape(told)):
            await cancel_move(client, TOPIC, 0, "table", detach=False)

        assert (await partitions_of(client))[0].replicas == target

    play(story)


def test_one_move_is_not_cancelled_alone_below_the_level_for_it() -> None:
    """Nor is a broker asked that may not know the question."""

    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=1)
        (before,) = topic.partitions[0].replicas
        target = before % 3 + 1
        # It is waited for: nobody knows yet that it has gone.
        await cluster.nodes[NodeId(target)].crash(power=False, vanish=True)
        await start(client, {0: [target]})

        with pytest.raises(UnsupportedVersionError, match="needs feature level 6, the cluster is"):
            await cancel_move(client, TOPIC, 0, "table", detach=False)

    level = ONE_MOVE_LEVEL - 1
    stories.play(story, ClusterSettings(brokers=3, network=CALM, feature_level_max=level))


def test_of_a_plan_that_was_cancelled_no_further_moves_are_tried() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        many = await client.admin.create_topic("many", partitions=40, replicas=3)
        await client.admin.set_rebalancing(concurrency=60)
        version = (await client.admin.describe_rebalance()).layout_version
        moves = [
            PlannedMoveInfo(
                group=p.group,
                before=p.replicas,
                target=[*p.replicas[:2], min(set(range(1, 6)) - set(p.replicas))],
                reason="test",
            )
            for p in many.partitions
        ]

        with capture_logs() as logs:
            await client.admin.cancel_plan(await client.admin.start_plan("test", version, moves))
            assert (await ended(client)).state == "cancelled"
            await trio.sleep(5)

        refused = {e["offset"] for e in logs if e["event"] == log_events.METADATA_REFUSED}
        assert len(refused) <= 1  # The one that was under way.

    play(story)


def test_a_move_that_may_have_begun_holds_its_place_among_those_under_way() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        controller = cluster.leader_of(METADATA_GROUP)
        assert controller is not None
        assert controller.broker is not None
        metadata = controller.broker.metadata
        execute = metadata.execute
        most = 0

        async def execute_in_time(command: Command, **arguments: Any) -> object:
            """A move is begun, and whoever began it does not hear of it in time."""
            if not isinstance(command, BeginMove):
                return await execute(command, **arguments)

            async def take_long() -> None:
                await trio.sleep(1)
                with contextlib.suppress(LogdError):
                    await execute(command, **arguments)

            nursery.start_soon(take_long)
            raise RequestTimeoutError("not known to be committed")

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, len(metadata.state.moving))
                await metadata.changed()

        targets = {
            at: rotated(partition.replicas, 2)
            for at, partition in enumerate(await partitions_of(client))
        }
        await client.admin.set_rebalancing(concurrency=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            metadata.execute = execute_in_time  # type: ignore[method-assign]
            await start(client, targets)
            assert (await ended(client)).state == "done"
            nursery.cancel_scope.cancel()

        assert most == 1

    play(story)


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_survives_crashes_of_the_controller_the_source_and_the_target(seed: int) -> None:
    chance = random.Random(f"{seed}:moves")

    async def story(cluster: SimCluster, client: Client) -> None:
        before = {at: p.replicas for at, p in enumerate(await partitions_of(client))}
        targets = {at: rotated(replicas, 2) for at, replicas in before.items()}
        await client.admin.set_rebalancing(throttle_bytes_per_s=256 * 1024, concurrency=2)
        is_cancelled = chance.random() < 0.3

        async def crash_now_and_then() -> None:
            for _ in range(4):
                await trio.sleep(chance.uniform(0.0, 1.5))
                controller = cluster.leader_of(GroupId(0))
                group = GroupId((await partitions_of(client))[chance.randrange(PARTITIONS)].group)
                leader = cluster.leader_of(group)
                anyone = cluster.nodes[NodeId(chance.randint(1, 5))]
                victim = chance.choice([controller, leader, anyone]) or anyone
                if not victim.is_alive or len(cluster.alive()) < 5:
                    continue
                await victim.crash(power=chance.random() < 0.5)
                await trio.sleep(chance.uniform(0.0, 3.0))
                victim.start()

        async def work() -> None:
            await trio.sleep(2)
            plan_id = await start(client, targets)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(crash_now_and_then)
                if is_cancelled:
                    await trio.sleep(chance.uniform(0.0, 3.0))
                    await client.admin.cancel_plan(plan_id)
            plan = await ended(client)
            assert plan.state in ("done", "cancelled" if is_cancelled else "done")

        await under_load(client, work)

        for at, partition in enumerate(await partitions_of(client)):
            assert partition.replicas in (
                [before[at], targets[at]] if is_cancelled else [targets[at]]
            )
        await check(cluster, client)

    play(story, seed)


def test_a_broker_that_stays_dead_is_replaced_by_itself_and_one_that_returns_is_not() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        victim = NodeId((await partitions_of(client))[0].replicas[0])

        async def work() -> None:
            await cluster.nodes[victim].crash(power=False)
            await trio.sleep(5)
            cluster.nodes[victim].start()
            await trio.sleep(10)
            assert (await client.admin.describe_rebalance()).plan is None

            await cluster.nodes[victim].crash(power=False)
            plan = await ended(client)
            assert plan.state == "done"
            assert plan.purpose.startswith(f"by itself: replace broker {victim}, missing")

        await under_load(client, work)

        for partition in await partitions_of(client):
            assert victim not in partition.replicas
            assert len(partition.replicas) == 3
        await check(cluster, client)

    play(story, replace_after_ms=8_000)


def test_what_a_dead_broker_had_goes_to_no_failing_disk_while_there_are_others() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        async with client.producer(TOPIC) as producer:
            for partition in range(PARTITIONS):
                await producer.append(b"value", partition=partition)
        before = await partitions_of(client)
        held = {n: {p.group for p in before if n in p.replicas} for n in cluster.nodes}
        failing, victim, *_ = sorted(held, key=lambda node: len(held[node]))
        broker = cluster.nodes[failing].broker
        assert broker is not None
        broker.node.fitness.failing_disks[failing] = None
        assert (await client.admin.describe_broker(failing)).disk_failing

        await cluster.nodes[victim].crash(power=False)

        assert (await ended(client)).state == "done"
        after = await partitions_of(client)
        assert {p.group for p in after if failing in p.replicas} == held[failing]
        assert all(victim not in p.replicas for p in after)

    play(story, replace_after_ms=8_000)


def test_what_nobody_can_lead_is_named_and_keeps_nothing_else_from_being_replaced() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before = await partitions_of(client)
        alone = await client.admin.create_topic("alone", partitions=5, replicas=1)
        dead = NodeId(before[0].replicas[0])
        (lost,) = [f"alone/{p.partition}" for p in alone.partitions if p.replicas == [dead]]
        draining = NodeId(next(n for n in range(1, 6) if n != dead))
        await cluster.nodes[dead].crash(power=False)
        with trio.fail_after(10):
            while not (told := [n for n in await notes_of(client) if "in 7 s" in n]):
                await trio.sleep(0.1)
        assert "; 1 cannot be rebuilt: too few copies are alive" in told[0]

        replaced = await ended(client)
        await client.admin.alter_broker(draining, "drain")
        while (drained := await ended(client)).plan_id == replaced.plan_id:
            await trio.sleep(1)

        assert replaced.purpose.startswith(f"by itself: replace broker {dead}, missing")
        assert drained.purpose == f"by itself: drain broker {draining}"
        assert {replaced.state, drained.state} == {"done"}
        for partition in await partitions_of(client):
            assert dead not in partition.replicas
            assert draining not in partition.replicas
        await trio.sleep(35)  # It has been tried again.
        assert (await client.admin.describe_rebalance()).plan == drained
        note = next(n for n in await notes_of(client) if "start broker" in n)
        assert f"for 1 ({lost})" in note
        assert f"start broker {dead} again with its data directory" in note

        cluster.nodes[dead].start()
        await trio.sleep(5)  # Nothing is left to be tried again.
        assert await notes_of(client) == []

    play(story, replace_after_ms=8_000)


def test_whoever_watches_a_move_to_a_full_disk_is_told_what_it_waits_for() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        async with client.producer(TOPIC) as producer:
            for _ in range(100):
                await producer.append(bytes(20_000), partition=0)
        replicas = (await partitions_of(client))[0].replicas
        target = next(node for node in range(1, 6) if node not in replicas)
        files = cluster.nodes[NodeId(target)].files
        await client.admin.set_rebalancing(throttle_bytes_per_s=128 * KIB)
        await start(client, {0: [*replicas[:2], target]})
        await trio.sleep(2)
        files.capacity_bytes = files.used_bytes() + 64 * KIB
        await trio.sleep(10)

        plan = (await client.admin.describe_rebalance()).plan
        assert plan is not None
        names = names_of(await client.admin.describe_cluster())
        (reason,) = (await plan_progress(client, plan, names)).waiting

        assert reason == f"{TOPIC}/0 waits for its target: of broker {target} the disk is full"
        files.capacity_bytes = CAPACITY_BYTES_DEFAULT
        plan = await ended(client)
        assert plan.state == "done"
        assert (await plan_progress(client, plan, names)).waiting == []

    play(story)


async def waiting_texts(client: Client) -> list[str]:
    plan = (await client.admin.describe_rebalance()).plan
    assert plan is not None
    names = names_of(await client.admin.describe_cluster())
    return (await plan_progress(client, plan, names)).waiting


@pytest.mark.parametrize("is_full_before", [False, True])
def test_a_move_to_a_full_disk_keeps_no_other_waiting(*, is_full_before: bool) -> None:
    """Whether it was under way by then, or had not begun."""

    async def story(cluster: SimCluster, client: Client) -> None:
        async with client.producer(TOPIC) as producer:
            for _ in range(100):
                await producer.append(bytes(20_000), partition=0)
        first, second = (await partitions_of(client))[:2]
        target = next(node for node in range(1, 6) if node not in first.replicas)
        other = next(n for n in range(1, 6) if n not in (*second.replicas, target))
        files = cluster.nodes[NodeId(target)].files
        await client.admin.set_rebalancing(throttle_bytes_per_s=128 * KIB, concurrency=1)
        if is_full_before:
            files.capacity_bytes = files.used_bytes() + 64 * KIB
            await trio.sleep(5)
        moves = {0: [*first.replicas[:2], target], 1: [*second.replicas[:2], other]}
        await start(client, moves)
        await trio.sleep(2)
        files.capacity_bytes = files.used_bytes() + 64 * KIB

        with trio.fail_after(60):
            while (await states_of(client))[1:] != ["done"]:
                await trio.sleep(0.5)

        assert await states_of(client) == ["pending" if is_full_before else "running", "done"]
        assert await waiting_texts(client) == [
            f"{TOPIC}/0 waits for its target: of broker {target} the disk is full"
        ]
        files.capacity_bytes = CAPACITY_BYTES_DEFAULT
        assert (await ended(client)).state == "done"
        await check(cluster, client)

    play(story, disk_free_bytes_min=MIB)


def test_a_plan_does_not_begin_what_nobody_can_lead_and_so_can_be_cancelled() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        partition = (await partitions_of(client))[0]
        replicas = partition.replicas
        others = [node for node in range(1, 6) if node not in replicas]
        for node in replicas[1:]:
            await cluster.nodes[NodeId(node)].crash(power=False)
        await trio.sleep(5)
        plan_id = await start(client, {0: [replicas[0], *others]})
        await trio.sleep(5)

        plan = (await client.admin.describe_rebalance()).plan
        assert plan is not None
        assert [move.state for move in plan.moves] == ["pending"]
        await client.admin.cancel_plan(plan_id)
        with trio.fail_after(5):
            assert [move.state for move in (await ended(client)).moves] == ["cancelled"]

    play(story)


def test_a_move_that_cannot_begin_before_a_lost_broker_returns_keeps_no_other_waiting() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        dead = NodeId((await partitions_of(client))[0].replicas[0])
        alone = await client.admin.create_topic("alone", partitions=5, replicas=1)
        (lost,) = [p for p in alone.partitions if p.replicas == [dead]]
        await cluster.nodes[dead].crash(power=False)
        await trio.sleep(5)
        move = PlannedMoveInfo(
            group=lost.group, before=lost.replicas, target=[1 if dead != 1 else 2], reason="test"
        )
        version = (await client.admin.describe_rebalance()).layout_version
        plan_id = await client.admin.start_plan("test", version, [move])

        with trio.fail_after(60):
            while (replaced := await ended(client)).plan_id == plan_id:
                await trio.sleep(1)

        assert replaced.purpose.startswith(f"by itself: replace broker {dead}, missing")
        assert all(dead not in p.replicas for p in await partitions_of(client))

    play(story, replace_after_ms=8_000)


async def begin_what_gets_stuck(
    cluster: SimCluster, client: Client
) -> tuple[list[int], list[NodeId], list[PlannedMoveInfo]]:
    """Crash two of three replicas of a partition that is under way, with another move behind it.

    Returns:
        Where the partition was, who crashed, and the moves of the plan.
    """
    await client.admin.set_rebalancing(throttle_bytes_per_s=64 * 1024, concurrency=1)
    stuck = (await partitions_of(client))[0]
    async with client.producer(TOPIC) as producer:
        for _ in range(200):  # So much that the newcomer has not caught up by then.
            await producer.append(bytes(20_000), partition=0)
    newcomer = min(set(range(1, 6)) - set(stuck.replicas))
    dead = [NodeId(node) for node in stuck.replicas[1:]]
    alone = await client.admin.create_topic("alone", partitions=5, replicas=1)
    other = next(p for p in alone.partitions if p.replicas[0] not in dead)
    moves = [
        PlannedMoveInfo(
            group=p.group,
            before=p.replicas,
            target=[*p.replicas[:-1], target],
            reason="test",
        )
        for p, target in (
            (stuck, newcomer),
            (other, stuck.replicas[0] if other.replicas == [newcomer] else newcomer),
        )
    ]
    version = (await client.admin.describe_rebalance()).layout_version
    await client.admin.start_plan("test", version, moves)
    with trio.fail_after(5):
        while await states_of(client) != ["running", "pending"]:
            await trio.sleep(0.05)
    for node in dead:
        await cluster.nodes[node].crash(power=False)
    return stuck.replicas, dead, moves


async def is_taken_back(
    cluster: SimCluster, client: Client, dead: list[NodeId], before: list[int]
) -> None:
    """Once those who are dead have been started again."""
    for node in dead:
        cluster.nodes[node].start()
    with trio.fail_after(60):
        while await notes_of(client):
            await trio.sleep(0.5)
    assert (await partitions_of(client))[0].replicas == before
    await client.admin.delete_topic("alone")
    await check(cluster, client)


async def states_of(client: Client) -> list[str]:
    with contextlib.suppress(LogdError):
        plan = (await client.admin.describe_rebalance()).plan
        return [move.state for move in plan.moves] if plan is not None else []
    return []


def test_a_move_that_loses_its_majority_keeps_neither_other_moves_nor_other_plans_waiting() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before, dead, moves = await begin_what_gets_stuck(cluster, client)
        with trio.fail_after(30):
            while await states_of(client) != ["running", "done"]:
                await trio.sleep(0.1)
        await trio.sleep(1)
        note = next(n for n in await notes_of(client) if n.startswith(f"{TOPIC}/0, which moves to"))
        missing = ", ".join(map(str, sorted(dead)))
        assert f"no leader, because brokers {missing} are missing" in note

        plan = (await client.admin.describe_rebalance()).plan
        assert plan is not None
        await client.admin.cancel_plan(plan.plan_id)
        with trio.fail_after(10):
            assert [move.state for move in (await ended(client)).moves] == ["cancelled", "done"]
        back = msgspec.structs.replace(moves[1], before=moves[1].target, target=moves[1].before)
        version = (await client.admin.describe_rebalance()).layout_version
        with trio.fail_after(30):
            other = await client.admin.start_plan("test", version, [back])
            while (now := await ended(client)).plan_id != other:
                await trio.sleep(0.1)
        assert now.state == "done"
        assert any("is taken back once there is a leader" in n for n in await notes_of(client))

        await is_taken_back(cluster, client, dead, before)

    play(story)


def test_a_move_that_has_lost_its_majority_is_cancelled_alone_and_its_plan_ends_without_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before, dead, moves = await begin_what_gets_stuck(cluster, client)
        there, here = (",".join(map(str, replicas)) for replicas in (moves[0].target, before))
        with trio.fail_after(30):
            while await states_of(client) != ["running", "done"]:
                await trio.sleep(0.1)

        for _ in range(2):  # The second time its plan is over.
            await cancel_move(client, TOPIC, 0, "table", detach=False)
            assert capsys.readouterr().out == (
                f"the move of t/0 to {there} is cancelled: its leader takes it back to {here}, "
                "unless it has arrived\n"
            )

        plan = await ended(client)
        assert (plan.state, [m.state for m in plan.moves]) == ("done", ["cancelled", "done"])
        await is_taken_back(cluster, client, dead, before)

    play(story)


def test_the_cluster_goes_on_by_itself_without_a_move_that_has_lost_its_majority() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before, dead, _ = await begin_what_gets_stuck(cluster, client)

        with trio.fail_after(120):
            while "replace" not in (replaced := await ended(client)).purpose:
                await trio.sleep(1)
        assert replaced.state == "done"
        await trio.sleep(40)
        assert (await client.admin.describe_rebalance()).plan == replaced  # Not again and again.

        await is_taken_back(cluster, client, dead, before)

    play(story, replace_after_ms=8_000)


def test_a_move_is_refused_if_too_few_of_its_targets_are_alive_to_lead_it() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        replicas = (await partitions_of(client))[0].replicas
        newcomer = min(set(range(1, 6)) - set(replicas))
        dead = replicas[2]
        await cluster.nodes[NodeId(dead)].crash(power=False)
        await trio.sleep(5)

        for target in ([dead], [dead, newcomer]):
            with pytest.raises(UnavailableError, match=f"broker {dead} is not alive: without it"):
                await start(client, {0: target})

        await start(client, {0: [replicas[0], newcomer, dead]})
        assert (await ended(client)).state == "done"

    play(story)


def test_a_move_to_what_is_no_broker_is_refused_for_good() -> None:
    """As one that is not alive it would be asked for again until the caller's time is over."""

    async def story(cluster: SimCluster, client: Client) -> None:
        replicas = (await partitions_of(client))[0].replicas

        with pytest.raises(UnknownBrokerError, match="no broker 99 is registered"):
            await start(client, {0: [*replicas[:2], 99]})

    play(story)


async def notes_of(client: Client) -> list[str]:
    """What the controller says of what it does by itself; the others say nothing."""
    return (await client.admin.describe_rebalance()).autonomy


def test_with_autonomy_off_a_dead_broker_is_only_talked_about() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        victim = NodeId((await partitions_of(client))[0].replicas[1])
        await client.admin.set_rebalancing(autonomous=False)

        await cluster.nodes[victim].crash(power=False)
        await trio.sleep(30)

        found = await client.admin.describe_rebalance()
        assert found.plan is None
        assert any(f"broker {victim} has been missing" in note for note in found.autonomy)
        assert any("autonomy is off" in note for note in found.autonomy)

    play(story, replace_after_ms=5_000)


def test_a_drain_goes_on_when_whoever_asked_for_it_has_gone() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        node = NodeId((await partitions_of(client))[0].replicas[0])

        async def work() -> None:
            await client.admin.alter_broker(node, "drain")
            assert (await ended(client)).purpose == f"by itself: drain broker {node}"

        await under_load(client, work)

        assert all(node not in p.replicas for p in await partitions_of(client))
        await client.admin.alter_broker(node, "remove")
        assert node not in [b.node_id for b in (await client.admin.describe_cluster()).brokers]

    play(story)


async def held_by(client: Client, node: int) -> list[int]:
    """The partitions that ``node`` has a replica of."""
    return [at for at, p in enumerate(await partitions_of(client)) if node in p.replicas]


async def drain_but_for_the_first(client: Client) -> NodeId:
    """A broker that is drained of all but the first partition: somebody cancelled that move."""
    first = (await partitions_of(client))[0]
    node = NodeId(first.replicas[-1])
    await client.admin.set_rebalancing(throttle_bytes_per_s=64 * KIB)
    async with client.producer(TOPIC) as producer:
        for _ in range(50):
            await producer.append(bytes(20_000), partition=0)
    before = await held_by(client, node)
    assert before[0] == 0
    assert len(before) > 1
    await client.admin.alter_broker(node, "drain")
    with trio.fail_after(60):
        while (plan := (await client.admin.describe_rebalance()).plan) is None:
            await trio.sleep(0.1)
    assert plan.purpose == f"by itself: drain broker {node}"
    assert await client.admin.cancel_move(plan.plan_id, first.group) == "running"
    assert (await ended(client)).state == "done"
    return node


def test_a_drain_goes_on_without_a_move_that_was_cancelled_until_it_is_asked_for_again() -> None:
    """Neither the drain nor the cluster that evens itself out begins it again."""

    async def story(cluster: SimCluster, client: Client) -> None:
        node = await drain_but_for_the_first(client)
        await trio.sleep(90)

        assert await held_by(client, node) == [0]
        (note,) = await notes_of(client)
        assert f"broker {node} is drained but for {TOPIC}/0" in note
        await client.admin.alter_broker(node, "drain")
        with trio.fail_after(120):
            while await held_by(client, node):
                await trio.sleep(0.5)
        await check(cluster, client)

    play(story, rebalance_interval_ms=20_000)


def test_whoever_asks_for_a_drain_again_has_as_long_to_start_the_plan_as_the_first_time() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        node = await drain_but_for_the_first(client)
        before = (await client.admin.describe_rebalance()).plan
        await trio.sleep(DRAIN_GRACE_S)

        await client.admin.alter_broker(node, "drain")
        await trio.sleep(DRAIN_GRACE_S / 2)

        assert (await client.admin.describe_rebalance()).plan == before
        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * MIB)
        others = sorted(set(range(1, 6)) - {node})
        await start(client, {0: others[:3]})
        assert (await ended(client)).state == "done"
        assert await held_by(client, node) == []

    play(story)


def test_a_drain_goes_on_whatever_was_cancelled_before_it_was_asked_for() -> None:
    """Whoever asked for it was lost before the plan was started."""

    async def story(cluster: SimCluster, client: Client) -> None:
        partition = (await partitions_of(client))[0]
        await client.admin.cancel_plan(await start(client, {0: rotated(partition.replicas, 1)}))
        assert (await ended(client)).state == "cancelled"
        node = partition.replicas[0]

        await client.admin.alter_broker(node, "drain")

        with trio.fail_after(60):
            while await held_by(client, node):
                await trio.sleep(0.5)
        await check(cluster, client)

    play(story)


def test_a_move_that_begins_while_the_cluster_plans_by_itself_is_no_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask_for_loads = Autonomy._ask_for_loads

    async def story(cluster: SimCluster, client: Client) -> None:
        replicas = (await partitions_of(client))[0].replicas
        node = replicas[0]
        others = sorted(set(range(1, 6)) - {node})
        was_planning = trio.Event()

        async def ask_and_be_overtaken(autonomy: Autonomy) -> Any:
            if not was_planning.is_set():
                was_planning.set()
                await start(client, {0: others[:3]})
            return await ask_for_loads(autonomy)

        monkeypatch.setattr(Autonomy, "_ask_for_loads", ask_and_be_overtaken)
        for at in range(1, PARTITIONS):
            await start(client, {at: others[:3]})
            await ended(client)
        await client.admin.alter_broker(node, "drain")
        with trio.fail_after(60):
            await was_planning.wait()
        assert (await ended(client)).state == "done"
        await trio.sleep(5)

        assert await notes_of(client) == []

    play(story)


def test_a_plan_that_never_arrived_whole_keeps_nothing_waiting_for_ever() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        controller = cluster.leader_of(METADATA_GROUP)
        assert controller is not None
        assert controller.broker is not None
        placement = controller.broker.metadata.state.placement(GroupId(1))
        assert placement is not None
        newcomer = next(NodeId(n) for n in range(1, 6) if n not in placement.replicas)
        piece = StartPlan(
            token="whoever sends it goes",
            purpose="test",
            layout_version=controller.broker.metadata.state.layout_version,
            move_count=2,
            first=0,
            moves=(
                PlannedMove(
                    group=placement.group,
                    before=placement.replicas,
                    target=(*placement.replicas[:2], newcomer),
                    reason="test",
                    size_bytes=0,
                ),
            ),
            now_ms=0,
        )
        await controller.broker.metadata.execute(piece, timeout_ms=5_000, safe_to_repeat=True)
        victim = placement.replicas[0]

        await client.admin.alter_broker(victim, "drain")

        with trio.fail_after(120):
            assert (await ended(client)).purpose == f"by itself: drain broker {victim}"
        assert all(victim not in p.replicas for p in await partitions_of(client))

    play(story)


def test_a_leader_that_takes_over_a_move_holds_to_the_throttle_from_the_start() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        rate = 64 * 1024
        await client.admin.set_rebalancing(throttle_bytes_per_s=rate)
        partition = (await partitions_of(client))[0]
        group = GroupId(partition.group)
        async with client.producer(TOPIC) as producer:
            for _ in range(200):
                await producer.append(bytes(100_000), partition=0)
        newcomer = cluster.nodes[NodeId(min(set(range(1, 6)) - set(partition.replicas)))]
        leader = cluster.leader_of(group)
        assert leader is not None
        successor = next(NodeId(node) for node in partition.replicas if node != leader.node)
        stays = [leader.node, successor]
        began = trio.current_time()
        await start(client, {0: [*stays, newcomer.node]})
        with trio.fail_after(5):
            while group not in newcomer.groups:
                await trio.sleep(0.05)

        await client.admin.transfer_leader(TOPIC, 0, successor)
        await trio.sleep(2)

        batches = newcomer.groups[group].log.end_offset
        seconds = trio.current_time() - began
        assert batches * 100_000 <= rate * seconds + APPEND_BYTES_MAX

    play(story)


def test_a_move_to_a_broker_that_is_lost_is_taken_back() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before = (await partitions_of(client))[0].replicas
        newcomer = min(set(range(1, 6)) - set(before))
        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * 1024)

        async def work() -> None:
            await trio.sleep(5)
            await start(client, {0: [*before[:2], newcomer]})
            await cluster.nodes[NodeId(newcomer)].crash(power=False)  # Before it can have it all.
            await trio.sleep(2)
            held = sum(newcomer in p.replicas for p in await partitions_of(client))
            assert f"its {held} replicas" in (await notes_of(client))[0]  # Without what comes.
            plan = await ended(client)
            assert [move.state for move in plan.moves] == ["cancelled"]

        await under_load(client, work)

        assert (await partitions_of(client))[0].replicas == before

    play(story, replace_after_ms=3_000)


def test_a_move_to_fewer_brokers_of_which_too_many_are_lost_is_taken_back() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        before = (await partitions_of(client))[0]
        controller = cluster.leader_of(METADATA_GROUP)
        assert controller is not None
        dead = next(n for n in before.replicas if n not in (controller.node, before.leader))
        stays = next(n for n in before.replicas if n != dead)
        await cluster.nodes[NodeId(dead)].crash(power=False, vanish=True)
        plan_id = await start(client, {0: [stays, dead]})  # Nobody has noticed yet.

        with trio.fail_after(60):
            while (replaced := await ended(client)).plan_id == plan_id:
                await trio.sleep(0.2)

        assert replaced.purpose.startswith(f"by itself: replace broker {dead}, missing")
        assert replaced.state == "done"
        partitions = await partitions_of(client)
        assert all(dead not in p.replicas for p in partitions)
        assert len(partitions[0].replicas) == 3

    play(story, replace_after_ms=8_000)


def test_a_leader_that_is_shipped_metadata_while_it_moves_something_goes_by_them() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        controller = cluster.leader_of(METADATA_GROUP)
        assert controller is not None
        assert controller.broker is not None
        at, partition, leader = next(
            (at, partition, leader)
            for at, partition in enumerate(await partitions_of(client))
            if (leader := cluster.leader_of(GroupId(partition.group))) not in (controller, None)
        )
        assert leader is not None
        assert leader.broker is not None
        newcomer = next(
            node
            for number, node in cluster.nodes.items()
            if number not in partition.replicas and node is not controller
        )
        await newcomer.crash(power=False, vanish=True)
        await start(client, {at: [*partition.replicas[:2], int(newcomer.node)]})
        await trio.sleep(2.0)  # It is waited for, and does not come.

        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * 1024)
        # The leader has not heard of that command yet, and lags so far that it gets the state.
        ahead = controller.broker.metadata
        assert leader.broker.metadata.applied_offset < ahead.applied_offset
        leader.broker.metadata.on_installed(ahead.applied_offset, ahead.state.snapshot())

        plan = (await client.admin.describe_rebalance()).plan
        assert plan is not None
        await client.admin.cancel_plan(plan.plan_id)
        with trio.fail_after(20):
            assert [move.state for move in (await ended(client)).moves] == ["cancelled"]

    play(story)


def test_an_uneven_cluster_evens_itself_out_where_that_is_wanted() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        for at, partition in enumerate(await partitions_of(client)):
            if partition.replicas != [1, 2, 3]:
                await start(client, {at: [1, 2, 3]})
                await ended(client)
        with trio.fail_after(60):
            while True:
                counts = [
                    sum(node in p.replicas for p in await partitions_of(client))
                    for node in range(1, 6)
                ]
                if max(counts) - min(counts) <= 1:
                    break
                await trio.sleep(1)
        plan = (await client.admin.describe_rebalance()).plan
        assert plan is not None
        assert plan.purpose == "by itself: even out"

    play(story, rebalance_interval_ms=10_000)


async def evening_out(cluster: SimCluster, client: Client) -> PlanInfo:
    """Crowd three brokers, and wait until the cluster has begun to even that out, slowly."""
    async with client.producer(TOPIC) as producer:
        for at in range(PARTITIONS):
            for _ in range(20):
                await producer.append(bytes(20_000), partition=at)
    crowding = await start(client, {at: [1, 2, 3] for at in range(PARTITIONS)})
    await ended(client)
    await client.admin.set_rebalancing(throttle_bytes_per_s=64 * KIB, concurrency=1)
    with trio.fail_after(60):
        while True:
            plan = (await client.admin.describe_rebalance()).plan
            assert plan is not None
            if plan.plan_id != crowding and "running" in [move.state for move in plan.moves]:
                break
            await trio.sleep(0.1)
    assert plan.purpose == "by itself: even out"
    assert "pending" in [move.state for move in plan.moves]
    return plan


def test_evening_out_makes_way_for_what_a_person_asks_for() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        plan = await evening_out(cluster, client)
        before = [p.replicas for p in await partitions_of(client)]

        assert await make_way(client)

        found = (await client.admin.describe_rebalance()).plan
        assert found is not None
        assert (found.plan_id, found.state) == (plan.plan_id, "done")
        assert {move.state for move in found.moves} <= {"done", "skipped", "cancelled"}
        assert "skipped" in [move.state for move in found.moves]
        assert [p.replicas for p in await partitions_of(client)] == before
        await trio.sleep(1.5)
        assert any("somebody has asked" in note for note in await notes_of(client))
        await trio.sleep(15)  # It was due again: the person goes on to think.
        assert (await client.admin.describe_rebalance()).plan == found
        started = await start(client, {0: [1, 2, 4]})
        assert (await ended(client)).plan_id == started
        assert not await make_way(client)  # Nothing is in the way any more.

    play(story, rebalance_interval_ms=10_000)


def test_evening_out_that_was_begun_while_a_plan_was_made_makes_way_when_that_is_started() -> None:
    """What was taken back has changed the cluster: then the plan is made again, and starts."""

    async def story(cluster: SimCluster, client: Client) -> None:
        await evening_out(cluster, client)

        with pytest.raises(RebalanceConflictError, match="plan again"):
            await start(client, {0: [1, 2, 4]})
        started = await start(client, {0: [1, 2, 4]})

        plan = await ended(client)
        assert (plan.plan_id, plan.purpose, plan.state) == (started, "test", "done")

    play(story, rebalance_interval_ms=10_000)


def test_a_plan_that_makes_way_while_the_controller_is_lost_is_ended_by_the_next() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        plan = await evening_out(cluster, client)
        controller = cluster.leader_of(METADATA_GROUP)
        assert controller is not None
        assert controller.broker is not None
        offset = controller.broker.metadata.applied_offset

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make_way, client)
            while controller.broker.metadata.applied_offset == offset:
                await trio.sleep(0.001)
            await controller.crash(power=False)

        found = (await client.admin.describe_rebalance()).plan
        assert found is not None
        assert found.plan_id > plan.plan_id or found.state == "done"
        controller.start()
        await trio.sleep(5)
        await check(cluster, client)

    play(story, rebalance_interval_ms=10_000)


@pytest.mark.parametrize("is_started", [False, True])
def test_whoever_wants_a_plan_out_of_the_way_is_answered_in_time_also_without_a_majority(
    *, is_started: bool
) -> None:
    """Who only says so, and who starts another one."""

    async def story(cluster: SimCluster, client: Client) -> None:
        plan = await evening_out(cluster, client)
        controller = cluster.leader_of(METADATA_GROUP)
        assert controller is not None
        broker = controller.broker
        assert broker is not None
        for node in cluster.nodes.values():
            if node is not controller:
                await node.crash(power=False)

        async def ask() -> None:
            if is_started:
                moves: list[PlannedMoveInfo] = []
                request = StartPlanRequest(
                    token="t",
                    purpose="",
                    layout_version=0,
                    move_count=1,
                    moves=moves,
                    timeout_ms=4_000,
                )
                await rebalancing.start_plan(broker, request)
            else:
                cancel = CancelPlanRequest(plan_id=plan.plan_id, gives_way=True, timeout_ms=4_000)
                await rebalancing.cancel_plan(broker, cancel)

        began = trio.current_time()
        with pytest.raises((RequestTimeoutError, UnavailableError)):
            await ask()

        assert trio.current_time() - began < 4.1
        for node in cluster.stopped():
            node.start()
        await trio.sleep(5)
        await check(cluster, client)

    play(story, rebalance_interval_ms=10_000)


def test_what_a_drain_still_has_to_move_is_only_put_off_when_it_makes_way() -> None:
    """Nobody has cancelled it: the broker keeps nothing, and is emptied afterwards."""

    async def story(cluster: SimCluster, client: Client) -> None:
        async with client.producer(TOPIC) as producer:
            for at in range(PARTITIONS):
                for _ in range(20):
                    await producer.append(bytes(20_000), partition=at)
        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * KIB, concurrency=1)
        node = (await partitions_of(client))[0].replicas[0]
        await client.admin.alter_broker(node, "drain")
        while (plan := (await client.admin.describe_rebalance()).plan) is None:
            await trio.sleep(0.5)
        assert plan.purpose == f"by itself: drain broker {node}"

        assert await make_way(client)

        assert await held_by(client, node) != []
        assert not any("drained but for" in note for note in await notes_of(client))
        await client.admin.set_rebalancing(throttle_bytes_per_s=MIB, concurrency=4)
        with trio.fail_after(90):
            while await held_by(client, node):
                await trio.sleep(1)
        await check(cluster, client)

    play(story)


def test_what_somebody_has_asked_for_makes_way_for_nothing() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.set_rebalancing(throttle_bytes_per_s=64 * KIB)
        partition = (await partitions_of(client))[0]
        gone = NodeId(next(n for n in range(1, 6) if n not in partition.replicas))
        plan_id = await start(client, {0: [*partition.replicas[:2], gone]})

        with pytest.raises(InvalidRequestError, match="somebody has asked for it"):
            await client.admin.cancel_plan(plan_id, gives_way=True)
        assert not await make_way(client)

        assert (await ended(client)).state == "done"

    play(story)


def test_evening_out_waits_for_a_broker_that_may_come_back_and_for_none_that_is_lost() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        controller = cluster.leader_of(METADATA_GROUP)
        assert controller is not None
        victim, *others = (node for node in cluster.nodes if node != controller.node)
        crowded: list[int] = [controller.node, *others[:2]]
        await cluster.nodes[victim].crash(power=False)
        crowding = await start(client, dict.fromkeys(range(PARTITIONS), crowded))
        assert (await ended(client)).state == "done"

        await trio.sleep(15)  # Evening out was due three times.

        plan = (await client.admin.describe_rebalance()).plan
        assert plan is not None
        assert plan.plan_id == crowding
        with trio.fail_after(60):
            while await held(client) != dict.fromkeys([controller.node, *others], 3):
                await trio.sleep(1)
        rebalance = await client.admin.describe_rebalance()
        assert any(
            f"broker {victim} has been missing for" in note and f"broker remove {victim}" in note
            for note in rebalance.autonomy
        )

    async def held(client: Client) -> Counter[int]:
        return Counter(node for p in await partitions_of(client) for node in p.replicas)

    play(story, replace_after_ms=40_000, rebalance_interval_ms=5_000)


def test_a_partition_of_a_topic_with_the_longest_name_can_be_moved() -> None:
    """What the plan is for is for people: it is cut, not refused."""

    async def story(cluster: SimCluster, client: Client) -> None:
        name = "n" * NAME_CHARACTERS_MAX
        topic = await client.admin.create_topic(name, partitions=1, replicas=1)
        target = topic.partitions[0].replicas[0] % 5 + 1

        await start_plan(client, await move_plan(client, name, 0, [target]))

        plan = await ended(client)
        assert (plan.state, plan.purpose[:9]) == ("done", "move nnnn")
        assert (await client.admin.describe_topic(name)).partitions[0].replicas == [target]

    play(story)


def test_many_brokers_can_be_emptied_or_replaced_by_one_plan() -> None:
    """However long the list of them is that the plan's purpose would be."""

    async def story(cluster: SimCluster, client: Client) -> None:
        controller = cluster.leader_of(METADATA_GROUP)
        assert controller is not None
        assert controller.broker is not None
        partition = (await partitions_of(client))[0]
        version = (await client.admin.describe_rebalance()).layout_version
        before = tuple(map(NodeId, partition.replicas))
        move = PlannedMove(
            group=GroupId(partition.group),
            before=before,
            target=tuple(map(NodeId, rotated(partition.replicas, 1))),
            reason="test",
            size_bytes=0,
        )
        purpose = f"replace broker {', '.join(map(str, range(100)))}, missing for 30 min"

        await Autonomy(controller.broker)._start([move], purpose, version)

        plan = await ended(client)
        assert plan.purpose.startswith("by itself: replace broker 0, 1, 2")
        assert plan.state == "done"

    play(story)


def test_a_plan_arrives_however_long_its_reasons_are() -> None:
    """In as many commands as it takes: what one may hold is bounded."""

    async def story(cluster: SimCluster, client: Client) -> None:
        topic = await client.admin.create_topic("many", partitions=170, replicas=3)
        version = (await client.admin.describe_rebalance()).layout_version
        moves = [
            PlannedMoveInfo(
                group=p.group,
                before=p.replicas,
                target=rotated(p.replicas, 1),
                reason="r" * REASON_CHARACTERS_MAX,
            )
            for p in topic.partitions
        ]

        plan_id = await client.admin.start_plan("test", version, moves)

        found = (await client.admin.describe_rebalance()).plan
        assert found is not None
        assert (found.plan_id, len(found.moves)) == (plan_id, len(moves))
        await client.admin.cancel_plan(plan_id)
        await ended(client)

    play(story)
