"""Whether a history of concurrent operations could have happened one after the other.

The search of Wing and Gong, with the memory of Lowe: operations are tried in every order that
their times allow (one that returned before another was called stands before it), and a set of
operations done together with the state they led to is tried once.  Histories are checked per key
(``by_key``), since a history is linearizable if that of each object is (Herlihy and Wing), and that
is what makes the search affordable.

An operation whose outcome nobody knows (``returned=None``: a lost answer, a client that died) may
have happened at any time after its call, or not at all.  Such operations are what makes a search
long, so it has a bound, and reaching it is an error of its own: undecided is not linearizable.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

State = TypeVar("State", bound=Hashable)

STEPS_MAX: Final = 2_000_000


class Operation(NamedTuple):
    """What one client asked for, between two moments."""

    asked: Any
    answered: Any = None
    """Means nothing if it never returned."""
    called: float = 0
    returned: float | None = None
    """None: nobody knows what came of it."""
    client: Hashable = None


class Model(NamedTuple, Generic[State]):
    """One object, as it would be if clients came one after the other."""

    initial: State
    step: Callable[[State, Operation], State | None]
    """The state after the operation; None if it could not have been answered so.  The answer of an
    operation without one (``returned`` is None) is not looked at."""


class NotLinearizableError(AssertionError):
    """No order explains the history.  Says how far the best one got, and what then did not fit."""

    def __init__(self, explained: list[Operation], misfit: Operation) -> None:
        lines = [f"  {operation}" for operation in explained[-10:]]
        super().__init__(
            f"no order explains this history: after {len(explained)} operations, the last "
            "of which are\n" + "\n".join(lines) + f"\nthis one cannot have returned as it did:\n"
            f"  {misfit}"
        )
        self.explained = explained
        self.misfit = misfit


class UndecidedError(AssertionError):
    """The search was given up: the history is too long, or too much of it is unknown."""


def check(
    history: Iterable[Operation], model: Model[Any], *, steps_max: int = STEPS_MAX
) -> list[Operation]:
    """Find an order that explains ``history``; returns it.

    Raises:
        NotLinearizableError: there is none.
        UndecidedError: none was found within ``steps_max`` steps.
    """
    return _Search(list(history), model).run(steps_max)


def check_each(
    histories: Mapping[Any, Iterable[Operation]], model: Model[Any], *, steps_max: int = STEPS_MAX
) -> None:
    """Check what happened to each object by itself."""
    for key, history in histories.items():
        try:
            check(history, model, steps_max=steps_max)
        except AssertionError as error:
            error.add_note(f"this happened to {key!r}")
            raise


def by_key(
    history: Iterable[Operation], key_of: Callable[[Operation], Any]
) -> dict[Any, list[Operation]]:
    """The operations on each object."""
    found: dict[Any, list[Operation]] = {}
    for operation in history:
        found.setdefault(key_of(operation), []).append(operation)
    return found


class _Moment:
    """A call or a return in a list from which operations are taken out, and put back."""

    __slots__ = ("after", "before", "is_call", "number", "other")

    def __init__(self, number: int, *, is_call: bool) -> None:
        self.number = number
        self.is_call = is_call
        self.other: _Moment | None = None
        """The return of a call, if there was one."""
        self.before: _Moment | None = None
        self.after: _Moment | None = None

    def unlink(self) -> None:
        assert self.before is not None
        self.before.after = self.after
        if self.after is not None:
            self.after.before = self.before

    def relink(self) -> None:
        assert self.before is not None
        self.before.after = self
        if self.after is not None:
            self.after.before = self


class _Search:
    """Depth first.  At each point the calls before the first return are what can come next."""

    def __init__(self, history: list[Operation], model: Model[Any]) -> None:
        self._history = history
        self._model = model
        self._head = _Moment(-1, is_call=False)
        self._returns_left = 0
        self._link(self._moments())

    def run(self, steps_max: int) -> list[Operation]:
        state = self._model.initial
        done = 0
        seen = {(done, state)}
        path: list[tuple[_Moment, Any]] = []
        best: list[int] = []
        misfit = -1
        moment = self._head.after
        for _ in range(steps_max):
            if self._returns_left == 0:
                return [self._history[chosen.number] for chosen, _ in path]
            assert moment is not None, "a return is left, so the list does not end before it"
            if moment.is_call:
                after = self._model.step(state, self._history[moment.number])
                following = (done | 1 << moment.number, after)
                if after is None or following in seen:
                    moment = moment.after
                    continue
                seen.add(following)
                path.append((moment, state))
                done, state = following
                self._take(moment)
                moment = self._head.after
                continue
            if misfit < 0 or len(path) > len(best):
                best, misfit = [chosen.number for chosen, _ in path], moment.number
            if not path:
                explained = [self._history[number] for number in best]
                raise NotLinearizableError(explained, self._history[misfit])
            chosen, state = path.pop()
            done ^= 1 << chosen.number
            self._put_back(chosen)
            moment = chosen.after
        raise UndecidedError(
            f"no answer after {steps_max:,} steps: {len(self._history)} operations, "
            f"{sum(o.returned is None for o in self._history)} of unknown outcome"
        )

    def _moments(self) -> list[_Moment]:
        """Calls before returns at one moment: what touches in time may have overlapped."""
        timed: list[tuple[float, bool, int, _Moment]] = []
        for number, operation in enumerate(self._history):
            call = _Moment(number, is_call=True)
            timed.append((operation.called, False, number, call))
            if operation.returned is not None:
                assert operation.returned >= operation.called
                call.other = _Moment(number, is_call=False)
                timed.append((operation.returned, True, number, call.other))
                self._returns_left += 1
        return [moment for *_, moment in sorted(timed, key=lambda entry: entry[:3])]

    def _link(self, moments: list[_Moment]) -> None:
        before = self._head
        for moment in moments:
            before.after, moment.before = moment, before
            before = moment

    def _take(self, call: _Moment) -> None:
        call.unlink()
        if call.other is not None:
            call.other.unlink()
            self._returns_left -= 1

    def _put_back(self, call: _Moment) -> None:
        """In the reverse order of taking, or the links would be wrong."""
        if call.other is not None:
            call.other.relink()
            self._returns_left += 1
        call.relink()
