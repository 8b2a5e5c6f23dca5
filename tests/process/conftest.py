"""One cluster of three real brokers for all process tests, whole again before each of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from logd.cli.local_cluster import LocalCluster, open_cluster, stopping
from tests.process.harness import BROKERS, make_whole, require_no_bug_reported


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
