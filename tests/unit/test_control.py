"""Control payloads: exact bytes, and that nothing unknown is skipped."""

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.errors import MalformedBatchError
from logd.record.batch import decode_batch, seal_opaque
from logd.record.control import (
    ConfigurationChange,
    Control,
    NoOp,
    RaiseFence,
    Trim,
    decode_control,
    encode_control,
)
from logd.record.header import BatchKind
from logd.types import NodeId

JOINT = ConfigurationChange(
    voters=(NodeId(1), NodeId(2), NodeId(4)),
    learners=(NodeId(5),),
    voters_outgoing=(NodeId(1), NodeId(2), NodeId(3)),
)


@pytest.mark.parametrize(
    ("control", "fields"),
    [
        (NoOp(), {"type": "no_op"}),
        (
            JOINT,
            {
                "type": "configuration",
                "voters": [1, 2, 4],
                "learners": [5],
                "voters_outgoing": [1, 2, 3],
            },
        ),
        (
            RaiseFence(fence_id=9, fence_token=4711),
            {"type": "raise_fence", "fence_id": 9, "fence_token": 4711},
        ),
        (Trim(start_offset=4711), {"type": "trim", "start_offset": 4711}),
    ],
)
def test_a_control_payload_is_a_map_with_its_type_first(
    control: Control, fields: dict[str, object]
) -> None:
    payload = encode_control(control)

    assert payload == msgpack.packb(fields)
    assert decode_control(payload) == control


def test_a_control_payload_survives_its_batch() -> None:
    sealed = seal_opaque(encode_control(JOINT), kind=BatchKind.CONTROL, timestamp_ms=0)

    (payload,) = decode_batch(sealed).values

    assert payload is not None
    assert decode_control(payload) == JOINT


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"type": "self_destruct"}, "Invalid value 'self_destruct'"),
        ({}, "missing required field `type`"),
        ({"type": "no_op", "new": 1}, "unknown field `new`"),
        ({"type": "configuration"}, "missing required field `voters`"),
        ({"type": "configuration", "voters": []}, "length >= 1"),
        ({"type": "configuration", "voters": [0]}, ">= 1"),
        ({"type": "configuration", "voters": [2**31]}, "<= 2147483647"),
        ({"type": "configuration", "voters": [1] * 1001}, "length <= 1000"),
        ({"type": "raise_fence", "fence_id": 0, "fence_token": 1}, ">= 1"),
        ({"type": "raise_fence", "fence_id": 1, "fence_token": -1}, ">= 0"),
    ],
)
def test_an_unknown_or_impossible_control_payload_is_refused(
    fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(MalformedBatchError, match=reason):
        decode_control(msgpack.packb(fields))


@given(st.binary(max_size=40))
@settings(max_examples=50)
def test_garbage_is_no_control_payload(garbage: bytes) -> None:
    with pytest.raises(MalformedBatchError):
        decode_control(garbage)
