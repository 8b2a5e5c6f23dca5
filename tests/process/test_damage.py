"""A broker whose files were damaged while it was down gets back what its peers still have."""

from __future__ import annotations

from pathlib import Path

import pytest

from logd.cli.local_cluster import open_cluster, stopping
from tests.process.damage import flip_bits_and_start
from tests.process.harness import BROKERS, make_whole, require_no_bug_reported

pytestmark = pytest.mark.process


def test_flipped_bits_are_repaired_and_nothing_is_lost(tmp_path: Path) -> None:
    cluster = open_cluster(tmp_path, broker_count=BROKERS, port=None)
    with stopping(cluster):
        make_whole(cluster)

        repair = flip_bits_and_start(cluster, record_count=20_000, bits=30, seed=1)

        require_no_bug_reported(cluster)
    assert repair.lost_count == 0
