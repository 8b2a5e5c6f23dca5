"""Every decoder that reads bytes from outside, each as a function of bytes.

A target lets through only the errors that its border promises; anything else, an assertion
of ours included, is a bug.  Where bytes are accepted, more is checked: that what was read
can be written and read again, that an index never changes what is found, that chunking
never changes which frames there are.

A target whose name ends in ``_resealed`` puts the checksums right first.
"""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Final

import msgspec
import zstandard

from logd.cli.start import parse_start
from logd.config import parse_cluster, parse_host_port, read_toml, resolve
from logd.errors import (
    CorruptionError,
    FrameTooLargeError,
    InvalidRequestError,
    LogdError,
    MalformedBatchError,
    NewerFormatError,
    ProtocolError,
    RequestError,
    StorageError,
    UsageError,
)
from logd.limits import FEATURE_LEVEL, FRAME_BYTES_MAX, FRAME_UNAUTHENTICATED_BYTES_MAX, KIB, MIB
from logd.metadata.commands import FormCluster, RegisterBroker, decode_command, encode_command
from logd.metadata.features import LEVEL_MAX
from logd.metadata.state import MetadataState
from logd.metadata.topic_config import parse_options
from logd.partition.state import PartitionState
from logd.raft.messages import AppendRequest
from logd.record.batch import decode_batch
from logd.record.control import decode_control, encode_control
from logd.record.header import (
    HEADER_BYTES,
    MAGIC,
    BatchHeader,
    decode_header,
    put_seal,
    split_batches,
    verify_header,
    verify_seal,
)
from logd.record.payload import decode_columns
from logd.replication.peer_protocol import TYPE_BY_KIND
from logd.replication.received import check_append
from logd.storage.checkpoint import CheckpointStore
from logd.storage.directory import DataDirectory
from logd.storage.hard_state import HardStateFile
from logd.storage.log import Log, LogOptions
from logd.types import METADATA_GROUP, DirectoryId, NodeId, Offset, Term
from logd.wire import messages
from logd.wire.frame import Frame, FrameDecoder, decode_message, encode_message
from logd_client.bootstrap import parse_bootstrap
from tests.fuzz.resealing import (
    reseal_batch,
    reseal_batches,
    reseal_hard_state,
    reseal_payload_file,
    reseal_segment,
)
from tests.sim.files import SimulatedFileSystem
from tests.support.logs import (
    DIRECTORY,
    GROUP,
    IDENTITY,
    append_some,
    batch_bytes,
    make_batch,
    read_all,
)

INPUT_BYTES_MAX: Final = 64 * KIB

LOG_OPTIONS: Final = LogOptions(
    segment_bytes=16 * KIB, index_interval_bytes=512, allocate_bytes=8 * KIB
)
SEGMENT: Final = f"{DIRECTORY}/{0:020}.log"
HARD_STATE: Final = f"{DIRECTORY}/hard_state"
CHECKPOINT: Final = f"{DIRECTORY}/checkpoint-{9:020}"
DATA: Final = "/data"

