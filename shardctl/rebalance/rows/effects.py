"""What deleting a table's rows sets off beside: triggers and rules, which take a row that has moved away for one that is gone.

Their author has them do nothing while rows move: they know by a mark that each transaction sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from sqlalchemy import Connection

from shardctl.rebalance.rows.catalog import POSTGRESQL_FAMILIES, mysql_account, place_of, regclasses
from shardctl.rebalance.rows.shape import SlotTable
from shardctl.rebalance.rows.values import MYSQL

_SETTING, _VARIABLE = "shardctl.moving", "@shardctl_moving"
_ON_DELETE = 8  # a bit of tgtype

_POSTGRESQL = f"""{POSTGRESQL_FAMILIES}
SELECT 'trigger', t.tgname, CAST(CAST(t.tgrelid AS regclass) AS text)
FROM family JOIN pg_catalog.pg_trigger t ON t.tgrelid = family.member JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgtype & {_ON_DELETE} <> 0 AND t.tgenabled IN ('O', 'A')
    AND position('{_SETTING}' IN pg_get_triggerdef(t.oid) || p.prosrc) = 0
UNION
SELECT 'rule', r.rulename, CAST(CAST(r.ev_class AS regclass) AS text)
FROM family JOIN pg_catalog.pg_rewrite r ON r.ev_class = family.member
WHERE r.ev_type = '4' AND r.ev_enabled IN ('O', 'A') AND position('{_SETTING}' IN pg_get_ruledef(r.oid)) = 0
ORDER BY 3, 2"""  # noqa: S608
_MYSQL = f"""
SELECT 'trigger', trigger_name, %s FROM information_schema.triggers
WHERE event_manipulation = 'DELETE' AND event_object_schema = %s AND event_object_table = %s
    AND locate('{_VARIABLE}', action_statement) = 0"""  # noqa: S608
_SQLITE = "SELECT 'trigger', name, ?, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE"
_FIXES = {
    "postgresql": f"Disable it, or have it do nothing where current_setting('{_SETTING}', true) = 'on'",
    "sqlite": "Drop it",
}
_MYSQL_FIX = f"Drop it, or have it do nothing where {_VARIABLE} = 1"


def mark(connection: Connection) -> None:
    """Mark this transaction, so that triggers see that it moves rows."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT set_config('{_SETTING}', 'on', true)").close()
    elif connection.dialect.name in MYSQL:
        connection.exec_driver_sql(f"SET {_VARIABLE} = 1")  # until the session ends, which does nothing else


def effects(connection: Connection, tables: Sequence[SlotTable]) -> Iterator[str]:
    """Why deleting moved rows of these tables may do more than that, each reason with the way out."""
    product = connection.dialect.name
    if product in MYSQL:
        yield from _unseen(connection, tables)
    for kind, name, table in _triggers(connection, tables):
        yield (
            f"table {table}: its {kind} {name} would run when rows that have moved away are deleted, as if they were gone. "
            f"{_FIXES.get(product, _MYSQL_FIX)}."
        )


def _triggers(connection: Connection, tables: Sequence[SlotTable]) -> Iterator[tuple[str, str, str]]:
    if connection.dialect.name == "postgresql":
        for kind, name, table in connection.exec_driver_sql(_POSTGRESQL, (regclasses(tables),)):
            yield kind, name, table
        return
    for slot_table in tables:
        if connection.dialect.name in MYSQL:
            for kind, name, table in connection.exec_driver_sql(_MYSQL, (slot_table.name, *place_of(slot_table))):
                yield kind, name, table
        else:
            for kind, name, table, text in connection.exec_driver_sql(
                _SQLITE, (slot_table.name, place_of(slot_table)[1])
            ):
                if re.search(r"\bDELETE\s+ON\b", text, re.IGNORECASE):
                    yield kind, name, table


def _unseen(connection: Connection, tables: Sequence[SlotTable]) -> Iterator[str]:
    """MySQL hides triggers from a user without the TRIGGER privilege."""
    grants = [re.match(r"GRANT (.+?) ON (\S+) TO ", row[0]) for row in connection.exec_driver_sql("SHOW GRANTS")]
    scopes = [
        grant[2].replace("`", "").replace("\\", "")
        for grant in grants
        if grant and {"ALL PRIVILEGES", "TRIGGER"} & set(grant[1].split(", "))
    ]
    account = mysql_account(connection)
    for table in tables:
        if not any(fnmatchcase(".".join(place_of(table)), scope.replace("%", "*")) for scope in scopes):
            yield (
                f"table {table.name}: its triggers, which a deletion would run, are shown only to users with the TRIGGER "
                f"privilege. Run `GRANT TRIGGER ON {'.'.join(f'`{part}`' for part in place_of(table))} TO {account}`."
            )
