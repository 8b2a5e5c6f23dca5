"""A local cluster whose brokers come and go: some join, some are wiped, some leave for ever."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path
from typing import Final

from logd.cli.local_cluster import HOST, LocalBroker, LocalCluster, free_ports, open_cluster
from logd.types import HostPort, NodeId

FOUNDERS: Final = 3


class ElasticCluster(LocalCluster):
    """Founders that are listed to each other, and brokers that joined them."""

    def __init__(self, founders: LocalCluster, directory: Path) -> None:
        super().__init__(founders.brokers)
        self._founders = founders
        self._directory = directory
        self._founder_ids = {broker.node_id for broker in founders.brokers}

    def command(self, broker: LocalBroker) -> list[str]:
        """Founders are told of the founders, also once some of them have left."""
        if broker.node_id in self._founder_ids:
            return self._founders.command(broker)
        member = next(known for known in self.brokers if known.node_id != broker.node_id)
        return [
            *(sys.executable, "-m", "logd", "serve"),
            *("--node-id", str(broker.node_id), "--data-dir", str(broker.data_dir)),
            *("--listen", str(broker.address), "--peer-listen", str(broker.peer_address)),
            *("--join", str(member.peer_address), "--exit-with-parent"),
        ]

    def join(self, node_id: NodeId) -> LocalBroker:
        """Start a broker on an empty directory that asks a member to be let in."""
        taken = [known.address.port for known in self.brokers]
        taken += [known.peer_address.port for known in self.brokers]
        port, peer_port = free_ports(2, random.Random(), taken=taken)
        broker = LocalBroker(
            node_id=node_id,
            address=HostPort(HOST, port),
            peer_address=HostPort(HOST, peer_port),
            directory=self._directory / f"broker-{node_id}",
        )
        self.brokers = (*self.brokers, broker)
        self.start(node_id)
        return broker

    def wipe(self, node_id: NodeId) -> None:
        """SIGKILL, and everything that the broker had on its disk is gone."""
        if self.is_running(node_id):
            self.kill(node_id)
        shutil.rmtree(self.broker(node_id).data_dir)


def found_cluster(directory: Path) -> ElasticCluster:
    """Three founders, not started."""
    return ElasticCluster(open_cluster(directory, broker_count=FOUNDERS, port=None), directory)
