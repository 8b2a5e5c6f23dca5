"""A broker's HTTP listener, as curl sees it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from logd.cli.local_cluster import LocalBroker

ANSWER_TIMEOUT_S: Final = 10.0
CHANGE_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.1

Labels = tuple[tuple[str, str], ...]


def get(broker: LocalBroker, path: str) -> tuple[int, str]:
    """Status and text of one GET."""
    assert broker.http_address is not None
    connection = http.client.HTTPConnection(
        broker.http_address.host, broker.http_address.port, timeout=ANSWER_TIMEOUT_S
    )
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def status_of(broker: LocalBroker) -> dict[str, Any]:
    """What the status page draws."""
    status, text = get(broker, "/api/status")
    assert status == 200
    found: dict[str, Any] = json.loads(text)
    return found


def scrape(broker: LocalBroker) -> Mapping[tuple[str, Labels], float]:
    """What Prometheus would store."""
    status, text = get(broker, "/metrics")
    assert status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until something has come about."""
    deadline = time.monotonic() + CHANGE_TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {CHANGE_TIMEOUT_S:g} s: {what}"
        time.sleep(POLL_S)
