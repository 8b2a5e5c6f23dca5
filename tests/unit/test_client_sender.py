"""A producer whose leaders move, are silent or say no: whom it asks, and what it sends when."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from logd.errors import (
    ConnectionFailedError,
    DeliveryTimeoutError,
    NotLeaderError,
    OverloadedError,
    UnknownTopicError,
)
from logd.types import GroupId
from logd.wire.messages import BrokerInfo, MetadataResponse, PartitionInfo, TopicInfo
from logd_client.routing import FAILURES_BEFORE_DOUBTING_THE_TOPIC
from tests.support.producing import TOPIC, Cluster, Leader, in_virtual_time, opened

settled = trio.testing.wait_all_tasks_blocked


def tell_who_leads(cluster: Cluster, leader: int, *, term: int = 1) -> None:
    """To the producer, whoever of the two brokers it is that it will be connected to."""
    brokers = [BrokerInfo(node_id=node, host="h", port=node) for node in (1, 2)]
    partition = PartitionInfo(partition=0, group=1, replicas=[1, 2], leader=leader, term=term)
    topic = TopicInfo(name=TOPIC, topic_id=1, partitions=[partition])
    cluster.view.learn(
        MetadataResponse(cluster_id="c", controller=None, brokers=brokers, topics=[topic])
    )


# --- a leader that is silent ------------------------------------------------------------


@in_virtual_time
async def test_the_others_are_asked_again_and_again_whether_a_silent_leader_still_leads() -> None:
    async with opened() as (cluster, producer):
        tell_who_leads(cluster, 1)
        producer.append_nowait(b"value")
        began = trio.current_time()

        await trio.sleep(1.6)

        asked_after = [time - began for time in cluster.refreshes]
        assert asked_after == pytest.approx([1.0, 1.25, 1.5], abs=0.01)
        assert len(cluster.leaders[0].requests) == 1


@in_virtual_time
async def test_they_are_asked_again_although_nobody_answered() -> None:
    async with opened() as (cluster, producer):

        def fail() -> None:
            raise ConnectionFailedError("nobody is there")

        cluster.on_refresh = fail
        producer.append_nowait(b"value")

        await trio.sleep(1.6)

        assert len(cluster.refreshes) == 3


@in_virtual_time
async def test_what_a_silent_leader_has_goes_to_the_next_one_once_somebody_tells_of_it() -> None:
    async with opened() as (cluster, producer):
        tell_who_leads(cluster, 1)
        tickets = [producer.append_nowait(b"value", key=b"k"), producer.append_nowait(b"other")]
        await trio.sleep(1.1)
        silent, cluster.leaders[0] = cluster.leaders[0], Leader(2)
        cluster.leaders[0].answers_at_once = True
        tell_who_leads(cluster, 2, term=2)

        await trio.sleep(0.3)

        assert [(await ticket).offset for ticket in tickets] == [0, 1]
        assert silent.is_open
        assert cluster.looks == []


@in_virtual_time
async def test_without_a_producer_id_a_silent_leader_is_waited_for_although_another_leads() -> None:
    async with opened(idempotent=False) as (cluster, producer):
        tell_who_leads(cluster, 1)
        ticket = producer.append_nowait(b"value")
        await trio.sleep(1.1)
        tell_who_leads(cluster, 2, term=2)
        await trio.sleep(1)
        cluster.leaders[0].answer()

        assert (await ticket).offset == 0
        assert cluster.refreshes == []


@in_virtual_time
async def test_a_broker_that_is_silent_for_longer_than_an_answer_may_take_is_given_up() -> None:
    async with opened() as (cluster, producer):
        ticket = producer.append_nowait(b"value")
        await trio.sleep(cluster.request_timeout_s + 4.9)
        gone = cluster.leaders[0]
        was_open = gone.is_open
        cluster.leaders[0] = Leader(2)
        cluster.leaders[0].answers_at_once = True
        await trio.sleep(0.5)

        assert (was_open, gone.is_open) == (True, False)
        assert ticket.is_done


@in_virtual_time
async def test_a_partition_whose_silent_leader_owes_nothing_any_more_is_tried_again() -> None:
    async with opened(2, delivery_timeout_ms=1_500) as (cluster, producer):
        cluster.leaders[1].answers_at_once = True
        lost = producer.append_nowait(b"value", partition=0)
        await trio.sleep(1.1)
        meanwhile = {(await producer.append(b"value")).partition for _ in range(4)}
        with pytest.raises(DeliveryTimeoutError):
            await lost
        cluster.leaders[0].unanswered.clear()
        cluster.leaders[0].answers_at_once = True

        assert meanwhile == {1}
        assert {(await producer.append(b"value")).partition for _ in range(4)} == {0, 1}


# --- a leader that says no --------------------------------------------------------------


@in_virtual_time
async def test_the_leader_that_a_refusal_names_is_tried_at_once_but_not_again_and_again() -> None:
    async with opened() as (cluster, producer):
        tell_who_leads(cluster, 1)
        producer.append_nowait(b"value")
        await settled()
        first, cluster.leaders[0] = cluster.leaders[0], Leader(2)

        first.refuse(NotLeaderError("moved", leader=2))
        await settled()
        second, cluster.leaders[0] = cluster.leaders[0], first
        assert cluster.view.leader(GroupId(1)) == 2
        assert len(second.requests) == 1

        second.refuse(NotLeaderError("moved", leader=1))
        await settled()
        assert len(first.requests) == 1

        await trio.sleep(1)
        assert len(first.requests) == 2
        assert len(cluster.looks) == 1


@in_virtual_time
async def test_a_broker_that_names_itself_and_refuses_is_asked_no_sooner_than_after_a_look() -> (
    None
):
    async with opened() as (cluster, producer):
        tell_who_leads(cluster, 1)
        producer.append_nowait(b"value")
        await settled()

        cluster.leaders[0].refuse(NotLeaderError("not yet", leader=1))
        await trio.sleep(1)

        assert cluster.view.leader(GroupId(1)) == 1
        assert len(cluster.looks) == 1
        assert len(cluster.leaders[0].requests) == 2


@in_virtual_time
async def test_a_broker_that_knows_no_such_topic_may_be_behind_so_another_is_asked_for_it() -> None:
    async with opened() as (cluster, producer):
        ticket = producer.append_nowait(b"value")
        await settled()

        cluster.leaders[0].refuse(UnknownTopicError("orders"))
        await trio.sleep(1)
        cluster.leaders[0].answer()

        assert cluster.looks == [FAILURES_BEFORE_DOUBTING_THE_TOPIC]
        assert (await ticket).offset == 0


@in_virtual_time
async def test_what_was_for_a_topic_that_is_gone_fails_and_was_not_stored() -> None:
    async with opened() as (cluster, producer):

        def tell_that_it_is_gone() -> None:
            raise UnknownTopicError("orders")

        cluster.on_look = tell_that_it_is_gone
        ticket = producer.append_nowait(b"value")
        await settled()
        cluster.leaders[0].refuse(NotLeaderError("deleted"))

        with pytest.raises(UnknownTopicError) as caught:
            await ticket
        assert not caught.value.may_have_applied


@in_virtual_time
async def test_what_stands_in_the_way_is_told_as_long_as_it_does() -> None:
    async with opened(2) as (cluster, producer):
        before = producer.trouble
        producer.append_nowait(b"value", partition=1)
        await settled()
        cluster.without_leader = {GroupId(2)}
        cluster.leaders[1].refuse(OverloadedError("the disk is full"))
        await settled()
        refused = producer.trouble
        await trio.sleep(1)
        unled = producer.trouble
        cluster.without_leader = set()
        await trio.sleep(1)

        assert (before, producer.trouble) == (None, None)
        assert isinstance(refused, OverloadedError)
        assert isinstance(unled, NotLeaderError)


# --- what is sent, and when -------------------------------------------------------------


@in_virtual_time
async def test_one_looks_for_a_leader_however_much_comes_meanwhile() -> None:
    async with opened() as (cluster, producer):
        cluster.leader_is_known = trio.Event()
        for _ in range(3):
            producer.append_nowait(b"value", partition=0)
            await trio.sleep(1)

        assert len(cluster.attempts) == 1


@in_virtual_time
async def test_records_that_are_appended_while_one_is_under_way_share_a_batch() -> None:
    async with opened() as (cluster, producer), trio.open_nursery() as nursery:
        nursery.start_soon(producer.append, b"first")
        await settled()
        for _ in range(3):
            nursery.start_soon(producer.append, b"value")
        await settled()

        assert [count for _, count in cluster.leaders[0].unanswered] == [1, 3]
        cluster.leaders[0].answer()
        cluster.leaders[0].answer()


@in_virtual_time
async def test_each_partition_waits_for_company_from_its_own_first_record_on() -> None:
    async with opened(2, linger_ms=1_000) as (cluster, producer):
        sent = []
        producer.append_nowait(b"value", partition=0)
        for _ in range(3):
            await trio.sleep(0.6)
            sent.append([len(leader.requests) for leader in cluster.leaders])
            if len(sent) == 1:
                producer.append_nowait(b"value", partition=1)

        assert sent == [[0, 0], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("delivery_timeout_ms", "waits_s", "told_ms"),
    [(10_000, 0, 10_000), (10_000, 4, 6_000), (120_000, 0, 30_000), (10_000, 9.9999, 1)],
)
@in_virtual_time
async def test_a_leader_is_told_how_long_the_record_may_take_yet_within_a_requests_timeout(
    delivery_timeout_ms: int, waits_s: float, told_ms: int
) -> None:
    async with opened(delivery_timeout_ms=delivery_timeout_ms) as (cluster, producer):
        cluster.leader_is_known = trio.Event()
        producer.append_nowait(b"value")
        await trio.sleep(waits_s)
        cluster.leader_is_known.set()
        await settled()

        (request,) = cluster.leaders[0].requests
        assert request.timeout_ms == pytest.approx(told_ms, abs=1)
        assert request.timeout_ms >= 1
