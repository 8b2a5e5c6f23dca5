"""The vocabulary of this package's log: one name per event, defined once.

Operators search and alert on these names, so they are an interface: snake_case, past
tense, never interpolated.  Values go into fields, which carry their unit.
"""

from __future__ import annotations

from typing import Final

GROUP_FAILED: Final = "group_failed"
GROUP_HELD: Final = "group_held_by_its_disk"
NO_ROOM: Final = "no_room_on_disk"
NO_DESCRIPTOR: Final = "no_file_descriptor"
RESTARTED_WITH_LOSS: Final = "restarted_with_possible_loss"
LOST_MEMORY_NOT_NOTED: Final = "lost_memory_not_noted"
LEADER_ELECTED: Final = "leader_elected"
LEADERSHIP_LOST: Final = "leadership_lost"
CONFIGURATION_CHANGED: Final = "configuration_changed"
SNAPSHOT_SHIPPED: Final = "snapshot_shipped"
SNAPSHOT_INSTALLED: Final = "snapshot_installed"
SNAPSHOT_FAILED: Final = "snapshot_failed"
LOG_TRUNCATED: Final = "log_truncated"
SEGMENT_ROLLED: Final = "segment_rolled"
LOG_TRIMMED: Final = "log_trimmed"
RETENTION_FAILED: Final = "retention_failed"
LOG_COMPACTED: Final = "log_compacted"
COMPACTION_FAILED: Final = "compaction_failed"
CHECKPOINT_FAILED: Final = "checkpoint_failed"
DAMAGE_FOUND: Final = "damage_found"
DAMAGE_REPAIRED: Final = "damage_repaired"
REPAIR_REFUSED: Final = "repair_refused"
PEER_CONNECTED: Final = "peer_connected"
PEER_DISCONNECTED: Final = "peer_disconnected"
PEER_REFUSED: Final = "peer_refused"
PEER_UP: Final = "peer_up"
PEER_DOWN: Final = "peer_down"
CLAIMS_MISSED: Final = "claims_missed"
