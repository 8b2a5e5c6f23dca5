"""What the tests of files begin with."""

from __future__ import annotations

import random

import pytest

from tests.sim.files import SimulatedFileSystem


@pytest.fixture
def disk() -> SimulatedFileSystem:
    """An empty one."""
    return SimulatedFileSystem(random.Random(1))
