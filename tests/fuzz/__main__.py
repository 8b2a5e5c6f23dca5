"""``python -m tests.fuzz seeds`` writes the first corpus; ``python -m tests.fuzz run`` looks
for inputs that break a decoder: coverage-guided where atheris is installed (the optional
dependencies ``fuzz``), else by long runs of the mutating tests.

Each target runs in a process of its own.  Inputs that reach code no other did are merged into
``corpus/``; one that breaks a target stays in ``.fuzz/``, is named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
WORK = Path(".fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("seeds", help="write the first corpus")
    run = commands.add_parser("run", help="fuzz all targets, or the one named")
    run.add_argument("--minutes", type=float, default=10.0, help="of all targets together")
    run.add_argument("--target")
    one = commands.add_parser("one", help="replay one input, or fuzz one target in this process")
    one.add_argument("target")
    one.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.command == "seeds":
        from tests.fuzz.seeds import write_corpus

        write_corpus()
        return 0
    if options.command == "one":
        return fuzz_here(options.target, options.rest)
    return fuzz_all(options.minutes, options.target)


def fuzz_all(minutes: float, only: str | None) -> int:
    """Fuzz the targets one after another; 1 if one of them broke."""
    from tests.fuzz.targets import TARGETS

    if only is not None and only not in TARGETS:
        sys.exit(f"no target {only!r}, expected one of {', '.join(TARGETS)}")
    names = [only] if only else list(TARGETS)
    seconds = max(int(minutes * 60 / len(names)), 2)
    if importlib.util.find_spec("atheris") is None:
        return _without_coverage(names, seconds)
    broken = [name for name in names if not _fuzz(name, seconds)]
    for name in broken:
        sys.stderr.write(f"{name} broke: the input is in {WORK}/{name}, see the output above\n")
    return 1 if broken else 0


def _fuzz(name: str, seconds: int) -> bool:
    work, kept = WORK / name / "found", CORPUS / name
    work.mkdir(parents=True, exist_ok=True)
    kept.mkdir(parents=True, exist_ok=True)
    before = set(kept.iterdir())
    command = [sys.executable, "-m", "tests.fuzz", "one", name, "-max_len=65536", "-timeout=10"]
    finding = [*command, f"-max_total_time={seconds}", f"-artifact_prefix={work.parent}/",
               "-rss_limit_mb=2048", "-print_final_stats=1", str(work), str(kept)]  # fmt: skip
    holds = subprocess.run(finding, check=False).returncode == 0
    subprocess.run([*command, "-merge=1", str(kept), str(work)], check=False)
    for found in set(kept.iterdir()) - before:
        found.rename(found.with_suffix(".bin"))
    return holds


def _without_coverage(names: list[str], seconds: int) -> int:
    sys.stderr.write("atheris is not installed: mutating without looking at coverage\n")
    tests = ["tests/fuzz/test_borders.py"]
    environment = {**os.environ, "FUZZ_SECONDS": str(seconds), "FUZZ_TARGETS": ",".join(names)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env=environment,
        check=False,
    ).returncode


def fuzz_here(name: str, arguments: list[str]) -> int:
    """One target in this process, with libFuzzer's arguments."""
    # Atheris is optional, and has no types.
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["logd", "logd_client"], enable_loader_override=False):
        from tests.fuzz.mutations import mutate, seeds_of
        from tests.fuzz.targets import TARGETS
    seeds = seeds_of(name)

    def damage(data: bytes, bytes_max: int, seed: int) -> bytes:
        """Half of the time as in the tests: what happens inside a decoder written in C adds
        no coverage, and libFuzzer forgets the seeds that led there."""
        chance = random.Random(seed)
        if chance.randrange(2):
            return bytes(atheris.Mutate(data, bytes_max))
        return mutate([data, *seeds], chance)[:bytes_max]

    # Merging starts itself again by this name.
    itself = f"{sys.executable} -m tests.fuzz one {name}"
    atheris.Setup([itself, *arguments], TARGETS[name].check, custom_mutator=damage)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
