"""A cluster of real brokers for the tests of what uses one, and ways to hurt it.

    from logd.testing import Cluster

    with Cluster() as cluster:
        with connect(cluster.bootstrap) as client:          # logd_client.sync, or logd_client
            ...
            cluster.kill(cluster.leader("orders"))

See docs/testing.md.
"""

from logd.testing.cluster import Cluster

__all__ = ["Cluster"]
