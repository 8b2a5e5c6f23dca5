"""Topic names hold nothing that needs quoting, and a refusal says what was found."""

import pytest

from logd.errors import InvalidNameError
from logd.limits import NAME_CHARACTERS_MAX
from logd.metadata.names import quoted, validate_topic_name


@pytest.mark.parametrize("name", ["a", "orders", "Orders.v2_new-1", "...", "_", "-", "x" * 200])
def test_ordinary_names_are_accepted(name: str) -> None:
    validate_topic_name(name)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("", "found an empty one"),
        ("a b", "contains ' '"),
        ("a/b", "contains '/'"),
        ("orders\n", r"contains '\\n'"),
        ("a\x00", r"contains '\\x00'"),
        ("bestätigt", "contains 'ä'"),
        ("\N{ARABIC-INDIC DIGIT ONE}", "allowed are A-Z a-z 0-9 . _ -"),
        (".", "may not be called '.'"),
        ("..", "may not be called '..'"),
        ("__positions", "belong to logd"),
        ("x" * (NAME_CHARACTERS_MAX + 1), "201 characters, at most 200"),
    ],
)
def test_a_refusal_says_what_was_found(name: str, found: str) -> None:
    with pytest.raises(InvalidNameError, match=found):
        validate_topic_name(name)


def test_an_enormous_name_does_not_make_an_enormous_message() -> None:
    with pytest.raises(InvalidNameError) as refusal:
        validate_topic_name("\x00" * 1_000_000)

    assert len(str(refusal.value)) < 500


def test_quoting_leaves_nothing_that_a_terminal_would_obey() -> None:
    assert quoted("\x1b[31m\ud800") == r"'\x1b[31m\ud800'"
