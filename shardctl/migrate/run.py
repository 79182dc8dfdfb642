"""Revisions on every shard: announced in all, applied to the canary, then to the rest, a few at once.

It remembers nothing but the rows of `shardctl_revisions`, may be killed anywhere, and is run again to go on.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from queue import SimpleQueue

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from shardctl.errors import ShardctlError
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec import Fleet, Shard
from shardctl.migrate import history as histories
from shardctl.migrate import operations
from shardctl.migrate.errors import ApplyError, RebalanceOpenError
from shardctl.migrate.history import History, Revision, RevisionError
from shardctl.migrate.operations import Context, Steps
from shardctl.migrate.preview import Preview, preview
from shardctl.migrate.session import IS_BUSY, BusyError, alone, altering, holders, is_locked
from shardctl.rebalance import journal
from shardctl.shard import lanes, mapped, revisions
from shardctl.shard.database import DatabaseError, snapshot, writing
from shardctl.shard.engine import MYSQL
from shardctl.shard.mapped import Lack
from shardctl.shard.revisions import RevisionState
from shardctl.supervision.backoff import backoff
from shardctl.supervision.threads import DaemonThreads

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.5, 10.0
Tell = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """`lock`: how long a statement waits for a lock, with writers behind it. `whole`: how long it is tried, for one revision."""

    lock: timedelta = timedelta(seconds=2)
    whole: timedelta = timedelta(minutes=2)


class Run:
    """`tell` receives each step with its shard; it is called from several threads."""

    def __init__(
        self,
        fleet: Fleet,
        history: History,
        engines: Mapping[str, Engine],
        patience: Patience,
        tell: Tell = lambda *_: None,
    ) -> None:
        self._fleet, self._history, self._engines = fleet, history, engines
        self._patience, self._tell = patience, tell

    def apply(self, canary: str, parallel: int) -> None:
        """Every pending revision, on every shard. Raises ApplyError once what was under way has ended."""
        self.announce()
        self.bring_on(canary)
        rest = [shard.name for shard in self._fleet.shards if shard.name != canary]
        failed = [error for error in self._at_once(rest, parallel) if error is not None]
        if failed:
            raise ApplyError("\n".join(map(str, failed)))

    def announce(self) -> None:
        """From then on no rebalance can be opened, until each shard has each revision. Raises ApplyError.

        What was announced before and has no file any more is withdrawn.
        """
        for shard in sorted(self._engines):  # as a rebalance is opened: the two meet at the first shard
            try:
                self._announce(shard)
            except DatabaseError as error:
                busy = f": {IS_BUSY}" if is_locked(error) and not isinstance(error, BusyError) else ""
                raise ApplyError(f"shard {shard}: {error}{busy}.") from error

    def _announce(self, shard: str) -> None:
        self._make_table(self._engines[shard])
        with self._altering(shard) as connection:
            lanes.share_fence(connection)
            for text in journal.open_ones(connection):
                raise RebalanceOpenError(f"shard {shard}: {text}")
            known = revisions.read(connection)
            revisions.withdraw(connection, known.keys() - set(self._history.ids))
            revisions.announce(connection, self._history.ids)

    def _make_table(self, engine: Engine) -> None:
        try:
            with writing(engine) as connection:
                revisions.create(connection)
        except DatabaseError:
            with snapshot(engine) as connection:
                if not revisions.is_there(connection):
                    raise  # else another `apply` has made it meanwhile

    def bring_on(self, shard: str) -> None:
        """Every revision that the shard lacks, in order. Raises ApplyError."""
        try:
            with snapshot(self._engines[shard]) as connection:
                done = revisions.done(revisions.read(connection))
        except DatabaseError as error:
            raise ApplyError(
                f"shard {shard}: {error}. What was done stays; the same command goes on from there."
            ) from error
        for revision in self._history.revisions:
            if revision.id in done:
                continue
            try:
                self._patiently(self._fleet.shard(shard), revision)
            except (DatabaseError, RevisionError, operations.DiffersError) as error:
                raise ApplyError(self._explained(shard, revision, error)) from error

    def _at_once(self, shards: Sequence[str], parallel: int) -> list[ApplyError | None]:
        """A shard that fails holds no other up: each ends as far as it comes."""
        ended: SimpleQueue[BaseException | None] = SimpleQueue()

        def work(shard: str) -> None:
            try:
                self.bring_on(shard)
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                ended.put(error)
            else:
                ended.put(None)

        threads = DaemonThreads(parallel, "migrate", log)
        for shard in shards:
            threads.submit(work, shard)
        threads.shutdown()
        outcomes: list[ApplyError | None] = []
        for _ in shards:
            error = ended.get()
            if error is not None and not isinstance(error, ApplyError):
                raise error
            outcomes.append(error)
        return outcomes

    def _patiently(self, shard: Shard, revision: Revision) -> None:
        """Tries again while a lock is held, with growing pauses in which writers go on."""
        engine = self._engines[shard.name]
        seen = preview(revision, engine.dialect)
        began, failures = time.monotonic(), 0
        while True:
            try:
                self._once(shard, engine, revision, seen)
            except DatabaseError as error:
                failures += 1
                waited = timedelta(seconds=time.monotonic() - began)
                if not is_locked(error) or waited >= self._patience.whole:
                    raise
                by = holders(engine, seen.tables)
                self._tell(
                    shard.name, f"{revision}: a lock is held{' by ' + by if by else ''}; try {failures + 1} follows"
                )
                time.sleep(backoff(failures, FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS, random.random()))
            else:
                return

    def _once(self, shard: Shard, engine: Engine, revision: Revision, seen: Preview) -> None:
        began = time.monotonic()
        product = engine.dialect.name
        with self._altering(shard.name) as connection:
            state = revisions.state_of(connection, revision.id)
            if state == RevisionState.DONE:
                return
            if state == RevisionState.BEGUN:
                self._tell(shard.name, f"{revision} had begun and not ended: it is completed")
            if seen.alone or product in MYSQL:
                revisions.begin(connection, revision.id)
                connection.exec_driver_sql("COMMIT")
            if not seen.alone:
                self._change(connection, shard, revision)
        if seen.alone:
            with alone(engine, self._patience.whole) as connection:
                self._change(connection, shard, revision)
        self._tell(shard.name, f"{revision} done, {time.monotonic() - began:.1f} s")

    def _change(self, connection: Connection, shard: Shard, revision: Revision) -> None:
        """Run the revision and mark it done; where DDL is part of a transaction, a refusal undoes it."""
        kinds = self._kinds(shard)
        before = set(mapped.lacking(connection, kinds))
        context = Context(connection.dialect, connection, {}, None)
        steps = Steps(context, self._elsewhere(shard), lambda text: self._tell(shard.name, f"{revision}: {text}"))
        module = histories.load(revision.path)
        try:
            operations.run(module, steps)
        except ShardctlError:
            raise
        except Exception as error:
            if _is_databases(error):
                raise
            raise RevisionError(f"{histories.line_of(error, revision)}: {type(error).__name__}: {error}") from error
        if gone := set(mapped.lacking(connection, kinds)) - before:
            raise RevisionError(f"it takes away what shards.yaml maps: {_removed(gone)}. Take it out there first")
        revisions.end(connection, revision.id)

    def _altering(self, shard: str) -> AbstractContextManager[Connection]:
        return altering(self._engines[shard], self._patience.lock)

    def _kinds(self, shard: Shard) -> dict[str, MessageType]:
        return {name: kind for name, kind in self._fleet.message_types.items() if shard.takes(name)}

    def _elsewhere(self, shard: Shard) -> frozenset[str]:
        own = {kind.table for kind in self._kinds(shard).values()}
        return frozenset(kind.table for kind in self._fleet.message_types.values() if kind.table not in own)

    def _explained(self, shard: str, revision: Revision, error: ShardctlError) -> str:
        engine = self._engines[shard]
        text = f"shard {shard}: revision {revision}: {str(error).rstrip('.')}."
        if isinstance(error, DatabaseError) and is_locked(error):
            by = holders(engine, preview(revision, engine.dialect).tables)
            text += f" The lock was held for {self._patience.whole.total_seconds():.0f} s{', by ' + by if by else ''}."
            text += " End what holds it, or raise --wait."
        if engine.dialect.name in MYSQL:
            text += (
                " Some of its statements may have taken effect there, since this database commits each by itself: see "
                "docs/schema-changes.md#half-done."
            )
        return f"{text} What was done stays; the same command goes on from there."


def bring_up(fleet: Fleet, history: History, shard: str, engine: Engine, tell: Tell = lambda *_: None) -> None:
    """All revisions on one shard alone: on a new database, whose tables were made from `shards.yaml`, it adds what they lack.

    Raises ApplyError, DatabaseError, RevisionError.
    """
    with snapshot(engine) as connection:
        done = revisions.done(revisions.read(connection))
    if set(history.ids) - done:
        run = Run(fleet, history, {shard: engine}, Patience(), tell)
        run.announce()
        run.bring_on(shard)


def _is_databases(error: Exception) -> bool:
    """Such errors are translated where the session began."""
    return isinstance(error, SQLAlchemyError | sqlite3.Error)


def _removed(gone: set[Lack]) -> str:
    return ", ".join(sorted(f"{lack.table}.{lack.column}" if lack.column else lack.table for lack in gone))
