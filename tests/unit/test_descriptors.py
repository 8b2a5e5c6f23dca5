"""A process that serves opens as many files as an administrator lets it."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from logd.limits import DESCRIPTORS_SPARE, DESCRIPTORS_SPARE_OF_REPLICAS
from logd.runtime.descriptors import keep_spare, use_all_descriptors


@pytest.fixture
def limit() -> Iterator[int]:
    """A low one, and how low."""
    given = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, given[1]), given[1]))
    yield resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, given)


def test_of_a_low_limit_a_part_is_kept_and_a_larger_one_from_replicas(limit: int) -> None:
    """So that clients can ask what is wrong when replicas have taken all that they may."""
    keep_spare(limit * 3 // 4 - 1, DESCRIPTORS_SPARE)
    with pytest.raises(OSError, match=f"the last {limit // 4} of {limit} descriptors"):
        keep_spare(limit * 3 // 4, DESCRIPTORS_SPARE)
    with pytest.raises(OSError, match=f"the last {limit * 9 // 32} of {limit} descriptors"):
        keep_spare(limit * 3 // 4 - 1, DESCRIPTORS_SPARE_OF_REPLICAS)


def test_the_limit_that_a_process_is_given_is_raised_as_far_as_it_may_be() -> None:
    given = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, given[1]), given[1]))
    try:
        use_all_descriptors()

        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (given[1], given[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, given)
