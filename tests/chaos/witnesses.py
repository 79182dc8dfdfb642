"""How the databases themselves bear witness to the order in which writes took effect, also when rows move between them.

Positions of two databases can't be compared, so each entity counts its own: a row of `witness` says how many of its writes have
taken effect, and lies in the entity's slot. A trigger adds one for each, so it is locked until that write commits, and is there
again if it doesn't. A row of the journal keeps the count as its position; an upsert hides what it replaces, so each leaves a line
in a log. All of these move with their slot. So an entity's positions go on where they were in the database before; a gap is an
effect that has vanished, and a position that comes twice is a database that wrote without knowing what another had written.

A row that has its position already was moved here, and the trigger leaves it as it is.
"""

from __future__ import annotations

from sqlalchemy import create_engine, text

SLOT_TABLES = ("witness", "counter_log")

_STATEMENTS = (
    "CREATE TABLE IF NOT EXISTS witness (entity text PRIMARY KEY, slot integer NOT NULL, effects bigint NOT NULL)",
    "CREATE INDEX IF NOT EXISTS witness_slot ON witness (slot)",
    """CREATE TABLE IF NOT EXISTS counter_log (
       entity text, number bigint NOT NULL, position bigint, slot integer NOT NULL, PRIMARY KEY (entity, position))""",
    "CREATE INDEX IF NOT EXISTS counter_log_slot ON counter_log (slot)",
    "ALTER TABLE journal ADD COLUMN IF NOT EXISTS position bigint",
    "ALTER TABLE counter ADD COLUMN IF NOT EXISTS position bigint",
    "ALTER TABLE journal DROP CONSTRAINT IF EXISTS value_is_not_negative",
    "ALTER TABLE journal ADD CONSTRAINT value_is_not_negative CHECK (value >= 0)",
    """CREATE OR REPLACE FUNCTION next_effect(of text, its_slot integer) RETURNS bigint LANGUAGE sql AS
       'INSERT INTO witness AS w VALUES (of, its_slot, 1) ON CONFLICT (entity) DO UPDATE SET effects = w.effects + 1
        RETURNING effects'""",
    """CREATE OR REPLACE FUNCTION place_journal() RETURNS trigger LANGUAGE plpgsql AS
       'BEGIN NEW.position := coalesce(NEW.position, next_effect(NEW.entity, NEW.slot)); RETURN NEW; END'""",
    """CREATE OR REPLACE TRIGGER place_journal BEFORE INSERT ON journal
       FOR EACH ROW EXECUTE FUNCTION place_journal()""",
    # After the write, since of an upsert PostgreSQL asks first for an insert that may not come to be.
    """CREATE OR REPLACE FUNCTION log_counter() RETURNS trigger LANGUAGE plpgsql AS
       $$ BEGIN
          IF TG_OP = 'UPDATE' OR NEW.position IS NULL THEN
            INSERT INTO counter_log VALUES (NEW.entity, NEW.number, next_effect(NEW.entity, NEW.slot), NEW.slot);
          END IF;
          IF NEW.position IS NULL THEN UPDATE counter SET position = 0 WHERE entity = NEW.entity; END IF;
          RETURN NULL;
       END $$""",
    """CREATE OR REPLACE TRIGGER log_counter AFTER INSERT OR UPDATE OF number ON counter
       FOR EACH ROW EXECUTE FUNCTION log_counter()""",
)


def swear_in(url: str) -> None:
    """From now on the database keeps a history. Before its first write; safe to run again."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            for statement in _STATEMENTS:
                connection.execute(text(statement))
    finally:
        engine.dispose()
