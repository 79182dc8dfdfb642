"""Whether all shards have one schema: each table that message types or revisions name, as each database really has it.

Databases of one product are compared in everything that a table says of itself. Between two products, whose types differ, rows of
the one must fit into the other, both ways: the rule by which a rebalance moves them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Engine, inspect
from sqlalchemy.engine.reflection import Inspector

from shardctl.fleet.spec import Fleet
from shardctl.rebalance.rows.fitness import differences
from shardctl.rebalance.rows.shape import SlotTableError, look_at
from shardctl.rebalance.rows.tables import named
from shardctl.shard.database import snapshot

Facts = Mapping[str, str]  # "column amount" → "BIGINT NULL"


@dataclass(frozen=True, slots=True)
class Difference:
    """Between a shard and the first one that has the table."""

    table: str
    shard: str
    first: str
    what: str

    def __str__(self) -> str:
        return f"table {self.table}, shards {self.first} and {self.shard}: {self.what}"


def compare(fleet: Fleet, engines: Mapping[str, Engine], others: Iterable[str] = ()) -> list[Difference]:
    """Every difference; `others` are tables beside the message types'.

    A message type's table that a shard lacks is compared among the rest: whether it has to be there, `standing` says.

    Raises DatabaseError where a shard doesn't answer, SlotTableError where two message types disagree.
    """
    first: dict[tuple[str, str], tuple[str, Facts]] = {}
    by_product: dict[str, str] = {}
    unequal: list[Difference] = []
    shards_with: dict[str, list[str]] = {}
    for shard in fleet.shards:
        own = {name: kind for name, kind in fleet.message_types.items() if shard.takes(name)}
        with snapshot(engines[shard.name]) as connection:
            product, inspector = connection.dialect.name, inspect(connection)
            by_product.setdefault(product, shard.name)
            for table in dict.fromkeys((*(entry.name for entry in named(own) if not entry.own), *others)):
                facts = facts_of(inspector, table)
                if facts is None:
                    continue
                shards_with.setdefault(table, []).append(shard.name)
                other, expected = first.setdefault((product, table), (shard.name, facts))
                unequal += [Difference(table, shard.name, other, text) for text in _unequal(expected, facts)]
    mapped = {name for kind in fleet.message_types.values() for name in (kind.table, *kind.slot_tables)}
    for table, present in shards_with.items():
        absent = [shard.name for shard in fleet.shards if shard.name not in present and table not in mapped]
        unequal += [Difference(table, shard, present[0], "the other doesn't have it") for shard in absent]
    unequal += _between_products(fleet, engines, by_product)
    return unequal


def facts_of(inspector: Inspector, name: str) -> Facts | None:
    """What a table says of itself; None where it isn't there. The order of columns and the names of keys are no part of it."""
    space, _, table = name.rpartition(".")
    if not inspector.has_table(table, schema=space or None):
        return None
    place = {"schema": space or None}
    facts = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types that SQLAlchemy doesn't know
        for column in inspector.get_columns(table, **place):
            text = f"{column['type']!r} {'NULL' if column['nullable'] else 'NOT NULL'}"
            text += f" DEFAULT {column['default']}" if column.get("default") else ""
            facts[f"column {column['name']}"] = text + (
                f" AS {column['computed']['sqltext']}" if "computed" in column else ""
            )
        facts["primary key"] = _listed(inspector.get_pk_constraint(table, **place).get("constrained_columns"))
        for index in inspector.get_indexes(table, **place):
            where = index.get("dialect_options", {}).get("postgresql_where", "")
            names = index.get("expressions") or index["column_names"]
            facts[
                f"{'unique ' if index['unique'] else ''}index on {_listed(names)}{' WHERE ' if where else ''}{where}"
            ] = "there"
        for key in inspector.get_unique_constraints(table, **place):
            facts[f"unique index on {_listed(key['column_names'])}"] = "there"
        for foreign in inspector.get_foreign_keys(table, **place):
            to = f"{foreign['referred_table']} {_listed(foreign['referred_columns'])}"
            facts[f"foreign key {_listed(foreign['constrained_columns'])}"] = (
                f"to {to} {sorted(foreign['options'].items())}"
            )
        for check in inspector.get_check_constraints(table, **place):
            facts[f"CHECK {check['sqltext']}"] = "there"
    return facts


def _listed(names: Iterable[str | None] | None) -> str:
    return f"({', '.join(str(name) for name in names or ())})"


def _unequal(expected: Facts, facts: Facts) -> Iterator[str]:
    for fact in sorted(expected.keys() | facts.keys()):
        here, there = expected.get(fact, "isn't there"), facts.get(fact, "isn't there")
        if here != there:
            yield f"{fact}: {here} in the first, {there} in the other"


def _between_products(
    fleet: Fleet, engines: Mapping[str, Engine], by_product: Mapping[str, str]
) -> Iterator[Difference]:
    """The first shard of each product against the first one of all, in both directions."""
    first, *rest = by_product.items()
    for product, shard in rest:
        both = {
            name: kind
            for name, kind in fleet.message_types.items()
            if fleet.shard(shard).takes(name) and fleet.shard(first[1]).takes(name)
        }
        with snapshot(engines[first[1]]) as here, snapshot(engines[shard]) as there:
            for entry in named(both):
                try:
                    table, other = look_at(inspect(here), entry), look_at(inspect(there), entry)
                except SlotTableError as error:
                    yield Difference(entry.name, shard, first[1], str(error))
                    continue
                if table is None or other is None or entry.own:
                    continue
                unequal = [*differences(first[0], table, product, other), *differences(product, other, first[0], table)]
                for text in dict.fromkeys(unequal):
                    yield Difference(entry.name, shard, first[1], text)
