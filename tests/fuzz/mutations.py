"""Seeds, and the ways in which they are damaged."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from tests.fuzz.targets import INPUT_BYTES_MAX

CORPUS: Final = Path(__file__).parent / "corpus"
MUTATIONS_MAX: Final = 6

NUMBERS: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1,
                  2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
"""Where lengths and signs go wrong."""


def seeds_of(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*.bin"))]


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
