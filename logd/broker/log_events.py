"""The vocabulary of this package's log (see ``replication/log_events.py``)."""

from __future__ import annotations

from typing import Final

BROKER_STARTING: Final = "broker_starting"
BROKER_STARTED: Final = "broker_started"
BROKER_STOPPING: Final = "broker_stopping"
BROKER_STOPPED: Final = "broker_stopped"
BROKER_REGISTERED: Final = "broker_registered"
WAITING_FOR_NODES: Final = "waiting_for_nodes"
CLUSTER_FORMED: Final = "cluster_formed"
LEADER_MOVED: Final = "leader_moved"
TOPIC_CREATED: Final = "topic_created"
TOPIC_DELETED: Final = "topic_deleted"
METADATA_REFUSED: Final = "metadata_command_refused"
METADATA_UNREADABLE: Final = "metadata_unreadable"
PARTITION_OPENED: Final = "partition_opened"
PARTITION_DAMAGED: Final = "partition_damaged"
PARTITION_TRASHED: Final = "partition_trashed"
TRASHING_FAILED: Final = "trashing_failed"
CLIENT_REFUSED: Final = "client_refused"
CLIENT_CLOSED: Final = "client_closed"
DISK_FULL: Final = "disk_full"
DISK_USABLE_AGAIN: Final = "disk_usable_again"
DISK_SPACE_UNKNOWN: Final = "disk_space_unknown"
ACCEPT_FAILED: Final = "accept_failed"
REQUEST_FAILED: Final = "request_failed"
