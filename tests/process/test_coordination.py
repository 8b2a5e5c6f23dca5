"""Coordination on three real brokers: what it promises to programs."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from logd.cli.local_cluster import LocalCluster
from logd.errors import (
    AcquireTimeoutError,
    ClaimLostError,
    CompactedError,
    CompareFailedError,
    ConflictError,
    FencedError,
    InvalidNameError,
    InvalidRequestError,
    LeaseLostError,
    LogdError,
    PartialAppendError,
    UnknownTopicError,
    UsageError,
)
from logd.limits import VALUE_BYTES_MAX
from logd.types import NodeId
from logd.wire.coordination import COORDINATION_TOPIC, CloseSession, Done, Event, partition_of
from logd_client import Client, connect, sync, sync_coordination
from logd_client.coordination.assignments import OwnedShard
from logd_client.coordination.keys import put
from logd_client.coordination.leases import Lease
from logd_client.coordination.queues import Claim, ItemFailedError
from tests.process.harness import POLL_S, fresh, send_signal
from tests.process.stale_holders import KINDS, late_writes, play_round

pytestmark = [pytest.mark.process, pytest.mark.anyio]

TTL_S = 3.0
TIMEOUT_S = 40.0


async def expire(client: Client, lease: Lease) -> None:
    """End the session of a lease behind its client's back, as its expiry would."""
    sessions = client._open_sessions()
    adopted = await sessions.adopt("default", lease.session_id)
    await adopted.call(CloseSession(), Done)


# --- the closed loop --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_holder_that_slept_beyond_its_time_writes_no_more(
    cluster: LocalCluster, anyio_backend: object, kind: str
) -> None:
    async with connect(cluster.bootstrap) as client:
        topic = fresh("stale")
        await client.admin.create_topic(topic, partitions=1, replicas=3)
        found = await play_round(client, cluster.bootstrap, kind, fresh("stale"), topic)

    assert late_writes(found) == []
    assert found.stopped.refused > 0
    assert found.stopped.doubtful == 0  # may_have_applied is False.
    assert all(offset < found.fenced_at for offset in found.stopped.acknowledged)
    stored = [offset for offset, token in found.records if token == found.stopped.token]
    assert set(found.stopped.acknowledged) <= set(stored)


async def test_protecting_a_topic_shuts_out_whoever_held_it_before(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap) as client, connect(cluster.bootstrap) as other:
        topic, name = fresh("protected"), fresh("lock")
        await client.admin.create_topic(topic, partitions=2, replicas=3)
        first = await client.lock(name, protects=[topic]).acquire()
        old = first.fence
        async with client.producer(topic) as producer:
            await producer.append(b"held", fence=first)
            await first.release()
            async with other.lock(name, protects=[topic]) as lease:
                # The new holder has written nothing yet, to neither partition.
                for partition in (0, 1):
                    with pytest.raises(FencedError) as caught:
                        await producer.append(b"late", fence=old, partition=partition)
                    assert not caught.value.may_have_applied
                with pytest.raises(FencedError):
                    await producer.append_nowait(b"late", fence=old)
                with pytest.raises(PartialAppendError) as partial:
                    await producer.append_many([b"late"] * 10, fence=old)
                assert not partial.value.may_have_applied
                with pytest.raises(FencedError):
                    await producer.raise_fence(old)
                assert set(await producer.raise_fence(lease)) == {0, 1}
                # Records without a fence, and with the new one, share no batch with the refused.
                await producer.append(b"new", fence=lease)
                await producer.append(b"unfenced")


