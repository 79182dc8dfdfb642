"""Reading YAML: what is read, and where each trap stands."""

import pytest

from shardctl.fleet import yamlfile
from shardctl.fleet.yamlfile import YamlError, parse

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_lines_and_scalars_as_written():
    file = parse("a: 1\nshards:\n  - name: x\n    slots: 0-9\n", "f.yaml")
    assert file.data == {"a": 1, "shards": [{"name": "x", "slots": "0-9"}]}
    assert file.line_of(("shards", 0, "slots")) == 4
    assert file.line_of(("shards", 0, "types")) == 3  # the nearest parent that is there
    assert file.written(("a",)) == "1"
    assert file.written(("shards",)) is None


def test_aliases_and_merges_are_read():
    assert parse("base: &b {x: 1}\nhere:\n  <<: *b\n  y: 2\n").data["here"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("a: 00", 'f.yaml:1: YAML doesn\'t read 00 as it looks. Write "00"', id="zeros"),
        pytest.param("x: 1\na: 010", "f.yaml:2: .*010", id="octal"),
        pytest.param("a: 1:30", "1:30", id="sexagesimal"),
        pytest.param("a: 1_000", "1_000", id="underscore"),
        pytest.param("no: 1", 'the key no as text. Write "no"', id="bool-key"),
        pytest.param("1: x", 'Write "1"', id="number-key"),
        pytest.param("[a]: x", "a key must be plain text", id="list-key"),
        pytest.param("a: 2026-01-01", 'a date. Write "2026-01-01" in quotes', id="date"),
        pytest.param("a: =", "meaning of its own", id="value-key"),
        pytest.param("a: 1\nb: 2\na: 3", "f.yaml:3: the key 'a' stands here and on line 1", id="duplicate-key"),
        pytest.param("a:\n\t- x", "spaces, never tabs", id="tab"),
        pytest.param("a: [1", "f.yaml:.*not YAML", id="unclosed"),
        pytest.param("a: *b", "not YAML: found undefined alias", id="no-anchor"),
        pytest.param("a: &a [*a]", "contains it", id="loop"),
        pytest.param(BOMB, "aliases unfold to over", id="bomb"),
        pytest.param("[" * 200_000, "nested deeper than 100", id="deep-flow"),
        pytest.param("".join(" " * i + "- \n" for i in range(300)), "nested deeper than 100", id="deep-block"),
        pytest.param("a: " + "9" * 5000, "a number of 5000 digits", id="huge-number"),
        pytest.param("a: !!python/object:os.system {}", "the tag .*python.* isn't plain YAML", id="python-tag"),
        pytest.param("a: !mine x", "the tag !mine isn't plain", id="own-tag"),
        pytest.param("a: !!binary aGk=", "the tag !!binary", id="binary-tag"),
        pytest.param("a: !!set {x}", "the tag !!set", id="set-tag"),
        pytest.param("a: 1\n---\nb: 2", "Keep one document a file", id="two-documents"),
        pytest.param("a: \x00", "not YAML", id="nul"),
    ],
)
def test_traps(text, reason):
    with pytest.raises(YamlError, match=reason):
        parse(text, "f.yaml")


@pytest.mark.parametrize(
    "text", ["a: '010'", 'a: "1:30"', "a: 0", "a: 10", "a: 0.5", "a: yes", "a: .nan", "a: v1_0", ""]
)
def test_what_looks_odd_but_is_plain(text):
    parse(text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: \xff", "byte 3 isn't UTF-8"),
        ("a: 1".encode("utf-16"), "isn't UTF-8"),
        (b"a: 1\n" * 2_100_000, "larger than 8 MiB"),
    ],
    ids=["latin", "utf-16", "10-mb"],
)
def test_unreadable_content(tmp_path, content, reason):
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    with pytest.raises(YamlError, match=reason):
        yamlfile.read(path)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("a: 1", encoding="utf-8-sig")
    assert yamlfile.read(path).data == {"a": 1}


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(YamlError, match="there is no such file"):
        yamlfile.read(tmp_path / "none.yaml")
    with pytest.raises(YamlError, match="Is a directory"):
        yamlfile.read(tmp_path)
