"""The term history answers which term an offset is of, after any append, cut and trim."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.raft.term_history import TermHistory
from logd.types import Offset, Term

# Terms by offset: 1 1 1 4 4 5 5 5
HISTORY = ((Term(1), Offset(0)), (Term(4), Offset(3)), (Term(5), Offset(5)))
END = Offset(8)


@pytest.mark.parametrize(
    ("offset", "term"), [(-1, 0), (0, 1), (2, 1), (3, 4), (4, 4), (5, 5), (7, 5)]
)
def test_an_offset_has_the_term_of_the_run_it_lies_in(offset: int, term: int) -> None:
    assert TermHistory(HISTORY).term_at(offset) == term


def test_an_empty_log_has_term_0_everywhere() -> None:
    history = TermHistory()

    assert history.last_term == 0
    assert history.term_at(-1) == 0
    assert history.end_of_term(Term(3), Offset(0)) == 0


@pytest.mark.parametrize(("term", "end"), [(0, 0), (1, 3), (2, 3), (3, 3), (4, 5), (5, 8), (9, 8)])
def test_a_term_ends_where_the_next_one_begins(term: int, end: int) -> None:
    assert TermHistory(HISTORY).end_of_term(Term(term), END) == end


@pytest.mark.parametrize(("term", "found"), [(0, 0), (1, 1), (3, 1), (4, 4), (5, 5), (9, 5)])
def test_the_largest_term_not_above_another_is_found(term: int, found: int) -> None:
    assert TermHistory(HISTORY).term_not_above(Term(term)) == found


def test_only_the_first_batch_of_a_term_makes_a_row() -> None:
    history = TermHistory()

    for offset, term in enumerate([2, 2, 2, 7, 7]):
        history.append(Term(term), Offset(offset))

    assert history.rows == ((2, 0), (7, 3))
    assert history.last_term == 7


def test_terms_never_go_back() -> None:
    history = TermHistory(HISTORY)

    with pytest.raises(AssertionError):
        history.append(Term(4), END)


def test_truncating_forgets_the_terms_behind_it() -> None:
    history = TermHistory(HISTORY)

    history.truncate(Offset(4))

    assert [term for term, _ in history.rows] == [1, 4]
    history.truncate(Offset(3))
    assert [term for term, _ in history.rows] == [1]
    history.truncate(Offset(0))
    assert history.last_term == 0


def test_trimming_keeps_the_term_of_the_batch_before_the_start() -> None:
    history = TermHistory(HISTORY)

    history.trim(Offset(3))
    assert history.term_at(2) == 1

    history.trim(Offset(4))
    assert [term for term, _ in history.rows] == [4, 5]
    history.trim(Offset(6))
    assert [term for term, _ in history.rows] == [5]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=30),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_it_agrees_with_a_list_of_terms(steps: list[int], cut: int, trim: int) -> None:
    terms = sorted(steps)
    history = TermHistory()
    for offset, term in enumerate(terms):
        history.append(Term(term), Offset(offset))

    end = min(cut, len(terms))
    start = min(trim, end)
    history.truncate(Offset(end))
    history.trim(Offset(start))

    for offset in range(max(start - 1, 0), end):
        assert history.term_at(offset) == terms[offset]
    for term in range(6):
        expected = sum(1 for t in terms[:end] if t <= term)
        assert max(history.end_of_term(Term(term), Offset(end)), start) == max(expected, start)
