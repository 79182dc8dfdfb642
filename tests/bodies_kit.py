"""One table of bodies: what each way into a fleet makes of them, and what the consumer says."""

from __future__ import annotations

from typing import NamedTuple

from shardctl.fleet import spec
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse

FLEET = """
fleet: shop
project: test-project
image: example.com/shardctl:1.0.0
routing: {slot_bits: 6}
databases: [DATABASES]
message_types:
  everything:
    table: everything
    key: id
    columns: {id: text, whole: integer, long: bigint, real: number, exact: decimal, price: "numeric(10,2)", flag: boolean,
              at: timestamp, day: date, code: varchar(4), uid: uuid, raw: bytes, doc: json, note: text}
shards:
  - {name: s0, slots: 0-63}
"""
TYPE = "everything"


def fleet(*databases: str) -> spec.Fleet:
    return fleet_from(parse(FLEET.replace("DATABASES", ", ".join(databases)), "test"))


class Case(NamedTuple):
    """`body` goes in; out comes the same text, or `out`, or `refused` says with which reason and at which column."""

    body: str
    refused: str | None = None
    where: str | None = None
    databases: tuple[str, ...] = ("postgresql", "mariadb")  # a body is refused where any of these is the fleet's
    at_entry: bool = (
        False  # refused by gateway and publishers alone: the fleet's database may take it, or refuses it itself
    )
    beyond: tuple[str, ...] = ()  # databases of no fleet here whose consumer refuses it
    python: bool = True  # whether Python's values can say it


def _deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def key(rest: str) -> str:
    return f'{{"id":"k",{rest}}}'


