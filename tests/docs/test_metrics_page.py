"""docs/metrics.md, the dashboard and the alert rules name what a broker really tells.

The page is made from ``logd.ops.metrics.METRICS``: ``python -m tests.docs.test_metrics_page``
writes it anew.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from logd.limits import METRIC_TOPICS_MAX
from logd.ops.metrics import METRICS, Kind

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "metrics.md"
DASHBOARD: Final = ROOT / "deploy" / "grafana-dashboard.json"
ALERTS: Final = ROOT / "deploy" / "prometheus-alerts.yml"
RUNBOOK: Final = ROOT / "docs" / "operations.md"

INTRODUCTION: Final = f"""\
# Metrics

Made from the code by `python -m tests.docs.test_metrics_page`; a test compares the two.

A broker with `http_listen` serves them at `/metrics`, in the text format that Prometheus reads.
Each broker tells of itself; what is of the whole cluster is a sum or a maximum over brokers.

- Counters (`_total`) begin at 0 when a broker starts. What is counted stays with the label that its
  topic had then.
- `topic` is a topic's name, `(metadata)` for the metadata log, and `(others)` for all topics behind
  the first {METRIC_TOPICS_MAX} by name, added up: every series costs its reader for as long as it
  is kept.
- Records are counted as offsets. A new leader's first batch takes one, and so counts as a record.
- `logd_commit_seconds` and `logd_sync_seconds` are histograms: `_bucket`, `_sum`, `_count`.

Nothing is counted more often than once per write, commit, sync or delivery, each of which carries
many records under load (docs/adr/0009-http-through-the-seam.md).

| name | kind | labels | meaning |
|---|---|---|---|
"""

PROCESS: Final = """
Besides, of the process, as every program with a Prometheus client tells them:
`process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_cpu_seconds_total`,
`process_open_fds`, `process_max_fds`, `process_start_time_seconds`.

`deploy/` has a Grafana dashboard and alert rules made of these; what to do for each alert is in
[operations.md](operations.md#alerts).
"""


def render() -> str:
    """The page as it should be."""
    rows = (
        f"| `{metric.name}` | {metric.kind.value} | "
        f"{', '.join(f'`{label}`' for label in metric.labels) or '-'} | {metric.meaning} |\n"
        for metric in METRICS
    )
    return INTRODUCTION + "".join(rows) + PROCESS


def exposed_names() -> set[str]:
    """Every name that a query may use."""
    names = {sample.name for family in _process_families() for sample in family.samples}
    for metric in METRICS:
        if metric.kind is Kind.HISTOGRAM:
            names |= {f"{metric.name}{end}" for end in ("_bucket", "_sum", "_count")}
        else:
            names.add(metric.name)
    return names


def _process_families() -> Iterator[Any]:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return iter(registry.collect())


def names_in(query: str) -> set[str]:
    """The metrics a query names."""
    return set(re.findall(r"\b(?:logd|process)_[a-z0-9_]+", re.sub(r"\{[^}]*\}", "", query)))


def dashboard_queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    variables = dashboard["templating"]["list"]
    return queries + [row["query"]["query"] for row in variables if row["type"] == "query"]


def alerts() -> dict[str, str]:
    """Alert → expression."""
    text = ALERTS.read_text(encoding="utf-8")
    found = re.findall(r"^ {6}- alert: (\w+)\n {8}expr: (.+)$", text, re.MULTILINE)
    assert len(found) == text.count("alert: ")
    return dict(found)


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "run: python -m tests.docs.test_metrics_page"
    )


@pytest.mark.parametrize("query", dashboard_queries())
def test_the_dashboard_asks_for_what_there_is(query: str) -> None:
    assert names_in(query)
    assert names_in(query) <= exposed_names()


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_rests_on_what_there_is(alert: str) -> None:
    assert names_in(alerts()[alert])
    assert names_in(alerts()[alert]) <= exposed_names()


def test_for_each_alert_it_is_written_what_to_do() -> None:
    section = RUNBOOK.read_text(encoding="utf-8").split("\n## Alerts\n")[1].split("\n## ")[0]

    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == list(alerts())


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    sys.stderr.write(f"wrote {PAGE}\n")
