"""Whatever bytes come to a border, it answers with what it promises, in bounded memory.

Bytes are random, or seeds of the corpus that were flipped, cut, spliced, repeated, and given
other lengths.  The seeds are replayed as they are, too.

The same examples each time, unless ``FUZZ_SECONDS`` asks for a search (``make fuzz``).
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import INPUT_BYTES_MAX, TARGETS, Target

CORPUS: Final = Path(__file__).parent / "corpus"
EXAMPLES: Final = 40
MUTATIONS_MAX: Final = 6
REPLAY_SECONDS_MAX: Final = 2.0
SECONDS: Final = float(os.environ.get("FUZZ_SECONDS", "0"))

NUMBERS: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1,
                  2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
"""Where lengths and signs go wrong."""

ALL: Final = [
    pytest.param(target, id=name)
    for name, target in TARGETS.items()
    if name in os.environ.get("FUZZ_TARGETS", name).split(",")
]


def seeds_of(target: Target) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target.name).glob("*.bin"))]


SEEDS: Final = {name: seeds_of(target) for name, target in TARGETS.items()}


def mutate(seeds: list[bytes], chance: random.Random) -> bytes:
    """One of the seeds, damaged in up to six places."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, MUTATIONS_MAX)):
        position = chance.randrange(len(data) + 1)
        count = chance.choice((1, 2, 4, 8, 16, 64, 512))
        match chance.randrange(8):
            case 0 if position < len(data):
                data[position] ^= 1 << chance.randrange(8)
            case 1 if position < len(data):
                data[position] = chance.randrange(256)
            case 2:
                del data[position:]
            case 3:
                del data[position : position + count]
            case 4:
                data[position:position] = data[position : position + count]
            case 5:
                other = chance.choice(seeds)
                start = chance.randrange(len(other) + 1)
                data[position : position + count] = other[start : start + count]
            case 6:
                size = chance.choice((1, 2, 4, 8))
                number = chance.choice(NUMBERS) & (2 ** (8 * size) - 1)
                order = "little" if chance.randrange(2) else "big"
                data[position : position + size] = number.to_bytes(size, order)
            case _:
                data[position:position] = chance.randbytes(count)
    return bytes(data[:INPUT_BYTES_MAX])


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
    target.check(mutate(SEEDS[target.name], random.Random(number)))


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
