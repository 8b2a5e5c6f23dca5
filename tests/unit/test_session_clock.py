"""Sessions expire when nothing was heard of them for their time to live, and never sooner."""

from __future__ import annotations

from logd.broker.coordination.session_clock import ATTENDED_MS_MAX, SessionClock


class Watched:
    """A clock that somebody looks at every 500 ms, and when the clock says so."""

    def __init__(self, *sessions: tuple[int, int]) -> None:
        self.clock = SessionClock()
        self.now_ms = 10_000
        self.clock.begin(sessions, self.now_ms)

    def expired_until(self, end_ms: int) -> list[tuple[int, int]]:
        """Session and time, from now on until ``end_ms`` after the beginning."""
        found = []
        end_ms += 10_000
        while self.now_ms < end_ms:
            next_in_ms = self.clock.next_in_ms
            wait_ms = 500 if next_in_ms is None else max(1, min(500, next_in_ms))
            self.now_ms = min(self.now_ms + wait_ms, end_ms)
            found += [(s, self.now_ms - 10_000) for s in self.clock.take_due(self.now_ms)]
        return found


def test_everybody_has_a_full_time_to_live_when_a_broker_begins_to_lead() -> None:
    watched = Watched((1, 3_000), (2, 1_000))

    assert watched.expired_until(5_000) == [(2, 1_000), (1, 3_000)]


def test_a_renewal_begins_the_time_to_live_anew() -> None:
    watched = Watched((1, 2_000), (2, 2_000))
    for at_ms in (1_500, 3_000, 4_500):
        expired = watched.expired_until(at_ms)
        assert 1 not in [session for session, _ in expired]
        watched.clock.renew(1, watched.now_ms)

    assert watched.expired_until(10_000) == [(1, 6_500)]


def test_one_that_is_opened_while_leading_counts_from_then() -> None:
    watched = Watched()
    assert watched.expired_until(5_000) == []
    watched.clock.open(7, 1_000, watched.now_ms)

    assert watched.expired_until(10_000) == [(7, 6_000)]


def test_nobody_is_renewed_or_expired_again_while_the_expiry_is_on_its_way() -> None:
    watched = Watched((1, 1_000))
    assert watched.expired_until(1_000) == [(1, 1_000)]

    watched.clock.renew(1, watched.now_ms)

    assert watched.clock.is_expiring(1)
    assert watched.clock.knows(1)
    assert watched.expired_until(9_000) == []
    watched.clock.close(1)
    assert not watched.clock.is_expiring(1)
    assert not watched.clock.knows(1)


def test_one_that_ended_does_not_expire() -> None:
    watched = Watched((1, 1_000), (2, 1_000))
    watched.clock.close(1)

    assert watched.expired_until(3_000) == [(2, 1_000)]
    assert len(watched.clock) == 1


def test_sessions_that_ended_long_before_their_time_are_not_kept_until_then() -> None:
    watched = Watched((1, 1_000), (2, 1_500))
    assert watched.expired_until(1_000) == [(1, 1_000)]
    for session in range(10, 10_010):
        watched.clock.open(session, 24 * 3_600_000, watched.now_ms)
        watched.clock.close(session)

    assert len(watched.clock._heap) < 100
    assert watched.expired_until(3_000) == [(2, 1_500)]


def test_time_in_which_nobody_looked_counts_for_nobody() -> None:
    watched = Watched((1, 5_000))
    watched.expired_until(1_000)
    watched.now_ms += 60_000

    assert watched.clock.take_due(watched.now_ms) == []
    assert watched.clock.next_in_ms == 5_000 - 1_000 - ATTENDED_MS_MAX


def test_a_new_leadership_forgets_the_last_one() -> None:
    watched = Watched((1, 1_000))
    watched.expired_until(1_000)
    watched.clock.end()
    assert watched.clock.next_in_ms is None
    watched.clock.begin([(1, 1_000), (3, 2_000)], watched.now_ms)

    assert not watched.clock.is_expiring(1)
    assert watched.expired_until(4_000) == [(1, 2_000), (3, 3_000)]


def test_idle_sessions_cost_a_step_each_per_time_to_live_not_per_renewal() -> None:
    watched = Watched(*((session, 30_000) for session in range(10_000)))
    for _ in range(3):
        for session in range(10_000):
            watched.clock.renew(session, watched.now_ms)
        assert watched.expired_until(watched.now_ms - 10_000 + 10_000) == []
    assert len(watched.clock._heap) == 10_000


def test_one_whose_expiry_was_refused_lives_for_as_long_again() -> None:
    watched = Watched((1, 1_000))
    assert watched.expired_until(1_000) == [(1, 1_000)]

    watched.clock.keep(1, watched.now_ms)

    assert not watched.clock.is_expiring(1)
    assert watched.expired_until(9_000) == [(1, 2_000)]


def test_one_that_ended_otherwise_is_not_kept() -> None:
    watched = Watched((1, 1_000))
    assert watched.expired_until(1_000) == [(1, 1_000)]
    watched.clock.close(1)

    watched.clock.keep(1, watched.now_ms)

    assert not watched.clock.knows(1)
    assert watched.expired_until(9_000) == []
