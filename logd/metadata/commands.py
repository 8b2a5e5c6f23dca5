"""What can be asked of the metadata log.

A command is one opaque record of group 0.  Every broker applies the same commands in the
same order, for ever: after a restart an old command is applied by newer code.  Hence

* a command carries its time and everything else that is not in the state already;
* fields are only added, with a default that means what their absence used to mean;
* a command with a tag or field that this version does not know is refused, not guessed at:
  a broker that skipped it would hold another state than its peers.

The bytes are MessagePack: a map with the command's name under ``command``.
"""

from __future__ import annotations

from typing import Final

import msgspec

from logd.errors import InvalidRequestError, MalformedBatchError
from logd.limits import FRAME_HEADER_BYTES_MAX, KIB
from logd.types import DirectoryId, NodeId

COMMAND_BYTES_MAX: Final = 32 * KIB
"""Bounds what one request can make every broker keep."""

# A broker forwards commands to the controller in a frame's header.
assert COMMAND_BYTES_MAX < FRAME_HEADER_BYTES_MAX


class MetadataCommand(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="command",
    tag=True,
):
    """One change of the cluster's metadata.  The class name is the tag: never rename one."""


class FormCluster(MetadataCommand, frozen=True, kw_only=True):
    """The first command of a cluster's life: who it is and whose disks are its first voters."""

    cluster_id: str
    voters: dict[NodeId, DirectoryId]


class RegisterBroker(MetadataCommand, frozen=True, kw_only=True):
    """A broker has started, perhaps again, and can be reached here.

    The last registration of a node holds; ``incarnation`` tells two of them apart and is
    not compared.
    """

    node: NodeId
    directory_id: DirectoryId
    incarnation: int
    host: str
    port: int
    peer_host: str
    peer_port: int
    failure_domain: str = ""
    rack: str = ""
    version: str = ""
    features: dict[str, int] = {}


class CreateTopic(MetadataCommand, frozen=True, kw_only=True):
    name: str
    partitions: int
    replicas: int | None = None
    """None: min(3, brokers registered when the command is applied)."""
    config: dict[str, str] = {}
    now_ms: int


class DeleteTopic(MetadataCommand, frozen=True, kw_only=True):
    name: str


class AlterTopic(MetadataCommand, frozen=True, kw_only=True):
    name: str
    config: dict[str, str | None]
    """Options to set; None resets one to its default."""


class AllocateProducerIds(MetadataCommand, frozen=True, kw_only=True):
    """Gives ``node`` producer ids to hand out; what it does not use is never used."""

    node: NodeId
    count: int


Command = (
    FormCluster | RegisterBroker | CreateTopic | DeleteTopic | AlterTopic | AllocateProducerIds
)

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Command]] = msgspec.msgpack.Decoder(Command)


def encode_command(command: Command) -> bytes:
    """The record that goes into the metadata log.

    Raises:
        InvalidRequestError: the command is too large (names and options come from outside).
    """
    try:
        encoded = _ENCODER.encode(command)
    except (UnicodeEncodeError, OverflowError) as error:
        raise InvalidRequestError(f"{type(command).__name__} cannot be stored: {error}") from error
    if len(encoded) > COMMAND_BYTES_MAX:
        raise InvalidRequestError(
            f"{type(command).__name__} takes {len(encoded)} bytes, "
            f"at most {COMMAND_BYTES_MAX} are allowed"
        )
    return encoded


def decode_command(encoded: bytes | bytearray | memoryview) -> Command:
    """Read a command out of the log, or out of what another broker forwards.

    Raises:
        MalformedBatchError: the bytes are not a command that this version knows.
    """
    if len(encoded) > COMMAND_BYTES_MAX:
        raise MalformedBatchError(
            f"metadata command of {len(encoded)} bytes, at most {COMMAND_BYTES_MAX} are allowed"
        )
    try:
        return _DECODER.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBatchError(f"not a metadata command: {error}") from error
