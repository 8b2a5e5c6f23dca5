"""Whatever bytes come to a border, it answers with what it promises, in bounded memory.

Bytes are random, or seeds of the corpus that were flipped, cut, spliced, repeated, and given
other lengths.  The seeds are replayed as they are, too.

The same examples each time, unless ``FUZZ_SECONDS`` asks for a search (``make fuzz``).
"""

from __future__ import annotations

import os
import random
import time
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import CORPUS, mutate, seeds_of
from tests.fuzz.targets import TARGETS, Target

EXAMPLES: Final = 40
REPLAY_SECONDS_MAX: Final = 2.0
SECONDS: Final = float(os.environ.get("FUZZ_SECONDS", "0"))

ALL: Final = [
    pytest.param(target, id=name)
    for name, target in TARGETS.items()
    if name in os.environ.get("FUZZ_TARGETS", name).split(",")
]


SEEDS: Final = {name: seeds_of(name) for name in TARGETS}


def test_every_target_has_a_corpus() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} == set(TARGETS)
    assert all(SEEDS.values())


@pytest.mark.parametrize("target", ALL)
def test_the_corpus_is_answered_as_promised_in_bounded_memory_and_time(target: Target) -> None:
    for data in SEEDS[target.name]:
        target.check_memory(data)
        began = time.process_time()
        target.check(data)
        assert time.process_time() - began < REPLAY_SECONDS_MAX


@pytest.mark.parametrize("target", ALL)
@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
@given(data=st.binary(max_size=400))
def test_random_bytes_are_answered_as_promised(target: Target, data: bytes) -> None:
    target.check(data)


@pytest.mark.parametrize("target", ALL)
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(number=st.integers(0, 2**64 - 1))
def test_mutated_seeds_are_answered_as_promised(target: Target, number: int) -> None:
    target.check_memory(mutate(SEEDS[target.name], random.Random(number)))


@pytest.mark.skipif(not SECONDS, reason="a search: make fuzz")
@pytest.mark.parametrize("target", ALL)
def test_a_long_search_finds_nothing_else(target: Target) -> None:
    """Input that breaks it is written into the corpus."""
    began = time.monotonic()
    chance = random.Random()
    while time.monotonic() - began < SECONDS:
        data = mutate(SEEDS[target.name], chance)
        try:
            target.check(data)
        except BaseException:
            name = f"found-{random.Random(data).getrandbits(32):08x}.bin"
            (CORPUS / target.name / name).write_bytes(data)
            raise
