"""Which configuration is in force: the last one in the log, committed or not.

A change is active as soon as it is appended and undone when it is truncated, so every
configuration since the last committed one is remembered with its offset.
"""

from __future__ import annotations

from collections.abc import Sequence

from logd.raft.messages import Configuration
from logd.raft.quorum import is_voter
from logd.types import NO_OFFSET, NodeId, Offset


class ConfigurationHistory:
    """Configurations by the base offset of their batch; never empty."""

    __slots__ = ("_rows",)

    def __init__(
        self, initial: Configuration, changes: Sequence[tuple[Offset, Configuration]] = ()
    ) -> None:
        self._rows: list[tuple[Offset, Configuration]] = [(NO_OFFSET, initial)]
        for offset, configuration in changes:
            self.append(offset, configuration)

    @property
    def current(self) -> Configuration:
        return self._rows[-1][1]

    @property
    def last_offset(self) -> Offset:
        """Base offset of the change in force; -1 for the initial one."""
        return self._rows[-1][0]

    def is_settled(self, commit_offset: Offset) -> bool:
        """Whether the change in force is committed, and so the next one may begin."""
        return self._rows[-1][0] < commit_offset

    def due(self, commit_offset: Offset) -> Configuration | None:
        """What is to be appended next to leave joint consensus, once that is committed."""
        current = self.current
        if not current.is_joint or not self.is_settled(commit_offset):
            return None
        return current.without_outgoing

    def append(self, offset: Offset, configuration: Configuration) -> None:
        """Put ``configuration`` in force; its batch begins at ``offset``."""
        assert offset > self._rows[-1][0]
        assert configuration.voters
        self._rows.append((offset, configuration))

    def restart(self, initial: Configuration) -> None:
        """Begin again with ``initial``, which is committed."""
        self._rows = [(NO_OFFSET, initial)]

    def truncate(self, offset: Offset) -> None:
        """Undo changes at and above ``offset``."""
        while self._rows[-1][0] >= offset:
            self._rows.pop()
        assert self._rows

    def may_need(self, node: NodeId, commit_offset: Offset) -> bool:
        """Whether ``node`` votes in a configuration that may still be the committed one.

        A change that leaves a node out is in force there while it is not committed, and the
        node may be the only one whose log can win (Ongaro 2014, §4.2.2).
        """
        for offset, configuration in reversed(self._rows):
            if is_voter(configuration, node):
                return True
            if offset < commit_offset:
                break
        return False

    def forget_below(self, commit_offset: Offset) -> None:
        """Drop what cannot be returned to: all before the last committed configuration."""
        while len(self._rows) > 1 and self._rows[1][0] < commit_offset:
            del self._rows[0]
