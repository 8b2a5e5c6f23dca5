"""What a client says wrongly and what a disk refuses stays with that client and that disk."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from logd.broker import admin
from logd.errors import UnavailableError
from logd.limits import (
    BROKER_DESCRIBED_BYTES_MAX,
    FRAME_PREFIX_BYTES,
    NAME_CHARACTERS_MAX,
    PARTITION_DESCRIBED_BYTES_MAX,
    REPLICAS_MAX,
    TOPIC_DESCRIBED_BYTES_MAX,
)
from logd.metadata.topic_config import OPTIONS
from logd.types import HostPort, NodeId
from logd.wire import frame as frame_module
from logd.wire.frame import (
    FLAG_RESPONSE,
    HEADER_LENGTH_MAX,
    Frame,
    FrameDecoder,
    decode_message,
    encode_message,
)
from logd.wire.messages import (
    BrokerInfo,
    DescribeBrokerRequest,
    ErrorResponse,
    HelloRequest,
    Kind,
    Message,
    MetadataRequest,
    PartitionInfo,
    TopicInfo,
)
from logd_client import Client, routing
from tests.sim.cluster import CLIENT_PORT, ClusterSettings, SimCluster, open_cluster
from tests.sim.incarnation import Incarnation
from tests.sim.network import SimStream
from tests.sim.run import run_deterministic

pytestmark = pytest.mark.sim

PATIENCE_S = 60.0


class RawClient:
    """A connection that says whatever the test wants."""

    def __init__(self, stream: SimStream) -> None:
        self._stream = stream
        self._decoder = FrameDecoder(2**23, long_messages=True)

    async def say(self, kind: int, header: bytes, correlation_id: int = 1) -> None:
        await self._stream.send([frame_module.frame_prefix(kind, 0, header, correlation_id)])

    async def heard(self) -> Frame | None:
        while (frame := self._decoder.next_frame()) is None:
            count = await self._stream.receive_into(self._decoder.writable())
            if count == 0:
                return None
            self._decoder.received(count)
        return frame

    async def asks(self, kind: Kind, header: bytes) -> Frame:
        await self.say(kind, header)
        frame = await self.heard()
        assert frame is not None
        assert frame.flags & FLAG_RESPONSE
        return frame


def play(story: Callable[[SimCluster, Client], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_cluster(1, ClusterSettings(brokers=1)) as cluster:
            with trio.fail_after(PATIENCE_S):
                async with known_cluster(cluster) as client:
                    await story(cluster, client)
                    # Whatever happened, the broker still serves everybody else.
                    await client.admin.create_topic("after", partitions=1, replicas=1)
                    async with client.producer("after") as producer:
                        await producer.append(b"value")

    run_deterministic(main, seed=1)


@asynccontextmanager
async def known_cluster(cluster: SimCluster) -> AsyncIterator[Client]:
    await trio.sleep(5)
    async with cluster.client() as client:
        yield client


def header_of(kind: Kind, message: Message) -> bytes:
    return encode_message(kind, message)[FRAME_PREFIX_BYTES:]


async def raw_client(cluster: SimCluster, name: str = "intruder") -> RawClient:
    client = await silent_client(cluster, name)
    await client.say(Kind.HELLO, header_of(Kind.HELLO, HelloRequest(client="test")))
    assert await client.heard() is not None
    return client


async def silent_client(cluster: SimCluster, name: str = "intruder") -> RawClient:
    """Has not said hello."""
    network = cluster.network.attach(Incarnation(name, 1))
    return RawClient(await network.connect_stream(HostPort("node1", CLIENT_PORT)))


def test_a_broker_of_no_cluster_yet_refuses_who_knows_one() -> None:
    """The cluster that it will found numbers its groups anew: what such a client appends would
    go to other topics."""

    async def main() -> None:
        async with open_cluster(1, ClusterSettings(brokers=2)) as cluster:
            await cluster.nodes[NodeId(2)].crash(power=False)
            await trio.sleep(1)
            hello = HelloRequest(client="test", cluster_id="of-before")
            client = await silent_client(cluster)

            answer = await client.asks(Kind.HELLO, header_of(Kind.HELLO, hello))

            assert answer.is_error
            error = decode_message(ErrorResponse, answer.header)
            assert error.code == UnavailableError.code
            assert "of none yet" in error.message
            assert await client.heard() is None

    run_deterministic(main, seed=1)


@pytest.mark.parametrize(
    ("kind", "nonsense"),
    [
        (Kind.PRODUCE, b""),
        (Kind.PRODUCE, b"\x80"),
        (Kind.FETCH, b"\x81\xa5group\xa1x"),
        (Kind.METADATA, b"\xc1"),
        (Kind.SUBSCRIBE, b"\x81\xa5group"),
        (Kind.CREATE_TOPIC, b"\x91" * 5000),
    ],
)
def test_a_request_that_cannot_be_read_is_refused_and_the_connection_goes_on(
    kind: Kind, nonsense: bytes
) -> None:
    async def story(cluster: SimCluster, _: Client) -> None:
        client = await raw_client(cluster)
        for _attempt in range(3):
            answer = await client.asks(kind, nonsense)
            assert answer.is_error
            assert decode_message(ErrorResponse, answer.header).may_have_applied is False
        fine = header_of(Kind.DESCRIBE_BROKER, DescribeBrokerRequest())
        assert not (await client.asks(Kind.DESCRIBE_BROKER, fine)).is_error

    play(story)


def test_credit_that_cannot_be_read_closes_the_connection_because_it_has_no_answer() -> None:
    async def story(cluster: SimCluster, _: Client) -> None:
        client = await raw_client(cluster)
        await client.say(Kind.CREDIT, b"\xc1")

        assert await client.heard() is None

    play(story)


def test_an_answer_that_fits_no_frame_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(cluster: SimCluster, _: Client) -> None:
        client = await raw_client(cluster)
        # The answer repeats the names, and says more.
        names = [f"{number:0200}" for number in range(322)]
        request = header_of(Kind.METADATA, MetadataRequest(topics=[*names, "n" * 440]))
        assert len(request) < HEADER_LENGTH_MAX < len(request) + 100
        with monkeypatch.context() as patch:
            patch.setattr(frame_module, "FRAME_BYTES_MAX", HEADER_LENGTH_MAX + 16)
            answer = await client.asks(Kind.METADATA, request)

        assert answer.is_error
        assert "a frame takes" in decode_message(ErrorResponse, answer.header).message

    play(story)


@pytest.mark.parametrize(("topics_max", "partitions_max"), [(3, 100), (100, 4), (1, 1)])
def test_a_cluster_is_described_whole_in_however_many_answers(
    monkeypatch: pytest.MonkeyPatch, topics_max: int, partitions_max: int
) -> None:
    monkeypatch.setattr(admin, "METADATA_TOPICS_PER_ANSWER", topics_max)
    monkeypatch.setattr(admin, "METADATA_PARTITIONS_PER_ANSWER", partitions_max)
    monkeypatch.setattr(routing, "TOPIC_NAMES_PER_REQUEST", 2)

    async def story(cluster: SimCluster, client: Client) -> None:
        names = [f"t{number}" for number in range(8)]
        for name in names:
            await client.admin.create_topic(name, partitions=1, replicas=1)

        assert [topic.name for topic in await client.admin.list_topics()] == names
        assert client._routing is not None
        described = await client._routing.describe([*names, "neither", "nor"])
        assert [topic.name for topic in described.topics] == names
        assert described.unknown == ["neither", "nor"]

    play(story)


def test_no_description_is_larger_than_what_the_limits_say() -> None:
    longest = 2**63 - 1
    broker = BrokerInfo(
        node_id=longest, host="\U0001f4a5" * 255, port=65535, rack="\U0001f4a5" * 255,
        failure_domain="\U0001f4a5" * 255,
    )  # fmt: skip
    partition = PartitionInfo(
        partition=longest, group=longest, replicas=[longest] * REPLICAS_MAX, leader=longest,
        term=longest,
    )  # fmt: skip
    config = dict.fromkeys(OPTIONS, "9" * 30)
    topic = TopicInfo(
        name="x" * NAME_CHARACTERS_MAX, topic_id=longest, partitions=[], config=config
    )

    assert len(msgspec.msgpack.encode(broker)) <= BROKER_DESCRIBED_BYTES_MAX
    assert len(msgspec.msgpack.encode(partition)) <= PARTITION_DESCRIBED_BYTES_MAX
    assert len(msgspec.msgpack.encode(topic)) <= TOPIC_DESCRIBED_BYTES_MAX


def test_a_deleted_topic_that_cannot_be_trashed_is_trashed_later() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=2, replicas=1)
        files = cluster.nodes[NodeId(1)].files

        def refuse(operation: str, path: str) -> None:
            if operation == "rename" and "/groups/" in path:
                raise OSError(errno.EIO, "simulated failure", path)

        files.on_operation = refuse
        before = files.list_directory("/data/groups")
        await client.admin.delete_topic("t")
        await trio.sleep(3)
        assert files.list_directory("/data/groups") == before
        files.on_operation = None
        await trio.sleep(3)

        assert len(files.list_directory("/data/groups")) == 1

    play(story)


def test_a_log_that_cannot_be_closed_does_not_keep_its_topic_from_being_deleted() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=1, replicas=1)
        files = cluster.nodes[NodeId(1)].files
        (group,) = (name for name in files.list_directory("/data/groups") if int(name))

        def refuse(operation: str, path: str) -> None:
            if operation == "sync" and group in path:
                raise OSError(errno.EIO, "simulated failure", path)

        files.on_operation = refuse
        await client.admin.delete_topic("t")
        await trio.sleep(3)
        files.on_operation = None

        assert len(files.list_directory("/data/groups")) == 1

    play(story)
