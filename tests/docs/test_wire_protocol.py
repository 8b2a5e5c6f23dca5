"""docs/wire_protocol.md cannot drift: its tables are compared with the code."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import pytest

from logd import limits
from logd.broker.session import ERROR_DETAILS
from logd.errors import ERROR_BY_CODE
from logd.metadata.features import KEEPING_LEVEL, ONE_MOVE_LEVEL
from logd.wire import messages
from logd.wire.coordination import DEFAULT_NAMESPACE, fence_id_of, partition_of
from logd.wire.frame import (
    FLAG_ERROR,
    FLAG_LONG,
    FLAG_PUSH,
    FLAG_RESPONSE,
    FrameDecoder,
    decode_message,
    encode_message,
)
from logd.wire.messages import REQUEST_BY_KIND, RESPONSE_BY_KIND, HelloRequest, Kind, Message
from logd_client.partitioner import partition_for_key

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "wire_protocol.md"

MESSAGES: Final = tuple(
    found
    for found in vars(messages).values()
    if isinstance(found, type) and issubclass(found, Message) and found is not Message
)


def section(title: str) -> str:
    """The text under a heading, up to the next heading of that level or above."""
    level = title.split()[0]
    document = DOCUMENT.read_text(encoding="utf-8")
    assert document.count(f"\n{title}\n") == 1, f"one heading {title!r} is expected"
    behind = document.split(f"\n{title}\n")[1]
    return re.split(rf"\n#{{1,{len(level)}}} ", behind)[0]


def rows(text: str) -> list[tuple[str, ...]]:
    """Cells of the first table of ``text``, without its headings."""
    table = re.search(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    lines = table[0].splitlines() if table else []
    return [tuple(cell.strip() for cell in line[1:-1].split("|")) for line in lines[2:]]


def type_name(annotation: Any) -> str:
    """A field's type as the page writes it: MessagePack's words."""
    words: dict[Any, str] = {
        int: "int",
        float: "float",
        str: "str",
        bytes: "bin",
        bool: "bool",
        types.NoneType: "nil",
    }
    if annotation in words:
        return words[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Message):
        return annotation.__name__
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"array of {type_name(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(type_name, arguments))}]"
    if origin is dict:
        return f"map of {type_name(arguments[0])} to {type_name(arguments[1])}"
    assert origin in (types.UnionType, typing.Union), f"no word for {annotation}"
    return " or ".join(map(type_name, arguments))


def default_name(field: msgspec.structs.FieldInfo) -> str:
    """A field's default as the page writes it."""
    if field.required:
        return "required"
    if field.default is msgspec.NODEFAULT:
        return "empty"
    words = {None: "nil", True: "true", False: "false", "": "empty", b"": "empty"}
    if isinstance(field.default, (str, bytes, bool, types.NoneType)) and field.default in words:
        return words[field.default]
    return str(field.default)


def test_the_kinds_are_those_of_the_code() -> None:
    found = {(number, name, request, answer) for number, name, request, answer, *_ in kinds()}

    assert found == {
        (
            str(int(kind)),
            kind.name,
            REQUEST_BY_KIND[kind].__name__ if kind in REQUEST_BY_KIND else "—",
            RESPONSE_BY_KIND[kind].__name__ if kind in RESPONSE_BY_KIND else "—",
        )
        for kind in Kind
    }


def kinds() -> list[tuple[str, ...]]:
    return rows(section("## 4. Kinds"))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda cls: cls.__name__)
def test_the_fields_of_each_message_are_those_of_the_code(message: type[Message]) -> None:
    found = [row[:3] for row in rows(section(f"#### {message.__name__}"))]

    assert found == [
        (field.encode_name, type_name(field.type), default_name(field))
        for field in msgspec.structs.fields(message)
    ]


def test_the_errors_are_those_of_the_code() -> None:
    found = {row[:4] for row in rows(section("### Error codes"))}

    assert found == {
        (
            str(code),
            error.__name__.removesuffix("Error"),
            "yes" if error.retriable else "no",
            "maybe" if error.may_have_applied else "no",
        )
        for code, error in ERROR_BY_CODE.items()
    }


def test_the_details_of_an_error_are_those_of_the_code() -> None:
    fields = rows(section("#### ErrorResponse"))
    (meaning,) = [meaning for name, _, _, meaning in fields if name == "details"]

    assert tuple(re.findall(r"`(\w+)`", meaning)) == ERROR_DETAILS


def test_the_feature_levels_of_cancelling_one_move_are_those_of_the_code() -> None:
    levels = re.findall(r"feature level (\d+)", " ".join(section("#### CancelMoveRequest").split()))

    assert levels == [str(ONE_MOVE_LEVEL), str(KEEPING_LEVEL)]


def test_the_limits_are_those_of_the_code() -> None:
    for name, value, *_ in rows(section("## 9. Limits")):
        limit = getattr(limits, name.strip("`"))
        assert f"{limit:,}" == value, name


def test_the_flags_are_those_of_the_code() -> None:
    found = {(name, value) for value, name, *_ in rows(section("### Flags"))}

    assert found == {
        ("RESPONSE", str(FLAG_RESPONSE)),
        ("ERROR", str(FLAG_ERROR)),
        ("PUSH", str(FLAG_PUSH)),
        ("LONG", str(FLAG_LONG)),
    }


def test_the_frame_table_adds_up_to_the_prefix() -> None:
    sizes = [int(size) for _, size, *_ in rows(section("## 2. Frames")) if size.isdigit()]

    assert sum(sizes[:5]) == limits.FRAME_PREFIX_BYTES


def test_the_example_frame_is_what_the_code_writes_and_reads() -> None:
    (dump,) = re.findall(r"```\n([0-9a-f \n]+)```", section("### Example"))
    example = bytes.fromhex(dump)
    hello = HelloRequest(client="x/1")

    decoder = FrameDecoder(limits.FRAME_UNAUTHENTICATED_BYTES_MAX)
    decoder.feed(example)
    frame = decoder.next_frame()

    assert example == encode_message(Kind.HELLO, hello, correlation_id=1)
    assert frame is not None
    assert (frame.kind, frame.correlation_id) == (Kind.HELLO, 1)
    assert decode_message(HelloRequest, frame.header) == hello


def test_the_partition_of_the_example_key_is_that_of_the_code() -> None:
    key, partition, last = re.findall(
        r"the key `(\w+)` goes to partition (\d+) of 0 to (\d+)", section("## 6. Producing")
    )[0]

    assert partition_for_key(key.encode(), int(last) + 1) == int(partition)


def test_the_namespaces_of_the_examples_live_where_the_code_looks_for_them() -> None:
    text = " ".join(section("## 12. Coordination").split())
    named, its_partition, count, default, default_partition = re.findall(
        r"the namespace `(\w+)` in (\d+) of (\d+), `(\w+)` in (\d+)\)", text
    )[0]

    assert partition_of(named, int(count)) == int(its_partition)
    assert partition_of(default, int(count)) == int(default_partition)
    assert default == DEFAULT_NAMESPACE


def test_the_fence_id_of_the_example_is_that_of_the_code() -> None:
    namespace, kind, name, fence_id = re.findall(
        r"`(\w+)/(\w+)/(\w+)`: (\d+)", section("## 12. Coordination")
    )[0]

    assert fence_id_of(namespace, kind, name) == int(fence_id)
