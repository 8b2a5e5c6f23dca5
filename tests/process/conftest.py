"""One cluster of three real brokers for all process tests, whole again before each of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from logd.cli import local_cluster
from logd.cli.local_cluster import LocalCluster, open_cluster, stopping
from tests.process.harness import BROKERS, make_whole, require_no_bug_reported


@pytest.fixture(scope="session", autouse=True)
def ports_apart() -> Iterator[None]:
    """Tests that run beside these take ports from elsewhere: a port that was free may be another's
    before the broker it was chosen for listens on it, and is free while that broker is down."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    lowest, end = local_cluster.PORT_LOWEST, local_cluster._ephemeral_port_lowest()
    share = (end - lowest) // count
    begin = lowest + number * share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_cluster, "PORT_LOWEST", begin)
        patch.setattr(local_cluster, "_ephemeral_port_lowest", lambda: begin + share)
        yield


@pytest.fixture(scope="session")
def shared_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("cluster")
    cluster = open_cluster(directory, broker_count=BROKERS, port=None, http=True)
    with stopping(cluster):
        cluster.start_all()
        yield cluster
    if not request.session.testsfailed:
        shutil.rmtree(directory)


@pytest.fixture
def cluster(shared_cluster: LocalCluster) -> Iterator[LocalCluster]:
    make_whole(shared_cluster)
    yield shared_cluster
    require_no_bug_reported(shared_cluster)
