"""Options that several commands share, and the types their values are checked against.

A value is refused where it is typed, with what was expected and what was found, before
anything is connected to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from logd.config import parse_host_port
from logd.errors import UsageError
from logd.limits import NUMBER_MAX
from logd.types import NODE_ID_MAX, HostPort

BOOTSTRAP_DEFAULT: Final = "127.0.0.1:7171"

Command = TypeVar("Command", bound=Callable[..., Any])

_BYTES_PER_UNIT: Final = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
}  # fmt: skip
_BYTE_RATE: Final = re.compile(
    r"(?P<number>\d{1,15}(\.\d+)?)\s*(?P<unit>|B|[kKMG]i?B)(/s)?", re.IGNORECASE
)
_PARTITION_NAME: Final = re.compile(r"(?P<topic>[^/]+)/(?P<partition>\d{1,19})")


class HostPortType(click.ParamType):  # type: ignore[type-arg]  # Not generic in older click.
    """One address."""

    name = "host:port"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> HostPort:
        """Parse, or say what is wrong."""
        if isinstance(value, HostPort):
            return value
        try:
            return parse_host_port(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class BootstrapType(click.ParamType):  # type: ignore[type-arg]  # Not generic in older click.
    """One or more addresses of the cluster, separated by commas."""

    name = "host:port[,…]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check each address; the text is passed on in its usual form."""
        try:
            addresses = [parse_host_port(part.strip()) for part in value.split(",") if part.strip()]
        except UsageError as error:
            self.fail(str(error), param, ctx)
        if not addresses:
            self.fail("expected HOST:PORT[,HOST:PORT…], found nothing", param, ctx)
        for address in addresses:
            if address.port == 0:
                self.fail(f"port 0 cannot be connected to: {address}", param, ctx)
        return ",".join(str(address) for address in addresses)


class TopicType(click.ParamType):  # type: ignore[type-arg]  # Not generic in older click.
    """The name of a topic."""

    name = "topic"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Whatever the cluster may know, but no partition."""
        if "/" in value:
            self.fail(
                f"no topic is called {value!r}: a partition of it is named with --partition",
                param, ctx,
            )  # fmt: skip
        return str(value)


class PartitionNameType(click.ParamType):  # type: ignore[type-arg]  # Not generic in older click.
    """``TOPIC/N``: names one partition."""

    name = "topic/n"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Split at the slash."""
        match = _PARTITION_NAME.fullmatch(value)
        if match is None:
            self.fail(f"expected TOPIC/N, for example orders/0, found {value!r}", param, ctx)
        return match["topic"], int(match["partition"])


class TopicOrPartitionType(click.ParamType):  # type: ignore[type-arg]  # Not generic in older click.
    """``TOPIC`` or ``TOPIC/N``."""

    name = "topic[/n]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int | None]:
        """Split at the slash, if there is one."""
        return PARTITION_NAME.convert(value, param, ctx) if "/" in value else (value, None)


class IntegerType(click.IntRange):
    """A whole number between bounds; of what is none its base says "no valid integer range"."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, or say what was expected."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"expected a whole number, found {value!r}", param, ctx)
        found: int = super().convert(number, param, ctx)
        return found


class NumberType(click.FloatRange):
    """A number: not ``nan``, which is in every range, and not ``inf``."""

    name = "number"
    expected = "a number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse, or say what was expected."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"expected {self.expected}, found {value!r}", param, ctx)
        found: float = super().convert(number, param, ctx)
        return found


class SecondsType(NumberType):
    """A length of time."""

    expected = "a number of seconds"


class SettingType(click.ParamType):  # type: ignore[type-arg]  # Not generic in older click.
    """``name=value``, or whatever the two are called."""

    def __init__(self, form: str = "NAME=VALUE") -> None:
        self.name = form.lower()
        self._form = form

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Split at the first ``=``."""
        name, separator, setting = value.partition("=")
        if not separator or not name:
            self.fail(f"expected {self._form}, found {value!r}", param, ctx)
        return name, setting


