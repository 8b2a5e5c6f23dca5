"""A snapshot is put together of the pieces of one, all of them, or of none."""

from __future__ import annotations

import pytest

from logd.errors import CorruptionError, MalformedBatchError
from logd.limits import SNAPSHOT_BYTES_MAX
from logd.partition.state import PartitionState, TermRow
from logd.record.control import ConfigurationChange
from logd.replication.peer_protocol import SnapshotChunk
from logd.replication.snapshot import Snapshot, SnapshotAssembly, checksum_of, encode_snapshot
from logd.types import NodeId, Offset, Term

LEADER = NodeId(2)
START, STATE, APPLICATION = Offset(10), Offset(20), Offset(15)


def snapshot(application: bytes = b"some state") -> Snapshot:
    state = (
        PartitionState(STATE)
        .snapshot(
            term_rows=[TermRow(Term(3), Offset(0))],
            configuration=ConfigurationChange(voters=(NodeId(1), LEADER)),
        )
        .encode()
    )
    return Snapshot(
        start_offset=START,
        state_offset=STATE,
        state=state,
        application_offset=APPLICATION,
        application=application,
    )


def chunks(
    encoded: bytes, size: int = 40, *, total_bytes: int | None = None, term: int = 3
) -> list[tuple[SnapshotChunk, bytes]]:
    """The pieces of a snapshot as a leader ships them."""
    return [
        (
            SnapshotChunk(
                group=7,
                term=term,
                enrolment=0,
                position=position,
                total_bytes=len(encoded) if total_bytes is None else total_bytes,
                checksum=checksum_of(encoded),
            ),
            encoded[position : position + size],
        )
        for position in range(0, len(encoded), size)
    ]


def test_a_snapshot_is_there_with_its_last_piece() -> None:
    assembly = SnapshotAssembly()
    *others, last = chunks(encode_snapshot(snapshot()))

    assert [assembly.add(LEADER, *piece) for piece in others] == [None] * len(others)
    assert assembly.add(LEADER, *last) == snapshot()


def test_of_a_snapshot_that_was_put_together_nothing_is_kept_beside_it() -> None:
    """It may have hundreds of megabytes, and there may be one for each group."""
    assembly = SnapshotAssembly()

    found = [assembly.add(LEADER, *piece) for piece in chunks(encode_snapshot(snapshot()))]

    assert found[-1] == snapshot()
    assert len(assembly._received) == 0


def test_a_snapshot_of_which_a_piece_is_missing_is_none_until_it_comes_again_from_the_start() -> (
    None
):
    assembly = SnapshotAssembly()
    first, second, *rest = chunks(encode_snapshot(snapshot()))

    assert [assembly.add(LEADER, *piece) for piece in (first, *rest)] == [None] * (len(rest) + 1)

    found = [assembly.add(LEADER, *piece) for piece in (first, second, *rest)]
    assert found[-1] == snapshot()


def test_pieces_of_two_snapshots_are_not_put_together() -> None:
    """Of another state, of another leader, or of another term of the same one."""
    mine = encode_snapshot(snapshot(b"one state."))
    other = encode_snapshot(snapshot(b"two states"))
    assert len(mine) == len(other)
    half = len(mine) // 40

    for source, pieces in (
        (LEADER, chunks(other)),
        (NodeId(3), chunks(mine)),
        (LEADER, chunks(mine, term=4)),
    ):
        assembly = SnapshotAssembly()
        for piece in chunks(mine)[:half]:
            assembly.add(LEADER, *piece)

        assert [assembly.add(source, *piece) for piece in pieces[half:]] == [None] * len(
            pieces[half:]
        )


def test_a_snapshot_whose_bytes_changed_on_the_way_is_refused() -> None:
    """Where it would still be read as one: what it holds is state that nothing else proves."""
    assembly = SnapshotAssembly()
    encoded = encode_snapshot(snapshot())
    *others, (chunk, body) = chunks(encoded)
    for piece in others:
        assembly.add(LEADER, *piece)

    with pytest.raises(CorruptionError, match="with another checksum"):
        assembly.add(LEADER, chunk, body[:-1] + bytes([body[-1] ^ 1]))


@pytest.mark.parametrize("total_bytes", [0, -1, SNAPSHOT_BYTES_MAX + 1])
def test_a_snapshot_of_an_impossible_size_is_refused_with_its_first_piece(
    total_bytes: int,
) -> None:
    first, *_ = chunks(encode_snapshot(snapshot()), total_bytes=total_bytes)

    with pytest.raises(MalformedBatchError, match="of a snapshot of"):
        SnapshotAssembly().add(LEADER, *first)
