"""One seed, run to its verdict: what is left of a run, small enough to travel."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from tests.sim.faults import plan_faults
from tests.sim.run import run_deterministic
from tests.sim.scenario import CountingTrace, run_scenario
from tests.sim.settings import Settings

TIMELINE_EVENTS = 400
FRAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one run."""

    seed: int
    problem: str = ""
    """Empty if no promise was broken."""
    signature: str = ""
    """Two runs with the same one fail in the same way."""
    faults: tuple[str, ...] = ()
    """What went wrong on purpose, one line each."""
    fault_numbers: tuple[int, ...] = ()
    timeline: str = ""
    """The last events."""
    acknowledged: int = 0
    uncertain: int = 0
    leader_changes: int = 0
    events: tuple[tuple[str, int], ...] = ()
    digest: str = ""
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    """Processor time that it took; not the same every time."""


def play(
    seed: int,
    faults: Sequence[int] | None = None,
    *,
    messages: bool = False,
    timeline_events: int | None = None,
) -> Verdict:
    """Run one seed, with all or some of its faults, to its verdict; never raises.

    The timeline is kept of a run that fails, or, with ``timeline_events``, of any.
    """
    began_s = time.process_time()
    trace = CountingTrace()
    shown = timeline_events or TIMELINE_EVENTS

    async def main() -> Verdict:
        report = await run_scenario(seed, faults=faults, messages=messages, trace=trace)
        is_wrong = bool(report.violations)
        return Verdict(
            seed=seed,
            problem="\n".join(report.violations),
            signature=_rule_of(report.violations[0]) if is_wrong else "",
            faults=tuple(str(fault) for fault in report.faults),
            fault_numbers=tuple(fault.number for fault in report.faults),
            timeline=trace.timeline(shown) if is_wrong or timeline_events else "",
            acknowledged=report.acknowledged,
            uncertain=report.uncertain,
            leader_changes=report.leader_changes,
            events=tuple(report.events.items()),
            digest=trace.digest,
            virtual_s=trio.current_time(),
            cpu_s=time.process_time() - began_s,
        )

    try:
        return run_deterministic(main, seed=seed)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        planned = plan_faults(seed, Settings.draw(seed))
        if faults is not None:
            planned = [fault for fault in planned if fault.number in faults]
        return Verdict(
            seed=seed,
            problem="\n".join(_story_of(leaf) for leaf in _leaves(error)),
            faults=tuple(str(fault) for fault in planned),
            fault_numbers=tuple(fault.number for fault in planned),
            signature=" ".join(sorted({_name_of(leaf) for leaf in _leaves(error)})),
            timeline=trace.timeline(shown),
            cpu_s=time.process_time() - began_s,
        )


def collect_seldom() -> None:
    """A run keeps most of what it makes until its end: looking for garbage finds little."""
    gc.set_threshold(100_000, 50, 100)


def _rule_of(violation: str) -> str:
    """A violation's text without its particulars."""
    return "".join(character for character in violation.split(": ")[1:2] or [violation])


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for below in error.exceptions for leaf in _leaves(below)]
    return [error]


def _story_of(error: BaseException) -> str:
    """What was raised and where, without the nurseries around it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename]
    raised = "".join(traceback.format_exception_only(error))
    return "".join(traceback.format_list(ours[-FRAMES_SHOWN:])) + raised


def _name_of(error: BaseException) -> str:
    """What was raised, and in which function."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].name} ({frames[-1].filename.rpartition('/')[2]})" if frames else ""
    return f"{type(error).__name__}{where}"
