"""Questions about tickets, whose answers are held back."""

from __future__ import annotations

from logd.broker.coordination.claim_waits import ClaimWait, ClaimWaits
from logd.limits import CLAIM_WAITS_PER_TICKET_MAX
from logd.wire.coordination import ReadClaim

NEVER_MS = 10**9


class Asked:
    """A question about a ticket, and what it was told."""

    def __init__(self, waits: ClaimWaits, ticket: int, *, is_wanted: bool = True) -> None:
        self.looked: list[bool] = []
        query = ReadClaim(kind="lock", name="l", ticket=ticket)
        waits.add(ClaimWait("n", query, NEVER_MS, self.looked.append, lambda: is_wanted))


def test_who_asks_about_one_ticket_again_and_again_has_the_oldest_question_answered() -> None:
    """The tickets of a namespace have a bound, and so has what waits for them."""
    waits = ClaimWaits()
    another = Asked(waits, 2)
    oldest, *others = [Asked(waits, 1) for _ in range(CLAIM_WAITS_PER_TICKET_MAX)]
    assert not oldest.looked

    newest = Asked(waits, 1)

    assert oldest.looked == [False]
    assert not any(asked.looked for asked in (another, *others, newest))
    assert len(waits) == CLAIM_WAITS_PER_TICKET_MAX + 1


def test_the_oldest_question_of_a_client_that_has_gone_is_not_answered() -> None:
    waits = ClaimWaits()
    gone = Asked(waits, 1, is_wanted=False)

    for _ in range(CLAIM_WAITS_PER_TICKET_MAX):
        Asked(waits, 1)

    assert not gone.looked
    assert len(waits) == CLAIM_WAITS_PER_TICKET_MAX