_STORED: Final = (CorruptionError, StorageError)
"""What a file may be refused with."""


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder, and what it may answer with instead of a result."""

    name: str
    decode: Callable[[bytes], None]
    allowed: tuple[type[Exception], ...]
    bytes_max: int
    """How much memory 64 KiB of input may take, at the most."""

    def check(self, data: bytes) -> None:
        """Decode; any error but the promised ones gets through."""
        with suppress(*self.allowed):
            self.decode(data[:INPUT_BYTES_MAX])

    def check_memory(self, data: bytes) -> None:
        """As ``check``, and the memory it takes is bounded."""
        tracemalloc.start()
        try:
            self.check(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= self.bytes_max, f"{self.name}: {len(data)} bytes took {peak}"

    def __str__(self) -> str:
        return self.name


TARGETS: Final[dict[str, Target]] = {}


def _target(
    *allowed: type[Exception], bytes_max: int = 16 * MIB
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    def register(decode: Callable[[bytes], None]) -> Callable[[bytes], None]:
        name = decode.__name__
        TARGETS[name] = Target(name, decode, allowed, bytes_max)
        return decode

    return register


# --- frames and messages ----------------------------------------------------------------


@_target(ProtocolError, FrameTooLargeError)
def frame_decoder(data: bytes) -> None:
    """The first byte chooses limit and chunking, the rest is the stream."""
    if not data:
        return
    choice, stream = data[0], data[1:]
    limit = FRAME_BYTES_MAX if choice & 1 else FRAME_UNAUTHENTICATED_BYTES_MAX
    long_messages = bool(choice & 2)
    at_once, whole_error = _frames(stream, len(stream) or 1, limit, long_messages)
    chance = random.Random(choice)
    largest = chance.choice((1, 3, 17, 300, 5000)) if len(stream) < 2048 else 5000
    in_pieces, pieces_error = _frames(stream, largest, limit, long_messages)
    assert at_once == in_pieces
    assert type(whole_error) is type(pieces_error)
    if whole_error is not None:
        raise whole_error


def _frames(
    stream: bytes, largest: int, limit: int, long_messages: bool
) -> tuple[list[Frame], LogdError | None]:
    decoder = FrameDecoder(limit, long_messages=long_messages)
    chance = random.Random(largest)
    found: list[Frame] = []
    position = 0
    try:
        while position < len(stream):
            count = len(stream) if largest >= len(stream) else chance.randint(1, largest)
            decoder.feed(stream[position : position + count])
            position += count
            while (frame := decoder.next_frame()) is not None:
                found.append(frame._replace(header=bytes(frame.header), body=bytes(frame.body)))
            assert decoder.pending_bytes <= position
    except (ProtocolError, FrameTooLargeError) as error:
        return found, error
    return found, None


CLIENT_MESSAGES: Final[tuple[type[msgspec.Struct], ...]] = tuple(
    sorted(
        {
            each
            for each in vars(messages).values()
            if isinstance(each, type)
            and issubclass(each, messages.Message)
            and each is not messages.Message
        },
        key=lambda each: each.__name__,
    )
)
PEER_MESSAGES: Final[tuple[type[msgspec.Struct], ...]] = tuple(
    TYPE_BY_KIND[kind] for kind in sorted(TYPE_BY_KIND)
)


@_target(InvalidRequestError)
def client_message(data: bytes) -> None:
    """The first byte chooses the message."""
    _message(CLIENT_MESSAGES, data)


@_target(InvalidRequestError)
def peer_message(data: bytes) -> None:
    """The first byte chooses the message."""
    _message(PEER_MESSAGES, data)


def _message(types: tuple[type[msgspec.Struct], ...], data: bytes) -> None:
    if not data:
        return
    cls = types[data[0] % len(types)]
    message = decode_message(cls, data[1:])
    again = encode_message(1, message)
    decoder = FrameDecoder(FRAME_BYTES_MAX, long_messages=True)
    decoder.feed(again)
    frame = decoder.next_frame()
    assert frame is not None
    assert decode_message(cls, frame.header) == message


# --- batches ----------------------------------------------------------------------------


@_target(CorruptionError)
def batch_header(data: bytes) -> None:
    header = decode_header(data)
    assert header.size_bytes >= HEADER_BYTES
    assert header.end_offset > header.base_offset
    verify_header(data, header, GROUP)


@_target(CorruptionError)
def batches(data: bytes) -> None:
    """Batches back to back, with their seals."""
    total = 0
    for header, view in split_batches(memoryview(data)):
        total += len(view)
        assert len(view) == header.size_bytes
        with suppress(CorruptionError):
            verify_seal(view)
    assert total == len(data)


_APPEND: Final = AppendRequest(
    group=GROUP,
    source=NodeId(1),
    target=NodeId(2),
    term=Term(3),
    start_offset=Offset(0),
    end_offset=Offset(4),
    prev_term=Term(0),
    commit_offset=Offset(0),
    round=1,
    enrolment=Offset(0),
)


@_target(CorruptionError)
def append_body_resealed(data: bytes) -> None:
    """What a follower makes of a leader's batches."""
    body = bytearray(data)
    reseal_batches(body, 0, GROUP)
    received = check_append(_APPEND, bytes(body))
    assert received[0].header.base_offset == 0
    assert received[-1].header.end_offset == 4


