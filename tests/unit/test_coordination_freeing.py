"""Which commands are taken while the disk is full."""

from __future__ import annotations

import pytest

from logd.broker.coordination.freeing import frees
from logd.wire.coordination import (
    Acquire,
    ClaimItems,
    CloseSession,
    Command,
    Compare,
    CompleteItems,
    Delete,
    DeleteQueue,
    Get,
    Increment,
    ItemClaim,
    Leave,
    LetGo,
    Operation,
    Put,
    PutItems,
    Release,
    ReleaseItems,
    RenewItems,
    Transact,
)

CLAIMS = [ItemClaim(item=1, token=1)]


@pytest.mark.parametrize(
    ("command", "does"),
    [
        (CloseSession(), True),
        (Release(kind="lock", name="l", ticket=1), True),
        (Leave(group="g", member="m"), True),
        (LetGo(group="g", member="m", shards=["s"]), True),
        (CompleteItems(queue="q", claims=CLAIMS), True),
        (ReleaseItems(queue="q", claims=CLAIMS, delay_ms=0), True),
        (DeleteQueue(queue="q"), True),
        (Acquire(kind="lock", name="l"), False),
        (ClaimItems(queue="q"), False),
        (RenewItems(queue="q", claims=CLAIMS), True),
        (PutItems(queue="q", items=[]), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_gives_back_or_keeps_is_known_by_its_kind(command: Command, *, does: bool) -> None:
    assert frees(command) == does


@pytest.mark.parametrize(
    ("then", "otherwise", "does"),
    [
        ([Delete(key=b"k")], [], True),
        ([Delete(key=b"k")], [Get(key=b"k")], True),
        ([Put(key=b"k", value=b"")], [], False),
        ([Delete(key=b"k"), Increment(key=b"k")], [], False),
        ([Delete(key=b"k")], [Put(key=b"k", value=b"")], False),
    ],
)
def test_a_transaction_gives_back_if_nothing_in_it_is_put(
    then: list[Operation], otherwise: list[Operation], *, does: bool
) -> None:
    compare = [Compare(key=b"k")]

    assert frees(Transact(compare=compare, then=then, otherwise=otherwise)) == does
