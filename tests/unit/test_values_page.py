"""The table of types in docs/values.md is of today's types, and of the columns that `shardctl provision` makes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from sqlalchemy import MetaData
from sqlalchemy.dialects import mysql, postgresql, sqlite

from shardctl.fleet.settings.columns import ColumnType
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.shard.schema import table_of

PAGE = Path(__file__).parents[2] / "docs/values.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.read_text().partition("| type | JSON |")[2].partition("\n\n")[0].splitlines()[2:]
]
NATIVE = {row[0].strip("` |"): row[2:5] for row in ROWS}
SIZES = {"varchar(n)": ("varchar(7)", {"n": "7"}), "numeric(p,s)": ("numeric(9,4)", {"p": "9", "s": "4"})}
DIALECTS = (postgresql.dialect(), mysql.dialect(), sqlite.dialect())


def test_every_type_has_a_row():
    assert set(NATIVE) == {*get_args(ColumnType), *SIZES}


@pytest.mark.parametrize("name", NATIVE)
def test_its_columns_are_those_that_provision_makes(name):
    written, sizes = SIZES.get(name, (name, {}))
    kind = MessageType(table="t", key="id", columns={"id": "text", "c": written})
    column = table_of(kind, MetaData()).c.c
    for dialect, cell in zip(DIALECTS, NATIVE[name], strict=True):
        stated = re.match(r"`([^`]+)`", cell)[1]
        for letter, size in sizes.items():
            stated = re.sub(rf"\b{letter}\b", size, stated)
        assert column.type.compile(dialect).partition(" CHARACTER SET")[0] == stated
