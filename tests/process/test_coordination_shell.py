"""Coordination on three real brokers: what it promises to shells."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from logd.cli.elect import STAND_AGAIN_S
from logd.cli.local_cluster import LocalCluster
from logd.errors import UnknownNameError
from logd.limits import VALUE_BYTES_MAX
from logd_client import sync
from tests.process.harness import fresh, logd_command, run_logd

pytestmark = pytest.mark.process


def test_a_command_runs_under_a_lock_and_its_code_is_ours(cluster: LocalCluster) -> None:
    name = fresh("lock")
    script = 'test -n "$LOGD_FENCE_TOKEN" -a -n "$LOGD_FENCE_ID" && exit 7'
    at = ("--bootstrap", cluster.bootstrap)

    ran = run_logd("lock", "run", name, *at, "--", "sh", "-c", script)
    missing = run_logd("lock", "run", name, *at, "--", "/no/such/command")

    assert ran.returncode == 7, ran.stderr
    assert missing.returncode == 127
    assert b"No such file" in missing.stderr


def test_one_line_in_each_crontab_runs_a_job_once(cluster: LocalCluster, tmp_path: Path) -> None:
    name, marks = fresh("nightly"), tmp_path / "marks"
    line = logd_command(
        "elect", "run", name, "--wait", "0", "--hold", "8", "--bootstrap", cluster.bootstrap,
        "--", "sh", "-c", f"echo ran >> {marks}",
    )  # fmt: skip

    machines = [subprocess.Popen(line, stderr=subprocess.DEVNULL) for _ in range(3)]
    codes = sorted(machine.wait(timeout=60) for machine in machines)

    assert codes == [0, 4, 4]
    assert marks.read_text() == "ran\n"


def test_a_command_is_ended_when_its_lock_is_lost(cluster: LocalCluster, tmp_path: Path) -> None:
    name, pid_file = fresh("lock"), tmp_path / "pid"
    command = logd_command(
        "lock", "run", name, "--ttl", "2", "--bootstrap", cluster.bootstrap,
        "--", "sh", "-c", f"trap '' TERM; echo $$ > {pid_file}; while :; do sleep 0.1; done",
    )  # fmt: skip
    holder = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = int(pid_file.read_text())

    os.kill(holder.pid, signal.SIGSTOP)
    taken = run_logd("lock", "run", name, "--bootstrap", cluster.bootstrap, "--", "true")
    os.kill(holder.pid, signal.SIGCONT)
    _, told = holder.communicate(timeout=30)

    assert taken.returncode == 0
    assert holder.returncode == 4
    assert b"is lost" in told
    with pytest.raises(ProcessLookupError):  # It did not heed SIGTERM.
        os.kill(pid, 0)


def test_who_is_told_to_end_while_it_waits_leaves_no_place_behind(cluster: LocalCluster) -> None:
    name, at = fresh("lock"), ("--bootstrap", cluster.bootstrap)
    with sync.connect(cluster.bootstrap) as client, client.lock(name):
        waiting = subprocess.Popen(
            logd_command("lock", "run", name, *at, "--", "true"), stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while not client.lock(name).holders().waiting:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        waiting.terminate()
        code = waiting.wait(timeout=30)
        left = client.lock(name).holders().waiting

    assert code == 128 + signal.SIGTERM
    assert left == []


def test_a_command_that_fails_at_once_is_not_elected_again_and_again_without_a_rest(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    began = tmp_path / "began"
    script = f"date +%s.%N >> {began}; exit 1"
    command = logd_command(
        "elect", "run", fresh("e"), "--again", "--bootstrap", cluster.bootstrap, "--",
        "sh", "-c", script,
    )  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as candidate:
        deadline = time.monotonic() + 30
        while not began.exists() or len(began.read_text().split()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        candidate.terminate()
        code = candidate.wait(timeout=10)

    first, second, third = (float(at) for at in began.read_text().split()[:3])
    assert min(second - first, third - second) >= STAND_AGAIN_S
    assert code == 128 + signal.SIGTERM


def test_a_shell_works_on_a_queue(cluster: LocalCluster, tmp_path: Path) -> None:
    name, out = fresh("queue"), tmp_path / "out"
    at = ("--bootstrap", cluster.bootstrap)
    configured = run_logd(
        "queue", "configure", name, "--attempts-max", "1", "--output", "json", *at
    )
    put = run_logd("queue", "put", name, "a", "b", "bad", "--key", "k", *at)
    script = f"read x; test $x != bad || {{ echo poisoned >&2; exit 1; }}; echo $x >> {out}"
    worked = run_logd(
        "queue", "work", name, "--until-empty", "--output", "json", *at, "--", "sh", "-c", script
    )
    dead = msgspec.json.decode(run_logd("queue", "dead", name, "--output", "json", *at).stdout)
    table = run_logd("queue", "dead", name, *at).stdout.decode()
    unknown = run_logd("queue", "redrive", name, "1", *at)
    redriven = run_logd("queue", "redrive", name, "--all", "--output", "json", *at)
    claimed = msgspec.json.decode(run_logd("queue", "claim", name, "--output", "json", *at).stdout)
    renewed = run_logd("queue", "renew", name, claimed["claim"], "--output", "json", *at)
    completed = run_logd("queue", "complete", name, claimed["claim"], "--output", "json", *at)
    twice = run_logd("queue", "complete", name, claimed["claim"], *at)
    nothing = run_logd("queue", "claim", name, *at)
    stats = msgspec.json.decode(run_logd("queue", "stats", name, "--output", "json", *at).stdout)
    deleted = run_logd("queue", "delete", name, "--yes", "--output", "json", *at)

    configuration = msgspec.json.decode(configured.stdout)
    assert configuration == {name: stats[name] for name in configuration}
    assert (configuration["queue"], configuration["attempts_max"]) == (name, 1)
    assert b"put 3 items" in put.stdout
    assert worked.returncode == 1, worked.stderr  # One item was given up.
    assert sorted(out.read_text().split()) == ["a", "b"]
    assert msgspec.json.decode(worked.stdout) == {
        "completed": 2, "failed": 1, "released": 0, "unsettled": 0
    }  # fmt: skip
    assert [(one["key"], one["payload"], one["reason"]) for one in dead] == [
        ("k", "bad", "code 1 poisoned")
    ]
    died = datetime.fromtimestamp(dead[0]["died_ms"] / 1000, UTC)
    assert died.isoformat(timespec="milliseconds") in table
    assert msgspec.json.decode(redriven.stdout) == {"items": [dead[0]["item"]]}
    assert (unknown.returncode, b"no dead item" in unknown.stderr) == (3, True)
    assert (claimed["payload"], completed.returncode) == ("bad", 0), completed.stderr
    assert [msgspec.json.decode(each.stdout) for each in (renewed, completed, deleted)] == [
        {"renewed": claimed["item"]}, {"completed": claimed["item"]}, {"deleted": name}
    ]  # fmt: skip
    assert (twice.returncode, nothing.returncode) == (4, 3)
    assert b"the claim of item " in twice.stderr
    assert (stats["completed"], stats["dead"], stats["in_flight"]) == (3, 0, 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_worker_that_is_told_to_end_says_what_it_has_done(
    cluster: LocalCluster, number: signal.Signals, code: int
) -> None:
    name, at = fresh("queue"), ("--bootstrap", cluster.bootstrap)
    run_logd("queue", "put", name, "quick", "slow", *at)
    script = "read x; test $x != slow || { echo slow; exec sleep 60; }"
    command = logd_command("queue", "work", name, *at, "--", "sh", "-c", script)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"slow\n"
        worker.send_signal(number)
        _, told = worker.communicate(timeout=20)

    assert told == b"completed 1 item; gave back 1 item\n"
    assert worker.returncode == code
    stats = msgspec.json.decode(run_logd("queue", "stats", name, "--output", "json", *at).stdout)
    assert (stats["completed"], stats["in_flight"]) == (1, 0)


def test_ctrl_c_gives_the_item_back_once_its_command_has_ended_in_order(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """The interrupt of the terminal reaches the worker alone; the command is asked to end."""
    name, at, out = fresh("queue"), ("--bootstrap", cluster.bootstrap), tmp_path / "out"
    run_logd("queue", "configure", name, "--attempts-max", "1", *at)
    run_logd("queue", "put", name, "item", *at)
    script = (
        f"trap 'echo interrupted >> {out}; exit 1' INT; trap 'echo ended >> {out}; exit 1' TERM; "
        "sleep 60 & echo begun; wait"
    )
    command = logd_command("queue", "work", name, *at, "--", "sh", "-c", script)
    said, code = typed_at(command, begun=1)

    claimed = msgspec.json.decode(run_logd("queue", "claim", name, "--output", "json", *at).stdout)
    assert out.read_text() == "ended\n"
    assert b"completed 0 items; gave back 1 item" in said
    assert code == 128 + signal.SIGINT
    assert (claimed["payload"], claimed["attempt"]) == ("item", 1)


def test_ctrl_c_asks_each_command_of_an_assignment_worker_to_end_and_does_nothing_else(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    group, at, out = fresh("group"), ("--bootstrap", cluster.bootstrap), tmp_path / "out"
    spread = run_logd("assign", "set", group, "--count", "2", "--output", "json", *at)
    script = (
        f"trap 'echo interrupted >> {out}; exit 1' INT; trap 'echo ended >> {out}; exit 1' TERM; "
        "sleep 60 & echo begun; wait"
    )
    said, code = typed_at(
        logd_command("assign", "work", group, "me", *at, "--", "sh", "-c", script), begun=2
    )

    assert out.read_text() == "ended\nended\n", said
    assert msgspec.json.decode(spread.stdout) == {"group": group, "shards": ["0", "1"]}
    assert code == 128 + signal.SIGINT


def typed_at(command: list[str], *, begun: int) -> tuple[bytes, int]:
    """What a command said, and its exit code, in a terminal where Ctrl-C was typed once it had said
    ``begun`` so often."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(command[0], command)
    with open(terminal, "r+b", buffering=0) as keyboard:
        said = b""
        while said.count(b"begun") < begun:
            said += keyboard.read(1024)
        keyboard.write(b"\x03")
        _, status = os.waitpid(child, 0)
        with suppress(OSError):  # So the terminal of a process that has ended ends.
            while more := keyboard.read(1024):
                said += more
    return said, os.waitstatus_to_exitcode(status)


