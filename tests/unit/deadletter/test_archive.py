"""A letter goes into a file and comes out the same; what isn't one is reported."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardctl.deadletter.archive import Archive, ArchiveError, LineError, Spool, decode, encode, lines_of
from shardctl.deadletter.letter import Message

MESSAGE = Message("7", 1_700_000_000_123_456, "01", {"a": "b"}, b"\xff")
GOOD = encode("shop-dead", MESSAGE, stray=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@given(
    st.builds(
        Message,
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64),
        st.integers(0, 250_000_000_000_000_000),
        TEXT,
        st.dictionaries(TEXT, TEXT),
        st.binary(max_size=100) | TEXT.map(str.encode),
    ),
    st.booleans(),
)
def test_there_and_back(message, stray):
    line = encode("name", message, stray=stray)
    assert line.count(b"\n") == 1
    assert decode(line) == ("name", message, stray)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (b"{", b"", "not JSON"),
        (GOOD, b"[]", "not an object"),
        (b"dead_letter", b"parked", "kind"),
        (b'"7"', b"7", "message_id"),
        (b'"7"', b'"%s"' % (b"x" * 65), "message_id"),
        (b'"b"', b"1", "attributes"),
        (b"body_base64", b"boody", "body"),
        (b'"/w=="', b'"/w="', "base64"),
        (b"2023-", b"x023-", "publish_time"),
        (b'"b"', b'"\\ud800"', "not JSON"),
        (b'"/w=="', '"/wé="'.encode(), "base64"),
        (b"2023-11-14T22:13:20.123456Z", b"9999-12-31T23:59:59.999999Z", "publish_time"),
    ],
)
def test_a_line_that_holds_no_letter(before, after, says):
    assert before in GOOD
    with pytest.raises(LineError, match=says):
        decode(GOOD.replace(before, after))


def test_an_archive_is_added_to_and_for_its_owner_alone(tmp_path):
    path = tmp_path / "a.ndjson"
    for _ in range(2):
        with Archive(path) as archive:
            archive.add([GOOD, GOOD])
    assert path.read_bytes() == GOOD * 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_torn_line_stays_apart_from_what_comes_behind_it(tmp_path):
    path = tmp_path / "a.ndjson"
    path.write_bytes(GOOD + GOOD[:20])
    with Archive(path) as archive:
        archive.add([GOOD])
    with path.open("rb") as file:
        spool = Spool(file)
        lines = [(number, spool.fetch(at) == GOOD, line == GOOD) for number, at, line in lines_of(file)]
    assert lines == [(1, True, True), (2, False, False), (3, True, True)]


@pytest.mark.parametrize("path", ["no/such/folder/a.ndjson", "."])
def test_an_archive_that_can_not_be(tmp_path, path):
    with pytest.raises(ArchiveError, match="can't be written"):
        Archive(tmp_path / path)


def test_a_full_temporary_folder_is_an_error():
    with open("/dev/full", "r+b", buffering=0) as file, pytest.raises(ArchiveError, match="No space left on device"):  # noqa: PTH123
        Spool(file).add(b"line\n")
