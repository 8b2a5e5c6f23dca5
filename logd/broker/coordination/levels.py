"""What of a command may lie in the log while the brokers are of different versions (ADR 16).

A replica of an older version passes over a field that it does not know, and would hold another
state than its peers.  So a field that came with a level is taken out where the command is proposed
while the cluster is below that: it is carried out as an older leader would have had it, and no
client has to know who leads.
"""

from __future__ import annotations

import msgspec

from logd.metadata.features import CHANGED_OPTIONS_LEVEL, UNCOUNTED_LEVEL
from logd.wire.coordination import Command, ConfigureQueue, ReleaseItems


def known_at(level: int, command: Command) -> Command:
    """``command`` as all brokers of a cluster at ``level`` know it."""
    if type(command) is ReleaseItems and command.uncounted and level < UNCOUNTED_LEVEL:
        return msgspec.structs.replace(command, uncounted=False)
    if type(command) is ConfigureQueue and level < CHANGED_OPTIONS_LEVEL:
        return msgspec.structs.replace(command, changed=None)
    return command
