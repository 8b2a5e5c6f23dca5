"""The connections of one client: one per broker and lane, opened when first wanted.

Whoever finds one gone asks for it again, and it is opened anew.  Which broker to ask for, and
where brokers are to be found at all, is the routing's business.
"""

from __future__ import annotations

import os
from typing import Final
from weakref import WeakSet

import anyio

from logd.errors import (
    ConnectionFailedError,
    ConnectionLostError,
    LogdError,
    ProtocolError,
    RequestTimeoutError,
    UnknownBrokerError,
    UsageError,
)
from logd.types import HostPort, NodeId
from logd_client.background import Background
from logd_client.cluster import ClusterView
from logd_client.connection import Connection, Lane
from logd_client.environment import Environment
from logd_client.refusals import same_error
from logd_client.transport import reason_of

RECONNECT_TIMEOUT_S: Final = 2.0
"""How long a known broker may take to accept a connection: a frozen one never does, and
meanwhile another may lead."""

_ELSEWHERE: Final = (
    "the client was opened before this process was forked off, and what it holds is the other "
    "one's: open one in each process"
)


class Connections:
    """Those that are open, and the way to more."""

    def __init__(
        self,
        view: ClusterView,
        environment: Environment,
        tasks: Background,
        *,
        client_id: str,
        connect_timeout_s: float,
    ) -> None:
        self._view = view
        self._environment = environment
        self._tasks = tasks
        self._client_id = client_id
        self._connect_timeout_s = connect_timeout_s
        self._open: dict[tuple[NodeId, Lane], Connection] = {}
        self._opening: dict[tuple[NodeId, Lane], _Opening] = {}
        self._is_closed = False
        self.is_elsewhere = False
        """This process was forked off the one whose client it is."""
        _of_all_clients.add(self)

    def close(self) -> None:
        """Close all of them; none is opened any more."""
        self._is_closed = True
        for connection in list(self._open.values()):
            connection.close()

    def check_open(self) -> None:
        """Raise ``UsageError`` once the client has been closed, or in a process forked off."""
        if self.is_elsewhere:
            raise UsageError(_ELSEWHERE)
        if self._is_closed:
            raise UsageError("the client is closed: make another one with connect(...)")

    def get(self, node: NodeId, lane: Lane) -> Connection | None:
        """The connection to ``node``, if there is one."""
        connection = self._open.get((node, lane))
        if connection is None or not connection.is_open or self._is_closed:
            return None
        return connection

    async def to(self, node: NodeId, lane: Lane) -> Connection:
        """The connection to ``node``, opened if there is none.

        Those who want it while it is being opened share what comes of that.

        Raises:
            ConnectionFailedError: says which address could not be reached, and why.
            UnknownBrokerError: no broker of that id is known.
        """
        opening = self._opening.setdefault((node, lane), _Opening())
        seen = opening.failure_count
        async with opening.lock:
            self.check_open()
            connection = self.get(node, lane)
            if connection is not None:
                return connection
            if opening.failure_count != seen:
                # One after the other, the last of a thousand partitions would wait for half an
                # hour, and another broker has led it since the first second.
                assert opening.failure is not None
                raise same_error(opening.failure, may_have_applied=False)
            try:
                return await self._open_to(node, lane)
            except LogdError as error:
                opening.failure_count += 1
                opening.failure = error
                raise

    async def _open_to(self, node: NodeId, lane: Lane) -> Connection:
        address = self._view.address(node)
        if address is None:
            raise UnknownBrokerError(f"no broker {node} in the cluster")
        timeout_s = min(self._connect_timeout_s, RECONNECT_TIMEOUT_S)
        try:
            return await self._connect(address, lane, timeout_s, node)
        except (ConnectionLostError, ProtocolError):
            raise
        except ConnectionFailedError as error:
            raise ConnectionFailedError(f"node {node} at {address}: {error}") from error

    async def at(self, address: HostPort, timeout_s: float | None = None) -> Connection:
        """A control connection to whichever broker listens at ``address``.

        Args:
            timeout_s: default: as long as the client may take to meet the cluster.

        Raises:
            ConnectionFailedError: nobody there, or nobody who answers.
            ProtocolError: somebody else, or a broker of another cluster.
        """
        timeout_s = self._connect_timeout_s if timeout_s is None else timeout_s
        return await self._connect(address, Lane.CONTROL, timeout_s)

    async def _connect(
        self, address: HostPort, lane: Lane, timeout_s: float, expected: NodeId | None = None
    ) -> Connection:
        self.check_open()
        deadline = self._environment.clock() + timeout_s
        stream = None
        try:
            with anyio.move_on_after(timeout_s):
                stream = await self._environment.transport.connect(address.host, address.port)
        except OSError as error:
            raise ConnectionFailedError(reason_of(error)) from error
        if stream is not None and self._is_closed:  # Meanwhile.
            await stream.aclose()
            self.check_open()
        if stream is None:
            raise ConnectionFailedError(f"not connected within {timeout_s:.3g} s")
        connection = Connection(stream, address, lane, self._environment)
        self._tasks.start_soon(connection.run)
        try:
            await self._say_hello(connection, timeout_s, deadline)
            node = connection.node
            if expected is not None and node != expected:
                raise ProtocolError(f"{address} is node {node}, expected node {expected}")
        except BaseException as error:
            connection.close()
            if isinstance(error, LogdError):
                error.may_have_applied = False  # All that was sent is a greeting.
            raise
        assert node is not None
        before = self._open.get((node, lane))
        if before is not None and before.is_open:
            connection.close()
            return before
        self._open[node, lane] = connection
        return connection

    async def _say_hello(self, connection: Connection, timeout_s: float, deadline: float) -> None:
        left_s = max(deadline - self._environment.clock(), 0.001)
        try:
            await connection.say_hello(self._client_id, self._view.cluster_id, left_s)
        except RequestTimeoutError as error:
            raise ConnectionFailedError(
                f"the connection was accepted, but nothing was answered within {timeout_s:.3g} s"
            ) from error
        self._view.meet(str(connection.address), connection.cluster_id)


class _Opening:
    """The way to one connection, which one at a time goes for all who want it."""

    __slots__ = ("failure", "failure_count", "lock")

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.failure_count = 0
        self.failure: LogdError | None = None
        """The last one."""


_of_all_clients: Final = WeakSet[Connections]()


def _lose_connections() -> None:
    for connections in _of_all_clients:
        connections.is_elsewhere = True


os.register_at_fork(after_in_child=_lose_connections)
