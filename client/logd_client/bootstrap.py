"""The bootstrap list: ``HOST:PORT[,HOST:PORT...]``, IPv6 addresses in brackets.

It only has to name one broker that is up: the others are learned from it.
"""

from __future__ import annotations

from logd.errors import UsageError
from logd.limits import PORT_MAX
from logd.types import HostPort

_PORT_DIGITS_MAX = 5


def parse_bootstrap(text: str) -> tuple[HostPort, ...]:
    """Parse a bootstrap list.

    Raises:
        UsageError: empty, or an entry is not ``HOST:PORT``; names the entry.
    """
    entries = [entry.strip() for entry in text.split(",")]
    addresses = tuple(dict.fromkeys(_parse_address(entry) for entry in entries if entry))
    if not addresses:
        raise UsageError("the bootstrap list is empty, expected HOST:PORT[,HOST:PORT...]")
    return addresses


def _parse_address(entry: str) -> HostPort:
    if "://" in entry:
        raise UsageError(
            f"bootstrap address {entry!r} is not HOST:PORT, without anything before it"
        )
    host, separator, port = entry.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"bootstrap address {entry!r}: write IPv6 addresses as [HOST]:PORT")
    if not separator or not host:
        raise UsageError(f"bootstrap address {entry!r} is not HOST:PORT")
    # The length comes first: int() refuses thousands of digits with an error of its own.
    is_number = port.isascii() and port.isdigit() and len(port) <= _PORT_DIGITS_MAX
    if not (is_number and 0 < int(port) <= PORT_MAX):
        raise UsageError(f"bootstrap address {entry!r}: port must be 1 to {PORT_MAX}")
    return HostPort(host, int(port))
