"""Whatever a client sends is answered: nothing that lies in the log can stop a replica."""

from __future__ import annotations

import types
import typing
from typing import Any, Final

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.coordination.state import CoordinationState
from logd.types import Offset
from logd.wire.coordination import Command, Entry, Join, Query, Result
from tests.support.coordination import NAMESPACE, Partition

NUMBERS: Final = st.sampled_from([-(2**63), -1, 0, 1, 2, 5, 1_000, 30_000, 2**63 - 1])
TEXTS: Final = st.sampled_from(["", ".", "a", "b", "x" * 201, "\u20ac", "a\nb"])
BLOBS: Final = st.sampled_from([b"", b"a", b"1", bytes(16), bytes(5_000), bytes(70_000)])
FLOATS: Final = st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf"), 1e300])


def anything(annotation: Any) -> st.SearchStrategy[Any]:
    """What a decoder would let through for a field of this type."""
    plain = {int: NUMBERS, str: TEXTS, bytes: BLOBS, float: FLOATS, bool: st.booleans()}
    if annotation in plain:
        return plain[annotation]
    if annotation is types.NoneType:
        return st.none()
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        fields = msgspec.structs.fields(annotation)
        return st.builds(annotation, **{field.name: anything(field.type) for field in fields})
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(anything(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(anything(arguments[0]), anything(arguments[1]), max_size=3)
    return st.one_of(*map(anything, arguments))


COMMANDS: Final = st.one_of(*map(anything, typing.get_args(Command)))
QUERIES: Final = st.one_of(*map(anything, typing.get_args(Query)))


@given(st.lists(st.tuples(COMMANDS, st.integers(0, 2), NUMBERS), max_size=30), st.data())
@settings(deadline=None, max_examples=150)
def test_every_command_is_carried_out_or_refused(
    commands: list[tuple[Command, int, int]], data: st.DataObject
) -> None:
    partition = Partition()
    sessions = [partition.open(), partition.open(), 4711]
    partition.do(sessions[0], Join(group="a", member="a"))

    for sequence, (command, who, time_ms) in enumerate(commands, 10):
        entry = Entry(NAMESPACE, sessions[who], sequence, 0, max(time_ms, 0), command)
        twin = CoordinationState.restore(partition.state.snapshot())
        result = partition.apply(entry)
        assert isinstance(result, Result)
        assert twin.apply(entry, Offset(partition.revision)) == result
        partition.state.check_invariants()

    answer = partition.state.answer(NAMESPACE, data.draw(QUERIES))
    assert answer.revision == partition.revision
