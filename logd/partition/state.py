"""The state that every replica derives from the headers of its log.

It decides which appends are accepted, so it must be the same wherever the log is the same:
``note`` uses the header and nothing else.  A leader checks an append against it and notes
the batch as soon as it is in the log, committed or not, so that the next append is judged by
all that stand before it.

Recovery loads the last checkpoint and notes the headers behind it.  Truncation is done the
same way by the caller: checkpoints are taken only at or below the commit offset, so there is
always one to go back to, and nothing here needs to be undone.

Checkpoint format: segment_format.md, "Checkpoints".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from logd.errors import CorruptionError, FencedError
from logd.limits import SILENCE_PER_BATCH_MS_MAX
from logd.partition.fences import FenceTable
from logd.partition.producers import Duplicate, ProducerRow, ProducerTable
from logd.record.control import ConfigurationChange, Control, RaiseFence, Trim
from logd.record.header import BatchHeader
from logd.record.state_magic import StateMagic
from logd.types import Offset, Term

__all__ = ["Checkpoint", "Duplicate", "PartitionState", "TermRow"]


LOG_BEGINNING: Final = Offset(0)


class TermRow(NamedTuple):
    """One row of the term history: the term's first batch is at ``start_offset``."""

    term: Term
    start_offset: Offset


class TrimRow(NamedTuple):
    """A trim: readers begin at ``start_offset`` once everything below ``end_offset``, the end
    of the batch that says so, is committed."""

    start_offset: Offset
    end_offset: Offset


NO_TRIM: Final = TrimRow(LOG_BEGINNING, LOG_BEGINNING)


class PartitionState:
    """Producers, fences and ends of one log, up to ``end_offset``."""

    __slots__ = (
        "data_end",
        "end_offset",
        "fences",
        "last_append_time_ms",
        "producers",
        "trim",
    )

    def __init__(self, start_offset: Offset = LOG_BEGINNING) -> None:
        self.producers = ProducerTable()
        self.fences = FenceTable()
        self.end_offset = start_offset
        """Every batch below it has been noted."""
        self.data_end = start_offset
        """End of the last data batch; what lies behind it is for the log itself."""
        self.last_append_time_ms = 0
        """Of the last batch; the next one must not be earlier."""
        self.trim = NO_TRIM
        """Where readers may begin, by the last trim in the log."""

    def check_append(
        self, header: BatchHeader, *, fence_required: bool = False
    ) -> Duplicate | None:
        """May this data batch be appended next?  Changes nothing.

        The duplicate is looked for first: a retry gets its first answer even if the fence
        was raised since.  ``expected_offset`` is the caller's to check, after this.

        Returns:
            None: it may be appended.  Otherwise where it is already.

        Raises:
            OutOfSequenceError, ProducerFencedError: see ``ProducerTable.check``.
            FencedError: its fencing token is not the newest, or missing and required.
        """
        assert not header.is_control
        if header.producer_id:
            duplicate = self.producers.check(
                header.producer_id,
                header.producer_epoch,
                header.base_sequence,
                header.record_count,
            )
            if duplicate is not None:
                return duplicate
        if header.fence_id:
            self.fences.check(header.fence_id, header.fence_token)
        elif fence_required:
            raise FencedError("the topic has fence=required, and the batch carries no token")
        return None

    def note(self, header: BatchHeader, control: Control | None = None) -> None:
        """Advance over the batch that lies at ``end_offset``.

        Args:
            control: the decoded payload of a control batch; None for a data batch.
        """
        self.note_placed(header, header.base_offset, header.append_time_ms, control)

    def note_placed(
        self,
        header: BatchHeader,
        base_offset: Offset,
        append_time_ms: int,
        control: Control | None = None,
    ) -> None:
        """As ``note``, of a batch whose leader's part is not in ``header``."""
        assert base_offset == self.end_offset, "batches are noted in order, each once"
        assert append_time_ms >= self.last_append_time_ms, "append time never decreases"
        self.end_offset = end_offset = Offset(base_offset + header.offset_span)
        leap_ms = append_time_ms - self.last_append_time_ms - SILENCE_PER_BATCH_MS_MAX
        if leap_ms > 0:
            self.producers.leave_out(leap_ms)
        self.last_append_time_ms = append_time_ms
        if header.kind:
            assert control is not None
            if isinstance(control, RaiseFence):
                self.fences.raise_to(control.fence_id, control.fence_token)
            elif isinstance(control, Trim) and control.start_offset > self.trim.start_offset:
                self.trim = TrimRow(Offset(control.start_offset), end_offset)
            return
        assert control is None
        self.data_end = end_offset
        if header.producer_id:
            self.producers.note_placed(header, base_offset, append_time_ms)
        if header.fence_id:
            self.fences.raise_to(header.fence_id, header.fence_token)

    def snapshot(
        self,
        *,
        term_rows: Sequence[TermRow | tuple[Term, Offset]] = (),
        configuration: ConfigurationChange | None = None,
    ) -> StateSnapshot:
        """What a checkpoint of this state holds, with what the caller knows of the log below
        its end.  It does not change with the state, so it may be encoded elsewhere.

        Args:
            term_rows: the term history up to ``end_offset``.
            configuration: the last one below ``end_offset``; None: the group's first.
        """
        content = _Checkpoint(
            end_offset=self.end_offset,
            data_end=self.data_end,
            last_append_time_ms=self.last_append_time_ms,
            producers=[],
            fences=self.fences.rows(),
            fence_floor=max((floor for _, floor in self.fences.floors), default=0),
            fence_floors=self.fences.floors,
            term_rows=[(term, start) for term, start in term_rows],
            configuration=configuration,
            trim=self.trim,
        )
        return StateSnapshot(content, self.producers.rows())

    @staticmethod
    def decode(payload: bytes | memoryview) -> Checkpoint:
        """Read what ``StateSnapshot.encode`` wrote.

        Raises:
            NewerFormatError: a newer version of logd wrote it.
            CorruptionError: it is not a checkpoint.
        """
        read = _decode(payload)
        if not 0 <= read.trim.start_offset <= read.trim.end_offset <= read.end_offset:
            raise CorruptionError(
                f"partition checkpoint ends at {read.end_offset}, and trims {read.trim}"
            )
        if not 0 <= read.data_end <= read.end_offset:
            raise CorruptionError(
                f"partition checkpoint ends at {read.end_offset}, its data at {read.data_end}"
            )
        rows = tuple(TermRow(term, start) for term, start in read.term_rows)
        for earlier, later in pairwise(rows):
            if not (earlier.term < later.term and earlier.start_offset < later.start_offset):
                raise CorruptionError(f"term history goes from {earlier} to {later}")
        state = PartitionState(read.end_offset)
        state.data_end = read.data_end
        state.last_append_time_ms = read.last_append_time_ms
        state.trim = read.trim
        state.producers = ProducerTable.from_rows(_decode_pieces(read.producers))
        state.fences = FenceTable.from_rows(read.fences, read.all_floors)
        return Checkpoint(state, rows, read.configuration)


