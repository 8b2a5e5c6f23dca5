"""``logd dev``: one command starts a cluster, Ctrl-C stops all of it, and it can be resumed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from logd.cli.dev import BROKERS_MAX
from logd_client import sync
from tests.process.harness import free_row, logd_command, run_logd

pytestmark = pytest.mark.process

STOP_TIMEOUT_S = 10.0


@contextmanager
def running_dev(
    directory: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    port = free_row(BROKERS_MAX)
    command = logd_command(
        "dev", "--data-dir", directory, "--port", str(port), "--output", "json", *options
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as dev:
        assert dev.stdout is not None
        assert dev.stderr is not None
        try:
            ready = dev.stdout.readline()
            assert ready, dev.stderr.read()
            yield dev, msgspec.json.decode(ready)
        finally:
            dev.kill()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_stops_every_broker_and_the_directory_resumes(tmp_path: Path) -> None:
    with running_dev(tmp_path / "cluster") as (dev, ready):
        with sync.connect(ready["bootstrap"]) as client:
            client.admin.create_topic("kept")
            # Left with the client.
            ticket = client.producer("kept").open().append_nowait(b"value")
        ack = ticket.result()
        dev.send_signal(signal.SIGINT)
        assert dev.wait(STOP_TIMEOUT_S) == 0
        assert [b["id"] for b in ready["brokers"]] == [1, 2, 3]
        assert not any(is_running(broker["pid"]) for broker in ready["brokers"])

    with (
        running_dev(tmp_path / "cluster") as (_, ready),
        sync.connect(ready["bootstrap"]) as client,
        client.consumer("kept", start="earliest") as consumer,
    ):
        record = next(iter(consumer))
        assert (record.offset, record.value) == (ack.offset, b"value")


def test_the_directory_resumes_without_a_broker_that_was_removed(tmp_path: Path) -> None:
    found: list[tuple[list[int], bytes]] = []
    with running_dev(tmp_path / "cluster", "--brokers", "4") as (dev, ready):
        at = ("--bootstrap", ready["bootstrap"])
        for verb in ("drain", "remove"):
            done = run_logd("broker", verb, "4", *at)
            assert done.returncode == 0, done.stderr
        dev.send_signal(signal.SIGINT)
        assert dev.wait(STOP_TIMEOUT_S) == 0

    # Once it finds out, and then it knows.
    for count in ("4", "3"):
        with running_dev(tmp_path / "cluster", "--brokers", count) as (dev, ready):
            status = run_logd("cluster", "status", "--bootstrap", ready["bootstrap"])
            dev.send_signal(signal.SIGINT)
            _, told = dev.communicate(timeout=STOP_TIMEOUT_S)
        assert status.returncode == 0, status.stdout
        found.append(([broker["id"] for broker in ready["brokers"]], told))

    for ids, told in found:
        assert ids == [1, 2, 3]
        assert b"broker 4 is left out: it was removed from the cluster" in told


def test_a_killed_parent_leaves_no_broker_behind(tmp_path: Path) -> None:
    with running_dev(tmp_path / "cluster") as (dev, ready):
        watched = [os.pidfd_open(broker["pid"]) for broker in ready["brokers"]]
        dev.kill()
        try:
            for descriptor in watched:
                os.set_blocking(descriptor, False)
                assert has_ended(descriptor)
        finally:
            for descriptor in watched:
                os.close(descriptor)


def has_ended(descriptor: int) -> bool:
    """Whether the process behind a pidfd ends within the time for stopping."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(STOP_TIMEOUT_S * 1000))
