"""The commands of docs/performance.md exist, with the options they are shown with."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import click
import pytest

from logd.cli import root

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+?)(?:\s+#.*)?$", PAGE, re.MULTILINE)
MODULES = sorted(set(re.findall(r"python -m (bench\.\w+)", PAGE)))
LOGD = [command for command in COMMANDS if command.startswith("logd ")]
TARGETS = sorted({command.split()[1] for command in COMMANDS if command.startswith("make ")})


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_is_named_exists(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_is_named_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("command", LOGD)
def test_a_command_that_is_shown_takes_its_options(command: str) -> None:
    group, name = command.split()[1:3]
    bench = root.get_command(click.Context(root), group)
    assert isinstance(bench, click.Group)
    found = bench.get_command(click.Context(bench), name)
    assert found is not None

    options = {option for parameter in found.params for option in parameter.opts}

    assert set(re.findall(r"--[\w-]+", command)) <= options
