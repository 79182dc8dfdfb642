"""Lines of JSON are writes, or say what is wrong with them."""

from datetime import UTC, datetime

import pytest

from shardctl.wire.jsonlines import MAX_LINE_BYTES, LineError, fields_of, write_of
from shardctl.wire.message import Write


def test_a_line_is_a_write():
    more = b'"operation":"delete","idempotency_key":"i","timestamp":"2026-05-04T00:00:00Z"'
    line = b'\xef\xbb\xbf{"type":"a","body":{"id":1},"key":"k",' + more + b"}\n"
    assert write_of(line) == Write("a", {"id": 1}, "k", "delete", "i", datetime(2026, 5, 4, tzinfo=UTC))


def test_only_type_and_body_are_needed():
    assert write_of(b'{"type":"a","body":{},"key":null}') == Write("a", {})


@pytest.mark.parametrize(
    ("line", "says", "field"),
    [
        (b"{", "not JSON", None),
        (b"[]", "not an object", None),
        (b'{"type":"a","body":{},"when":1}', "unknown field 'when'", "when"),
        (b'{"body":{}}', '"type" must be text', "type"),
        (b'{"type":"a","body":[]}', '"body" must be an object', "body"),
        (b'{"type":"a","body":{},"key":5}', '"key" must be text', "key"),
        (b'{"type":"a","body":{},"timestamp":"soon"}', '"timestamp" isn\'t', "timestamp"),
        (b" " * MAX_LINE_BYTES + b"{}", "over 10 MiB", None),
    ],
    ids=["cut", "list", "unknown", "no type", "body", "key", "time", "long"],
)
def test_what_is_no_write_is_refused_with_a_reason(line, says, field):
    with pytest.raises(LineError, match=says) as caught:
        write_of(line)
    assert caught.value.field == field


def test_fields_left_out_are_missing():
    assert fields_of(b'{"type":"a","body":{}}') == {"type": "a", "body": {}}
