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

from typing import Annotated, Final

import msgspec

from logd.errors import InvalidRequestError, MalformedBatchError
from logd.limits import BROKERS_MAX, FRAME_HEADER_BYTES_MAX, METADATA_COMMAND_BYTES_MAX
from logd.metadata.moves import PlannedMove
from logd.types import DirectoryId, GroupId, NodeId, Offset

# A broker forwards commands to the controller in a frame's header.
assert METADATA_COMMAND_BYTES_MAX < FRAME_HEADER_BYTES_MAX
# A command that names every broker has room for all else that it says.
assert BROKERS_MAX * 5 < METADATA_COMMAND_BYTES_MAX // 2

_Brokers = Annotated[tuple[NodeId, ...], msgspec.Meta(max_length=BROKERS_MAX)]


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
    feature_level: int = 1
    """At which the cluster begins: the highest that its first controller supports."""


class RegisterBroker(MetadataCommand, frozen=True, kw_only=True):
    """A broker has started, perhaps again, and can be reached here.

    The last registration of a node holds.  One that is under way for long, while the broker was
    started again, must not be the last: so each names the one that its sender knew to hold.
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
    instead_of: int | None = None
    """The incarnation of the registration that holds, 0 if there is none.  Refused if it is another
    one by now.  None: below feature level 8."""


class CreateTopic(MetadataCommand, frozen=True, kw_only=True):
    name: str
    partitions: int
    replicas: int | None = None
    """None: min(3, brokers registered when the command is applied)."""
    config: dict[str, str] = {}
    now_ms: int
    avoid: _Brokers = ()
    """Brokers that the controller held to be down when it proposed this: they get replicas only if
    there are too few others."""


class CreateInternalTopic(MetadataCommand, frozen=True, kw_only=True):
    """A topic of logd's own, which users neither create nor delete."""

    name: str
    partitions: int
    config: dict[str, str] = {}
    now_ms: int
    avoid: _Brokers = ()
    """As in ``CreateTopic``."""


class DeleteTopic(MetadataCommand, frozen=True, kw_only=True):
    name: str
    now_ms: int | None = None
    """None: not known, as in logs of before feature level 6.  A plan may end with this."""


class AlterTopic(MetadataCommand, frozen=True, kw_only=True):
    name: str
    config: dict[str, str | None]
    """Options to set; None resets one to its default."""


class AllocateProducerIds(MetadataCommand, frozen=True, kw_only=True):
    """Gives ``node`` producer ids to hand out; what it does not use is never used."""

    node: NodeId
    count: int


class AddPartitions(MetadataCommand, frozen=True, kw_only=True):
    """Gives a topic more partitions.  Keys may go to other ones than before."""

    name: str
    partitions: int
    """How many it shall have."""
    avoid: _Brokers = ()
    """As in ``CreateTopic``."""
    replicas: int | None = None
    """Of each new one, as the controller found it right when it proposed this; None: as many as
    partition 0 has."""


class DrainBroker(MetadataCommand, frozen=True, kw_only=True):
    """Nothing more is placed on ``node``, and what it holds is to go."""

    node: NodeId


class ResumeBroker(MetadataCommand, frozen=True, kw_only=True):
    """Takes ``DrainBroker`` back; what has left does not return by itself."""

    node: NodeId


class RemoveBroker(MetadataCommand, frozen=True, kw_only=True):
    """``node`` is no member any more, for ever.  It must hold nothing."""

    node: NodeId
    now_ms: int


class StartPlan(MetadataCommand, frozen=True, kw_only=True):
    """Moves [first, first + len(moves)) of a plan; it runs once all have arrived."""

    token: str
    purpose: str
    layout_version: int
    """The plan was made for this layout and is refused for another."""
    move_count: int
    first: int = 0
    moves: tuple[PlannedMove, ...]
    now_ms: int


