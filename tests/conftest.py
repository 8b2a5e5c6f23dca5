"""Options shared by all tests."""

from __future__ import annotations

import pytest
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