ALL = ("postgresql", "mariadb", "sqlite")
CASES = {
    "plain": Case(
        key('"whole":1,"long":2,"real":1.5,"exact":12.5,"price":9.99,"flag":true,"doc":{"a":[1]},"note":"x"')
    ),
    "every digit": Case(key('"exact":12345678901234567890.123456789'), beyond=("sqlite",)),
    "a whole number beyond 64 bits": Case(key('"exact":18446744073709551616'), beyond=("sqlite",)),
    "digits in JSON": Case(
        key('"doc":{"a":12345678901234567890.123456789,"b":[18446744073709551616,1.10]}'), python=True
    ),
    "trailing zeros": Case(key('"exact":1.10')),
    "a decimal as text": Case(key('"exact":"12345678901234567890.123456789"'), beyond=("sqlite",)),
    "stated digits": Case(key('"price":12345678.90')),
    "null": Case(key('"note":null,"exact":null,"doc":null')),
    "texts of every script": Case(key('"note":"\u00e9\u674e\U0001f600"')),
    "31 deep": Case(key(f'"doc":{_deep(31)}')),
    "the first year": Case(key('"at":"0001-01-01T00:00:00Z"')),
    "the last moment": Case(key('"at":"9999-12-31T23:59:59.999999Z"')),
    "given twice": Case('{"id":"k","note":"a","note":"b"}', "bad_json", "note", ALL, python=False),
    "given twice inside": Case(key('"doc":{"a":1,"\\u0061":2}'), "bad_json", "a", ALL, python=False),
    "a day": Case(key('"day":"2024-02-29"')),
    "the first day": Case(key('"day":"0001-01-01"')),
    "the last day": Case(key('"day":"9999-12-31"')),
    "a UUID": Case(key('"uid":"6f1c6b0a-0000-4000-8000-00000000000a"')),
    "bytes": Case(key('"raw":"AP8nXA=="')),
    "no bytes": Case(key('"raw":""')),
    "four characters": Case(key('"code":"\u00e9\u674e\U0001f600 "')),
    "new types, null": Case(key('"day":null,"code":null,"uid":null,"raw":null')),
    "a day that isn't": Case(key('"day":"2023-02-29"'), "bad_value", "day", ALL),
    "a day with a time": Case(key('"day":"2023-02-28T00:00:00Z"'), "bad_value", "day", ALL),
    "a day without hyphens": Case(key('"day":"20230228"'), "bad_value", "day", ALL),
    "year 0": Case(key('"day":"0000-01-01"'), "bad_value", "day", ALL),
    "a UUID in capitals": Case(key('"uid":"6F1C6B0A-0000-4000-8000-00000000000A"'), "bad_value", "uid", ALL),
    "a UUID without hyphens": Case(key('"uid":"6f1c6b0a00004000800000000000000a"'), "bad_value", "uid", ALL),
    "a UUID in braces": Case(key('"uid":"{6f1c6b0a-0000-4000-8000-00000000000a}"'), "bad_value", "uid", ALL),
    "bytes without padding": Case(key('"raw":"AP8nXA"'), "bad_value", "raw", ALL),
    "bytes with stray bits": Case(key('"raw":"AP8nXB=="'), "bad_value", "raw", ALL),
    "bytes on two lines": Case(key('"raw":"AP8n\\nXA=="'), "bad_value", "raw", ALL),
    "bytes for URLs": Case(key('"raw":"_-8="'), "bad_value", "raw", ALL),
    "bytes as an array": Case(key('"raw":[0,255]'), "bad_value", "raw", ALL),
    "a fifth character": Case(key('"code":"abcde"'), "bad_value", "code", ALL),
    "a fifth character, a blank": Case(key('"code":"abcd "'), "bad_value", "code", ALL),
    "NaN": Case(key('"real":NaN'), "bad_json", None, ALL),
    "infinity inside": Case(key('"doc":[1,-Infinity]'), "bad_json", None, ALL),
    "beyond a double": Case(key('"exact":1e400'), "bad_json", None, ALL, python=False),
    "half a surrogate pair": Case(key('"note":"\\ud800"'), "bad_json", None, ALL),
    "too deep": Case(key(f'"note":{_deep(1_020)}'), "bad_json", None, ALL, python=False),
    "251 deep": Case(key(f'"doc":{_deep(250)}'), "bad_json", None, ALL),
    "32 deep": Case(key(f'"doc":{_deep(32)}'), "bad_value", "doc", ("mariadb",)),
    "NUL": Case(key('"note":"a\\u0000"'), "bad_value", "note", ALL),
    "NUL in JSON": Case(key('"doc":["\\u0000"]'), "bad_value", "doc", ALL),
    "1e999999": Case(key('"exact":"1e999999"'), "bad_value", "exact", ALL),
    "1e400 as text": Case(key('"exact":"1e400"'), "bad_value", "exact", ("mariadb", "sqlite")),
    "a bare number in JSON": Case(key('"doc":12345678901234567890.5'), "bad_value", "doc", ("sqlite",)),
    "31 places": Case(key('"exact":"0.' + "1" * 31 + '"'), "bad_value", "exact", ("mariadb", "sqlite")),
    "36 digits": Case(key('"exact":' + "1" * 36), "bad_value", "exact", ("mariadb", "sqlite")),
    "16 digits": Case(key('"exact":1234567890.123456'), "bad_value", "exact", ("sqlite",)),
    "a third place": Case(key('"price":1.234'), "bad_value", "price", ALL),
    "a third place far away": Case(key('"price":1.2300000000000000000001'), "bad_value", "price", ALL),
    "a ninth digit": Case(key('"price":123456789'), "bad_value", "price", ALL),
    "a bigint too far": Case(key('"long":9223372036854775808'), "bad_value", "long", ALL),
    "an integer too far": Case(key('"whole":2147483648'), "bad_value", "whole", ALL),
    "a point in a whole number": Case(key('"whole":1.0'), "bad_value", "whole", ALL),
    "too small for a double": Case(key('"real":1e-400'), "bad_value", "real", ALL),
    "an offset of 16 hours": Case(key('"at":"2026-01-01T00:00:00+16:00"'), "bad_value", "at", ALL),
    "a time beyond the last": Case(key('"at":"9999-12-31T23:59:59.9999999Z"'), "bad_value", "at", ALL),
    "no key": Case('{"note":"x"}', "missing_key", "id", ALL),
    "a key that ends in a blank": Case('{"id":"k "}', "bad_value", "id", ("mariadb",), at_entry=True),
}
