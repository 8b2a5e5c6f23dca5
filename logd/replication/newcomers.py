"""Connections whose other side has not said yet who it is.

A listener takes so many connections and no more.  Whoever opens all of them and says nothing would
keep out everybody else until their time to greet is over, again and again.  So nobody is refused
for want of a place, or of a descriptor, while there is one who has not greeted: that one goes.
Of the address that has most of them, because who floods a broker seldom has many; and the one that
came first, because a greeting is under way for no longer than a round trip, unless nobody means to
send it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from logd.errors import OverloadedError
from logd.limits import HANDSHAKE_TIMEOUT_S


class Newcomers:
    """Those of one listener."""

    def __init__(self) -> None:
        self._by_host: dict[str, dict[trio.CancelScope, None]] = {}
        """In the order in which they came."""

    @contextmanager
    def greeting(self, peer_name: str) -> Iterator[None]:
        """While the greetings are exchanged with ``peer_name`` (``host:port``).

        Raises:
            trio.TooSlowError: that took too long.
            OverloadedError: it made room for others.
        """
        host = peer_name.rpartition(":")[0]
        mine = trio.CancelScope()
        self._by_host.setdefault(host, {})[mine] = None
        try:
            with mine, trio.fail_after(HANDSHAKE_TIMEOUT_S):
                yield
        finally:
            if not mine.cancel_called:
                self._forget(host, mine)
        if mine.cancel_called:
            raise OverloadedError("no greeting yet, and others wait for the place that it takes")

    def make_room(self) -> bool:
        """End one of them; False if there is none."""
        if not self._by_host:
            return False
        host = max(self._by_host, key=lambda host: len(self._by_host[host]))
        first = next(iter(self._by_host[host]))
        self._forget(host, first)
        first.cancel()
        return True

    def _forget(self, host: str, scope: trio.CancelScope) -> None:
        scopes = self._by_host[host]
        del scopes[scope]
        if not scopes:
            del self._by_host[host]
