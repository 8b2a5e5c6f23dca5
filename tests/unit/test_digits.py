"""Numbers in names: what is written is read, sorts as the number does, and nothing else is one."""

from __future__ import annotations

import pytest

from logd.limits import OFFSET_MAX
from logd.storage.digits import number_of, twenty_digits


def test_names_sort_as_their_numbers_do() -> None:
    numbers = [0, 9, 10, 2**32, OFFSET_MAX]

    names = [twenty_digits(number) for number in numbers]

    assert sorted(names) == names
    assert [number_of(name) for name in names] == numbers


@pytest.mark.parametrize(
    "name", ["", "0" * 19, "0" * 21, "-" + "0" * 19, "0" * 19 + " ", "0" * 19 + "x", "٣" * 20]
)
def test_what_is_not_twenty_digits_is_no_number(name: str) -> None:
    assert number_of(name) is None