def test_a_worker_tells_attempts_that_failed_and_does_not_call_them_items_given_back(
    cluster: LocalCluster,
) -> None:
    name, at = fresh("queue"), ("--bootstrap", cluster.bootstrap)
    run_logd("queue", "configure", name, "--attempts-max", "3", "--backoff-ms", "0", *at)
    run_logd("queue", "put", name, "item", *at)

    worked = run_logd("queue", "work", name, "--until-empty", *at, "--", "false")

    assert (worked.returncode, worked.stderr) == (1, b"completed 0 items; 3 attempts failed\n")


def test_who_empties_a_queue_has_succeeded_if_all_was_done_in_the_end(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    name, at = fresh("queue"), ("--bootstrap", cluster.bootstrap)
    run_logd("queue", "configure", name, "--backoff-ms", "0", *at)
    run_logd("queue", "put", name, "item", *at)
    second_time = f"test -e {tmp_path}/seen || {{ touch {tmp_path}/seen; exit 1; }}"

    worked = run_logd("queue", "work", name, "--until-empty", *at, "--", "sh", "-c", second_time)

    assert (worked.returncode, worked.stderr) == (0, b"completed 1 item; 1 attempt failed\n")


def test_a_shell_compares_and_sets_keys(cluster: LocalCluster) -> None:
    at = ("--namespace", fresh("ns"), "--bootstrap", cluster.bootstrap)
    put = run_logd("kv", "put", "lead", "me", "--if-revision", "0", *at)
    again = run_logd("kv", "put", "lead", "you", "--if-revision", "0", *at)
    got = run_logd("kv", "get", "lead", *at)
    refused = run_logd(
        "kv", "txn", "--if-missing", "lead", "--put", "lead=x", "--else-get", "lead",
        "--output", "json", *at,
    )  # fmt: skip
    watched = run_logd(
        "kv", "watch", "lead", "--from", put.stdout.decode().strip(), "--count", "1",
        "--output", "json", *at,
    )  # fmt: skip
    put_again = run_logd("kv", "put", "lead", "me", "--output", "json", *at)
    found = msgspec.json.decode(run_logd("kv", "get", "lead", "--output", "json", *at).stdout)
    deleted = run_logd("kv", "delete", "lead", "--output", "json", *at)
    gone = run_logd("kv", "get", "lead", *at)
    added = run_logd("kv", "txn", "--add", "n=5", "--get", "n", "--output", "json", *at)

    assert (put.returncode, again.returncode, refused.returncode) == (0, 4, 4)
    assert b"key 'lead' is at revision " in again.stderr
    assert b", expected no key" in again.stderr
    assert got.stdout == b"me\n"
    assert msgspec.json.decode(refused.stdout)["found"][0]["value"] == "me"
    assert msgspec.json.decode(watched.stdout)["value"] == "me"
    assert msgspec.json.decode(put_again.stdout) == {"revision": found["revision"]}
    assert msgspec.json.decode(deleted.stdout) == {"deleted": 1}
    assert [(one["key"], one["value"]) for one in msgspec.json.decode(added.stdout)["found"]] == [
        ("n", "5")
    ]
    assert (deleted.returncode, gone.returncode) == (0, 3)


def test_keys_and_values_are_any_bytes_from_a_shell_too(cluster: LocalCluster) -> None:
    at = ("--namespace", fresh("ns"), "--bootstrap", cluster.bootstrap)
    key = os.fsdecode(b"k\xff")

    put = run_logd("kv", "put", key, os.fsdecode(b"\xfe"), *at)
    got = run_logd("kv", "get", key, *at)
    set_again = run_logd("kv", "txn", "--if", f"{key}={os.fsdecode(bytes([254]))}",
                         "--put", f"{key}=text", "--get", key, *at)  # fmt: skip
    listed = run_logd("kv", "list", key, "--keys-only", *at)
    deleted = run_logd("kv", "delete", key, "--prefix", *at)

    assert put.returncode == 0, put.stderr
    assert got.stdout == b"\xfe\n"
    assert set_again.stdout.startswith(b"done\nbase64:a/8==text"), set_again.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()[::2]] == [
        b"key",
        b"base64:a/8=",
    ]
    assert deleted.stdout == b"1\n"


