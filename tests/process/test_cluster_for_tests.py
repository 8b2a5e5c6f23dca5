"""``logd.testing.Cluster``: what users test their own services with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from logd.errors import UnknownTopicError, UsageError
from logd.testing import Cluster
from logd_client import connect
from logd_client.sync import Client
from logd_client.sync import connect as connect_blocking
from tests.process.harness import fresh

pytestmark = pytest.mark.process

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


@pytest.fixture(scope="module")
def brokers() -> Iterator[Cluster]:
    with Cluster(breakable_network=True) as cluster:
        yield cluster


@pytest.fixture
def cluster(brokers: Cluster) -> Iterator[Cluster]:
    yield brokers
    brokers.make_whole()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with connect_blocking(cluster.bootstrap) as client:
        yield client


@pytest.fixture
def topic(client: Client) -> str:
    topic = fresh("tested")
    client.admin.create_topic(topic, partitions=1, replicas=3)
    return topic


def test_the_page_shows_tests_that_pass(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "test_orders.py"
    path.write_text(shown, encoding="utf-8")

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout.decode()


FAULTS: dict[str, Callable[[Cluster, int], None]] = {
    "killed": lambda cluster, node: cluster.kill(node),
    "stopped": lambda cluster, node: cluster.stop(node),
    "paused": lambda cluster, node: cluster.pause(node),
    "isolated": lambda cluster, node: cluster.isolate(node),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_leads_once_the_leader_is(
    cluster: Cluster, client: Client, topic: str, fault: str
) -> None:
    before = cluster.leader(topic)

    FAULTS[fault](cluster, before)
    with client.producer(topic) as producer:
        producer.append(b"taken by another")

    assert cluster.leader(topic) != before


def test_made_whole_every_replica_is_in_sync_whatever_was_done(
    cluster: Cluster, client: Client, topic: str
) -> None:
    cluster.kill(1)
    cluster.pause(2)
    cluster.isolate(3)

    cluster.make_whole()

    replicas = client.admin.describe_partition(topic, 0).replicas
    assert [(replica.alive, replica.in_sync) for replica in replicas] == [(True, True)] * 3


def test_what_was_acknowledged_outlives_all_brokers(
    cluster: Cluster, client: Client, topic: str
) -> None:
    with client.producer(topic) as producer:
        producer.append(b"kept")

    cluster.kill_all()
    cluster.make_whole()

    with client.consumer(topic, start="earliest", stop="latest") as consumer:
        assert [record.value for record in consumer] == [b"kept"]


def test_an_append_takes_as_long_as_the_way_to_a_majority(
    cluster: Cluster, client: Client, topic: str
) -> None:
    delay_s = 0.2
    with client.producer(topic) as producer:
        producer.append(b"quick")
        cluster.delay(delay_s)

        took_s = anyio.run(_timed_append, cluster.bootstrap, topic)

    assert took_s > 2 * delay_s


async def _timed_append(bootstrap: str, topic: str) -> float:
    async with connect(bootstrap) as client, client.producer(topic) as producer:
        began = anyio.current_time()
        await producer.append(b"slow")
        return anyio.current_time() - began


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_is_used_inside_an_event_loop_too(cluster: Cluster, topic: str, backend: str) -> None:
    async def main() -> None:
        async with connect(cluster.bootstrap) as client, client.producer(topic) as producer:
            cluster.kill(cluster.leader(topic))
            await producer.append(b"taken by another")
            await anyio.to_thread.run_sync(cluster.make_whole)

    anyio.run(main, backend=backend)


def test_a_directory_that_is_given_is_kept_and_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    with (
        Cluster(1, directory=directory) as cluster,
        connect_blocking(cluster.bootstrap) as client,
    ):
        client.admin.create_topic("kept", partitions=1)
        with client.producer("kept") as producer:
            producer.append(b"on disk")
        log = cluster.log(1)

    with (
        Cluster(1, directory=directory) as cluster,
        connect_blocking(cluster.bootstrap) as client,
        client.consumer("kept", start="earliest", stop="latest") as consumer,
    ):
        assert [record.value for record in consumer] == [b"on disk"]

    events = [json.loads(line)["event"] for line in log.read_text("utf-8").splitlines()]
    assert events.count("broker_started") == 2


def test_nothing_is_left_of_a_temporary_one() -> None:
    with Cluster(1) as cluster:
        directory = cluster.log(1).parent.parent
        assert directory.exists()

    assert not directory.exists()


def test_a_paused_broker_does_not_hold_up_the_end() -> None:
    with Cluster(1) as cluster:
        cluster.pause(1)


def test_mistakes_are_told(cluster: Cluster) -> None:
    with pytest.raises(UsageError, match="there is no broker 4: there are 1,2,3"):
        cluster.kill(4)
    with pytest.raises(UsageError, match="broker 1 is running"):
        cluster.start(1)
    cluster.kill(2)
    with pytest.raises(UsageError, match="broker 2 is not running"):
        cluster.pause(2)
    with pytest.raises(UnknownTopicError):
        cluster.leader(fresh("unknown"))
    with pytest.raises(UsageError, match="running already"):
        cluster.__enter__()
    with pytest.raises(UsageError, match="brokers=9: expected 1 to 5"):
        Cluster(9)
    with pytest.raises(UsageError, match="is not running"):
        Cluster().leader("orders")


def test_a_network_without_a_proxy_cannot_be_broken() -> None:
    with Cluster(1) as cluster, pytest.raises(UsageError, match="breakable_network=True"):
        cluster.heal()
