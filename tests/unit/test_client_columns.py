"""The records of one ``append_many`` are checked and measured, and cut into batches by size: all of
them, in order, the impossible ones apart."""

from __future__ import annotations

from collections import UserList, deque
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.errors import UsageError
from logd.limits import MIB, RECORD_BYTES_MAX, RECORDS_PER_BATCH_MAX
from logd.record.batch import seal_batch
from logd.record.header import HEADER_BYTES
from logd_client.columns import Column, Slices, columns_of

COLUMNS_BYTES = 32
"""At most, of a payload apart from what each record adds."""

Elements = Sequence[bytes | None]


def slices_of(values: Elements, keys: Elements | bytes | None = None) -> Slices:
    if isinstance(keys, bytes):
        return Slices(Column.of("values", values), keys)
    return Slices(*columns_of(values, keys))


@given(
    st.one_of(
        st.lists(st.one_of(st.none(), st.integers(0, 300), st.just(70_000)), max_size=60),
        st.builds(lambda length, count: [length] * count, st.integers(0, 300), st.integers(1, 60)),
    ),
    st.sampled_from(["none", "one", "each"]),
    st.integers(100, 2000),
)
@settings(max_examples=200)
def test_slices_cover_every_record_once_in_order_and_are_as_large_as_they_say(
    lengths: list[int | None], keyed: str, batch_bytes: int
) -> None:
    values = [None if length is None else bytes(length) for length in lengths]
    some_keys = [b"%d" % position for position in range(len(values))]
    keys = {"none": None, "one": b"key", "each": some_keys}[keyed]

    bounds = list(slices_of(values, keys).bounds(batch_bytes))

    positions = [position for start, end, _ in bounds for position in range(start, end)]
    assert positions == list(range(len(values)))
    for start, end, size in bounds:
        part_keys = keys[start:end] if isinstance(keys, list) else keys
        sealed = seal_batch(values=values[start:end], keys=part_keys, timestamps_ms=1)
        assert len(sealed) - HEADER_BYTES <= size + COLUMNS_BYTES
        assert size <= batch_bytes + len(b"key") or end == start + 1


@pytest.mark.parametrize("last", [100, 99], ids=["alike", "unlike"])
def test_a_batch_is_filled_to_what_it_may_have_and_no_estimate_keeps_it_smaller(last: int) -> None:
    values = [bytes(100)] * 9_999 + [bytes(last)]
    size = 9_999 * 102 + last + 2

    assert list(slices_of(values).bounds(1 * MIB)) == [(0, 10_000, size)]
    assert list(slices_of(values).bounds(size)) == [(0, 10_000, size)]


@pytest.mark.parametrize("last", [b"", b"x"], ids=["alike", "unlike"])
def test_a_slice_never_has_more_records_than_a_batch_may(last: bytes) -> None:
    values = [b""] * RECORDS_PER_BATCH_MAX + [last]

    bounds = list(slices_of(values).bounds(2**31))

    assert [end - start for start, end, _ in bounds] == [RECORDS_PER_BATCH_MAX, 1]


def test_a_record_above_the_limit_stands_apart_from_its_neighbours() -> None:
    values = [b"a", b"x" * (RECORD_BYTES_MAX + 1), b"b"]

    slices = slices_of(values)

    assert slices.too_large == [(1, RECORD_BYTES_MAX + 1)]
    assert [(start, end) for start, end, _ in slices.bounds(10_000)] == [(0, 1), (2, 3)]


def test_a_record_at_the_limit_passes_beside_one_above_it() -> None:
    values = [b"x" * RECORD_BYTES_MAX, b"x" * (RECORD_BYTES_MAX + 1)]

    assert slices_of(values).too_large == [(1, RECORD_BYTES_MAX + 1)]


@pytest.mark.parametrize("keys", [b"key", [b"key"]])
def test_a_key_counts_towards_the_limit_of_its_record(keys: bytes | list[bytes | None]) -> None:
    fits, too_long = b"x" * (RECORD_BYTES_MAX - 3), b"x" * (RECORD_BYTES_MAX - 2)

    assert slices_of([fits], keys).too_large == []
    assert slices_of([too_long], keys).too_large == [(0, RECORD_BYTES_MAX + 1)]


