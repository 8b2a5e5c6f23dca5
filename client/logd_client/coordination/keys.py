"""Keys with watches: small values, compare-and-set, transactions, keys that go with a session.

    kv = client.kv("config")
    revision = await kv.put("feature", b"on")
    await kv.cas("feature", b"off", revision=revision)
    async with kv.watch(prefix="feat") as events:
        async for event in events: ...

All keys of a namespace have one order of changes; a transaction compares and changes any number
of them at one revision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from logd.errors import CompareFailedError, UsageError
from logd.limits import NUMBER_MAX
from logd.wire.coordination import (
    Compare,
    Delete,
    Get,
    Increment,
    Keys,
    KeyValue,
    Operation,
    Put,
    ReadKeys,
    Transact,
    Transacted,
)
from logd_client.arguments import (
    require_between,
    require_bool,
    require_each,
    require_list,
)
from logd_client.coordination.names import checked_bytes, checked_key, checked_name, shown
from logd_client.coordination.sessions import Sessions
from logd_client.coordination.watches import Watch

Part = TypeVar("Part", bound=msgspec.Struct)


class KeyValues:
    """The keys of one namespace.  Made by ``Client.kv``.

    Every change is carried out once, however often it had to be sent.  A change that is
    cancelled may have been carried out; reads that are cancelled change nothing.
    """

    def __init__(self, sessions: Sessions, namespace: str) -> None:
        self._sessions = sessions
        self._namespace = checked_name(namespace)

    # --- reading ------------------------------------------------------------------------

    async def get(self, key: bytes | str) -> KeyValue | None:
        """A key with its value and revisions; None if there is none."""
        found = (await self._read(Get(key=checked_key(key)))).found
        return found[0] if found else None

    async def range(
        self,
        start: bytes | str,
        end: bytes | str,
        *,
        limit: int = 0,
        keys_only: bool = False,
    ) -> Keys:
        """Keys from ``start`` up to ``end``, which is not included, in order.

        The answer is one state, of its ``revision``: ``found`` are the first of them, up to
        ``limit`` and to what an answer holds, and ``count`` is how many there are.
        """
        require_between("limit", limit, 0)
        require_bool("keys_only", keys_only)
        return await self._read(
            Get(
                key=checked_bytes("start", start),
                end=checked_bytes("end", end),
                limit=limit,
                keys_only=keys_only,
            )
        )

    async def prefix(self, prefix: bytes | str, *, limit: int = 0, keys_only: bool = False) -> Keys:
        """Keys that begin with ``prefix``, all of them if it is empty.  As ``range``."""
        start = checked_bytes("prefix", prefix)
        return await self.range(start, prefix_end(start), limit=limit, keys_only=keys_only)

    async def _read(self, get: Get) -> Keys:
        answer = await self._sessions.calls.query(self._namespace, ReadKeys(get=get))
        assert isinstance(answer, Keys)
        return answer

    # --- changing -----------------------------------------------------------------------

    async def put(self, key: bytes | str, value: bytes | str, *, ephemeral: bool = False) -> int:
        """Set a key; the revision of the change.

        Args:
            ephemeral: it is deleted when this client's session ends.

        Raises:
            QuotaExceededError: the namespace is full; the message has the figure.
        """
        command = Transact(then=[put(key, value, ephemeral=ephemeral)])
        return (await self._sessions.call(self._namespace, command, Transacted)).revision

    async def delete(self, key: bytes | str, end: bytes | str | None = None) -> int:
        """Delete a key, or those from ``key`` up to ``end``; how many there were."""
        done = await self._transact(then=[delete(key, end)])
        return done.results[0].count

    async def cas(
        self,
        key: bytes | str,
        value: bytes | str,
        *,
        revision: int | None = None,
        expected: bytes | str | None = None,
        ephemeral: bool = False,
    ) -> int:
        """Set a key if it is as it was; the revision of the change.

        Args:
            revision: of its last change; 0: there is no such key.
            expected: its value.

        Raises:
            CompareFailedError: it is not; has the ``revision`` of what is there.
        """
        if revision is None and expected is None:
            raise UsageError("cas needs revision or expected: what is it compared with?")
        if revision is not None:
            require_between("revision", revision, 0, NUMBER_MAX)
        compare = Compare(
            key=checked_key(key),
            revision=revision,
            value=None if expected is None else checked_bytes("expected", expected),
        )
        done = await self._transact(
            compare=[compare],
            then=[put(key, value, ephemeral=ephemeral)],
            otherwise=[Get(key=checked_key(key), keys_only=True)],
        )
        if not done.succeeded:
            found = done.results[0].found
            actual = found[0].revision if found else 0
            what = f"is at revision {actual}" if actual else "does not exist"
            wanted = [
                *([] if revision is None else [f"revision {revision}" if revision else "no key"]),
                *([] if expected is None else ["the value that was given"]),
            ]
            raise CompareFailedError(
                f"key {shown(checked_key(key))} {what}, expected {' with '.join(wanted)}", actual
            )
        return done.revision

    async def increment(self, key: bytes | str, by: int = 1) -> int:
        """Add to a decimal integer, 0 if there is no such key; what it is then.

        Raises:
            ConflictError: the value is no integer.
        """
        require_between("by", by, -NUMBER_MAX, NUMBER_MAX)
        done = await self._transact(then=[Increment(key=checked_key(key), by=by)])
        return int(done.results[0].found[0].value)

    async def transact(
        self,
        *,
        compare: Sequence[Compare] = (),
        then: Sequence[Operation] = (),
        otherwise: Sequence[Operation] = (),
    ) -> Transacted:
        """If all comparisons hold do ``then``, else ``otherwise``: all of it, at one revision.

        Build the parts with ``Compare``, and ``put``, ``delete``, ``Get``, ``Increment`` of
        ``logd_client.coordination.keys``.

        Returns:
            ``succeeded``, the ``revision``, and a result per operation.
        """
        return await self._transact(
            compare=_parts("compare", compare, Compare),
            then=_parts("then", then, Put, Delete, Get, Increment),
            otherwise=_parts("otherwise", otherwise, Put, Delete, Get, Increment),
        )

    async def _transact(
        self,
        *,
        compare: Sequence[Compare] = (),
        then: Sequence[Operation] = (),
        otherwise: Sequence[Operation] = (),
    ) -> Transacted:
        """``transact`` of parts that were made here."""
        command = Transact(compare=list(compare), then=list(then), otherwise=list(otherwise))
        return await self._sessions.call(self._namespace, command, Transacted)

    # --- watching -----------------------------------------------------------------------

    def watch(
        self,
        key: bytes | str | None = None,
        *,
        prefix: bytes | str | None = None,
        end: bytes | str | None = None,
        revision: int | None = None,
        tells_gaps: bool = False,
    ) -> Watch:
        """Changes of a key, of a range ``[key, end)``, or of a prefix, in order:
        ``async with kv.watch("k") as events``.

        Args:
            revision: the first whose changes are wanted, for example one behind that of a
                read; default: from now on.
            tells_gaps: an event of the change "gap" stands for changes that are no longer kept;
                whoever is told reads anew.

        Raises, on entering and while iterating:
            CompactedError: those changes are no longer kept; has ``oldest``.
        """
        if (key is None) == (prefix is None) or (end is not None and key is None):
            raise UsageError("watch a key, a range from key to end, or a prefix")
        if prefix is not None:
            start = checked_bytes("prefix", prefix)
            bound: bytes | None = prefix_end(start)
        else:
            assert key is not None
            start = checked_bytes("key", key)
            bound = None if end is None else checked_bytes("end", end)
        return Watch(
            self._sessions.calls,
            self._namespace,
            "key",
            start,
            bound,
            revision,
            tells_gaps=tells_gaps,
        )

    async def session_id(self) -> int:
        """Of the session that ephemeral keys hang on."""
        return (await self._sessions.get(self._namespace)).id


def put(key: bytes | str, value: bytes | str, *, ephemeral: bool = False) -> Put:
    """An operation of a transaction: set a key."""
    require_bool("ephemeral", ephemeral)
    return Put(key=checked_key(key), value=checked_bytes("value", value), ephemeral=ephemeral)


def delete(key: bytes | str, end: bytes | str | None = None) -> Delete:
    """An operation of a transaction: delete a key, or those from it up to ``end``."""
    if end is None:
        return Delete(key=checked_key(key))
    return Delete(key=checked_bytes("key", key), end=checked_bytes("end", end))


def _parts(name: str, parts: Sequence[Part], *kinds: type[Part]) -> list[Part]:
    """Parts of a transaction as they are sent; they are made by hand, and not checked by then.

    Raises:
        UsageError: names the part, and the field of it.
    """
    require_list(name, parts)
    parts = list(parts)
    for at, part in enumerate(parts):
        require_each(f"{name}[{at}]", [part], *kinds)
        try:
            msgspec.msgpack.decode(msgspec.msgpack.encode(part), type=type(part))
        except (msgspec.ValidationError, TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"{name}[{at}], a {type(part).__name__}: {error}") from error
    return parts


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all that begin with ``prefix``; empty: there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b""
