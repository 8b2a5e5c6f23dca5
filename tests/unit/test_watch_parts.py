"""What a watch is told is cut into pushes that fit a frame, and that can be resumed behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, cast

import msgspec
import pytest

from logd.broker.coordination import watches
from logd.broker.coordination.watches import (
    ConnectionWatches,
    PartitionWatches,
    Pushes,
    encode_events,
)
from logd.errors import InvalidRequestError
from logd.limits import FRAME_BYTES_MAX, KEY_BYTES_MAX, KEYS_DELETED_MAX, VALUE_BYTES_MAX
from logd.wire.coordination import Event
from logd.wire.messages import WatchRequest

if TYPE_CHECKING:
    from logd.broker.coordination.partition import CoordinationPartition

DECODER: Final = msgspec.msgpack.Decoder(list[Event])


def event(revision: int, name: bytes = b"k", value: bytes = b"v") -> Event:
    return Event(revision=revision, kind="key", name=name, change="put", value=value)


def test_a_connection_has_so_many_watches_of_which_each_may_be_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watches, "WATCHES_PER_CONNECTION_MAX", 3)
    partition = SimpleNamespace(watches=PartitionWatches(), revision=0)
    held = ConnectionWatches(cast("Pushes", None))

    def request(number: int) -> WatchRequest:
        return WatchRequest(
            watch=number, generation=1, group=1, namespace="n", kind="key", start=b"k"
        )

    for number in (1, 2):
        asked = request(number)
        held.ask(asked)
        held.begin(asked, cast("CoordinationPartition", partition), 0)

    for number in (1, 2, 3, 3, 1):
        held.ask(request(number))
    with pytest.raises(InvalidRequestError, match="3 watches on one connection"):
        held.ask(request(4))


def test_a_few_changes_are_one_push_up_to_what_has_been_applied() -> None:
    events = [event(3), event(3, b"l"), event(5)]

    assert encode_events(events, 9) == [(msgspec.msgpack.encode(events), 9)]


def test_much_is_told_in_pushes_that_end_with_whole_revisions_where_they_can() -> None:
    events = [event(number, value=bytes(VALUE_BYTES_MAX)) for number in range(1, 101)]

    parts = encode_events(events, 100)

    assert len(parts) > 10
    assert [e for body, _ in parts for e in DECODER.decode(body)] == events
    for body, told in parts:
        assert DECODER.decode(body)[-1].revision == told


def test_a_revision_that_fits_no_frame_is_named_with_its_last_part_only() -> None:
    names = [number.to_bytes(KEY_BYTES_MAX, "big") for number in range(KEYS_DELETED_MAX)]
    events = [event(7, name, b"") for name in names]

    parts = encode_events(events, 8)

    assert sum(len(body) for body, _ in parts) > FRAME_BYTES_MAX
    assert all(len(body) < FRAME_BYTES_MAX / 2 for body, _ in parts)
    assert [told for _, told in parts] == [6] * (len(parts) - 1) + [8]
    assert [e for body, _ in parts for e in DECODER.decode(body)] == events