class ByteRateType(click.ParamType):  # type: ignore[type-arg]  # Not generic in older click.
    """Bytes per second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """A number with a unit: ``50MB/s``, ``64KiB``, ``1000000``."""
        if isinstance(value, int):
            return value
        match = _BYTE_RATE.fullmatch(value.strip())
        if match is None:
            self.fail(f"expected a rate such as 50MB/s or 64KiB/s, found {value!r}", param, ctx)
        rate = int(float(match["number"]) * _BYTES_PER_UNIT[match["unit"].upper()])
        from logd.metadata.moves import THROTTLE_BYTES_PER_S_MAX, THROTTLE_BYTES_PER_S_MIN

        if not THROTTLE_BYTES_PER_S_MIN <= rate <= THROTTLE_BYTES_PER_S_MAX:
            self.fail(
                f"a rate is {THROTTLE_BYTES_PER_S_MIN} to {THROTTLE_BYTES_PER_S_MAX} bytes/s, "
                f"found {value!r}",
                param, ctx,
            )  # fmt: skip
        return rate


class BrokerListType(click.ParamType):  # type: ignore[type-arg]  # Not generic in older click.
    """Broker ids, separated by commas, each once."""

    name = "id,id,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Split at the commas."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(re.fullmatch(r"[1-9]\d{0,9}", part) for part in parts):
            self.fail(f"expected broker ids such as 1,2,4, found {value!r}", param, ctx)
        if len(set(parts)) < len(parts):
            self.fail(f"a broker is named twice: {value}", param, ctx)
        return tuple(map(int, parts))


class FenceType(click.ParamType):  # type: ignore[type-arg]  # Not generic in older click.
    """``ID:TOKEN``, as ``logd lock run`` tells its command."""

    name = "id:token"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Two numbers."""
        if isinstance(value, tuple):
            return value
        fence_id, _, token = value.partition(":")
        if not re.fullmatch(r"\d{1,20}", fence_id) or not re.fullmatch(r"\d{1,19}", token):
            self.fail(f"expected ID:TOKEN as $LOGD_FENCE holds it, found {value!r}", param, ctx)
        if not 0 < int(fence_id) < 2**64:
            self.fail(f"a fence's id is 1 to {2**64 - 1}, found {fence_id}", param, ctx)
        return int(fence_id), int(token)


BROKER_ID: Final = IntegerType(1, NODE_ID_MAX)
REVISION: Final = IntegerType(0, NUMBER_MAX)
FENCE: Final = FenceType()
BROKER_LIST: Final = BrokerListType()
BYTE_RATE: Final = ByteRateType()
HOST_PORT: Final = HostPortType()
PARTITION_NAME: Final = PartitionNameType()
SETTING: Final = SettingType()
TOPIC: Final = TopicType()
TOPIC_OR_PARTITION: Final = TopicOrPartitionType()


def bootstrap_option(command: Command) -> Command:
    """``--bootstrap``, from ``$LOGD_BOOTSTRAP`` when not given."""
    return click.option(
        "--bootstrap",
        type=BootstrapType(),
        envvar="LOGD_BOOTSTRAP",
        default=BOOTSTRAP_DEFAULT,
        show_default=True,
        show_envvar=True,
        help="Brokers to ask first; any one that answers is enough.",
    )(command)


def output_option(command: Command) -> Command:
    """``--output table|json``."""
    return click.option(
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="A table for people or JSON for programs.",
    )(command)


DEFAULT_TTL_S: Final = 15.0


def ttl_option(command: Command) -> Command:
    """``--ttl``: of the session that everything hangs on."""
    return click.option(
        "--ttl",
        "ttl_s",
        type=SecondsType(1, 24 * 3600),
        default=DEFAULT_TTL_S,
        show_default=True,
        metavar="SECONDS",
        help="How long it stays ours after the cluster heard from us last.",
    )(command)


def namespace_option(command: Command) -> Command:
    """``--namespace``."""
    return click.option("--namespace", default="default", show_default=True, help="Where to look.")(
        command
    )


def watch_options(command: Command) -> Command:
    """``--from`` and ``--count``: what of the changes is shown."""
    command = click.option("--count", type=IntegerType(min=1), help="Stop after so many changes.")(
        command
    )
    return click.option("--from", "revision", type=REVISION, help="From this revision on.")(command)


def hold_option(command: Command) -> Command:
    """``--hold``: for jobs that several machines begin at about the same time."""
    return click.option(
        "--hold",
        "hold_s",
        type=SecondsType(min=0),
        default=0.0,
        metavar="SECONDS",
        help="Keep it for at least so long, also if the command ends before: whoever comes a "
        "little later with --wait 0 does not run it again.",
    )(command)


def wait_option(command: Command) -> Command:
    """``--wait``."""
    return click.option(
        "--wait",
        "wait_s",
        type=SecondsType(min=0),
        metavar="SECONDS",
        help="Give up after so long; 0: only if nobody has it.  Default: wait for ever.",
    )(command)


def protect_option(command: Command) -> Command:
    """``--protect``."""
    return click.option(
        "--protect",
        "protects",
        multiple=True,
        metavar="TOPIC",
        help="Topics to which earlier holders write no more, with their fence.  May be repeated.",
    )(command)


def throttle_option(command: Command) -> Command:
    """``--throttle``."""
    return click.option(
        "--throttle",
        type=BYTE_RATE,
        metavar="RATE",
        help="What all moves of the cluster together copy, from now on: for example 50MB/s.  "
        "Default: as it is set.",
    )(command)


def detach_option(command: Command) -> Command:
    """``--detach``."""
    return click.option("--detach", is_flag=True, help="Start it, and do not watch.")(command)
