"""What a log says to itself: the payloads of control batches.

They lie in the log like records, take offsets, and are committed and truncated with it; a
consumer steps over them.  Each is a MessagePack map whose ``type`` names it.  An unknown
type or field is refused, never ignored: a replica that skips what its peers apply would
diverge from them.

Format: segment_format.md, section 4.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from logd.errors import MalformedBatchError
from logd.limits import BROKERS_MAX
from logd.types import NODE_ID_MAX, Buffer, NodeId

_Node = Annotated[NodeId, msgspec.Meta(ge=1, le=NODE_ID_MAX)]
_Nodes = Annotated[tuple[_Node, ...], msgspec.Meta(max_length=BROKERS_MAX)]
_Voters = Annotated[tuple[_Node, ...], msgspec.Meta(min_length=1, max_length=BROKERS_MAX)]
_Natural = Annotated[int, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class _ControlPayload(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True
):
    """A MessagePack map with ``type`` first."""


class NoOp(_ControlPayload, frozen=True, kw_only=True, tag="no_op"):
    """First batch of every term: committing it commits all terms before it."""


class ConfigurationChange(_ControlPayload, frozen=True, kw_only=True, tag="configuration"):
    """Who replicates the group from here on; in force when appended, undone when truncated.

    ``voters_outgoing`` not empty: joint consensus, both sets must agree.
    """

    voters: _Voters
    """In preference order: the first campaigns first."""
    learners: _Nodes = ()
    voters_outgoing: _Nodes = ()


class RaiseFence(_ControlPayload, frozen=True, kw_only=True, tag="raise_fence"):
    """Behind this batch no append lands that carries an older token of this fence."""

    fence_id: _Positive
    fence_token: _Natural


class Trim(_ControlPayload, frozen=True, kw_only=True, tag="trim"):
    """Once this batch is committed, nobody reads below ``start_offset``, which was committed
    before; the segments below it may go."""

    start_offset: _Natural


Control = NoOp | ConfigurationChange | RaiseFence | Trim

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Control]] = msgspec.msgpack.Decoder(Control)


def encode_control(control: Control) -> bytes:
    """The payload of an opaque control batch (``batch.seal_opaque``)."""
    payload = _ENCODER.encode(control)
    # Pair assertion: what a leader appends, every replica must be able to apply.
    assert _DECODER.decode(payload) == control
    return payload


def decode_control(payload: Buffer) -> Control:
    """Decode the payload of a control batch.

    Raises:
        MalformedBatchError: not a control payload that this version knows.
    """
    try:
        return _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBatchError(f"control payload: {error}") from error