_BATCH_MEMORY: Final = 128 * MIB
"""A payload of 16 MiB, and its columns."""


@_target(CorruptionError, bytes_max=_BATCH_MEMORY)
def batch(data: bytes) -> None:
    _decode_batch(data)


@_target(CorruptionError, bytes_max=_BATCH_MEMORY)
def batch_resealed(data: bytes) -> None:
    sealed = bytearray(data)
    reseal_batch(sealed, GROUP)
    _decode_batch(bytes(sealed))


@_target(MalformedBatchError, bytes_max=_BATCH_MEMORY)
def columns(data: bytes) -> None:
    decode_columns(data)


@_target(CorruptionError, bytes_max=_BATCH_MEMORY)
def batch_payload(data: bytes) -> None:
    """Three bytes choose flags, codec and record count; the rest is the payload behind a good
    header, so that every mutation reaches the columns."""
    if len(data) < 4:
        return
    count = 1 + int.from_bytes(data[1:3], "little")
    payload = data[3:]
    is_compressed, is_compacted = bool(data[0] & 1), bool(data[0] & 2)
    decoded_bytes = len(payload)
    if is_compressed:
        # The size that the frame states: a bomb whose header agrees with it.
        with suppress(zstandard.ZstdError):
            stated = zstandard.get_frame_parameters(payload).content_size
            decoded_bytes = min(max(stated, 1), 16 * MIB)
    sealed = batch_with_payload(
        payload,
        records=count,
        is_compressed=is_compressed,
        is_compacted=is_compacted,
        decoded_bytes=decoded_bytes,
        max_timestamp_ms=1000 if data[0] & 4 else 0,
    )
    _decode_batch(sealed)


def batch_with_payload(
    payload: bytes,
    *,
    records: int = 1,
    is_compressed: bool = False,
    is_compacted: bool = False,
    decoded_bytes: int | None = None,
    max_timestamp_ms: int = 0,
) -> bytes:
    """Any bytes as the payload of a batch that is well sealed."""
    header = BatchHeader(
        header_checksum=0,
        base_offset=Offset(0),
        term=Term(1),
        append_time_ms=0,
        seal=0,
        magic=MAGIC,
        payload_bytes=len(payload),
        kind=0,
        flags=int(is_compacted),
        payload_format=1,
        codec=int(is_compressed),
        record_count=records,
        offset_span=records + (5 if is_compacted else 0),
        decoded_bytes=len(payload) if decoded_bytes is None else decoded_bytes,
        first_timestamp_ms=0,
        max_timestamp_ms=max_timestamp_ms,
        producer_id=0,
        producer_epoch=0,
        reserved=0,
        base_sequence=0,
        fence_id=0,
        fence_token=0,
        reserved2=0,
    )
    sealed = bytearray(HEADER_BYTES) + payload
    put_seal(sealed, header)
    reseal_batch(sealed, GROUP)
    return bytes(sealed)


def _decode_batch(data: bytes) -> None:
    decoded = decode_batch(data)
    count = decoded.header.record_count
    assert len(decoded) == count
    assert len(decoded.values) == len(decoded.keys) == count
    assert len(decoded.headers) == len(decoded.timestamps_ms) == len(decoded.offsets) == count
    assert decoded.offsets[0] >= decoded.header.base_offset
    assert decoded.offsets[-1] < decoded.header.end_offset


# --- state machines ---------------------------------------------------------------------


@_target(MalformedBatchError)
def control(data: bytes) -> None:
    decoded = decode_control(data)
    assert decode_control(encode_control(decoded)) == decoded


def some_metadata() -> MetadataState:
    """Three brokers, no topics."""
    state = MetadataState()
    voters = {NodeId(node): DirectoryId(f"directory-{node}") for node in (1, 2, 3)}
    form = FormCluster(cluster_id="cluster", voters=voters, feature_level=FEATURE_LEVEL)
    state.apply(form, Offset(0))
    for node in (1, 2, 3):
        register = RegisterBroker(
            node=NodeId(node),
            directory_id=DirectoryId(f"directory-{node}"),
            incarnation=node,
            host="host",
            port=7171,
            peer_host="host",
            peer_port=7181,
            failure_domain=f"host-{node}",
            rack="",
            version="1",
            features={LEVEL_MAX: FEATURE_LEVEL},
            instead_of=0,
        )
        state.apply(register, Offset(node))
    return state


