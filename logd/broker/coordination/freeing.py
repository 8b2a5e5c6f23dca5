"""Which commands give back what somebody has: they are taken while the disk is full, too.

Who cannot release a lock, complete an item or close a session on a full disk keeps others waiting
for as long as it is full.  What is kept free of it (``disk_free_bytes_min``) is for these: they are
small, and the log is trimmed behind the state that they make smaller, or leave as it is: a command
that deletes a key or a queue that is not there is taken, too.

Who renews claims of items gives nothing back and takes nothing either: the state stays as it is,
and the log is trimmed behind it.  Refused, every worker would lose what it is working on, as soon
as that takes longer than a claim holds, and others would do it again.  Sessions, and with them
locks and places in groups, are kept alive without the log.
"""

from __future__ import annotations

from typing import Final

from logd.wire.coordination import (
    CloseSession,
    Command,
    CompleteItems,
    Delete,
    DeleteQueue,
    Get,
    Leave,
    LetGo,
    Release,
    ReleaseItems,
    RenewItems,
    Transact,
)

_FREEING: Final = (
    CloseSession,
    Release,
    Leave,
    LetGo,
    CompleteItems,
    ReleaseItems,
    RenewItems,
    DeleteQueue,
)


def frees(command: Command) -> bool:
    """Whether ``command`` cannot make the state larger, whether or not there is anything to free:
    that is known only where it is carried out."""
    if isinstance(command, Transact):
        operations = (*command.then, *command.otherwise)
        return all(isinstance(operation, Delete | Get) for operation in operations)
    return isinstance(command, _FREEING)
