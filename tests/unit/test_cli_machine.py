"""Several brokers of one machine: each has an id, ports and a directory of its own."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from logd.cli.machine import Supervisor, configurations
from logd.config import BrokerConfig, parse_cluster
from logd.errors import UsageError
from logd.storage.directory import META_NAME
from logd.types import HostPort, NodeId

HERE = "10.0.0.1"
CLUSTER = parse_cluster("11=10.0.0.1:7181,12=10.0.0.1:7182,21=10.0.0.2:7181")


def first(data_dir: Path, **settings: object) -> BrokerConfig:
    given: dict[str, object] = {
        "node_id": NodeId(11),
        "data_dir": str(data_dir),
        "listen": HostPort(HERE, 7171),
        "peer_listen": HostPort(HERE, 7181),
        "failure_domain": "host",
    }
    return BrokerConfig(**(given | settings))  # type: ignore[arg-type]


def test_ids_and_ports_count_upwards_and_directories_are_their_own(tmp_path: Path) -> None:
    config = first(
        tmp_path,
        listen=HostPort("0.0.0.0", 7171),
        advertise=HostPort(HERE, 9171),
        http_listen=HostPort(HERE, 0),
    )

    one, two, three = configurations(config, 3)

    assert [one.node_id, two.node_id, three.node_id] == [11, 12, 13]
    assert [broker.listen.port for broker in (one, two, three)] == [7171, 7172, 7173]
    assert [broker.peer_listen.port for broker in (one, two, three)] == [7181, 7182, 7183]
    assert three.advertise == HostPort(HERE, 9173)
    assert three.http_listen == HostPort(HERE, 0), "any free port is any free port for each"
    assert two.data_dir == str(tmp_path / "broker-12")
    assert {broker.failure_domain for broker in (one, two, three)} == {"host"}


def test_those_that_the_list_names_found_the_cluster_and_the_others_join_it(
    tmp_path: Path,
) -> None:
    one, two, three = configurations(first(tmp_path, cluster=CLUSTER), 3)

    assert one.cluster == two.cluster == CLUSTER
    assert one.join is two.join is None
    assert three.cluster == {13: HostPort(HERE, 7183)}
    assert three.join == HostPort(HERE, 7181)


def test_without_a_list_the_first_founds_a_cluster_that_the_others_join(tmp_path: Path) -> None:
    one, two = configurations(first(tmp_path), 2)

    assert one.cluster == {11: HostPort(HERE, 7181)}
    assert one.join is None
    assert two.join == HostPort(HERE, 7181)


def test_all_join_a_cluster_that_is_there(tmp_path: Path) -> None:
    member = HostPort("10.0.0.9", 7181)

    found = configurations(first(tmp_path, join=member), 2)

    assert [broker.join for broker in found] == [member, member]


def test_an_id_of_another_machine_is_not_taken(tmp_path: Path) -> None:
    cluster = parse_cluster("11=10.0.0.1:7181,12=10.0.0.2:7181,13=10.0.0.3:7181")

    with pytest.raises(UsageError, match=r"12 at 10\.0\.0\.2:7181; .* it is at 10\.0\.0\.1:7182"):
        configurations(first(tmp_path, cluster=cluster), 2)


def test_a_list_has_the_ports_that_are_listened_on(tmp_path: Path) -> None:
    cluster = parse_cluster("11=10.0.0.1:7181,12=10.0.0.1:7191")

    with pytest.raises(UsageError, match=r"12 at 10\.0\.0\.1:7191; .* it is at 10\.0\.0\.1:7182"):
        configurations(first(tmp_path, cluster=cluster), 2)


def test_ports_do_not_run_into_each_other(tmp_path: Path) -> None:
    configurations(first(tmp_path), 10)
    with pytest.raises(
        UsageError,
        match=r"7181 would be peer_listen of broker 11 and listen of broker 21",
    ):
        configurations(first(tmp_path), 11)


def test_ports_do_not_run_out(tmp_path: Path) -> None:
    config = first(tmp_path, peer_listen=HostPort(HERE, 65_534))

    with pytest.raises(UsageError, match=r"10\.0\.0\.1:65534 and 2 more would be 65536"):
        configurations(config, 3)


def test_the_directory_of_a_single_broker_is_not_taken_for_a_place_of_several(
    tmp_path: Path,
) -> None:
    (tmp_path / META_NAME).write_bytes(b"")

    with pytest.raises(UsageError, match=r"move what is there to .*/broker-11"):
        configurations(first(tmp_path), 2)


@pytest.mark.parametrize("below", ["", "logd"])
def test_a_file_where_the_directories_would_be_is_refused_before_any_broker_is_started(
    tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(UsageError, match=r"cannot use data directory .*/file is no directory"):
        configurations(first(tmp_path / "file" / below), 2)


STANDING_STILL = """
import sys
from logd.cli import machine

machine.PARENT_LOOK_S = 0.02
machine.Supervisor([1], stops_with_parent=True).become_one()
print("begun", flush=True)
sys.stdin.read()
"""
"""What was forked off ends with its parent."""


def test_a_machine_that_stood_still_for_a_while_goes_on() -> None:
    """As after Ctrl-Z, or under a debugger."""
    with subprocess.Popen(
        [sys.executable, "-c", STANDING_STILL], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as machine:
        assert machine.stdin is not None
        assert machine.stdout is not None
        assert machine.stdout.readline() == b"begun\n"
        for _ in range(3):
            machine.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            machine.send_signal(signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            machine.wait(timeout=0.3)
        machine.stdin.close()

        assert machine.wait(timeout=30) == 0


class ForkedError(Exception):
    """In the place of a process of its own, which a test has not."""


def test_a_machine_that_has_no_room_for_a_process_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes: Iterator[Exception] = iter(
        [BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), ForkedError()]
    )

    def fork() -> int:
        raise next(outcomes)

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr("logd.cli.machine.RESTART_AFTER_S", 0.01)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(ForkedError):
            Supervisor([NodeId(1)]).become_one()
    finally:
        signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    said = capsys.readouterr().err
    assert said.startswith("logd: broker 1 cannot be started: [Errno 11] ")
    assert said.endswith("; again in 0.01 s\n")
