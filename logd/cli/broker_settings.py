"""The options that make a broker's configuration, and where else its settings come from.

``logd serve`` and ``logd config show`` take the same ones, so that the second says what the
first would do.  A later source stands above an earlier one: defaults, the file, variables
``LOGD_CONFIG_…``, the command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from logd.cli.options import HOST_PORT

if TYPE_CHECKING:
    from logd.config import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS: Final = (
    click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="TOML; variables LOGD_CONFIG_… and the options below stand above it.",
    ),
    click.option("--node-id", type=int, help="Unique in the cluster, for ever."),
    click.option("--data-dir", help="Where this broker keeps its logs; made if missing."),
    click.option(
        "--listen", type=HOST_PORT, help="Where clients connect.  Default: 127.0.0.1:7171."
    ),
    click.option(
        "--peer-listen",
        type=HOST_PORT,
        help="Where the other brokers connect.  Default: 127.0.0.1:7181.",
    ),
    click.option(
        "--http-listen",
        type=HOST_PORT,
        help="Where metrics and the status page are.  Default: nowhere.",
    ),
    click.option("--advertise", type=HOST_PORT, help="What clients are told, if not --listen."),
    click.option(
        "--cluster",
        metavar="ID=HOST:PORT,…",
        help="The brokers that form the cluster, each with its --peer-listen address; the same "
        "list for all.  Default: this one alone.",
    ),
    click.option(
        "--join",
        type=HOST_PORT,
        help="Become a member of a cluster: the --peer-listen address of any of its brokers.",
    ),
    click.option(
        "--failure-domain",
        help="What this broker fails together with.  Default: its machine's name.",
    ),
    click.option("--rack", help="Where it stands."),
)


def broker_options(command: Command) -> Command:
    """Options that ``resolve_settings`` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def resolve_settings(config_file: Path | None, given: Mapping[str, object]) -> Settings:
    """Read the file and the environment, and put ``given`` above them.

    Raises:
        UsageError: names the place of a mistake.
    """
    from logd.config import COMMAND_LINE, REQUIRED, Source, read_environment, read_toml, resolve

    sources = [read_environment(os.environ), Source(COMMAND_LINE, given)]
    if config_file is not None:
        sources.insert(0, read_toml(_text_of(config_file), str(config_file)))
    elif not all(
        any(source.values.get(name) is not None for source in sources) for name in REQUIRED
    ):
        raise click.UsageError("give --config FILE, or --node-id and --data-dir")
    return resolve(sources)


def _text_of(path: Path) -> str:
    from logd.errors import UsageError

    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text: {error}") from error
