"""``logd bench`` measures a cluster of its own, end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.process

NAMES = {"records_per_s", "mb_per_s", "latency_ms", "cpu_s_per_million", "settings"}


def bench(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "logd", "bench", *arguments, "--output", "json"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    assert found.keys() >= NAMES
    assert found["latency_ms"].keys() == {"p50", "p99", "p999", "max"}
    return found


@pytest.mark.parametrize("keys", [(), ("--keys", "50", "--partitions", "4")])
@pytest.mark.parametrize("api", ["many", "nowait"])
def test_produce_counts_every_record_and_what_each_broker_used(
    api: str, keys: tuple[str, ...]
) -> None:
    found = bench("produce", "--brokers", "3", "--records", "30000", "--api", api, *keys)

    assert found["records"] == 30_000
    assert found["settings"]["api"] == api
    assert [broker["id"] for broker in found["brokers"]] == [1, 2, 3]
    assert all(broker["anonymous_mb_max"] > 1 for broker in found["brokers"])
    assert found["samples"][-1]["records"] == 30_000


def test_every_consumer_reads_everything() -> None:
    found = bench(
        *("consume", "--brokers", "1", "--records", "20000"),
        *("--consumers", "2", "--as", "records"),
    )

    assert found["records"] == 40_000


def test_a_rate_is_offered_for_as_long_as_was_asked() -> None:
    found = bench("latency", "--brokers", "1", "--rate", "200", "--records", "400")

    assert found["records"] == 400
    assert found["seconds"] >= 1.9


def test_many_producers_wait_for_one_record_each() -> None:
    found = bench("latency", "--brokers", "1", "--records", "400", "--producers", "20")

    assert found["records"] == 400


@pytest.mark.parametrize("rate", [(), ("--rate", "20000")])
def test_end_to_end_delivers_everything_to_every_consumer(rate: tuple[str, ...]) -> None:
    found = bench(
        *("end-to-end", "--brokers", "1", "--records", "20000", "--partitions", "2"),
        *("--consumers", "3", *rate),
    )

    assert found["delivered_records"] == 3 * found["records"] >= 60_000
    assert found["append_latency_ms"]["p50"] > 0
    assert found["latency_ms"]["p50"] > 0