@_target(MalformedBatchError, RequestError)
def metadata_command(data: bytes) -> None:
    """Decoded and applied: refused or not, the state stays consistent and can be restored."""
    command = decode_command(data)
    assert decode_command(encode_command(command)) == command
    state = some_metadata()
    try:
        state.apply(command, Offset(10))
    finally:
        state.check_invariants()
        assert MetadataState.restore(state.snapshot()).snapshot() == state.snapshot()


@_target(CorruptionError, NewerFormatError)
def metadata_snapshot(data: bytes) -> None:
    state = MetadataState.restore(data)
    state.check_invariants()
    assert MetadataState.restore(state.snapshot()).snapshot() == state.snapshot()


@_target(CorruptionError, NewerFormatError)
def partition_checkpoint(data: bytes) -> None:
    read = PartitionState.decode(data)
    snapshot = read.state.snapshot(term_rows=read.term_rows, configuration=read.configuration)
    written = snapshot.encode()
    again = PartitionState.decode(written)
    assert again.term_rows == read.term_rows
    assert again.configuration == read.configuration
    assert again.state.end_offset == read.state.end_offset


# --- files ------------------------------------------------------------------------------


def disk_of(content: dict[str, bytes]) -> SimulatedFileSystem:
    """A disk with the directories of one node, and these files."""
    disk = SimulatedFileSystem(random.Random(0))
    disk.make_directory("/data")
    disk.make_directory("/data/groups")
    disk.make_directory("/data/trash")
    disk.make_directory(DIRECTORY)
    for path, data in content.items():
        file = disk.open(path, create=True)
        if data:
            file.pwritev([data], 0)
        file.sync()
        file.close()
    return disk


@_target(*_STORED, bytes_max=32 * MIB)
def log_open(data: bytes) -> None:
    """Recovery of a log whose only segment this is."""
    _open_log(disk_of({SEGMENT: data}))


@_target(*_STORED, bytes_max=32 * MIB)
def log_open_resealed(data: bytes) -> None:
    content = bytearray(data)
    reseal_segment(content, GROUP)
    _open_log(disk_of({SEGMENT: bytes(content)}))


def _open_log(disk: SimulatedFileSystem) -> None:
    log = Log.open(disk, DIRECTORY, IDENTITY, LOG_OPTIONS)
    assert log.start_offset <= log.end_offset
    if log.recovery.is_damaged:
        return
    kept = read_all(log)
    added = batch_bytes(make_batch(log.end_offset, term=max(1, log.last_term)))
    log.append([make_batch(log.end_offset, term=max(1, log.last_term))])
    log.sync(log.end_offset)
    disk.kill()
    again = Log.open(disk, DIRECTORY, IDENTITY, LOG_OPTIONS)
    assert read_all(again) == [*kept, added]


def indexed_log() -> SimulatedFileSystem:
    """A log of one closed segment with indexes, and an active one."""
    disk = SimulatedFileSystem(random.Random(0))
    log = Log.create(disk, DIRECTORY, IDENTITY, LOG_OPTIONS)
    for time_ms in range(30):
        append_some(log, 1, value=bytes(100), time_ms=time_ms)
    log.sync(log.end_offset)
    log.roll()
    append_some(log, 2, time_ms=50)
    log.sync(log.end_offset)
    log.close()
    return disk


def _indexed_files() -> dict[str, bytes]:
    """The segments of that log, without their indexes."""
    disk = indexed_log()
    paths = [f"{DIRECTORY}/{name}" for name in disk.list_directory(DIRECTORY)]
    return {path: disk.content(path) for path in paths if path.endswith(".log")}


