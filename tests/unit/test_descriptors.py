"""A process that serves opens as many files as an administrator lets it."""

from __future__ import annotations

import resource

from logd.runtime.descriptors import use_all_descriptors


def test_the_limit_that_a_process_is_given_is_raised_as_far_as_it_may_be() -> None:
    given = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, given[1]), given[1]))
    try:
        use_all_descriptors()

        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (given[1], given[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, given)
