"""``logd serve --processes``: several brokers of one machine, looked after by one process."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from logd.cli.local_cluster import HOST
from logd.cli.machine import PARENT_LOOK_S
from tests.process.harness import POLL_S, free_row, logd_command, run_logd

pytestmark = pytest.mark.process

PATIENCE_S = 60.0
BROKERS = 3


class Machine(NamedTuple):
    process: subprocess.Popen[bytes]
    bootstrap: str
    log: Path

    def brokers(self) -> list[int]:
        """Process ids of those that run."""
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def alive(self) -> int:
        """How many brokers the cluster has and hears."""
        listed = run_logd("broker", "list", "--output", "json", "--bootstrap", self.bootstrap)
        if listed.returncode != 0:
            return 0
        return sum(broker["alive"] for broker in msgspec.json.decode(listed.stdout))

    def said(self) -> list[str]:
        """By whoever looks after the brokers."""
        return [line for line in self.log.read_text().splitlines() if line.startswith("logd: ")]


def wait_until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(POLL_S)


@contextmanager
def machine(
    directory: Path,
    port: int,
    *options: str,
    has_input: bool = True,
    stdin: int = subprocess.DEVNULL,
) -> Iterator[Machine]:
    """With all brokers up; stopped as an operator stops it."""
    wrapper = () if has_input else ("sh", "-c", 'exec "$@" <&-', "sh")
    path = directory / "log"
    with path.open("ab") as log:
        process = subprocess.Popen(
            [
                *wrapper,
                *logd_command(
                    *("serve", "--node-id", "1", "--data-dir", directory / "data"),
                    *("--listen", f"{HOST}:{port}", "--peer-listen", f"{HOST}:{port + BROKERS}"),
                    *("--processes", str(BROKERS), *options),
                ),
            ],
            stdin=stdin,
            stdout=log,
            stderr=log,
        )
    found = Machine(process, f"{HOST}:{port}", path)
    try:
        wait_until(lambda: found.alive() == BROKERS)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE_S)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_broker_that_fails_is_started_again_and_none_outlives_who_looks_after_them(
    tmp_path: Path,
) -> None:
    port = free_row(2 * BROKERS)
    line = tmp_path / "line"
    line.write_bytes(b"still here\n")
    with machine(tmp_path, port) as first:
        where = ("--bootstrap", first.bootstrap)
        made = run_logd("topic", "create", "kept", "--replicas", str(BROKERS), *where)
        assert made.returncode == 0, made.stderr
        killed = first.brokers()[-1]

        os.kill(killed, signal.SIGKILL)
        appended = run_logd("produce", "kept", line, *where)

        assert appended.returncode == 0, appended.stderr
        # Neither who looks after it nor its peers need have noticed yet.
        wait_until(lambda: killed not in first.brokers())
        wait_until(lambda: len(first.brokers()) == BROKERS and first.alive() == BROKERS)
        assert first.said() == ["logd: broker 3 was killed by signal 9 and is started again in 1 s"]
        brokers = first.brokers()
        first.process.kill()
        wait_until(lambda: all(is_gone(pid) for pid in brokers))

    with machine(tmp_path, port) as second:
        where = ("--bootstrap", second.bootstrap)
        read = run_logd("consume", "kept", "--from", "start", "--count", "1", *where)

        assert read.stdout == b"still here\n"
    assert second.process.returncode == 0
    events = [line for line in second.log.read_text().splitlines() if line.startswith("{")]
    assert {msgspec.json.decode(event)["broker"] for event in events} == {1, 2, 3}


def test_brokers_that_are_told_to_stop_from_two_sides_stop_as_they_should(tmp_path: Path) -> None:
    """A service manager signals all processes of a unit, and who looks after them does, too."""
    port = free_row(2 * BROKERS)
    with machine(tmp_path, port) as one:
        brokers = one.brokers()

        one.process.send_signal(signal.SIGTERM)
        while one.process.poll() is None:
            for broker in brokers:
                with suppress(ProcessLookupError):
                    os.kill(broker, signal.SIGTERM)
            time.sleep(0.002)

    assert one.process.returncode == 0
    assert one.said() == []


def test_brokers_run_where_the_standard_input_was_closed_and_end_with_who_looks_after_them(
    tmp_path: Path,
) -> None:
    port = free_row(2 * BROKERS)
    with machine(tmp_path, port, has_input=False) as one:
        brokers = one.brokers()

        one.process.kill()

        wait_until(lambda: all(is_gone(pid) for pid in brokers))
    assert one.said() == []


def test_brokers_end_with_whoever_started_the_machine_if_that_was_asked_for(tmp_path: Path) -> None:
    port = free_row(2 * BROKERS)
    options = ("--exit-with-parent",)
    with machine(tmp_path, port, *options, stdin=subprocess.PIPE) as one:
        assert one.process.stdin is not None
        brokers = one.brokers()
        one.process.stdin.write(b"what is said to it is not heeded")
        one.process.stdin.flush()
        time.sleep(2 * PARENT_LOOK_S)
        assert one.brokers() == brokers

        one.process.stdin.close()  # As the kernel does when the process that held it ends.

        assert one.process.wait(timeout=PATIENCE_S) == 0
        assert all(is_gone(pid) for pid in brokers)
    assert one.said() == []
