"""Replicas with the same log accept the same appends."""

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.errors import (
    CorruptionError,
    FencedError,
    NewerFormatError,
    OutOfSequenceError,
    RequestError,
)
from logd.limits import PRODUCER_EXPIRY_MS, SILENCE_PER_BATCH_MS_MAX
from logd.partition.state import PartitionState, TermRow
from logd.record.control import ConfigurationChange, Control, NoOp, RaiseFence, Trim
from logd.record.header import MAGIC, BatchHeader, BatchKind
from logd.types import NodeId, Offset, Term


@dataclass(frozen=True, kw_only=True)
class Append:
    """What a producer chose about a batch."""

    count: int = 1
    producer: int = 0
    epoch: int = 0
    sequence: int = 0
    fence: int = 0
    token: int = 0
    time_ms: int = 0
    control: Control | None = None


def header_of(append: Append, base_offset: int = 0, time_ms: int = 0) -> BatchHeader:
    return BatchHeader(
        header_checksum=0,
        base_offset=Offset(base_offset),
        term=Term(1),
        append_time_ms=time_ms,
        seal=0,
        magic=MAGIC,
        payload_bytes=1,
        kind=BatchKind.DATA if append.control is None else BatchKind.CONTROL,
        flags=0,
        payload_format=1,
        codec=0,
        record_count=append.count,
        offset_span=append.count,
        decoded_bytes=1,
        first_timestamp_ms=0,
        max_timestamp_ms=0,
        producer_id=append.producer,
        producer_epoch=append.epoch,
        reserved=0,
        base_sequence=append.sequence,
        fence_id=append.fence,
        fence_token=append.token,
        reserved2=0,
    )


def note(state: PartitionState, *appends: Append) -> None:
    """As a leader does: each at the end of the log, never earlier than the last."""
    for append in appends:
        time_ms = max(append.time_ms, state.last_append_time_ms)
        state.note(header_of(append, state.end_offset, time_ms), append.control)


def test_the_ends_follow_the_batches() -> None:
    state = PartitionState()

    note(state, Append(count=5, time_ms=7), Append(control=NoOp(), time_ms=9))

    assert state.end_offset == 6
    assert state.data_end == 5
    assert state.last_append_time_ms == 9


def test_a_log_that_was_trimmed_begins_where_it_begins() -> None:
    state = PartitionState(Offset(100))
    assert (state.end_offset, state.data_end) == (100, 100)

    note(state, Append(count=5))

    assert (state.end_offset, state.data_end) == (105, 105)


def test_batches_are_noted_in_order() -> None:
    state = PartitionState()

    with pytest.raises(AssertionError, match="in order"):
        state.note(header_of(Append(), base_offset=1))


def test_a_producer_that_is_not_idempotent_is_not_checked() -> None:
    state = PartitionState()
    note(state, Append(sequence=5), Append(sequence=5))

    assert state.check_append(header_of(Append(sequence=5))) is None
    assert len(state.producers) == 0


def test_the_next_append_is_judged_by_what_stands_in_the_log() -> None:
    state = PartitionState()
    append = Append(count=3, producer=1)
    assert state.check_append(header_of(append)) is None

    note(state, append)

    duplicate = state.check_append(header_of(append))
    assert duplicate is not None
    assert (duplicate.base_offset, duplicate.end_offset) == (0, 3)
    with pytest.raises(OutOfSequenceError):
        state.check_append(header_of(Append(producer=1, sequence=4)))


def test_a_leader_whose_clock_is_days_ahead_makes_nobody_be_forgotten() -> None:
    """A retry that is under way just then would be stored a second time."""
    state = PartitionState()
    append = Append(count=3, producer=1, time_ms=1_000)
    note(state, append)

    ahead_ms = 3 * PRODUCER_EXPIRY_MS
    note(state, Append(control=NoOp(), time_ms=ahead_ms))
    note(state, Append(producer=2, time_ms=ahead_ms))

    for known in (state, PartitionState.decode(state.snapshot().encode()).state):
        duplicate = known.check_append(header_of(append))
        assert duplicate is not None
        assert duplicate.base_offset == 0


def test_a_producer_that_others_outlive_by_a_day_is_forgotten() -> None:
    state = PartitionState()
    note(state, Append(producer=1, time_ms=0))

    for hour in range(1, 26):
        note(state, Append(producer=2, sequence=hour - 1, time_ms=hour * SILENCE_PER_BATCH_MS_MAX))

    assert len(state.producers) == 1


def test_an_append_raises_the_fence_it_carries() -> None:
    state = PartitionState()

    note(state, Append(fence=1, token=10))

    with pytest.raises(FencedError):
        state.check_append(header_of(Append(fence=1, token=9)))
    assert state.check_append(header_of(Append(fence=1, token=10))) is None