class CancelPlan(MetadataCommand, frozen=True, kw_only=True):
    """No more moves of the plan are begun, and those under way are taken back."""

    plan_id: int
    now_ms: int


class BeginMove(MetadataCommand, frozen=True, kw_only=True):
    """The replicas of ``group`` shall be ``target``, and its leader is to see to it."""

    group: GroupId
    before: tuple[NodeId, ...]
    """Refused if they are others by now."""
    target: tuple[NodeId, ...]
    reason: str
    plan_id: int | None = None
    now_ms: int


class CancelMove(MetadataCommand, frozen=True, kw_only=True):
    """The move of ``group`` is taken back, if it has not arrived."""

    group: GroupId
    plan_id: int | None = None
    """None: a move that is under way, of whatever plan.  Else only one of this plan, which need not
    have begun, and which no drain begins again by itself."""
    now_ms: int = 0
    """Where a plan is named: it may end with this."""
    begun_at: Offset | None = None
    """Where no plan is named: which move is meant, as in ``FinishMove``.  None: below feature
    level 8, whichever is under way."""


class FinishMove(MetadataCommand, frozen=True, kw_only=True):
    """By a leader: the members of ``group`` are ``replicas`` now, committed in its own log."""

    group: GroupId
    replicas: tuple[NodeId, ...]
    now_ms: int
    begun_at: Offset | None = None
    """Which move that ends.  It may be told late, by a leader that was deposed since, when others
    have gone the same way.  None: below feature level 7."""


class SkipMove(MetadataCommand, frozen=True, kw_only=True):
    """By the controller: a move of the plan cannot be begun (any more)."""

    plan_id: int
    group: GroupId
    now_ms: int
    is_begun: bool = False
    """It is under way, and was cancelled; nobody leads its partition, who could take it back."""


class RaiseFeatureLevel(MetadataCommand, frozen=True, kw_only=True):
    """All brokers run a version that supports ``level``: what came with it may be used."""

    level: int


class ReplicasRetired(MetadataCommand, frozen=True, kw_only=True):
    """By ``node``: its copies of these groups, which have moved away, are in the trash."""

    node: NodeId
    groups: tuple[GroupId, ...]
    as_of: Offset | None = None
    """The version of the metadata by which it looked: what has left it since is not meant.  None:
    below feature level 7."""


class SetRebalancing(MetadataCommand, frozen=True, kw_only=True):
    """Changes the settings that are given."""

    throttle_bytes_per_s: int | None = None
    concurrency: int | None = None
    is_autonomous: bool | None = None


MovingCommand = (
    DrainBroker
    | ResumeBroker
    | RemoveBroker
    | StartPlan
    | CancelPlan
    | BeginMove
    | CancelMove
    | FinishMove
    | SkipMove
    | ReplicasRetired
    | SetRebalancing
)
"""Those that bring replicas from one broker to another (``moving.py``)."""

Command = (
    FormCluster
    | RegisterBroker
    | CreateTopic
    | CreateInternalTopic
    | DeleteTopic
    | AlterTopic
    | AllocateProducerIds
    | AddPartitions
    | RaiseFeatureLevel
    | MovingCommand
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
    if len(encoded) > METADATA_COMMAND_BYTES_MAX:
        raise InvalidRequestError(
            f"{type(command).__name__} takes {len(encoded)} bytes, "
            f"at most {METADATA_COMMAND_BYTES_MAX} are allowed"
        )
    return encoded


def decode_command(encoded: bytes | bytearray | memoryview) -> Command:
    """Read a command out of the log, or out of what another broker forwards.

    Raises:
        MalformedBatchError: the bytes are not a command that this version knows.
    """
    if len(encoded) > METADATA_COMMAND_BYTES_MAX:
        raise MalformedBatchError(
            f"metadata command of {len(encoded)} bytes, "
            f"at most {METADATA_COMMAND_BYTES_MAX} are allowed"
        )
    try:
        return _DECODER.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBatchError(f"not a metadata command: {error}") from error
