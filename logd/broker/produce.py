"""Appending on behalf of producers: the border check, then a proposal.

What is checked here needs only the bytes; what depends on the log's state (duplicates,
fences, expected offset) is the group's part, because only it knows what lies before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from logd.errors import CorruptionError, InvalidBatchError, InvalidRequestError, LogdError
from logd.limits import DELIVERY_TIMEOUT_MS_MAX
from logd.record.header import BatchHeader, PayloadFormat, decode_header, verify_seal
from logd.replication.proposal import Outcome, Placed, Proposal
from logd.types import METADATA_GROUP
from logd.wire.messages import Kind, ProduceRequest, ProduceResponse

if TYPE_CHECKING:
    from logd.broker.session import Session
    from logd.types import Buffer

BATCH_OVERHEAD_BYTES: Final = 1024
"""What a queued batch costs beside its bytes; keeps floods of tiny ones within the budget."""


def start_produce(
    session: Session, correlation_id: int, request: ProduceRequest, batch: Buffer
) -> None:
    """Propose one batch; the session is answered when its fate is known.

    Raises:
        LogdError: refused at once; nothing was done.
    """
    broker = session.broker
    header = _check(request, batch)
    group = broker.group(request.group)
    if not group.takes_proposals:
        raise group.leadership.not_leader()
    if group.application is not None:
        raise InvalidRequestError(f"{group.name} takes commands, not records")
    broker.disk.check()
    group.feeder.check_disks()
    cost = len(batch) + BATCH_OVERHEAD_BYTES
    broker.budget.take(cost)

    def done(outcome: Outcome) -> None:
        broker.budget.give_back(cost)
        if isinstance(outcome, LogdError):
            session.fail(Kind.PRODUCE, correlation_id, outcome)
        else:
            is_synced = not group.rests_on_memory(outcome.end_offset)
            session.answer(Kind.PRODUCE, correlation_id, _answer(outcome, is_synced=is_synced))

    group.propose(
        Proposal(
            batch,
            header,
            done,
            deadline_ms=broker.node.now_ms() + request.timeout_ms,
            expected_offset=request.expected_offset,
        )
    )


def _answer(placed: Placed, *, is_synced: bool) -> ProduceResponse:
    return ProduceResponse(
        base_offset=placed.base_offset,
        end_offset=placed.end_offset,
        append_time_ms=placed.append_time_ms,
        durability="synced" if is_synced else "replicated",
        duplicate=placed.duplicate,
    )


def _check(request: ProduceRequest, batch: Buffer) -> BatchHeader:
    if not 0 < request.timeout_ms <= DELIVERY_TIMEOUT_MS_MAX:
        raise InvalidRequestError(
            f"timeout_ms is {request.timeout_ms}, expected 1 to {DELIVERY_TIMEOUT_MS_MAX}"
        )
    if request.expected_offset is not None and request.expected_offset < 0:
        raise InvalidRequestError(f"expected_offset is {request.expected_offset}, below 0")
    if request.group == METADATA_GROUP:
        raise InvalidRequestError("the metadata log takes commands, not records")
    try:
        header = decode_header(batch)
        if header.size_bytes != len(batch):
            raise InvalidBatchError(
                f"the body has {len(batch)} bytes, its batch {header.size_bytes}: "
                "a produce request carries exactly one batch"
            )
        verify_seal(batch)
    except CorruptionError as error:
        raise InvalidBatchError(f"the batch is not intact: {error}") from error
    if header.is_control or header.is_compacted:
        raise InvalidBatchError("producers may not write control or compacted batches")
    if header.payload_format == PayloadFormat.ENTRIES:
        raise InvalidBatchError("producers may not write entries of the coordination log")
    return header
