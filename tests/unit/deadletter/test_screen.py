import pytest

from shardctl.cli.deadletter.screen import clean


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("order é 鍵", "order é 鍵"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\u202ec\ud800", "a\\x0ab\\u202ec\\ud800"),
        ("x" * 41, "x" * 39 + "…"),
    ],
)
def test_nothing_that_a_terminal_would_obey(text, shown):
    assert clean(text) == shown
