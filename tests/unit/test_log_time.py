"""The time that a leader of coordination gives to commands, and when it is to be committed."""

from __future__ import annotations

from logd.broker.coordination.log_time import REFUSED_FOR_MS, LogTime


def test_what_was_refused_is_not_due_again_at_once() -> None:
    """A full disk refuses it within the call: who asked again at once would do nothing else."""
    time = LogTime()
    time.begin(committed_ms=5_000, now_ms=100)
    assert time.commit_in_ms(due_ms=5_000, committed_ms=5_000, now_ms=100) == 0

    time.put_off(now_ms=100)

    assert time.commit_in_ms(due_ms=5_000, committed_ms=5_000, now_ms=100) == REFUSED_FOR_MS
    assert time.commit_in_ms(due_ms=5_000, committed_ms=5_000, now_ms=100 + REFUSED_FOR_MS) == 0
