"""How ``logd bench`` decides what is offered when and of what it is made, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import anyio
import anyio.lowlevel
import msgspec
import pytest

from logd.cli.benchmark.pace import CALLS_PER_S_MAX, pace_of
from logd.cli.benchmark.report import read_runs, throughput_of, write_report
from logd.cli.benchmark.run import Bench
from logd.cli.benchmark.settings import Settings
from logd.cli.benchmark.values import (
    CALL_BYTES,
    keys_of_a_call,
    stamp_of,
    stamped,
    values_of_a_call,
)
from logd.cli.measure import Measurement, Sample, measurement
from logd.errors import UsageError
from logd_client import Client


@pytest.mark.parametrize("rate", [1, 7, CALLS_PER_S_MAX, CALLS_PER_S_MAX + 1, 1_000_000])
def test_a_pace_offers_the_rate_in_few_enough_calls(rate: int) -> None:
    pace = pace_of(rate, records=10 * rate)

    assert pace.records_per_call / pace.interval_s == pytest.approx(rate)
    assert 1 / pace.interval_s <= CALLS_PER_S_MAX
    assert 10 * rate <= pace.calls * pace.records_per_call < 10 * rate + pace.records_per_call


def test_a_late_call_does_not_move_the_ones_behind_it() -> None:
    pace = pace_of(100, records=1000)

    assert [pace.due_s(call) for call in (0, 1, 500)] == [0, 0.01, 5]


def test_one_size_gives_values_of_that_size() -> None:
    values = values_of_a_call(Settings(brokers=None, records=1, record_bytes=1000))

    assert {len(value) for value in values} == {1000}
    assert sum(map(len, values)) == CALL_BYTES


def test_mixed_sizes_reach_from_one_bound_to_the_other_and_repeat() -> None:
    settings = Settings(brokers=None, records=1, record_bytes=10, record_bytes_max=10_000)

    values = values_of_a_call(settings)
    sizes = sorted(map(len, values))

    assert values == values_of_a_call(settings)
    assert 10 <= sizes[0] < 20
    assert 5_000 < sizes[-1] <= 10_000
    assert sizes[len(sizes) // 2] < 1_000  # Mostly small.


def test_each_value_has_one_of_the_keys_asked_for_or_none() -> None:
    settings = Settings(brokers=None, records=1, record_bytes=100, keys=7)

    keys = keys_of_a_call(settings)

    assert keys is not None
    assert len(keys) == len(values_of_a_call(settings))
    assert len(set(keys)) == 7
    assert keys_of_a_call(Settings(brokers=None, records=1, record_bytes=100)) is None


def test_a_record_larger_than_a_call_is_a_call_of_its_own() -> None:
    values = values_of_a_call(Settings(brokers=None, records=1, record_bytes=CALL_BYTES + 1))

    assert len(values) == 1


def test_a_stamp_is_read_back_and_sorts_by_time() -> None:
    early, late = stamped(b"v" * 20, 255), stamped(b"v" * 20, 256)

    assert (stamp_of(early), stamp_of(late)) == (255, 256)
    assert early < late
    assert len(early) == 20


def result(**changes: object) -> Measurement:
    found = measurement(
        "produce",
        records=1000,
        value_bytes=100_000,
        seconds=2.0,
        latencies_s=[0.001, 0.002],
        cpu_s=1.0,
        settings={"record_bytes": 100},
    )
    samples = [
        Sample(at_s=0, records=0, broker_cpu_s={}),
        Sample(at_s=0.5, records=100, broker_cpu_s={}),
        Sample(at_s=2, records=1000, broker_cpu_s={}),
    ]
    return msgspec.structs.replace(found, samples=samples, **changes)


def test_throughput_is_that_of_each_interval() -> None:
    assert throughput_of(result().samples) == ([0.25, 1.25], [200, 600])


def test_a_file_holds_one_run_or_one_per_line(tmp_path: Path) -> None:
    line = msgspec.json.encode(result())
    (tmp_path / "one.json").write_bytes(line)
    (tmp_path / "two.json").write_bytes(line + b"\n" + line + b"\n")

    assert [run.name for run in read_runs(tmp_path / "one.json")] == ["one"]
    assert [run.name for run in read_runs(tmp_path / "two.json")] == ["two 1", "two 2"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"bench": 1}'])
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)

    with pytest.raises(UsageError, match=r"other\.json .*logd bench --output json prints"):
        read_runs(path)


def test_a_report_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.html or \.png"):
        write_report([], tmp_path / "report.pdf")


def test_a_page_compares_with_the_first_run_and_needs_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "before.json").write_bytes(msgspec.json.encode(result(records_per_s=1000.0)))
    (tmp_path / "after<b>.json").write_bytes(msgspec.json.encode(result(records_per_s=1500.0)))

    write_report([tmp_path / "before.json", tmp_path / "after<b>.json"], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")

    assert "<span class=better>+50&nbsp;%</span>" in page
    assert "after&lt;b&gt;" in page
    assert 'src="data:image/svg+xml;base64,' in page
    assert "http" not in page


class Admin:
    """A cluster that makes and deletes topics."""

    def __init__(self) -> None:
        self.admin = self
        self.topics: list[str] = []

    async def create_topic(self, name: str, **_: object) -> None:
        self.topics.append(name)

    async def delete_topic(self, name: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.topics.remove(name)


def test_a_run_that_is_broken_off_leaves_no_topic_behind() -> None:
    cluster = Admin()
    settings = Settings(brokers=None, records=1, record_bytes=1)
    bench = Bench(cast(Client, cluster), "h:1", None, settings)

    async def break_off() -> None:
        with anyio.CancelScope() as scope:
            async with bench.topic("produce"):
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        with pytest.raises(KeyboardInterrupt):
            async with bench.topic("consume"):
                raise KeyboardInterrupt

    anyio.run(break_off, backend="trio")

    assert cluster.topics == []