ALIKE = [b"abc", b"def", b"ghi"]


def test_of_records_that_are_alike_one_length_is_kept() -> None:
    column = Column.of("values", ALIKE)

    assert column.elements == ALIKE
    assert column.lengths == 3
    assert not column.has_none


@pytest.mark.parametrize(
    ("odd", "length"), [(b"", 0), (b"defg", 4), (None, 0)], ids=["empty", "longer", "missing"]
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_that_is_unlike_the_others_is_noticed_wherever_it_stands(
    place: int, odd: bytes | None, length: int
) -> None:
    elements: list[bytes | None] = [*ALIKE]
    elements[place] = odd
    lengths = [3, 3, 3]
    lengths[place] = length

    column = Column.of("values", elements)

    assert column.elements == elements
    assert column.lengths == lengths
    assert column.has_none == (odd is None)


@pytest.mark.parametrize("wrong", ["def", "ZGVm", 5, ["def"]], ids=repr)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_neither_bytes_nor_none_is_refused_wherever_it_stands(
    place: int, wrong: Any
) -> None:
    elements: list[Any] = [*ALIKE]
    elements[place] = wrong

    with pytest.raises(UsageError, match=rf"bytes or None, found {type(wrong).__name__}"):
        Column.of("values", elements)


@pytest.mark.parametrize("like", [bytearray(b"def"), memoryview(b"d_e_f_")[::2]])
def test_what_stands_for_bytes_among_those_that_are_alike_is_copied_before_it_changes(
    like: Any,
) -> None:
    column = Column.of("values", [b"abc", like, b"ghi"])

    assert list(map(type, column.elements)) == [bytes, bytes, bytes]
    assert column.part(1, 2) == [bytes(like)]


@pytest.mark.parametrize("given", [tuple(ALIKE), UserList(ALIKE)], ids=["tuple", "own"])
def test_any_sequence_will_do_and_its_parts_are_lists(given: Elements) -> None:
    assert Column.of("values", given).part(0, 2) == [b"abc", b"def"]


@pytest.mark.parametrize("last", [b"ghi", b"g"], ids=["alike", "unlike"])
def test_those_at_some_positions_keep_their_lengths(last: bytes) -> None:
    chosen = Column.of("values", [b"abc", b"def", last]).at([0, 2])

    assert chosen.elements == [b"abc", last]
    assert list(Slices(chosen, None).bounds(1 * MIB)) == [(0, 2, 2 * 2 + 3 + len(last))]


@pytest.mark.parametrize("values", [["text"], [1], [bytearray(b"x")], b"bytes", "text"])
def test_values_that_are_not_bytes_are_refused(values: Any) -> None:
    with pytest.raises(UsageError, match=r"values must be .*bytes"):
        Column.of("values", values)


@pytest.mark.parametrize("keys", ["text", ["text"], [b"k", 1], bytearray(b"kk"), [bytearray(b"k")]])
def test_keys_that_are_not_bytes_are_refused(keys: Any) -> None:
    with pytest.raises(UsageError, match="keys must be"):
        columns_of([b"a"] * len(keys), keys)


def test_there_is_one_key_per_value() -> None:
    with pytest.raises(UsageError, match="1 keys, 2 values"):
        columns_of([b"a", b"b"], [b"k"])


def test_no_records_are_no_batches() -> None:
    assert list(slices_of([]).bounds(1 * MIB)) == []


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (b"ab", "values must be a sequence of bytes, not bytes"),
        (deque([b"a"]), "values must be a list or a tuple, not deque"),
        ((value for value in [b"a"]), "values must be a list or a tuple, not generator"),
    ],
    ids=["bytes", "deque", "generator"],
)
def test_what_cannot_be_cut_into_parts_is_refused(values: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Column.of("values", values)
