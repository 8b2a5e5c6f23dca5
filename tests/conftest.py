"""Options shared by all tests, and what they all hold their event loops to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from anyio import pytest_plugin
from hypothesis import settings

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("logd", deadline=None, print_blob=True)
settings.load_profile("logd")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="rewrite the expected output of data-driven specs; the diff is the review",
    )
    parser.addoption("--seed", type=int, default=None, help="run simulations with this seed only")


@pytest.fixture(scope="session", autouse=True)
def _crashes_of_trio_are_told() -> Iterator[None]:
    """A task of ours that belongs to the event loop, and fails, ends the run of trio.

    The runner that anyio brings for tests does not look at how that run ended.
    """
    start = trio.lowlevel.start_guest_run

    def start_and_tell(
        *arguments: Any, done_callback: Callable[[Any], object], **options: Any
    ) -> None:
        def done(outcome: Any) -> None:
            done_callback(outcome)
            outcome.unwrap()

        start(*arguments, done_callback=done, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio.lowlevel, "start_guest_run", start_and_tell)
        yield


@pytest.fixture(scope="session", autouse=True)
def _asyncio_is_as_programs_run_it() -> Iterator[None]:
    """A program calls ``asyncio.run``, which tells anyio nothing.

    anyio's runner says which event loop it is for all that is called from within, also for what
    runs in no task; what only works with that would pass here and fail in every program.
    """

    name = "set_current_async_library"
    tell: Callable[[str | None], object] = getattr(pytest_plugin, name)

    def tell_of_trio_only(library: str | None) -> object:
        return None if library == "asyncio" else tell(library)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytest_plugin, name, tell_of_trio_only)
        yield