async def test_clients_that_draw_the_same_numbers_are_two_all_the_same(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    """As one session they would both hold what one was granted."""
    name = fresh("lock")
    async with (
        connect(cluster.bootstrap, rng=random.Random(1)) as one,
        connect(cluster.bootstrap, rng=random.Random(1)) as other,
        one.lock(name),
    ):
        assert await other.lock(name).try_acquire() is None


async def test_partitions_that_were_added_before_a_lock_was_granted_are_protected_too(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap) as client, connect(cluster.bootstrap) as other:
        topic, name = fresh("grown"), fresh("lock")
        await client.admin.create_topic(topic, partitions=1, replicas=3)
        first = await client.lock(name, protects=[topic]).acquire()
        old = first.fence
        async with other.lock(fresh("lock"), protects=[topic]):
            pass  # It knows the topic as it was.
        async with anyio.create_task_group() as tasks:
            second = other.lock(name, protects=[topic])
            tasks.start_soon(second.acquire)
            while not (await second.holders()).waiting:
                await anyio.sleep(0.05)
            await client.admin.alter_topic(topic, partitions=3)
            await first.release()
        async with client.producer(topic) as producer:
            for partition in range(3):
                with pytest.raises(FencedError):
                    await producer.append(b"late", fence=old, partition=partition)


# --- locks, semaphores, elections -------------------------------------------------------


async def test_a_lock_is_granted_in_order_with_growing_tokens(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    name = fresh("lock")
    granted: list[tuple[int, int]] = []
    async with connect(cluster.bootstrap) as client, anyio.create_task_group() as tasks:
        first = await client.lock(name).acquire()

        async def wait(number: int) -> None:
            async with client.lock(name) as lease:
                granted.append((number, lease.token))

        for number in range(4):
            tasks.start_soon(wait, number)
            with anyio.fail_after(TIMEOUT_S):
                while len((await client.lock(name).holders()).waiting) <= number:
                    await anyio.lowlevel.checkpoint()
        assert await client.lock(name).try_acquire() is None
        with pytest.raises(AcquireTimeoutError):
            await client.lock(name, timeout_s=0.1).acquire()
        await first.release()

    assert [number for number, _ in granted] == [0, 1, 2, 3]
    tokens = [first.token, *(token for _, token in granted)]
    assert tokens == sorted(set(tokens))


async def test_a_cancelled_acquire_leaves_no_place_behind(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    name = fresh("lock")
    async with connect(cluster.bootstrap) as client:
        async with client.lock(name):
            with anyio.move_on_after(0.2):
                async with client.lock(name):
                    raise AssertionError("two hold it")
            assert (await client.lock(name).holders()).waiting == []
        for delay_s in (0.0, 0.001, 0.003, 0.01):  # At any point of the way.
            early = None
            with anyio.move_on_after(delay_s):
                early = await client.lock(name).acquire()
            if early is not None:  # It was quicker than that.
                await early.release()
        with anyio.fail_after(TIMEOUT_S):
            lease = await client.lock(name).acquire()
            await lease.release()

        assert (await client.lock(name).holders()).holders == []


async def test_readers_share_a_lock_and_a_semaphore_has_so_many_permits(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    name = fresh("lock")
    async with connect(cluster.bootstrap) as client:
        async with client.lock(name, mode="shared"), client.lock(name, mode="shared") as lease:
            assert await client.lock(name).try_acquire() is None
            with pytest.raises(UsageError, match="shared"):
                _ = lease.fence
        async with client.semaphore(name, 3, permits=2):
            assert await client.semaphore(name, 3, permits=2).try_acquire() is None
            with pytest.raises(ConflictError, match="3 permits"):
                await client.semaphore(name, 4).acquire()
            one = await client.semaphore(name, 3).try_acquire()
            assert one is not None
            await one.release()


async def test_the_body_is_cancelled_when_the_lease_is_lost(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    name = fresh("lock")
    ended: list[str] = []
    leases: list[Lease] = []
    async with connect(cluster.bootstrap) as client, connect(cluster.bootstrap) as other:

        async def hold_until_lost() -> None:
            async with client.lock(name, ttl_s=TTL_S) as lease:
                leases.append(lease)
                await expire(other, lease)
                try:
                    with anyio.fail_after(TIMEOUT_S):
                        await anyio.sleep_forever()
                finally:
                    ended.append("body")

        with pytest.raises(LeaseLostError, match=name):
            await hold_until_lost()
        (lease,) = leases
        assert ended == ["body"]
        assert lease.is_lost
        with pytest.raises(LeaseLostError):
            lease.check()
        # The next use opens another session.
        async with client.lock(name, ttl_s=TTL_S) as again:
            assert again.token > lease.token
            assert again.session_id != lease.session_id
            again.check()


async def test_an_exception_of_the_body_goes_on_and_gives_the_lock_back(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    name = fresh("lock")
    async with connect(cluster.bootstrap) as client:
        with pytest.raises(ZeroDivisionError):
            async with client.lock(name):
                raise ZeroDivisionError

        assert (await client.lock(name).holders()).holders == []


async def test_a_client_that_is_closed_gives_everything_back_at_once(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    name = fresh("lock")
    async with connect(cluster.bootstrap) as client:
        async with connect(cluster.bootstrap) as other:
            await other.lock(name).acquire()
        assert await client.lock(name).try_acquire() is not None


async def test_observers_see_leaders_in_the_order_of_their_tokens(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    name = fresh("election")
    async with connect(cluster.bootstrap) as client, connect(cluster.bootstrap) as other:
        election = client.election(name)
        async with election.observe() as leaders, anyio.create_task_group() as tasks:
            assert await leaders.next() is None
            campaign = election.campaign(b"first")
            leadership = await campaign.win()
            first = await leaders.next()
            assert first is not None
            assert (first.data, first.token) == (b"first", leadership.token)
            await leadership.proclaim(b"changed")
            changed = await leaders.next()
            assert changed is not None
            assert (changed.data, changed.token) == (b"changed", leadership.token)
            with pytest.raises(ConflictError):
                await leadership.hand_over()  # Nobody stands.

            async def stand() -> None:
                async with other.election(name).campaign(b"second") as second:
                    assert await client.election(name).verify(second.token)

            tasks.start_soon(stand)
            with anyio.fail_after(TIMEOUT_S):
                while not (await election.candidates()).waiting:
                    await anyio.lowlevel.checkpoint()
            await leadership.hand_over()
            seen = [await leaders.next() for _ in range(3)]
            heir = next(leader for leader in seen if leader is not None)
            assert heir.data == b"second"
            assert heir.token > first.token
            assert not await election.verify(first.token)


# --- members, assignments ---------------------------------------------------------------


async def test_a_group_is_followed_by_revisions(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    name = fresh("group")
    async with connect(cluster.bootstrap) as client, connect(cluster.bootstrap) as other:
        group = client.members(name)
        before = await group.list()
        async with group.follow() as views:
            assert await views.next() == ()
            async with other.members(name).join("m", b"1") as membership:
                assert [one.data for one in await views.next()] == [b"1"]
                await membership.update(b"2")
                assert [one.data for one in await views.next()] == [b"2"]
                with pytest.raises(ConflictError):
                    await client.members(name).join("m").join()
            assert await views.next() == ()
        async with group.watch(before.revision + 1) as events:
            told = [await events.next() for _ in range(3)]

    changes = [(event.change, event.subject) for event in told if event is not None]
    assert changes == [("joined", "m"), ("changed", "m"), ("left", "m")]


async def test_shards_move_only_after_they_were_let_go(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    name = fresh("shards")
    running: dict[str, str] = {}
    tokens: dict[str, list[int]] = {}
    moved = anyio.Event()

    async with connect(cluster.bootstrap) as client, connect(cluster.bootstrap) as other:

        def worker(member: str) -> Any:
            async def run_shard(shard: OwnedShard) -> None:
                assert shard.shard not in running, "two owners"
                running[shard.shard] = member
                tokens.setdefault(shard.shard, []).append(shard.token)
                if member == "second":
                    moved.set()
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(0.05)  # Cleaning up takes a moment.
                    del running[shard.shard]

            return run_shard

        await client.assignments(name).set(["a", "b", "c", "d"], [1, 1, 1, 1])
        with anyio.fail_after(TIMEOUT_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.assignments(name).work, "first", worker("first"))
                while len(running) < 4:
                    await anyio.sleep(0.01)
                tasks.start_soon(other.assignments(name).work, "second", worker("second"))
                await moved.wait()
                while sorted(running.values()) != ["first", "first", "second", "second"]:
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()

    assert all(of_one == sorted(set(of_one)) for of_one in tokens.values())
    assert sorted(map(len, tokens.values())) == [1, 1, 2, 2]  # Only what must move moved.


# --- queues -----------------------------------------------------------------------------


async def test_each_item_is_completed_once_and_the_poisoned_are_dead(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    done: list[bytes] = []
    async with connect(cluster.bootstrap) as client, connect(cluster.bootstrap) as other:
        queue = client.queue(fresh("queue"))
        await queue.configure(attempts_max=2, backoff_ms=10)
        await queue.put_many([b"%d" % number for number in range(50)] + [b"poison", b"rotten"])

        async def handle(claim: Claim) -> None:
            if claim.payload == b"poison":
                raise ValueError("it is poisoned")
            if claim.payload == b"rotten":
                raise ItemFailedError("it is rotten", dead=True)
            done.append(claim.payload)

        with anyio.fail_after(TIMEOUT_S):
            while (await queue.statistics()).dead < 2:
                async with anyio.create_task_group() as tasks:
                    for one in (client, other):
                        worker = one.queue(str(queue.name))
                        tasks.start_soon(_work_until_empty, worker, handle)
        found = await queue.statistics(dead=10)

        assert sorted(done) == sorted(b"%d" % number for number in range(50))
        assert (found.completed, found.dead, found.in_flight, found.ready) == (50, 2, 0, 0)
        reasons = {one.payload: one.reason for one in found.dead_items}
        assert reasons == {b"poison": "ValueError: it is poisoned", b"rotten": "it is rotten"}
        assert len(await queue.redrive()) == 2
        assert (await queue.statistics()).ready == 2


async def _work_until_empty(queue: Any, handle: Any) -> None:
    await queue.work(handle, concurrency=4, until_empty=True)


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_items_of_killed_workers_are_completed_once_by_others(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    share, poisoned = 120, 3
    items = 0
    async with connect(cluster.bootstrap) as client:
        queue = client.queue(fresh("queue"))
        await queue.configure(attempts_max=4, backoff_ms=10, visibility_ms=2_000)
        await queue.put_many([b"poison"] * poisoned)
        workers: list[subprocess.Popen[bytes]] = []

        def start() -> None:
            arguments = ["-m", "tests.process.queue_worker", cluster.bootstrap, str(queue.name)]
            workers.append(subprocess.Popen([sys.executable, *arguments]))

        try:
            for _ in range(3):
                start()
            killed = 0
            with anyio.fail_after(90):
                found = await queue.statistics()
                while killed < 3 or found.completed + found.dead < items + poisoned:
                    if killed < 3 and found.completed >= (killed + 1) * share:
                        workers[killed].kill()  # While it has items in hand.
                        killed += 1
                        start()
                    if killed < 3 and found.ready < share:  # However fast they are.
                        await queue.put_many([b"good"] * share)
                        items += share
                    await anyio.sleep(0.05)
                    found = await queue.statistics()
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        found = await queue.statistics(dead=10)

    assert killed == 3
    assert (found.completed, found.dead, found.in_flight) == (items, poisoned, 0)
    assert {one.payload for one in found.dead_items} == {b"poison"}


async def test_a_stale_claim_completes_nothing(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap) as client, connect(cluster.bootstrap) as other:
        queue = client.queue(fresh("queue"))
        await queue.configure(backoff_ms=0)
        await queue.put(b"work")
        (first,) = await queue.claim(visibility_s=1)
        (second,) = await other.queue(str(queue.name)).claim(wait_s=TIMEOUT_S)

        assert (second.id, second.attempt) == (first.id, 2)
        assert second.token > first.token
        with pytest.raises(ClaimLostError):
            await first.complete()
        with pytest.raises(ClaimLostError):
            await first.renew()
        await second.complete()
        assert (await queue.statistics()).completed == 1


async def test_whoever_waits_for_an_item_gets_it_as_it_comes(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap) as client, anyio.create_task_group() as tasks:
        queue = client.queue(fresh("queue"))
        await queue.configure()
        claimed: list[Claim] = []

        async def wait() -> None:
            claimed.extend(await queue.claim(wait_s=TIMEOUT_S))

        tasks.start_soon(wait)
        await queue.put_many([b"now"])
        with anyio.fail_after(TIMEOUT_S):
            while not claimed:
                await anyio.sleep(0.01)
        assert claimed[0].payload == b"now"


# --- keys -------------------------------------------------------------------------------


async def test_keys_are_compared_and_watched_by_revision(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap) as client, connect(cluster.bootstrap) as other:
        kv = client.kv(fresh("ns"))
        created = await kv.cas("k/1", b"a", revision=0)
        with pytest.raises(CompareFailedError) as caught:
            await kv.cas("k/1", b"b", revision=0)
        assert caught.value.revision == created
        changed = await kv.cas("k/1", b"b", expected=b"a")
        await other.kv(kv._namespace).put("k/2", b"x", ephemeral=True)
        async with kv.watch(prefix="k/", revision=created) as events:
            told = [await events.next() for _ in range(3)]
            await other._open_sessions().aclose()  # Its ephemeral key goes with it.
            told.append(await events.next())
        found = await kv.prefix("k/")

        assert [_shown(event) for event in told] == [
            (b"k/1", "put", b"a"),
            (b"k/1", "put", b"b"),
            (b"k/2", "put", b"x"),
            (b"k/2", "deleted", b""),
        ]
        assert [(one.key, one.revision, one.created) for one in found.found] == [
            (b"k/1", changed, created)
        ]


def _shown(event: Event | None) -> tuple[bytes, str, bytes]:
    assert event is not None
    return event.name, event.change, event.value


async def test_recipes(cluster: LocalCluster, anyio_backend: object) -> None:
    async with connect(cluster.bootstrap) as client, connect(cluster.bootstrap) as other:
        name = fresh("recipe")
        inside: list[str] = []

        async def enter(one: Client, member: str) -> None:
            async with one.double_barrier(name, 2, member):
                inside.append(member)
                while len(inside) < 2:
                    await anyio.sleep(0.01)

        async def count_down() -> None:
            await other.latch(name, 2).count_down()
            await other.latch(name, 2).count_down()

        await client.barrier(name).set()
        with anyio.fail_after(TIMEOUT_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(enter, client, "a")
                tasks.start_soon(enter, other, "b")
                tasks.start_soon(client.latch(name, 2).wait)
                tasks.start_soon(count_down)
                tasks.start_soon(client.barrier(name).wait)
                await other.barrier(name).lift()
        sequence, another = client.sequence(name, block=3), other.sequence(name, block=3)
        numbers = [await sequence.next() for _ in range(4)] + [await another.next()]

        assert sorted(inside) == ["a", "b"]
        assert await client.counter(name).add(3) == 3
        assert await other.counter(name).get() == 3
        assert len(set(numbers)) == 5
        assert numbers[:4] == sorted(numbers[:4])


# --- blocking ---------------------------------------------------------------------------


async def test_a_double_barrier_is_entered_again_by_who_was_quick_to_leave(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    rounds = 20
    name = fresh("double")

    async def take_part(one: Client, member: str) -> None:
        for _ in range(rounds):
            async with one.double_barrier(name, 2, member):
                pass

    async with connect(cluster.bootstrap) as client, connect(cluster.bootstrap) as other:
        with anyio.fail_after(TIMEOUT_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take_part, client, "a")
                tasks.start_soon(take_part, other, "b")


def test_the_blocking_client_has_the_same_verbs(cluster: LocalCluster) -> None:
    name, topic = fresh("blocking"), fresh("topic")
    done: list[bytes] = []
    with sync.connect(cluster.bootstrap) as client:
        client.admin.create_topic(topic)
        with client.lock(name, protects=[topic]) as lease, client.producer(topic) as producer:
            lease.check()
            assert client.lock(name).try_acquire() is None
            assert client.lock(name).verify(lease.token)
            producer.append(b"held", fence=lease)
            producer.append_nowait(b"held", fence=lease).result()
            producer.append_many([b"held"], fence=lease)
            old = lease.fence
        with client.lock(name) as lease, client.producer(topic) as producer:
            producer.raise_fence(lease)
            with pytest.raises(FencedError):
                producer.append(b"late", fence=old)
        with client.semaphore(name, 2):
            assert len(client.lock(name).holders().holders) == 0
        with client.election(name).campaign(b"x") as leadership:
            leadership.proclaim(b"y")
            assert client.list_names("election").count(name) == 1
            (holder,) = client.read_holders("election", name).holders
            assert holder.session in [one.session for one in client.list_sessions()]
            leader = next(client.election(name).observe())
            assert leader is not None
            assert leader.data == b"y"
        with client.members(name).join("m") as membership:
            membership.update(b"z")
            assert [one.data for one in client.members(name).list().members] == [b"z"]
        queue = client.queue(name)
        with queue.watch() as events:
            queue.put_many([b"1", b"2"])
            assert events.next(TIMEOUT_S) is not None
        queue.put(b"3")
        (claim,) = queue.claim()
        queue.renew(claim)
        queue.release(claim, delay_s=0, uncounted=True)
        (claim,) = queue.claim()
        adopted = queue.adopt(claim.id, claim.token, claim.session_id)
        adopted.complete()
        assert queue.work(lambda one: done.append(one.payload), until_empty=True) == 2
        assert queue.statistics().completed == 3
        kv = client.kv(name)
        revision = kv.put("k", b"v")
        with kv.watch("k", revision=revision) as events:
            assert events.next() is not None
            kv.cas("k", b"w", revision=revision)
            assert next(iter(events)).value == b"w"
        assert (kv.delete("k"), kv.get("k")) == (1, None)
        client.latch(name, 1).count_down()
        client.latch(name, 1).wait()
        client.barrier(name).wait()
        with client.double_barrier(name, 1, "m"):
            pass
        assert client.counter(name).add(2) == 2
        assert client.sequence(name).next() == 0
        client.assignments(name).set(["s"])
        assert [row.shard for row in client.assignments(name).list().shards] == ["s"]


# --- bad input --------------------------------------------------------------------------


async def test_bad_input_gets_typed_errors(cluster: LocalCluster, anyio_backend: object) -> None:
    async with connect(cluster.bootstrap) as client:
        name = fresh("bad")
        for wrong in ("", "a b", "a/b/c", "x" * 201, ".."):
            with pytest.raises(InvalidNameError):
                client.lock(wrong)
        with pytest.raises(UsageError, match="ttl_s"):
            client.lock(name, ttl_s=0.1)
        with pytest.raises(UsageError, match="capacity"):
            client.semaphore(name, -1)
        with pytest.raises(UsageError, match="permits"):
            client.semaphore(name, 2, permits=3)
        with pytest.raises(UsageError, match="protects"):
            await client.lock(name, protects="orders").acquire()
        with pytest.raises(UnknownTopicError):
            await client.lock(name, protects=[fresh("none")]).acquire()
        assert (await client.lock(name).holders()).holders == []
        with pytest.raises(LogdError, match=f"{VALUE_BYTES_MAX:,}|{VALUE_BYTES_MAX}"):
            await client.kv().put(name, b"x" * (VALUE_BYTES_MAX + 1))
        assert await client.kv().get(name) is None
        await client.kv().put(name, b"no number")
        with pytest.raises(ConflictError):
            await client.kv().increment(name)
        queue = client.queue(name)
        await queue.put(b"x")
        (claim,) = await queue.claim()
        async with connect(cluster.bootstrap) as other:
            stolen = await other.queue(name).adopt(claim.id, claim.token, claim.session.id + 10**9)
            with pytest.raises(LogdError):
                await stolen.complete()
        await claim.complete()
        with pytest.raises(UsageError, match="attempts_max"):
            await queue.configure(attempts_max=-1)
        with pytest.raises(InvalidRequestError):
            await queue.configure(attempts_max=0)
        with pytest.raises(UsageError, match="compared"):
            await client.kv().cas("k", b"v")


async def test_a_handler_that_is_no_async_function_uses_up_no_attempt(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    def handle(claim: Claim) -> None:
        seen.append(claim.payload)

    seen: list[bytes] = []
    async with connect(cluster.bootstrap) as client:
        queue = client.queue(fresh("queue"))
        await queue.configure(attempts_max=3)
        await queue.put(b"x")
        work: Any = queue.work

        with pytest.raises(UsageError, match="must be an async function: it returned NoneType"):
            await work(handle, until_empty=True)
        with pytest.raises(UsageError, match="handler must be a function, not None"):
            await work(None, until_empty=True)
        with pytest.raises(InvalidRequestError, match="visibility_ms must be 100 to"):
            await work(handle, visibility_s=0.01)
        with pytest.raises(UsageError, match="items must be a list, not 'abc'"):
            await queue.put_many("abc")
        (claim,) = await queue.claim()

    assert seen == [b"x"]
    assert (claim.payload, claim.attempt) == (b"x", 1)


def test_an_async_handler_of_a_blocking_client_completes_nothing(cluster: LocalCluster) -> None:
    async def handle(_: object) -> None:
        raise AssertionError("nobody awaits it")

    with sync.connect(cluster.bootstrap) as client:
        queue = client.queue(fresh("queue"))
        queue.put(b"x")
        work: Any = queue.work

        with pytest.raises(UsageError, match="a function that is not async: it returned coroutine"):
            work(handle, until_empty=True)

        assert queue.statistics().completed == 0
        assert queue.statistics().ready == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_blocking_worker_that_is_interrupted_completes_what_it_has_begun(
    cluster: LocalCluster, backend: str
) -> None:
    main = threading.get_ident()

    def handle(claim: sync_coordination.Claim) -> None:
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.5)

    with sync.connect(cluster.bootstrap, backend=backend) as client:
        queue = client.queue(fresh("queue"))
        queue.put_many([b"begun", b"waits"])
        with pytest.raises(KeyboardInterrupt):
            queue.work(handle)
        found = queue.statistics()
        (left,) = queue.claim()

    assert (found.completed, found.ready) == (1, 1)
    assert (left.payload, left.attempt) == (b"waits", 1)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_client_is_used_in_the_event_loop_that_it_was_opened_in(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async def elsewhere(use: Any) -> None:
        with pytest.raises(UsageError, match="opened in another event loop"):
            use()

    async with connect(cluster.bootstrap) as client:
        for use in (
            lambda: client.producer("t"),
            lambda: client.consumer("t"),
            lambda: client.lock("t"),
        ):
            for backend in ("asyncio", "trio"):
                await anyio.to_thread.run_sync(partial(anyio.run, elsewhere, use, backend=backend))
        client.producer("t")


async def test_a_watch_from_a_forgotten_revision_is_told_the_oldest(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap) as client:
        kv = client.kv(fresh("ns"))
        await kv.put("k", b"v")
        for _ in range(21):  # More events than are kept.
            await kv.transact(then=[put(f"n{number}", b"v") for number in range(500)])
        with pytest.raises(CompactedError) as caught:
            async with kv.watch("k", revision=1):
                raise AssertionError("it began")
        assert caught.value.oldest > 1
        async with kv.watch("k", revision=caught.value.oldest):
            pass


# --- failures ---------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_killing_the_leader_loses_no_lock_and_repeats_no_command(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    added = 0
    async with connect(cluster.bootstrap, session_ttl_ms=10_000) as client:
        name = fresh("kill")
        counter = client.counter(name)
        await counter.add(0)
        async with client.lock(name) as lease, anyio.create_task_group() as tasks:
            is_over = False

            async def add() -> None:
                nonlocal added
                while not is_over:
                    await counter.add()
                    added += 1

            for _ in range(8):
                tasks.start_soon(add)
            leader = await _leader_of(client, "default")
            await _wait_until(lambda: added >= 100)
            cluster.kill(leader)
            at_kill = added
            await _wait_until(lambda: added >= at_kill + 200)
            is_over = True
        lease_token = lease.token
        assert await counter.get() == added
        again = await client.lock(name).acquire()

    assert again.token > lease_token


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_frozen_leader_costs_neither_a_lock_nor_a_watch(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap, session_ttl_ms=10_000) as client:
        name = fresh("frozen")
        kv = client.kv()
        await kv.put(name, b"0")
        async with client.lock(name) as lease, kv.watch(name) as events:
            leader = await _leader_of(client, "default")
            send_signal(cluster, leader, signal.SIGSTOP)
            began = anyio.current_time()
            for number in range(1, 21):
                await kv.put(name, b"%d" % number)
            # Longer than the time to live: renewals find the new leader too.
            await anyio.sleep_until(began + 12)
            lease.check()
            told = [await events.next() for _ in range(20)]
            send_signal(cluster, leader, signal.SIGCONT)
            await kv.put(name, b"21")
            told.append(await events.next())

    assert [event.value for event in told if event] == [b"%d" % number for number in range(1, 22)]


async def _leader_of(client: Client, namespace: str) -> NodeId:
    while True:
        topic = await client.admin.describe_topic(COORDINATION_TOPIC)
        row = topic.partitions[partition_of(namespace, len(topic.partitions))]
        if row.leader is not None:  # Else the broker that was asked has not heard of one yet.
            return NodeId(row.leader)
        await anyio.sleep(POLL_S)


async def _wait_until(holds: Any) -> None:
    with anyio.fail_after(TIMEOUT_S):
        while not holds():
            await anyio.sleep(0.01)