@_target(*_STORED, bytes_max=32 * MIB)
def segment_indexes(data: bytes) -> None:
    """Two bytes say how many are of the offset index, the rest is the time index.

    Whatever is in them: what is found is what a log without indexes finds, or damage."""
    if len(data) < 2:
        return
    split = 2 + int.from_bytes(data[:2], "little")
    disk = disk_of(
        _INDEXED | {SEGMENT + ".index": data[2:split], SEGMENT + ".timeindex": data[split:]}
    )
    expected, by_time = _read_without_indexes()
    log = Log.open(disk, DIRECTORY, IDENTITY, LOG_OPTIONS)
    assert read_all(log) == expected
    for offset in range(0, len(expected), 3):
        [found, *_] = log.read(Offset(offset), log.end_offset, 1, cached_only=False) or []
        assert bytes(found) == expected[offset]
    assert [log.offset_for_time(time_ms) for time_ms in _TIMES_MS] == by_time


_INDEXED: Final = _indexed_files()
_TIMES_MS: Final = range(0, 60, 3)


@cache
def _read_without_indexes() -> tuple[list[bytes], list[Offset | None]]:
    log = Log.open(disk_of(_INDEXED), DIRECTORY, IDENTITY, LOG_OPTIONS)
    return read_all(log), [log.offset_for_time(time_ms) for time_ms in _TIMES_MS]


@_target(*_STORED)
def hard_state(data: bytes) -> None:
    _open_hard_state(data)


@_target(*_STORED)
def hard_state_resealed(data: bytes) -> None:
    content = bytearray(data)
    reseal_hard_state(content, GROUP)
    _open_hard_state(bytes(content))


def _open_hard_state(data: bytes) -> None:
    disk = disk_of({HARD_STATE: data})
    found = HardStateFile.open(disk, HARD_STATE, IDENTITY).load()
    assert HardStateFile.open(disk, HARD_STATE, IDENTITY).load() == found


@_target(*_STORED)
def checkpoint_file(data: bytes) -> None:
    _load_checkpoint(data)


@_target(*_STORED)
def checkpoint_file_resealed(data: bytes) -> None:
    content = bytearray(data)
    reseal_payload_file(content)
    _load_checkpoint(bytes(content))


def _load_checkpoint(data: bytes) -> None:
    store = CheckpointStore(disk_of({CHECKPOINT: data}), DIRECTORY, IDENTITY)
    found = store.load()
    assert (found is None) == bool(store.damaged)
    if found is not None:
        assert found[0] == 9
        with suppress(CorruptionError, NewerFormatError):
            PartitionState.decode(found[1])


@_target(*_STORED)
def directory_meta(data: bytes) -> None:
    _open_directory(data)


@_target(*_STORED)
def directory_meta_resealed(data: bytes) -> None:
    content = bytearray(data)
    reseal_payload_file(content)
    _open_directory(bytes(content))


def _open_directory(data: bytes) -> None:
    disk = disk_of({f"{DATA}/meta": data})
    directory = DataDirectory.open(disk, DATA, NodeId(1), lambda: "fresh")
    directory.identity(METADATA_GROUP)
    if directory.cluster_id is None:
        directory.set_cluster_id("cluster")
    directory.close()
    again = DataDirectory.open(disk, DATA, NodeId(1), lambda: "fresh")
    assert again.directory_id == directory.directory_id
    assert again.members == directory.members
    again.close()


# --- text -------------------------------------------------------------------------------

_NOW: Final = datetime(2026, 1, 31, tzinfo=UTC)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")


@_target(UsageError)
def config_toml(data: bytes) -> None:
    resolve([read_toml(_text(data), "fuzz.toml")])


@_target(UsageError)
def host_port(data: bytes) -> None:
    parsed = parse_host_port(_text(data))
    assert parse_host_port(str(parsed)) == parsed


@_target(UsageError)
def cluster_list(data: bytes) -> None:
    assert parse_cluster(_text(data))


@_target(UsageError)
def bootstrap_list(data: bytes) -> None:
    for address in parse_bootstrap(_text(data)):
        assert address.host
        assert 0 < address.port <= 65_535


@_target(ValueError)
def consume_from(data: bytes) -> None:
    parse_start(_text(data), _NOW)


@_target(RequestError)
def topic_options(data: bytes) -> None:
    """Lines of name=value."""
    pairs = (line.partition("=") for line in _text(data).splitlines())
    parse_options({name: value for name, _, value in pairs})


def index_input(offset_rows: bytes, time_rows: bytes) -> bytes:
    """What ``segment_indexes`` takes."""
    return struct.pack("<H", len(offset_rows)) + offset_rows + time_rows
