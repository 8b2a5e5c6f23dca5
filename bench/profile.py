"""Where the time goes: samples brokers and client with py-spy while ``logd bench`` runs.

Prints, for the leader, a follower and the client, the functions that were running, and keeps
the stacks, from which speedscope or flamegraph.pl draw a flame graph.  Percentages are of the
samples in which a process was running, so they say where to look; what it costs is in "CPU s
per million" of the run itself.

    pip install py-spy
    python -m bench.profile latency --producers 256 --records 30000
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from logd.cli.local_cluster import process_cpu_seconds

START_TIMEOUT_S: Final = 30
RATE_HZ: Final = 250
ROWS: Final = 30
IDLE: Final = ("BlockingPool._work ", "EpollIOManager.get_events ")
"""Own time of these is waiting, though the sampler cannot tell."""

ROLES: Final = ("leader", "follower", "follower 2")


def sampler_program() -> str:
    """py-spy, of this environment or of the system."""
    beside = Path(sys.executable).parent
    found = shutil.which("py-spy", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    return found or sys.exit("py-spy is not installed: pip install py-spy")


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


def started(bench: subprocess.Popen[bytes]) -> list[int]:
    """The brokers' process ids, once all three are there."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and bench.poll() is None:
        if len(found := children(bench.pid)) >= len(ROLES):
            return found[: len(ROLES)]
        time.sleep(0.05)
    sys.exit("the brokers did not start")


def sampled(py_spy: str, pids: Sequence[int], seconds: int, directory: Path) -> list[float]:
    """Sample all of them at once; the processor time that each took meanwhile."""
    before = [process_cpu_seconds(pid) for pid in pids]
    samplers = [
        subprocess.Popen(
            [
                *(py_spy, "record", "--format", "raw", "--rate", str(RATE_HZ)),
                *("--duration", str(seconds), "--pid", str(pid)),
                *("--output", str(directory / f"{pid}.txt")),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for pid in pids
    ]
    try:
        time.sleep(seconds)
        used = [process_cpu_seconds(pid) - spent for pid, spent in zip(pids, before, strict=True)]
        for sampler in samplers:
            _, told = sampler.communicate()
            if sampler.returncode != 0:
                sys.exit(f"py-spy: {told.decode(errors='replace').strip()}")
    finally:
        for sampler in samplers:
            sampler.kill()  # None is left by now, if all went well.
            sampler.wait()
    return used


def session_samples(raw: Path) -> int:
    """Samples in which a broker served a client: the leader has the most."""
    lines = raw.read_text(encoding="utf-8").splitlines()
    return sum(int(line.rpartition(" ")[2]) for line in lines if "broker/session.py" in line)


def print_functions(title: str, raw: Path, total_cpu_s: float) -> None:
    """Own and cumulative time by function."""
    own: Counter[str] = Counter()
    with_callees: Counter[str] = Counter()
    for line in raw.read_text(encoding="utf-8").splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        if frames[-1].startswith(IDLE):
            continue
        own[frames[-1]] += int(count)
        for frame in set(frames):
            with_callees[frame] += int(count)
    total = sum(own.values()) or 1
    print(f"\n{title}: {total_cpu_s:.1f} CPU s\n   own    all")
    for frame, samples in own.most_common(ROWS):
        print(f"{100 * samples / total:5.1f}% {100 * with_callees[frame] / total:5.1f}%  {frame}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--delay", type=float, default=6, help="seconds before sampling")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--directory", type=Path, help="keep the samples (collapsed stacks) here")
    parser.add_argument("bench", nargs=argparse.REMAINDER, help="of logd bench")
    asked = parser.parse_args()
    py_spy = sampler_program()
    directory = asked.directory or Path(tempfile.mkdtemp(prefix="logd-profile-"))
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "logd", "bench", *asked.bench, "--brokers", "3"]
    with subprocess.Popen(command) as bench:
        try:
            pids = [*started(bench), bench.pid]
            time.sleep(asked.delay)
            used = sampled(py_spy, pids, asked.seconds, directory)
        except FileNotFoundError:
            sys.exit("the run was over before it had been sampled: more --records, or less --delay")
        except BaseException:
            bench.terminate()  # Its brokers end with it.
            raise
    if bench.returncode != 0:
        sys.exit(f"logd bench ended with {bench.returncode}: these are no samples of a whole run")
    *brokers, client = zip(used, pids, strict=True)
    brokers.sort(key=lambda broker: -session_samples(directory / f"{broker[1]}.txt"))
    for role, (cpu_s, pid) in zip(ROLES[:2], brokers, strict=False):
        print_functions(f"{role} (process {pid})", directory / f"{pid}.txt", cpu_s)
    print_functions("client", directory / f"{client[1]}.txt", client[0])
    print(f"\nstacks for a flame graph: {directory}")


if __name__ == "__main__":
    main()
