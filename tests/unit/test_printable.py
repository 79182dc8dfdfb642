"""What is shown does nothing to a terminal, and says what it seems to say."""

import json
import logging
import re
import sys
import unicodedata
from pathlib import Path

import pytest

import shardctl.cli
from shardctl import audit
from shardctl.cli.terminal import out, print_diff, print_json, print_table, say
from shardctl.printable import printable, printable_json, printable_line
from shardctl.supervision import logs

EVERY = [chr(code) for code in range(sys.maxunicode + 1)]
ACTIVE = [character for character in EVERY if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]


def test_every_control_and_format_character_is_escaped():
    assert [character for character in ACTIVE if character in printable_line(character)] == []
    assert [character for character in ACTIVE if character != "\n" and character in printable(character)] == []
    assert [character for character in ACTIVE if character != "\n" and character in printable_json(character)] == []


def test_every_other_character_stays_as_it_is():
    others = "".join(
        character for character in EVERY if unicodedata.category(character)[0] in "LMNPS" or character == " "
    )
    assert printable_line(others) == others


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("order é 鍵\n", "order é 鍵\n"),
        ("\x1b[2Jx", "\\x1b[2Jx"),
        ("\x9b2J\x7f\r\t", "\\x9b2J\\x7f\\x0d\\x09"),
        ("a\u202eb\u2066\u200f\u061c", "a\\u202eb\\u2066\\u200f\\u061c"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_escapes_say_which_character_it_is(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("indent", [None, 2])
def test_json_holds_the_same_data(indent):
    data = {"".join(ACTIVE): ["".join(ACTIVE), "é"]}
    text = printable_json(json.dumps(data, ensure_ascii=False, indent=indent))
    assert json.loads(text) == json.loads(json.dumps(data))
    assert not set(re.findall(r"[^\n]", text)) & set(ACTIVE)
    assert "é" in text


def test_the_terminal_is_known_in_one_place():
    prints = re.compile(r"(?<![\w.])print\(|sys\.stdout\.write|sys\.stderr\.write|click\.echo|typer\.echo")
    folder = Path(shardctl.cli.__file__).parent
    modules = [path.name for path in folder.rglob("*.py") if prints.search(path.read_text())]
    assert modules == ["terminal.py"]


HOSTILE = "\x1b]0;x\x07a\x9b2J\u202eb[bold red]c[/]"
SHOWN = "\\x1b]0;x\\x07a\\x9b2J\\u202eb[bold red]c[/]"


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_lines_and_talk_show_what_a_message_holds_as_escapes(terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "200")
    print_table(("a", "b"), [(HOSTILE, "1")], right=("b",))
    out(HOSTILE)
    say(HOSTILE)
    printed, talk = capsys.readouterr()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", printed + talk)  # the table's own colours
    assert shown.count(SHOWN) == 3
    assert not set(shown) & (set(ACTIVE) - {"\n"})


def test_json_for_a_machine_is_exact_and_harmless(capsys):
    print_json({"key": HOSTILE})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"key": HOSTILE}
    assert not set(printed) & (set(ACTIVE) - {"\n"})


def test_a_diff_shows_what_a_line_holds_as_escapes(capsys):
    print_diff([f"+{HOSTILE}"])
    assert capsys.readouterr().out == f"+{SHOWN}\n"


def test_an_audit_line_is_one_line_of_harmless_json():
    action = audit.Action("replay", "orders", {"keys": [HOSTILE]})
    line = action.line(0, action.began)
    assert json.loads(line)["plan"] == {"keys": [HOSTILE]}
    assert not set(line) & set(ACTIVE)


FORMATTERS = [
    logs.JsonFormatter(),
    logs.PlainFormatter(),
]


@pytest.mark.parametrize("formatter", FORMATTERS, ids=["JSON", "at a terminal"])
def test_a_log_line_is_harmless(formatter):
    line = formatter.format(logging.LogRecord("a", logging.INFO, "a", 1, "key %s", (HOSTILE,), None))
    assert not set(line) & set(ACTIVE)


@pytest.mark.parametrize("level", ["info", "debug"])
def test_of_noisy_libraries_only_warnings_are_logged(level):
    """httpx reports each call at INFO: the leader's, 43,000 lines a day."""
    root, noisy = logging.getLogger(), [logging.getLogger(name) for name in logs.NOISY]
    before, handlers = [logger.level for logger in (root, *noisy)], root.handlers[:]
    try:
        logs.configure(level, logs.PlainFormatter())
        enabled = {logger.name for logger in noisy if logger.isEnabledFor(logging.INFO)}
        silent = {logger.name for logger in noisy if not logger.isEnabledFor(logging.WARNING)}
    finally:
        root.handlers[:] = handlers
        for logger, its_level in zip((root, *noisy), before, strict=True):
            logger.setLevel(its_level)
    assert not enabled
    assert not silent
