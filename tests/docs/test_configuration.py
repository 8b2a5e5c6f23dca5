"""docs/configuration.md is what the code says.

The page is made from the docstrings of ``BrokerConfig`` and the table of topic options, so
that nobody has to remember to change it.  ``python -m tests.docs.test_configuration`` writes
it anew.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from pathlib import Path

from logd.config import BrokerConfig, read_toml, resolve
from logd.limits import GIB, KIB, MIB
from logd.metadata.topic_config import OPTIONS, parse_options

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

Made from the code by `python -m tests.docs.test_configuration`; a test compares the two.

## A broker

`logd serve --config FILE` reads a TOML file. Above it stand variables like
`LOGD_CONFIG_SEGMENT_BYTES=1048576`, and above those the flags of `logd serve`. A key or a
variable that is not listed here is refused. `logd config show`, with the same file, variables and
flags, says what they come to and where each value is from, and starts nothing.

```toml
node_id = 1
data_dir = "/var/lib/logd"
listen = "0.0.0.0:7171"
peer_listen = "0.0.0.0:7181"
advertise = "one.example:7171"

[cluster]
1 = "one.example:7181"
2 = "two.example:7181"
3 = "three.example:7181"
```
"""

TOPICS = """\
## A topic

`logd topic create NAME --config KEY=VALUE` sets an option, `logd topic alter` changes it. An
option that is not listed here is refused.
"""


def render() -> str:
    """The page as it should be."""
    documentation = _field_documentation()
    settings = (
        _section(field.name, _default(field), documentation[field.name])
        for field in dataclasses.fields(BrokerConfig)
    )
    options = (
        _section(
            option.name,
            f"Default: {option.default}.",
            textwrap.fill(option.meaning, 96, break_on_hyphens=False),
        )
        for option in OPTIONS.values()
    )
    return "\n".join((INTRODUCTION, *settings, TOPICS, *options))


def _section(name: str, default: str, meaning: str) -> str:
    return f"### `{name}`\n\n{default}\n\n{meaning}\n"


def _field_documentation() -> dict[str, str]:
    """Field → the text that stands under it."""
    source = textwrap.dedent(inspect.getsource(BrokerConfig))
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    documentation: dict[str, str] = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(following, ast.Expr):
            continue
        assert isinstance(statement.target, ast.Name)
        text = ast.literal_eval(following.value)
        assert isinstance(text, str)
        documentation[statement.target.id] = inspect.cleandoc(text)
    return documentation


def _default(field: dataclasses.Field[object]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "Default: none."
    if field.default is dataclasses.MISSING:
        return "Required."
    if field.default is None or field.default == "":
        return "Default: none."
    if isinstance(field.default, int):
        return f"Default: {_size(field.default)}."
    return f"Default: `{field.default}`."


def _size(number: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if number >= unit and number % unit == 0:
            return f"{number} ({number // unit} {name})"
    return str(number)


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "run: python -m tests.docs.test_configuration"
    )


def test_every_setting_is_explained() -> None:
    assert set(_field_documentation()) == {f.name for f in dataclasses.fields(BrokerConfig)}


def test_the_example_is_a_configuration() -> None:
    example = render().split("```toml\n")[1].split("```")[0]

    assert resolve([read_toml(example, "the example")]).config.node_id == 1


def test_the_defaults_of_topic_options_are_the_defaults() -> None:
    stated = {name: option.default for name, option in OPTIONS.items() if " " not in option.default}

    assert parse_options(stated) == parse_options({})


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    sys.stderr.write(f"wrote {PAGE}\n")