def test_a_control_batch_raises_a_fence_before_the_holder_has_written() -> None:
    state = PartitionState()

    note(state, Append(control=RaiseFence(fence_id=1, fence_token=10)))

    with pytest.raises(FencedError):
        state.check_append(header_of(Append(fence=1, token=9)))


def test_the_furthest_trim_is_remembered_also_by_a_checkpoint() -> None:
    state = PartitionState()
    note(state, Append(count=5), Append(control=Trim(start_offset=Offset(4))))
    note(state, Append(control=Trim(start_offset=Offset(2))))

    assert state.trim == (4, 6)
    assert PartitionState.decode(state.snapshot().encode()).state.trim == (4, 6)


def test_a_retry_gets_its_answer_although_the_fence_was_raised_since() -> None:
    state = PartitionState()
    append = Append(producer=1, fence=1, token=9)
    note(state, append, Append(control=RaiseFence(fence_id=1, fence_token=10)))

    duplicate = state.check_append(header_of(append))

    assert duplicate is not None
    assert duplicate.base_offset == 0


def test_a_topic_may_require_a_fence() -> None:
    state = PartitionState()

    with pytest.raises(FencedError, match="fence=required"):
        state.check_append(header_of(Append()), fence_required=True)

    assert state.check_append(header_of(Append(fence=1)), fence_required=True) is None
    assert state.check_append(header_of(Append())) is None


# --- checkpoints ------------------------------------------------------------------------

APPENDS = st.lists(
    st.builds(
        Append,
        count=st.integers(1, 4),
        producer=st.integers(0, 3),
        epoch=st.integers(0, 2),
        sequence=st.integers(0, 8),
        fence=st.integers(0, 2),
        token=st.integers(0, 9),
        time_ms=st.integers(0, 200_000_000),
        control=st.none()
        | st.just(NoOp())
        | st.builds(RaiseFence, fence_id=st.just(1), fence_token=st.integers(0, 9)),
    ),
    max_size=40,
)


@given(before=APPENDS, after=APPENDS)
@settings(max_examples=80, deadline=None)
def test_replaying_from_a_checkpoint_gives_the_state_of_the_whole_log(
    before: list[Append], after: list[Append]
) -> None:
    state = PartitionState()
    accept(state, before)
    recovered = PartitionState.decode(state.snapshot().encode()).state

    assert accept(recovered, after) == accept(state, after)
    assert recovered.snapshot().encode() == state.snapshot().encode()


def accept(state: PartitionState, appends: list[Append]) -> list[object]:
    """Offer the batches as a leader would; what became of each."""
    outcomes: list[object] = []
    for append in appends:
        try:
            outcome = None if append.control else state.check_append(header_of(append))
        except RequestError as error:
            outcomes.append((type(error), str(error), error.may_have_applied))
        else:
            outcomes.append(outcome)
            if outcome is None:
                note(state, append)
    return outcomes


def test_a_checkpoint_carries_what_the_caller_knows_of_the_log() -> None:
    state = PartitionState()
    note(state, Append(count=50))
    rows = (TermRow(Term(1), Offset(0)), TermRow(Term(4), Offset(20)))
    change = ConfigurationChange(voters=(NodeId(1), NodeId(2)), learners=(NodeId(3),))

    checkpoint = PartitionState.decode(
        state.snapshot(term_rows=rows, configuration=change).encode()
    )

    assert checkpoint.term_rows == rows
    assert checkpoint.configuration == change
    assert checkpoint.state.end_offset == 50


def test_a_checkpoint_with_one_floor_for_all_fences_holds_them_all_against_it() -> None:
    payload = PartitionState(Offset(0)).snapshot().encode()
    magic, content = payload[:17], msgspec.msgpack.decode(payload[17:])
    del content["fence_floors"]
    content["fence_floor"] = 7

    fences = PartitionState.decode(magic + msgspec.msgpack.encode(content)).state.fences

    for fence in (1, 2, 255, 256):
        fences.check(fence, 7)
        with pytest.raises(FencedError, match="up to token 7"):
            fences.check(fence, 6)


def test_a_checkpoint_of_a_newer_version_is_refused() -> None:
    payload = bytearray(PartitionState().snapshot().encode())
    payload[len(b"logd partition ")] = 2

    with pytest.raises(NewerFormatError, match="format 2, this version reads 1"):
        PartitionState.decode(bytes(payload))


def test_a_checkpoint_that_is_cut_short_is_corruption() -> None:
    state = PartitionState()
    note(state, Append(producer=1, fence=2, token=3))
    payload = state.snapshot(term_rows=[(Term(1), Offset(0))]).encode()

    for length in range(len(payload)):
        with pytest.raises(CorruptionError):
            PartitionState.decode(payload[:length])


def test_a_term_history_that_goes_back_is_corruption() -> None:
    rows = [(Term(2), Offset(0)), (Term(1), Offset(5))]

    with pytest.raises(CorruptionError, match="term history"):
        PartitionState.decode(PartitionState().snapshot(term_rows=rows).encode())
