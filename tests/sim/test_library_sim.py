"""Coordination by way of the client library: what a user may rely on when things end abruptly."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import trio

from logd.errors import LogdError, SessionExpiredError
from logd_client import Client
from logd_client.coordination.assignments import OwnedShard
from logd_client.coordination.queue_worker import IN_DOUBT, LOOK_AGAIN_S, WorkTally
from logd_client.coordination.queues import Claim
from logd_client.coordination.session import SAFE_SHARE
from tests.sim.cluster import SimCluster, client_wall_clock_ms
from tests.sim.run import run_deterministic
from tests.sim.scenario import run_scenario
from tests.sim.settings import Settings
from tests.sim.stories import Story, connected, play

SOON_S = 2.0
PATIENCE_S = 300.0

pytestmark = pytest.mark.sim


def tell(story: Story) -> None:
    """To a cluster whose coordination works."""

    async def when_ready(cluster: SimCluster, client: Client) -> None:
        await client.kv().put("ready", b"yes")
        await story(cluster, client)

    play(when_ready, patience_s=PATIENCE_S)


def test_users_of_the_library_are_told_the_truth_under_faults() -> None:
    """A slice of ``make sim COORDINATING=1``; see ``library_workload.py`` for what is checked."""
    seed = next(seed for seed in itertools.count(100) if Settings.draw(seed).library_users)

    report = run_deterministic(run_scenario, seed, seed=seed)

    assert report.violations == [], f"replay with: make sim SEED={seed}"
    for event in ("granted", "key_changed", "claim_completed", "item_handled"):
        assert report.events[event] > 0, event


def test_what_is_held_is_given_back_when_the_scope_around_the_client_is_cancelled() -> None:
    """As by a time limit, or Ctrl-C: nobody waits for the session to expire."""

    async def story(cluster: SimCluster, client: Client) -> None:
        with trio.move_on_after(1.0):
            async with connected(cluster) as other, other.lock("l"):
                await other.kv().put("mine", b"", ephemeral=True)
                await trio.sleep_forever()

        with trio.fail_after(SOON_S):
            async with client.lock("l"):
                assert await client.kv().get("mine") is None

    tell(story)


def test_who_cleans_up_after_being_cancelled_still_reaches_the_cluster() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=1, replicas=3)
        with trio.move_on_after(1.0):
            async with (
                connected(cluster) as other,
                other.producer("t") as producer,
            ):
                try:
                    await producer.append(b"begun")
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + SOON_S):
                        await producer.append_many([b"ended"] * 10)
                        await other.kv().put("state", b"ended")

        state = await client.kv().get("state")
        assert state is not None
        assert state.value == b"ended"
        assert (await client.admin.offsets("t", 0)).data_end == 12

    tell(story)


def test_who_has_lost_its_session_does_not_wait_at_a_double_barrier_where_it_is_not_counted() -> (
    None
):
    async def story(cluster: SimCluster, client: Client) -> None:
        entered: list[str] = []

        async def enter(of: Client, member: str) -> None:
            await of.double_barrier("b", 2, member).enter()
            entered.append(member)

        async with connected(cluster, session_ttl_ms=2_000) as other:
            async with trio.open_nursery() as nursery:

                async def lose() -> None:
                    with pytest.raises(SessionExpiredError):
                        await enter(other, "lost")

                nursery.start_soon(lose)
                await trio.sleep(1.0)
                cluster.network.isolate("client2")
                await trio.sleep(10.0)
                cluster.network.heal()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(enter, client, "first")
                await trio.sleep(1.0)
                assert entered == []
                nursery.start_soon(enter, other, "again")
        assert sorted(entered) == ["again", "first"]

    tell(story)


def test_a_double_barrier_whose_members_have_crashed_holds_back_those_who_come_next() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        entered: list[str] = []

        async def enter(of: Client, member: str) -> None:
            await of.double_barrier("b", 2, member).enter()
            entered.append(member)

        async with connected(cluster, session_ttl_ms=2_000) as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(enter, other, "one")
                nursery.start_soon(enter, other, "two")
            cluster.network.isolate("client2")
            await trio.sleep(10.0)
            cluster.network.heal()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(enter, client, "three")
                await trio.sleep(1.0)
                assert sorted(entered) == ["one", "two"]
                nursery.start_soon(enter, client, "four")
        assert sorted(entered) == ["four", "one", "three", "two"]

    tell(story)


def test_a_worker_that_is_stopped_tells_shards_that_cannot_be_cancelled() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        stopped: list[bool] = []

        async def run_shard(shard: OwnedShard) -> None:
            """As a thread would."""
            working.set()
            with trio.CancelScope(shield=True):
                for _ in range(100):
                    if not shard.must_stop:
                        await trio.sleep(0.1)
            stopped.append(shard.must_stop)

        await client.assignments("g").set(["s"])
        working = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.assignments("g").work, "me", run_shard)
            await working.wait()
            nursery.cancel_scope.cancel()

        assert stopped == [True]
        assert (await client.members("g").list()).members == []

    tell(story)


@pytest.mark.parametrize("mended_after_s", [0.5, 1.0, 2.1, 3.0, 4.5])
def test_a_member_that_left_late_and_joined_again_stays(mended_after_s: float) -> None:
    """Its leaving, which went on behind its back, is not about its new membership."""

    async def story(cluster: SimCluster, client: Client) -> None:
        async with connected(cluster) as other:
            membership = other.members("g").join("me")
            await membership.join()
            cluster.network.isolate("client2")
            await membership.leave()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.members("g").join("me").join)
                await trio.sleep(mended_after_s)
                cluster.network.heal()
            await trio.sleep(10.0)
            assert [member.member for member in (await client.members("g").list()).members] == [
                "me"
            ]

    tell(story)


def test_a_claim_that_arrives_when_it_has_run_out_is_not_worked_on() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        handled: list[bytes] = []

        async def handle(claim: Claim) -> None:
            handled.append(claim.payload)

        await trio.sleep(5.0)  # Leadership has been balanced: who leads now leads to the end.
        async with (
            connected(cluster) as other,
            trio.open_nursery() as workers,
        ):
            workers.start_soon(partial(other.queue("q").work, handle, visibility_s=2.0))
            await trio.sleep(1.0)
            answers = [(node.host, "client2") for node in cluster.nodes.values()]
            cluster.network.hold(answers)
            await client.queue("q").put(b"item")
            while not (await client.queue("q").statistics()).in_flight:
                await trio.sleep(0.1)
            await trio.sleep(4.0)
            cluster.network.release(answers)
            while not (await client.queue("q").statistics()).completed:
                await trio.sleep(0.1)
            workers.cancel_scope.cancel()

        assert handled == [b"item"]  # With the claim that came in time, and no other.

    tell(story)


def test_a_worker_that_is_cut_off_stops_before_its_item_is_handed_to_another() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        running: list[str] = []
        both: list[list[str]] = []

        async def handle(name: str, claim: Claim) -> None:
            running.append(name)
            both.append(list(running))
            try:
                await trio.sleep(20.0)
            finally:
                running.remove(name)

        async with (
            connected(cluster) as other,
            trio.open_nursery() as workers,
        ):
            await client.queue("q").put(b"item")
            work = partial(other.queue("q").work, visibility_s=2.0)
            workers.start_soon(partial(work, partial(handle, "first")))
            while running != ["first"]:
                await trio.sleep(0.1)
            cluster.network.isolate("client2")
            workers.start_soon(
                partial(client.queue("q").work, partial(handle, "second"), visibility_s=2.0)
            )
            while running != ["second"]:
                await trio.sleep(0.1)
            cluster.network.heal()
            workers.cancel_scope.cancel()

        assert both == [["first"], ["second"]]

    tell(story)


def test_workers_that_are_stopped_use_up_none_of_an_item_s_attempts() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        attempts: list[int] = []
        tally = WorkTally()
        queue = client.queue("q")

        async def handle(claim: Claim) -> None:
            attempts.append(claim.attempt)
            stop.cancel()
            await trio.sleep_forever()

        await queue.configure(attempts_max=1)
        await queue.put(b"item")
        for _ in range(3):
            with trio.CancelScope() as stop:
                await queue.work(handle, tally=tally)
        (claim,) = await queue.claim()
        await claim.complete()

        assert attempts == [1, 1, 1]
        assert tally == WorkTally(released=3)

    tell(story)


def test_a_claim_that_nobody_waited_for_is_no_attempt() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await trio.sleep(5.0)  # Leadership has been balanced: who leads now leads to the end.
        queue = client.queue("q")
        await queue.configure(attempts_max=1)
        await queue.put(b"item")
        async with connected(cluster) as other:
            await other.queue("another").claim()
            answers = [(node.host, "client2") for node in cluster.nodes.values()]
            cluster.network.hold(answers)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.queue("q").claim)
                while not (await queue.statistics()).in_flight:
                    await trio.sleep(0.1)
                nursery.cancel_scope.cancel()
            cluster.network.release(answers)
            while (await queue.statistics()).in_flight:
                await trio.sleep(0.1)

        assert [claim.attempt for claim in await queue.claim()] == [1]

    tell(story)


def test_a_claim_that_its_client_did_not_wait_for_is_given_back_before_that_is_closed() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await trio.sleep(5.0)  # Leadership has been balanced: who leads now leads to the end.
        queue = client.queue("q")
        await queue.configure(attempts_max=1)
        await queue.put(b"item")

        async def answer_soon() -> None:
            await trio.sleep(0.5)
            cluster.network.release(answers)

        async with trio.open_nursery() as nursery, connected(cluster) as other:
            await other.queue("another").claim()
            answers = [(node.host, "client2") for node in cluster.nodes.values()]
            cluster.network.hold(answers)
            async with trio.open_nursery() as claiming:
                claiming.start_soon(other.queue("q").claim)
                while not (await queue.statistics()).in_flight:
                    await trio.sleep(0.1)
                nursery.start_soon(answer_soon)
                claiming.cancel_scope.cancel()

        assert [claim.attempt for claim in await queue.claim()] == [1]

    tell(story)


def test_a_claim_whose_answer_never_came_is_no_attempt() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await trio.sleep(5.0)  # Leadership has been balanced: who leads now leads to the end.
        queue = client.queue("q")
        await queue.configure(attempts_max=1, visibility_ms=120_000)
        await queue.put(b"item")
        async with connected(cluster, session_ttl_ms=120_000) as other:
            await other.queue("another").claim()
            answers = [(node.host, "client2") for node in cluster.nodes.values()]
            cluster.network.hold(answers)
            with pytest.raises(LogdError) as caught:
                await other.queue("q").claim()
            assert caught.value.may_have_applied
            assert (await queue.statistics()).in_flight == 1
            cluster.network.release(answers)
            (claim,) = await queue.claim(wait_s=20.0)

        assert claim.attempt == 1

    tell(story)


@pytest.mark.parametrize("ahead_ms", [3_600_000, 10**16])
def test_a_claim_is_settled_by_processes_whose_clocks_do_not_agree(ahead_ms: int) -> None:
    """One is ahead, perhaps for as long as it takes to set it right; the others are not refused."""

    def ahead() -> int:
        return client_wall_clock_ms() + ahead_ms

    async def story(cluster: SimCluster, client: Client) -> None:
        queue = client.queue("q")
        await queue.put_many([b"1", b"2", b"3"])
        async with connected(cluster) as owner:
            claims = await owner.queue("q").claim(3)
            told = [(claim.id, claim.token, claim.session_id) for claim in claims]
            owner.leave_sessions_open()

        async with connected(cluster, wall_clock_ms=ahead) as other:
            claim = await other.queue("q").adopt(*told[0], owner_is_gone=True)
            await claim.renew()
        for each in told:
            await (await queue.adopt(*each, owner_is_gone=True)).complete()

        assert (await queue.statistics()).completed == 3

    tell(story)


def test_who_adopts_a_claim_and_whose_clock_is_behind_may_do_several_things_with_it_at_once() -> (
    None
):
    """All of them are refused first, and none is for good."""

    def ahead() -> int:
        return client_wall_clock_ms() + 3_600_000

    async def story(cluster: SimCluster, client: Client) -> None:
        queue = client.queue("q")
        await queue.put(b"1")
        async with connected(cluster) as owner:
            (claim,) = await owner.queue("q").claim(1)
            told = claim.id, claim.token, claim.session_id
            owner.leave_sessions_open()
        async with connected(cluster, wall_clock_ms=ahead) as other:
            await (await other.queue("q").adopt(*told, owner_is_gone=True)).renew()

        adopted = await queue.adopt(*told, owner_is_gone=True)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(adopted.renew)
        await adopted.complete()

        assert (await queue.statistics()).completed == 1

    tell(story)


def test_a_handler_that_keeps_its_claim_from_being_renewed_uses_up_attempts() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        queue = client.queue("q")
        await queue.configure(attempts_max=1, visibility_ms=2_000)
        await queue.put(b"item")
        tally = WorkTally()
        attempts: list[int] = []

        async def handle(claim: Claim) -> None:
            assert not attempts
            attempts.append(claim.attempt)
            claim.asked_at -= SAFE_SHARE * 2.0  # As if it had held up the event loop for so long.
            await trio.sleep_forever()

        await queue.work(handle, until_empty=True, tally=tally)
        (dead,) = await queue.dead_letters()

        assert (dead.reason, dead.attempts) == (IN_DOUBT, 1)
        assert tally == WorkTally(failed=1)

    tell(story)


def test_an_item_that_was_done_just_in_time_is_completed() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        queue = client.queue("q")
        await queue.put(b"item")

        async def handle(claim: Claim) -> None:
            claim.asked_at -= SAFE_SHARE * 30.0

        assert await queue.work(handle, until_empty=True) == 1

    tell(story)


def test_a_worker_heeds_a_changed_visibility_and_keeps_what_it_claims_meanwhile() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        begun: list[tuple[bytes, float | None]] = []
        queue = client.queue("q")

        async def handle(claim: Claim) -> None:
            begun.append((claim.payload, claim.visibility_s))
            await trio.sleep(15.0)

        async def work_off(*, item: bytes) -> None:
            before = (await queue.statistics()).completed
            await queue.put(item)
            while (await queue.statistics()).completed == before:
                await trio.sleep(0.1)

        await queue.configure(visibility_ms=30_000)
        async with connected(cluster) as other, trio.open_nursery() as workers:
            for worker in client, other:
                workers.start_soon(worker.queue("q").work, handle)
            await trio.sleep(1.0)
            await queue.configure(visibility_ms=2_000)
            await work_off(item=b"at once")
            await trio.sleep(LOOK_AGAIN_S)
            await work_off(item=b"later")
            workers.cancel_scope.cancel()

        assert begun == [(b"at once", 30.0), (b"later", 2.0)]

    tell(story)


def test_small_calls_of_append_many_share_batches_and_each_is_told_its_own_offsets() -> None:
    calls, fenced = 40, 20

    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=1, replicas=3)
        told: dict[int, bytes] = {}
        async with (
            client.lock("l") as lease,
            client.producer("t") as producer,
            trio.open_nursery() as nursery,
        ):

            async def append(call: int) -> None:
                values = [b"%d-%d" % (call, at) for at in range(3)]
                fence = lease if call >= fenced else None
                ranges = await producer.append_many(values, fence=fence)
                offsets = [part.base_offset + at for part in ranges for at in range(part.count)]
                told.update(zip(offsets, values, strict=True))

            for call in range(calls):
                nursery.start_soon(append, call)
        read: dict[int, bytes | None] = {}
        batches = 0
        async with client.consumer("t", start="earliest") as consumer:
            async for batch in consumer.batches():
                batches += 1
                read.update(zip(batch.offsets, batch.values, strict=True))
                if len(read) == len(told):
                    break
        assert read == told
        assert len(told) == 3 * calls
        # What is fenced never shares with what is not.  They come in an order that chance decides,
        # in which one kind follows on the other 20 times of 39 on average, and each time another
        # batch begins.
        assert 2 <= batches < calls

    tell(story)


def test_a_user_that_could_not_connect_tries_again_from_the_same_machine() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        for node in cluster.nodes.values():
            await node.crash(power=False)
        async with trio.open_nursery() as nursery:

            async def use() -> None:
                async with connected(cluster, "user", connect_timeout_ms=1000) as user:
                    await user.kv().put("k", b"v")

            nursery.start_soon(use)
            await trio.sleep(5.0)
            for node in cluster.nodes.values():
                node.start()
        assert await client.kv().get("k") is not None

    tell(story)


def test_small_calls_with_long_keys_of_their_own_do_not_outgrow_a_batch() -> None:
    """Alone each has its key once; together each record has its own."""

    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=1, replicas=3)
        values = [b"0123456789"] * 7000
        async with client.producer("t") as producer, trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(
                    partial(producer.append_many, values, key=bytes([number]) * 300, partition=0)
                )
        assert (await client.admin.offsets("t", 0)).data_end >= 3 * len(values)

    tell(story)
