"""How messages put numbers and lists, so that each puts them alike.

A message that says ``1 partitions`` is understood, and makes one doubt the rest of it.
"""

from __future__ import annotations

from collections.abc import Sequence


def count_of(count: int, noun: str) -> str:
    """``1 record``, ``2,000 records``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def named(noun: str, names: Sequence[object]) -> str:
    """``broker 3``, ``brokers 3, 4``."""
    return f"{noun if len(names) == 1 else f'{noun}s'} {', '.join(map(str, names))}"


def listed(nodes: Sequence[int]) -> str:
    """``1,2,3``: nodes as `logd partition move --to` takes them."""
    return ",".join(map(str, nodes))


def are(count: int) -> str:
    """The verb of as many."""
    return "is" if count == 1 else "are"


def each_with(names: Sequence[object]) -> str:
    """What joins as many, named before, and what each of them has: ``with its disk``."""
    return "with" if len(names) == 1 else "each with"


def them(count: int) -> str:
    """As many, named before."""
    return "it" if count == 1 else "them"
