"""The first inputs of each target: small valid ones to mutate, and nasty ones that once
broke somebody's decoder.  ``python -m tests.fuzz seeds`` writes them into the corpus."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import msgspec
import zstandard

from logd.limits import FRAME_BYTES_MAX, KIB, MIB
from logd.metadata.commands import (
    AddPartitions,
    AllocateProducerIds,
    AlterTopic,
    CancelMove,
    Command,
    CreateTopic,
    DeleteTopic,
    FormCluster,
    encode_command,
)
from logd.partition.state import PartitionState
from logd.raft.messages import AppendRequest, AppendResponse, VoteRequest
from logd.record.batch import seal_batch, seal_opaque
from logd.record.control import ConfigurationChange, NoOp, RaiseFence, encode_control
from logd.record.header import BatchKind, Codec, decode_header
from logd.replication.peer_protocol import Claims, ClusterView, Forward, PeerHello
from logd.storage.checkpoint import CheckpointStore
from logd.storage.directory import DataDirectory
from logd.storage.hard_state import HardStateFile
from logd.storage.log import Log
from logd.types import DirectoryId, GroupId, NodeId, Offset, Term
from logd.wire.frame import FLAG_LONG, encode_message, frame_prefix
from logd.wire.messages import (
    HelloRequest,
    Kind,
    MetadataRequest,
    MetadataResponse,
    ProduceRequest,
    SubscribeRequest,
)
from tests.fuzz.targets import (
    CHECKPOINT,
    CLIENT_MESSAGES,
    DATA,
    HARD_STATE,
    LOG_OPTIONS,
    PEER_MESSAGES,
    SEGMENT,
    disk_of,
    index_input,
    indexed_log,
    some_metadata,
)
from tests.support.logs import DIRECTORY, IDENTITY, append_some, batch_bytes, make_batch

CORPUS: Final = Path(__file__).parent / "corpus"

_DEEP: Final = b"\x91" * 5000
"""MessagePack arrays of one, each in the next."""
_HUGE_ARRAY: Final = b"\xdd\xff\xff\xff\xff"
_HUGE_MAP: Final = b"\xdf\xff\xff\xff\xff"
_MANY_EMPTY: Final = b"\xdc\xff\xf0" + b"\x80" * 0xFFF0
_DIGITS: Final = b"9" * 5000
"""More than ``int`` reads."""

_MSGPACK_NASTY: Final = {
    "deep": _DEEP,
    "huge-array": _HUGE_ARRAY,
    "huge-map": _HUGE_MAP,
    "not-utf8": b"\x81\xa2\xff\xfe\x01",
    "reserved": b"\xc1",
    "nothing": b"",
}


def write_corpus() -> None:
    """Write what is missing; inputs that were found later stay."""
    for target, inputs in make_seeds().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / f"{name}.bin").write_bytes(data)


def make_seeds() -> dict[str, dict[str, bytes]]:
    """Target → name → input."""
    sealed = _batches()
    segment = _segment()
    payloads = _payload_files()
    indexed = indexed_log()
    offset_rows = indexed.content(SEGMENT + ".index")
    time_rows = indexed.content(SEGMENT + ".timeindex")
    seeds: dict[str, dict[str, bytes]] = {
        "frame_decoder": _frames(),
        "client_message": _client_messages(),
        "peer_message": _peer_messages(),
        "batch_header": {
            "valid": batch_bytes(make_batch(0)),
            "short": bytes(127),
            "zero": bytes(128),
        },
        "batches": {
            "three": b"".join(batch_bytes(make_batch(n)) for n in range(3)),
            "cut": b"".join(batch_bytes(make_batch(n)) for n in range(3))[:-5],
        },
        "append_body_resealed": {
            "four": b"".join(batch_bytes(make_batch(n)) for n in range(4)),
            "one-of-four": batch_bytes(make_batch(0, records=4)),
            "empty": b"",
        },
        "batch": sealed,
        "batch_resealed": sealed,
        "columns": {
            "valid": sealed["records"][128:],
            "headers": sealed["headers"][128:],
            **_MSGPACK_NASTY,
        },
        "batch_payload": _batch_payloads(sealed),
        "control": {
            "no-op": encode_control(NoOp()),
            "configuration": encode_control(
                ConfigurationChange(voters=(NodeId(1), NodeId(2)), learners=(NodeId(3),))
            ),
            "fence": encode_control(RaiseFence(fence_id=7, fence_token=9)),
            **_MSGPACK_NASTY,
        },
        "metadata_command": _commands(),
        "metadata_snapshot": _snapshots(),
        "partition_checkpoint": {
            "valid": _partition_checkpoint(),
            "magic": b"logd partition \x01\0",
        },
        "log_open": segment,
        "log_open_resealed": segment,
        "segment_indexes": {
            "valid": index_input(offset_rows, time_rows),
            "no-times": index_input(offset_rows, b""),
            "swapped": index_input(time_rows, offset_rows),
        },
        "hard_state": {"valid": payloads["hard_state"]},
        "hard_state_resealed": {"valid": payloads["hard_state"]},
        "checkpoint_file": {"valid": payloads["checkpoint"]},
        "checkpoint_file_resealed": {"valid": payloads["checkpoint"]},
        "directory_meta": {"valid": payloads["meta"]},
        "directory_meta_resealed": {
            "valid": payloads["meta"],
            "directory-not-ascii": payloads["meta"].replace(b"drawn\0", b"dr\xe4wn\0", 1),
            "directory-empty": payloads["meta"].replace(b"drawn\0", bytes(6), 1),
        },
        "config_toml": {
            "valid": b'node_id = 1\ndata_dir = "/d"\nlisten = "h:7171"\n[cluster]\n1 = "h:1"\n',
            "long-integer": b"node_id = " + _DIGITS,
            "deep": b"node_id = " + b"[" * 5000,
            "deep-table": b"[" + b"a." * 3000 + b"a]\n",
            "not-utf8": b'node_id = 1\ndata_dir = "\xff\xfe"\n',
            "infinite": b"segment_bytes = inf\n",
            "negative": b'node_id = -1\ndata_dir = "d"\n',
            "large": b'node_id = 99999999999999999999\ndata_dir = "d"\n',
            "date": b"node_id = 2026-99-99\n",
            "zero-byte": b'node_id = 1\ndata_dir = "a\\u0000b"\n',
        },
        "host_port": {
            "name": b"broker-1.example:7171",
            "ipv6": b"[::1]:7171",
            "zone": b"[fe80::1%eth0]:7171",
            "long-port": b"h:" + _DIGITS,
            "long-host": b"h" * 70_000 + b":1",
        },
        "cluster_list": {
            "three": b"1=a:1,2=b:2,3=c:3",
            "twice": b"1=a:1,1=b:1",
            "long-id": _DIGITS + b"=a:1",
            "commas": b"," * 10_000,
        },
        "bootstrap_list": {
            "three": b"a:1, b:2,[::1]:3",
            "long-port": b"a:" + _DIGITS,
            "brackets": b"[]:1,[[:1",
            "commas": b"," * 10_000,
        },
        "consume_from": {
            "start": b"start",
            "offset": b"123456",
            "age": b"-15m",
            "time": b"2026-01-31T12:00:00Z",
            "first-day": b"0001-01-01T00:00:00+23:59",
            "last-day": b"9999-12-31T23:59:59-23:59",
            "long-age": b"-" + _DIGITS + b"d",
            "long-offset": _DIGITS,
            "other-digits": "-\u0661\u0665m".encode(),
        },
        "topic_options": {
            "valid": b"durability=synced\nfence=none\nsegment_bytes=65536\n",
            "long-integer": b"segment_bytes=" + _DIGITS,
            "other-digits": "segment_bytes=\u0661\u0665".encode(),
            "superscript": "segment_bytes=\u00b2".encode(),
        },
    }
    return seeds


def _frames() -> dict[str, bytes]:
    hello = encode_message(Kind.HELLO, HelloRequest(client="c"), 1)
    metadata = encode_message(Kind.METADATA, MetadataRequest(topics=["a"]), 2)
    produce = frame_prefix(Kind.PRODUCE, 0, b"\x80", 3, body_bytes=300) + bytes(300)
    inputs = {
        "frames": hello + metadata + produce,
        "long-message": frame_prefix(2, FLAG_LONG, b"", 1, body_bytes=2) + b"\x80\x80",
        "long-with-header": frame_prefix(2, FLAG_LONG, b"\x80", 1),
        "shorter-than-itself": b"\0\0\0\x03\x01\0\0\0\0\0\0\x01",
        "length-zero": bytes(12),
        "largest": (FRAME_BYTES_MAX - 4).to_bytes(4, "big") + b"\x03\0\0\0\0\0\0\x01" + bytes(900),
        "too-large": b"\xff\xff\xff\xff" + bytes(8),
        "http": b"GET / HTTP/1.1\r\n\r\n",
        "tls": b"\x16\x03\x01\x00\xc8",
        "half": hello[:7],
    }
    return {
        f"{name}-{choice}": bytes([choice]) + data
        for name, data in inputs.items()
        for choice in (0, 3)
    }


def _message_input(types: tuple[type[msgspec.Struct], ...], message: msgspec.Struct) -> bytes:
    return bytes([types.index(type(message))]) + msgspec.msgpack.encode(message)


def _client_messages() -> dict[str, bytes]:
    valid = (
        HelloRequest(client="c", cluster_id="x"),
        MetadataRequest(topics=["a", "b"]),
        MetadataResponse(cluster_id="x", controller=1, brokers=[], topics=[]),
        ProduceRequest(group=1, timeout_ms=1000),
        SubscribeRequest(subscription=1, generation=1, group=1, credit_bytes=1000),
    )
    found = {type(each).__name__: _message_input(CLIENT_MESSAGES, each) for each in valid}
    request = bytes([CLIENT_MESSAGES.index(MetadataRequest)])
    found["empty-strings"] = request + b"\x81\xa6topics\xdc\xf0\x00" + b"\xa0" * 0xF000
    found["unknown-deep"] = request + b"\x81\xa1x" + _DEEP
    found["unknown-empty-maps"] = request + b"\x81\xa1x" + _MANY_EMPTY[:60_000]
    for number in range(len(CLIENT_MESSAGES)):
        found[f"no-fields-{number:02}"] = bytes([number]) + b"\x80"
    return found | {name: request + data for name, data in _MSGPACK_NASTY.items()}


def _peer_messages() -> dict[str, bytes]:
    view = ClusterView(node=1, directory_id="d", cluster_list="1=a:1", members={1: "d"})
    parties = {"group": GroupId(1), "source": NodeId(1), "target": NodeId(2), "term": Term(3)}
    told = parties | {"enrolment": 0}
    valid: tuple[msgspec.Struct, ...] = (
        PeerHello(protocol=1, view=view, incarnation=1),
        Claims(groups=[(1, 2), (3, 4)]),
        Forward(request_id=1, command=b"x", timeout_ms=5),
        msgspec.convert(parties | {"last_term": 1, "end_offset": 5}, VoteRequest),
        msgspec.convert(
            told
            | {"start_offset": 0, "end_offset": 5, "prev_term": 0, "commit_offset": 0, "round": 1},
            AppendRequest,
        ),
        msgspec.convert(told | {"round": 1, "accepted": True}, AppendResponse),
    )
    found = {type(each).__name__: _message_input(PEER_MESSAGES, each) for each in valid}
    claims = bytes([PEER_MESSAGES.index(Claims)])
    found["many-claims"] = claims + b"\x81\xa6groups\xdc\x50\x00" + b"\x92\x01\x02" * 0x5000
    return found | {name: claims + data for name, data in _MSGPACK_NASTY.items()}


def _batches() -> dict[str, bytes]:
    return {
        "records": bytes(
            seal_batch(values=[b"a", b"bc", None], keys=[b"k", None, b""], timestamps_ms=[0, 5, 9])
        ),
        "headers": bytes(
            seal_batch(
                values=[b"a", b"b"],
                headers=[(("x", b"1"),), (("y", b"2"), ("y", b""))],
                timestamps_ms=0,
            )
        ),
        "zstd": bytes(seal_batch(values=[bytes(500)] * 3, timestamps_ms=0, codec=Codec.ZSTD)),
        "opaque": bytes(seal_opaque(b"\x80", kind=BatchKind.CONTROL, timestamp_ms=0)),
    }


def _batch_payloads(sealed: dict[str, bytes]) -> dict[str, bytes]:
    """Flags, record count - 1, payload: see the target."""

    def choose(flags: int, records: int, payload: bytes) -> bytes:
        return bytes([flags]) + struct.pack("<H", records - 1) + payload

    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(16 * MIB))
    unsized = zstandard.ZstdCompressor(level=3, write_content_size=False).compress(bytes(4 * KIB))
    lying = bytearray(zstandard.ZstdCompressor().compress(bytes(70_000)))
    lying[5] ^= 0x40
    inner = b"\x95\xc0\xc0\xdd\x00\x01\x00\x00" + b"\xc0" * 65_536 + b"\xc0\xc0"
    empty = b"\x95\xc0\xc0" + _MANY_EMPTY
    amplified = zstandard.ZstdCompressor(level=19).compress(b"\x91" * (16 * MIB))
    return {
        "records": choose(4, 3, sealed["records"][128:]),
        "headers": choose(0, 2, sealed["headers"][128:]),
        "zstd": choose(1, 3, sealed["zstd"][128:]),
        "constant-values": choose(0, 65_536, b"\x95\xc0\xc0\xc4\x01x\xc0\xc0"),
        "constant-headers": choose(
            0, 65_536, b"\x95\xc0\xc0\xc0\x93\xc0\x91\xa1x\x91\xc4\x01y\xc0"
        ),
        "compacted": choose(2, 2, b"\x95\xc0\xc0\xc4\x01x\xc0\x92\x00\x04"),
        "compacted-backwards": choose(2, 2, b"\x95\xc0\xc0\xc4\x01x\xc0\x92\x04\x00"),
        "huge-deltas": choose(4, 1, b"\x95\x91\xcf" + b"\xff" * 8 + b"\xc0\xc4\x01x\xc0\xc0"),
        "negative-counts": choose(
            0, 2, b"\x95\xc0\xc0\xc0\x93\x92\xff\x02\x91\xa1x\x91\xc4\x01y\xc0"
        ),
        "most-records": choose(1, 65_536, zstandard.ZstdCompressor().compress(inner)),
        "bomb": choose(1, 1, bomb),
        "bomb-of-arrays": choose(1, 1, amplified),
        "zstd-without-size": choose(1, 1, unsized),
        "zstd-lying-size": choose(1, 1, bytes(lying)),
        "empty-maps": choose(0, 1, empty[:65_000]),
    } | {name: choose(0, 1, data) for name, data in _MSGPACK_NASTY.items()}


def _commands() -> dict[str, bytes]:
    commands: dict[str, Command] = {
        "form": FormCluster(cluster_id="c", voters={NodeId(1): DirectoryId("d")}),
        "create": CreateTopic(
            name="t", partitions=3, replicas=3, now_ms=1, config={"fence": "none"}
        ),
        "create-many": CreateTopic(name="t", partitions=10_000, now_ms=1),
        "create-negative": CreateTopic(name="t", partitions=-1, replicas=-1, now_ms=-(2**63)),
        "create-avoiding": CreateTopic(
            name="t", partitions=3, now_ms=1, avoid=(NodeId(2), NodeId(2**40))
        ),
        "add": AddPartitions(name="t", partitions=9, avoid=(NodeId(1),), replicas=2),
        "delete": DeleteTopic(name="t", now_ms=1),
        "cancel-one": CancelMove(group=GroupId(1), plan_id=1, now_ms=1),
        "alter": AlterTopic(name="t", config={"fence": None}),
        "allocate": AllocateProducerIds(node=NodeId(1), count=1000),
        "allocate-too-many": AllocateProducerIds(node=NodeId(1), count=2**64 - 1),
        "form-many": FormCluster(cluster_id="c" * 300, voters={NodeId(2**40): DirectoryId("")}),
    }
    return {name: encode_command(each) for name, each in commands.items()} | _MSGPACK_NASTY


def _snapshots() -> dict[str, bytes]:
    state = some_metadata()
    few = state.snapshot()
    state.apply(CreateTopic(name="t", partitions=2, replicas=3, now_ms=1), Offset(10))
    state.apply(CreateTopic(name="u", partitions=1, replicas=2, now_ms=1), Offset(11))
    return {
        "topics": state.snapshot(),
        "brokers": few,
        "magic": few[:16],
        "newer": few[:14] + b"\x09\x00",
        "deep": few[:16] + _DEEP,
    }


def _partition_checkpoint() -> bytes:
    state = PartitionState(Offset(0))
    for number in range(3):
        sealed = seal_batch(
            values=[b"v"],
            timestamps_ms=0,
            producer_id=5,
            base_sequence=number,
            fence_id=2,
            fence_token=3,
        )
        header = decode_header(bytes(sealed))
        state.note(header._replace(base_offset=Offset(number), term=Term(1)))
    return state.snapshot(
        term_rows=[(Term(1), Offset(0)), (Term(4), Offset(2))],
        configuration=ConfigurationChange(voters=(NodeId(1), NodeId(2), NodeId(3))),
    ).encode()


def _segment() -> dict[str, bytes]:
    disk = disk_of({})
    log = Log.create(disk, DIRECTORY, IDENTITY, LOG_OPTIONS)
    append_some(log, 4)
    log.sync(Offset(4))
    append_some(log, 2, term=2)
    unclean = disk.content(SEGMENT)
    written = unclean.rstrip(b"\0")
    log.sync(Offset(6))
    log.close()
    clean = disk.content(SEGMENT)
    return {
        "clean": clean,
        "allocated": written + bytes(300),
        "cut": clean[:-60],
        "below-the-mark": clean[: len(clean) // 2 + 1800],
        "header-alone": clean[:4096],
        "empty": b"",
    }


def _payload_files() -> dict[str, bytes]:
    disk = disk_of({})
    state = HardStateFile.create(disk, HARD_STATE, IDENTITY)
    state.save(Term(5), NodeId(2))
    CheckpointStore(disk, DIRECTORY, IDENTITY).save(Offset(9), _partition_checkpoint())
    # A data directory of its own: this one has groups already and no meta.
    fresh = disk_of({})
    fresh.remove_tree("/data/groups")
    directory = DataDirectory.open(fresh, DATA, NodeId(1), lambda: "drawn")
    directory.form({1: "drawn", 2: "other"})
    return {
        "hard_state": disk.content(HARD_STATE),
        "checkpoint": disk.content(CHECKPOINT),
        "meta": fresh.content(f"{DATA}/meta"),
    }