class Checkpoint(NamedTuple):
    """What ``PartitionState.decode`` returns."""

    state: PartitionState
    term_rows: tuple[TermRow, ...]
    configuration: ConfigurationChange | None


class StateSnapshot:
    """The content of a checkpoint, not encoded yet: that takes a while for many producers.

    Piece by piece, because encoding holds the interpreter: whoever runs beside it waits for
    one piece at most.
    """

    def __init__(self, content: _Checkpoint, producers: list[ProducerRow]) -> None:
        self._content = content
        self._producers = producers

    def encode(self) -> bytes:
        """The checkpoint's bytes; may be called in a thread."""
        starts = range(0, len(self._producers), _PRODUCERS_PER_PIECE)
        pieces = [
            msgspec.Raw(_ENCODER.encode(self._producers[start : start + _PRODUCERS_PER_PIECE]))
            for start in starts
        ]
        return _CHECKPOINT_MAGIC.written + _ENCODER.encode(
            msgspec.structs.replace(self._content, producers=pieces)
        )


class _Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    end_offset: Offset
    data_end: Offset
    last_append_time_ms: int
    producers: list[msgspec.Raw]
    """Each a list of some rows."""
    fences: list[tuple[int, int]]
    fence_floor: int
    """The largest, for versions that know of one only."""
    term_rows: list[tuple[Term, Offset]]
    configuration: ConfigurationChange | None
    trim: TrimRow = NO_TRIM
    fence_floors: list[tuple[int, int]] | None = None
    """None: written by such a version."""

    @property
    def all_floors(self) -> list[tuple[int, int]]:
        if self.fence_floors is not None:
            return self.fence_floors
        return FenceTable.floors_of(self.fence_floor)


_CHECKPOINT_MAGIC: Final = StateMagic(b"logd partition ", 1, "partition checkpoint")
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Checkpoint)
_PIECE_DECODER: Final = msgspec.msgpack.Decoder(list[ProducerRow])
_PRODUCERS_PER_PIECE: Final = 256


def _decode_pieces(pieces: list[msgspec.Raw]) -> list[ProducerRow]:
    try:
        return [row for piece in pieces for row in _PIECE_DECODER.decode(piece)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptionError(f"partition checkpoint cannot be read: {error}") from error


def _decode(payload: bytes | memoryview) -> _Checkpoint:
    _CHECKPOINT_MAGIC.check(payload)
    try:
        return _DECODER.decode(payload[len(_CHECKPOINT_MAGIC) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptionError(f"partition checkpoint cannot be read: {error}") from error