def test_who_is_fenced_from_a_shell_is_told_how_far_it_came(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    topic, lines, at = fresh("fenced"), tmp_path / "lines", ("--bootstrap", cluster.bootstrap)
    lines.write_text("1\n2\n3\n")
    run_logd("topic", "create", topic, *at)
    run_logd("produce", topic, str(lines), "--fence", "1:5", *at)

    late = run_logd("produce", topic, str(lines), "--fence", "1:4", *at)

    told = late.stderr.decode().splitlines()
    assert late.returncode == 4
    assert told[0] == "logd: ended early; 0 of 3 lines read are known to be in:"
    assert told[1].startswith(f"0 records to {topic}")
    assert told[-1].startswith("logd: fence 1 stands at token 5, found 4 (from node ")


def test_lines_become_items_as_many_as_fit_and_who_is_stopped_says_how_many(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    name, lines = fresh("queue"), tmp_path / "lines"
    lines.write_bytes(b"a\rb\n" * 3_000 + b"x" * VALUE_BYTES_MAX * 2 + b"\nlast")
    at = ("--bootstrap", cluster.bootstrap)
    logd = " ".join(map(shlex.quote, logd_command("queue", "put", name, *at)))

    put = subprocess.run(["sh", "-c", f"{logd} < {lines}"], capture_output=True, check=False)
    first = msgspec.json.decode(run_logd("queue", "claim", name, "--output", "json", *at).stdout)
    typed = fresh("queue")
    with subprocess.Popen(
        logd_command("queue", "put", typed, *at), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as typing, sync.connect(cluster.bootstrap) as client:  # fmt: skip
        assert typing.stdin is not None
        # Whoever puts the last of these has heard of the others.
        for typed_lines, count in ((b"1\n" * 10, 10), (b"last\n", 11)):
            typing.stdin.write(typed_lines)
            typing.stdin.flush()
            deadline = time.monotonic() + 30
            while ready_in(client, typed) < count:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        typing.send_signal(signal.SIGINT)
        told, reason = typing.communicate(timeout=30)

    assert put.returncode == 1
    assert b"line 3001: 131072 bytes are over the limit of an item of 65536; left out" in put.stderr
    assert put.stdout == f"put 3,001 items into {name}\n".encode()
    assert first["payload"] == "a\rb"
    assert told in [f"put {count} items into {typed}\n".encode() for count in (10, 11)]
    assert reason == b"logd: ended early; put until then:\n"


def test_a_shell_is_told_of_so_many_leaders_as_it_asked_for_and_of_the_time_between(
    cluster: LocalCluster,
) -> None:
    name, at = fresh("service"), ("--bootstrap", cluster.bootstrap)
    observer = subprocess.Popen(
        logd_command("elect", "observe", name, "--count", "2", "--output", "json", *at),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert observer.stdout is not None
    told = [msgspec.json.decode(observer.stdout.readline())]
    for data in ("first", "second"):
        led = run_logd("elect", "run", name, "--data", data, *at, "--", "sleep", "0.5")
        assert led.returncode == 0, led.stderr

    rest, _ = observer.communicate(timeout=30)
    told += [msgspec.json.decode(line) for line in rest.splitlines()]

    assert [row.get("data") for row in told] == [None, "first", None, "second"]
    assert observer.returncode == 0


def ready_in(client: sync.Client, name: str) -> int:
    """Nobody may have put anything into it yet."""
    try:
        return client.queue(name).statistics().ready
    except UnknownNameError:
        return 0


@pytest.mark.parametrize("what", ["lock", "elect", "queue", "kv"])
def test_who_finds_nothing_listed_is_told_in_which_namespace(
    cluster: LocalCluster, what: str
) -> None:
    """``logd lock run orders/compactor`` holds a lock that ``logd lock list`` does not show."""
    listed = run_logd(what, "list", "--bootstrap", cluster.bootstrap, "--namespace", "empty")

    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.endswith(b"s in namespace empty\n")


def test_a_shell_resigns_and_lists(cluster: LocalCluster, tmp_path: Path) -> None:
    name, at = fresh("service"), ("--bootstrap", cluster.bootstrap)
    mark = tmp_path / "leads"
    leader = subprocess.Popen(
        logd_command("elect", "run", name, *at, "--data", "here", "--", "sh", "-c",
                     f"touch {mark}; sleep 600"),
        stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)

    listed = msgspec.json.decode(run_logd("elect", "list", "--output", "json", *at).stdout)
    observed = run_logd("elect", "observe", name, "--count", "1", "--output", "json", *at)
    resigned = run_logd("elect", "resign", name, "--output", "json", *at)
    leader.wait(timeout=30)
    nobody = run_logd("elect", "resign", name, *at)

    assert f"default/{name}" in [row["name"] for row in listed]
    assert msgspec.json.decode(observed.stdout)["data"] == "here"
    assert resigned.returncode == 0, resigned.stderr
    leading = msgspec.json.decode(observed.stdout)["token"]
    assert msgspec.json.decode(resigned.stdout) == {"election": name, "token": leading}
    assert nobody.returncode == 3
