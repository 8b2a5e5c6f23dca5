"""Whoever waits for what another holds is told once who has it, and since when."""

from __future__ import annotations

import anyio
import pytest
import trio
import trio.testing

from logd.cli.waiting import not_to_be_had, obtain_telling, who_has
from logd.errors import AcquireTimeoutError, ConnectionFailedError
from logd.wire.coordination import Holder, Holders


def holder(client: str) -> Holder:
    return Holder(ticket=1, token=2, session=9, client=client, since_ms=1_000)


HELD = Holders(revision=1, holders=[holder("logd@a:7")])


def told_of(
    capsys: pytest.CaptureFixture[str],
    seconds: float,
    found: Holders | Exception = HELD,
    *,
    ends_with: Exception | None = None,
) -> str:
    async def obtain() -> int:
        await anyio.sleep(seconds)
        if ends_with is not None:
            raise ends_with
        return 5

    async def holders() -> Holders:
        if isinstance(found, Exception):
            raise found
        return found

    async def main() -> int:
        return await obtain_telling(obtain, "nightly", "held", holders)

    assert trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0)) == 5
    return capsys.readouterr().err


def test_what_is_granted_at_once_needs_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert told_of(capsys, 0.9) == ""


def test_who_has_it_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert told_of(capsys, 1_000) == (
        "logd: waiting for nightly, held by logd@a:7 since 1970-01-01T00:00:01.000+00:00\n"
    )


@pytest.mark.parametrize("found", [ConnectionFailedError("gone"), Holders(revision=1)])
def test_that_we_wait_is_told_although_nobody_knows_for_whom(
    capsys: pytest.CaptureFixture[str], found: Holders | Exception
) -> None:
    assert told_of(capsys, 5, found) == "logd: waiting for nightly\n"


def test_why_it_was_not_granted_is_raised_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    late = AcquireTimeoutError("not granted")

    with pytest.raises(AcquireTimeoutError) as caught:
        told_of(capsys, 5, ends_with=late)

    assert caught.value is late


def test_of_many_holders_some_are_named() -> None:
    told = who_has("held", [holder(""), *map(holder, "bcde")])

    assert told.startswith("held by session 9 since 1970-01-01T00:00:01.000+00:00, b since ")
    assert told.endswith(" and 2 others")


def test_who_does_not_wait_is_told_who_has_it() -> None:
    since = "since 1970-01-01T00:00:01.000+00:00"

    assert not_to_be_had("nightly", "led", HELD) == f"nightly is led by logd@a:7 {since}"
    assert not_to_be_had("n", "led", Holders(revision=1)) == "n is led by somebody else"
