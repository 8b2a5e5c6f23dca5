"""``logd config``: what a broker would be configured with, and why.

Nothing is started, locked or connected to: it can be asked before a restart, on the machine
where the broker will run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from logd.cli.broker_settings import broker_options, resolve_settings
from logd.cli.display import print_json, print_table
from logd.cli.lazy import NounGroup
from logd.cli.options import output_option

DEFAULT = "default"


class SettingRow(msgspec.Struct, frozen=True, kw_only=True):
    """One setting."""

    setting: str
    value: Any
    origin: str


@click.group(cls=NounGroup)
def config() -> None:
    """A broker's configuration."""


@config.command("show")
@broker_options
@output_option
def show(config_file: Path | None, output: str, **given: Any) -> None:
    """Every setting, its value, and where that comes from.

    Takes what `logd serve` takes, all but --processes and --log-level which are no settings, and
    refuses what it would refuse.
    """
    settings = resolve_settings(config_file, given)
    rows = [
        SettingRow(
            setting=field.name,
            value=_plain(getattr(settings.config, field.name)),
            origin=settings.places.get(field.name, DEFAULT),
        )
        for field in dataclasses.fields(settings.config)
    ]
    if output == "json":
        print_json(rows)
    else:
        cells = [(row.setting, _text(row.value), row.origin) for row in rows]
        columns = ("setting", "value", "origin")
        print_table(columns, cells, whole=columns)


def _plain(value: object) -> object:
    """Addresses as text; the rest is JSON already."""
    if isinstance(value, Mapping):
        return {str(node): str(address) for node, address in value.items()}
    return value if value is None or isinstance(value, int | float | str) else str(value)


def _text(value: object) -> object:
    if isinstance(value, Mapping):
        return ",".join(f"{node}={address}" for node, address in value.items())
    return value if value != "" else None
