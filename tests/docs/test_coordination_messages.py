"""docs/coordination_messages.md cannot drift: its tables are compared with the code."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from logd import limits
from logd.coordination import checks, names
from logd.metadata.features import CHANGED_OPTIONS_LEVEL, UNCOUNTED_LEVEL
from logd.wire import coordination
from logd.wire.coordination import Answer, Command, Operation, Query, Result
from tests.docs.test_wire_protocol import default_name, type_name

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "coordination_messages.md"
UNIONS: Final = (("c", Command), ("o", Operation), ("r", Result), ("q", Query), ("r", Answer))
OF_EVERY: Final = "revision"
"""Of each result and each answer: said in words."""
IN_THE_LOG: Final = "Entry"
"""Never sent."""
TOLD_ELSEWHERE: Final = {"SESSION_TTL_MS_MIN", "SESSION_TTL_MS_MAX", "NUMBER_MAX"}
"""With the one field that each bounds; the last with Increment, as what 64 bits hold."""


def tables() -> Iterator[list[tuple[str, ...]]]:
    """Each table of the page, its headings first."""
    for table in re.findall(r"(?:^\|.*\n)+", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE):
        lines = [line for line in table.splitlines() if not line.startswith("|---")]
        yield [tuple(cell.strip() for cell in line[1:-1].split("|")) for line in lines]


def kind_of_tag(cls: type[msgspec.Struct]) -> str | None:
    return cls.__struct_config__.tag_field


MESSAGES: Final = {
    name: cls
    for name, cls in vars(coordination).items()
    if isinstance(cls, type)
    and issubclass(cls, msgspec.Struct)
    and not name.startswith("_")
    and name != IN_THE_LOG
}


def word(annotation: Any) -> str:
    """A field's type as the page writes it."""
    if annotation == list[Operation]:
        return "array of Operation"
    if typing.get_origin(annotation) is list:
        return f"array of {word(typing.get_args(annotation)[0])}"
    return annotation.__name__ if annotation in MESSAGES.values() else type_name(annotation)


@pytest.mark.parametrize("name", MESSAGES)
def test_the_fields_of_each_message_are_those_of_the_code(name: str) -> None:
    found = [
        row[1:4] for first, *rows in tables() if first[0] == "of" for row in rows if row[0] == name
    ]

    cls = MESSAGES[name]
    assert found == [
        (field.encode_name, word(field.type), default_name(field))
        for field in msgspec.structs.fields(cls)
        if not (kind_of_tag(cls) == "r" and field.name == OF_EVERY)
    ]


def test_the_feature_levels_of_fields_are_those_of_the_code() -> None:
    found = {
        (row[0], row[1]): int(level[1])
        for first, *rows in tables()
        if first[0] == "of"
        for row in rows
        if (level := re.search(r"feature level (\d+)", row[-1]))
    }

    assert found == {
        ("ReleaseItems", "uncounted"): UNCOUNTED_LEVEL,
        ("ConfigureQueue", "changed"): CHANGED_OPTIONS_LEVEL,
    }


def test_the_tags_are_those_of_the_code() -> None:
    found = {
        (first[0], row[0], row[1])
        for first, *rows in tables()
        if first[0] in {tag for tag, _ in UNIONS}
        for row in rows
    }

    assert found == {
        (tag, str(cls.__struct_config__.tag), cls.__name__)
        for tag, union in UNIONS
        for cls in typing.get_args(union)
    }
    assert all(kind_of_tag(cls) == tag for tag, union in UNIONS for cls in typing.get_args(union))


def test_each_message_that_has_a_tag_can_be_sent() -> None:
    tagged = {cls for cls in MESSAGES.values() if kind_of_tag(cls) is not None}

    assert tagged == {cls for _, union in UNIONS for cls in typing.get_args(union)}


def test_the_limits_are_those_of_the_code() -> None:
    found = [row for first, *rows in tables() if first[0] == "limit" for row in rows]

    assert found
    for name, value, _ in found:
        assert value == f"{getattr(limits, name.strip('`')):,}", name


def test_each_limit_that_a_command_is_checked_against_is_told() -> None:
    told = {row[0].strip("`") for first, *rows in tables() if first[0] == "limit" for row in rows}
    bounds = {
        name
        for module in (checks, names)
        for name, value in vars(module).items()
        if name.endswith(("_MAX", "_MIN")) and getattr(limits, name, None) == value
    }

    assert bounds - told <= TOLD_ELSEWHERE


def test_the_example_is_a_command() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    (shown,) = re.findall(r"For example.*?`(\{.*?\})`", document, re.DOTALL)
    fields = eval(shown, {"k": b"key", "v": b"value"})

    msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Command, strict=True)
