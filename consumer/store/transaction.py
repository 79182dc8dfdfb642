"""One batch, one transaction on the shard's database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from consumer.database import sessions
from consumer.database.dialects import Dialect
from consumer.delivery import Delivery
from consumer.errors import BlockedError, DataFaultError, PermanentError, TableNotReadyError, TransientError
from consumer.sinks.base import LoggedSink
from consumer.store import inboxsize, sweep
from consumer.store.fence import Fence, Lanes
from consumer.store.inbox import NOTHING_ADDED, Inbox
from consumer.store.inboxsize import InboxSize
from consumer.store.parked import Key, Parked, key_of
from consumer.store.sweep import At, Retention, Swept, forgettable
from consumer.store.term import Term
from shardctl.shard import changes, lanes, schema
from shardctl.shard.lanes import Lane, Met
from shardctl.shard.schema import LaneState, replicas


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a transaction did. `poison` is not empty only when nothing was committed because of these messages."""

    applied: int = 0
    duplicates: int = 0
    dead: int = 0
    stale: int = 0
    held: tuple[Delivery, ...] = ()  # their lanes aren't active yet
    poison: tuple[Delivery, ...] = ()
    passed_on: int = 0  # another generation has them
    again: tuple[Delivery, ...] = ()  # to be published again: no other generation has them for sure
    parked: int = 0
    newly_parked: tuple[Delivery, ...] = ()  # the first of each key that wasn't parked before


@dataclass(frozen=True, slots=True)
class Released:
    """What became of a parked key: how many of its messages took effect, and why the next one didn't."""

    applied: int
    fault: PermanentError | None = None
    more: bool = False  # there is more of it to apply


@dataclass(frozen=True, slots=True)
class Passed:
    """How many lanes barriers ended. `refused` are those of active lanes that the database doesn't await."""

    lanes: int = 0
    refused: tuple[Delivery, ...] = ()


_NOTHING = Outcome()

Read = Callable[[Delivery], None]
Apply = Callable[[Connection, Sequence[Delivery]], int]


class _PoisonFoundError(Exception):
    """Ends a transaction that must not commit."""

    def __init__(self, poison: Sequence[Delivery]) -> None:
        super().__init__()
        self.poison = tuple(poison)


class Store:
    """Blocking: runs in a thread. Safe to call again with the same messages, whatever the result of the call before.

    With a `term`, each call that writes raises NotLeaderError if this replica no longer leads, before it does anything.
    """

    def __init__(
        self, engine: Engine, dialect: Dialect, fence: Fence, sink: LoggedSink, term: Term | None = None
    ) -> None:
        self._engine, self._dialect, self._fence, self._sink, self._term = engine, dialect, fence, sink, term
        self._inbox, self._parked = Inbox(dialect), Parked(dialect)

    @contextmanager
    def _writing(self, lock_seconds: float | None = None) -> Iterator[Connection]:
        """One transaction, in which this replica has verified that it may write."""
        with sessions.transaction(self._engine, self._dialect, lock_seconds) as connection:
            if self._term:
                with sessions.needed_by_all():
                    self._term.check(connection)
            yield connection

    def apply(self, deliveries: Sequence[Delivery], lock_seconds: float | None = None) -> Outcome:
        """Apply what is new, in order, and record it, in one transaction. Messages with a fault are recorded as dead.

        Messages at fault whose type parks are stored instead, and so is every later message of a parked key. So are all of a
        type whose table isn't ready.

        If the database refuses the data of a message, finds that message by halving, commits nothing, and returns it as `poison`
        with its fault set. Messages at fault that are new here and not yet dead-lettered are returned the same way, and first.
        Raises TransientError if the database can't answer: the whole call may be repeated. Raises BlockedError if a statement
        can't finish now, such as one that would wait for a lock for longer than `lock_seconds`.
        """
        try:
            with self._writing(lock_seconds) as connection:
                return self._write(connection, deliveries, self._sink.apply)
        except _PoisonFoundError as error:
            return Outcome(poison=error.poison)
        except DataFaultError as fault:
            not_ready = _of_type_not_ready(deliveries, fault)
            return Outcome(poison=not_ready) if not_ready else self._search(deliveries, lock_seconds)

    def _search(self, deliveries: Sequence[Delivery], lock_seconds: float | None) -> Outcome:
        poison: list[Delivery] = []
        stuck: set[Key] = set()  # keys whose later messages aren't tried now: they may need the one that failed

        def apply_by_halves(connection: Connection, writes: Sequence[Delivery]) -> int:
            writes = [write for write in writes if key_of(write) not in stuck] if stuck else writes
            if not writes:
                return 0
            try:
                return self._apply(connection, writes)
            except DataFaultError as fault:
                if _type_not_ready(fault):
                    raise
                if len(writes) == 1:
                    writes[0].fault = PermanentError(fault.reason, fault.detail)
                    poison.append(writes[0])
                    if writes[0].parks or fault.key_waits:
                        stuck.add(key_of(writes[0]))
                    return 0
                middle = len(writes) // 2
                return apply_by_halves(connection, writes[:middle]) + apply_by_halves(connection, writes[middle:])

        try:
            with self._writing(lock_seconds) as connection:
                outcome = self._write(connection, deliveries, apply_by_halves)
                _commit_only_without(poison)
                return outcome
        except _PoisonFoundError as error:
            return Outcome(poison=error.poison)
        except DataFaultError as fault:
            if not_ready := _of_type_not_ready(deliveries, fault):
                return Outcome(poison=not_ready)
            # Each write succeeds alone, but not all of them together: smaller parts may succeed.
            raise BlockedError(f"database: no single message is to blame, yet: {fault}") from fault

    def _write(self, connection: Connection, deliveries: Sequence[Delivery], apply: Apply) -> Outcome:
        with sessions.needed_by_all():
            here = self._fence.share(connection)
        owned = [delivery for delivery in deliveries if delivery.lane in here.active]
        elsewhere = self._elsewhere(connection, deliveries, here) if len(owned) < len(deliveries) else _NOTHING
        added = self._inbox.add(connection, owned, beside_old=here.old_inbox) if owned else NOTHING_ADDED
        fresh = added.fresh
        _commit_only_without([*added.reused, *(delivery for delivery in fresh if _needs_dead_letter(delivery))])
        # After the inbox: the insert has waited for a replica that parks one of these messages, so its key is seen here.
        parked_keys = self._parked.keys_of(connection, fresh) if fresh and not added.none_parked else set()
        writes, dead, waiting = _sorted_out(fresh, parked_keys)
        _commit_only_without([delivery for delivery in waiting if self._is_too_large_to_wait(connection, delivery)])
        if dead:
            self._inbox.explain(connection, dead)
        stale = apply(connection, writes) if writes else 0
        newly_parked = tuple(self._parked.park(connection, waiting, parked_keys)) if waiting else ()
        if here.logged:
            self._log(connection, here, recorded=[*fresh, *added.refreshed], written=writes, parked=waiting)
        repeated = len(owned) - len(fresh)
        return Outcome(
            len(writes),
            repeated,
            len(dead),
            stale,
            held=elsewhere.held,
            passed_on=elsewhere.passed_on,
            again=elsewhere.again,
            parked=len(waiting),
            newly_parked=newly_parked,
        )

    def _log(
        self,
        connection: Connection,
        here: Lanes,
        *,
        recorded: Sequence[Delivery],
        written: Sequence[Delivery],
        parked: Sequence[Delivery],
    ) -> None:
        """Log what this transaction changes of logged slots: inbox rows, what the sink writes, and parked keys.

        Every transaction here that changes rows of a slot ends with it.
        """
        recorded, written, parked = (
            [delivery for delivery in deliveries if delivery.slot in here.logged]
            for deliveries in (recorded, written, parked)
        )
        logged = [changes.of_inbox(delivery.slot, delivery.identity) for delivery in recorded]
        logged += self._sink.changes(written)
        logged += (changes.of_parked(*key_of(delivery)) for delivery in parked)
        if logged:
            changes.record(connection, logged)

    def _is_too_large_to_wait(self, connection: Connection, delivery: Delivery) -> bool:
        """Whether the database can't even store it. If so, it is dead-lettered, also where its type parks.

        Raises TransientError if nothing is wrong with the message itself.
        """
        fault = self._parked.too_large(connection, delivery)
        if fault and delivery.fault and delivery.fault.reason == schema.TABLE_NOT_READY:
            raise TransientError(f"{delivery.fault.detail}; a write can't be parked until then: {fault.detail}")
        if fault:
            delivery.parks, delivery.fault = False, PermanentError(fault.reason, fault.detail)
        return fault is not None

    def _elsewhere(self, connection: Connection, deliveries: Sequence[Delivery], here: Lanes) -> Outcome:
        """What happens to messages whose lanes aren't active here: see `shardctl.shard.lanes` and docs/handover.md."""
        early: list[Delivery] = []  # their lanes become active here later
        overtaken: list[Delivery] = []  # read after the barrier that was published after them
        passed_on = 0
        for delivery in deliveries:
            if delivery.lane in here.active:
                continue
            lane = here.others.get(delivery.lane)
            if lane is None or lane.state == LaneState.DUE:
                early.append(delivery)
            elif lane.state == LaneState.ARRIVING:
                passed_on += 1  # no barrier is out, so the slot's present owner has the message
            elif lane.barrier_time_us is not None and delivery.publish_time_us >= lane.barrier_time_us:
                passed_on += 1  # the next generation's subscription was there before the barrier was
            else:
                overtaken.append(delivery)
        done = self._inbox.known(connection, overtaken, beside_old=here.old_inbox) if overtaken else set()
        again = tuple(delivery for delivery in overtaken if delivery not in done)
        return Outcome(held=tuple(early), passed_on=passed_on + len(done), again=again)

    def pass_barriers(self, barriers: Sequence[Delivery]) -> Passed:
        """End the lanes that these barriers end. The caller has committed everything before them. Raises TransientError.

        Anybody may publish a message that looks like a barrier, so the database is asked first whether it awaits this one. Only
        then is the fence taken: a barrier that isn't awaited changes nothing and delays no other writer.
        """
        ended = 0
        refused: list[Delivery] = []
        by_generation: dict[int, list[Delivery]] = {}
        for delivery in barriers:
            by_generation.setdefault(delivery.generation, []).append(delivery)
        with self._writing() as connection:
            for generation, deliveries in by_generation.items():
                met = [Met(d.slot, d.barrier.token, d.publish_time_us) for d in deliveries if d.barrier]
                awaited = lanes.awaited_among(connection, met, generation)
                if awaited:
                    ended += len(lanes.leave(connection, met, generation))
                others = [delivery for delivery in deliveries if delivery.slot not in awaited]
                rows = lanes.read(connection, {delivery.slot for delivery in others}) if others else {}
                refused += (delivery for delivery in others if _is_active(rows.get(delivery.lane)))
        return Passed(ended, tuple(refused))

    def check_tables(self) -> None:
        """Raises TransientError while a table of shardctl's is missing, or the inbox is of another version."""
        with sessions.translated(), self._engine.connect() as connection:
            missing = schema.missing_tables(connection)
            fault = schema.fault_of_version(connection, beside_old_inbox=True)
        if fault or missing:
            raise TransientError(fault or f"the shard's database lacks {', '.join(missing)}: run `shardctl provision`")

    def report_presence(self, replica: str, generations: Sequence[int]) -> None:
        """Record which generations this replica reads, and when, by the database's own clock: a rebalance waits for readers."""
        own_row, numbers = replicas.c.replica == replica, ",".join(map(str, generations))
        with sessions.transaction(self._engine, self._dialect) as connection:
            change = update(replicas).where(own_row).values(generations=numbers, seen_time=func.now())
            if connection.execute(change).rowcount == 0:
                connection.execute(insert(replicas).values(replica=replica, generations=numbers))

    def forget_replicas(self, silent_seconds: int) -> int:
        """Delete replicas that haven't reported their presence for so long, by the database's own clock; how many."""
        with self._writing() as connection:
            now = connection.execute(select(func.now())).scalar_one()
            silent = replicas.c.seen_time < now - timedelta(seconds=silent_seconds)
            return connection.execute(delete(replicas).where(silent)).rowcount

    def _apply(self, connection: Connection, writes: Sequence[Delivery]) -> int:
        """All of the writes or none of them."""
        with sessions.translated(), connection.begin_nested():
            stale = self._sink.apply(connection, writes)
            if self._dialect.check_deferred:
                connection.exec_driver_sql(self._dialect.check_deferred)
            return stale

    def known(self, deliveries: Sequence[Delivery]) -> set[Delivery]:
        """The messages that the inbox knows: they took effect, or were dead-lettered or parked, in a committed transaction.

        Only where their lane is active here, or has left. Until it is, the inbox may hold what was copied from another database
        a while ago: a dead row, too, that the dead-letter desk has since deleted there so that the write is tried again.
        """
        with sessions.translated(), self._engine.connect() as connection:
            here = self._fence.look(connection)  # before the inbox, which is then as new as the lanes, or newer
            sure = [delivery for delivery in deliveries if _was_active(delivery.lane, here)]
            return self._inbox.known(connection, sure, beside_old=here.old_inbox) if sure else set()

    def released_keys(self) -> list[Key]:
        """Parked keys that wait for `release`."""
        with self._writing() as connection:
            return self._parked.released(connection, self._fence.share(connection).active_slots)

    def not_ready_types(self) -> list[str]:
        """Message types with keys that wait for the type's table."""
        with sessions.translated(), self._engine.connect() as connection:
            return self._parked.not_ready_types(connection)

    def not_ready_keys(self, message_type: str) -> list[Key]:
        """Some of the type's keys that wait for its table, to be tried by `release` in this order."""
        with self._writing() as connection:
            active = self._fence.share(connection).active_slots
            return self._parked.not_ready(connection, active, message_type)

    def release(self, key: Key, read: Read) -> Released | None:
        """Apply the first messages of a released key, or of one that waits for its table, in order, up to one that fails again.

        None when there is no such key.

        `read` reads a message again, as on arrival: its fault may have been fixed since. Raises TransientError.
        """
        try:
            with self._writing() as connection:
                here = self._fence.share(connection)
                if key[0] not in here.active_slots or not self._parked.take(connection, key):
                    return None
                waiting = self._parked.first(connection, key)
                writes, unreadable = _up_to_unreadable([delivery for _, delivery in waiting], read)
                done, fault = self._apply_up_to_fault(connection, writes)
                fault = fault or unreadable
                more = self._parked.finish_release(connection, key, waiting[:done], fault)
                self._log_release(connection, here, key, writes[:done])
                return Released(done, fault, more)
        except DataFaultError as error:  # at the commit
            return self._keep_parked(key, PermanentError(error.reason, error.detail))

    def _log_release(self, connection: Connection, here: Lanes, key: Key, done: Sequence[Delivery]) -> None:
        if key[0] in here.logged:
            self._log(connection, here, recorded=done, written=done, parked=())
            changes.record(connection, (changes.of_parked(*key),))

    def _keep_parked(self, key: Key, fault: PermanentError) -> Released:
        """Each message succeeds alone, but their commit fails: a person has to look at it."""
        with self._writing() as connection:
            here = self._fence.share(connection)
            if key[0] in here.active_slots and self._parked.take(connection, key):
                self._parked.finish_release(connection, key, (), fault)
                self._log_release(connection, here, key, ())
            return Released(0, fault)

    def _apply_up_to_fault(
        self, connection: Connection, writes: Sequence[Delivery]
    ) -> tuple[int, PermanentError | None]:
        """How many of the writes were applied, by halves, and why the next one can't be."""
        if not writes:
            return 0, None
        try:
            self._apply(connection, writes)
        except DataFaultError as fault:
            if len(writes) == 1:
                return 0, PermanentError(fault.reason, fault.detail)
            middle = len(writes) // 2
            done, first_fault = self._apply_up_to_fault(connection, writes[:middle])
            if first_fault:
                return done, first_fault
            more, second_fault = self._apply_up_to_fault(connection, writes[middle:])
            return done + more, second_fault
        return len(writes), None

    def end_outgrown_logs(self) -> int:
        """End logs that would grow for ever, where nobody finishes a rebalance; how many. See `shardctl.shard.changes`."""
        with self._writing() as connection:
            slots = changes.outgrown(connection, lanes.logged_for_the_way_back(connection))
        if not slots:
            return 0
        with self._writing() as connection:
            return lanes.end_logs_for_the_way_back(connection, slots)

    def delete_ended_logs(self) -> bool:
        """Delete some of what ended logs left; whether there may be more."""
        with self._writing() as connection:
            return changes.delete_some(connection) == changes.ROWS_AT_ONCE

    def purge(self, retention: Retention, at: At, pages: int) -> Swept:
        """Delete, in so many pages from `at` on, what is past its retention by the database's own clock."""
        with self._writing() as connection:
            return sweep.chunk(connection, forgettable(schema.published_now(connection), retention), at, pages)

    def measure(self, retention: Retention) -> InboxSize:
        """Estimate the inbox's size, and how far the purge is behind. Raises TransientError."""
        with sessions.needed_by_all(), self._engine.connect() as connection:
            return inboxsize.measure(connection, retention.applied)


def _sorted_out(
    fresh: Sequence[Delivery], parked_keys: set[Key]
) -> tuple[list[Delivery], list[Delivery], list[Delivery]]:
    """New messages as those to write, those that are dead, and those to park: at fault themselves or behind one of their key."""
    writes: list[Delivery] = []
    dead: list[Delivery] = []
    waiting: list[Delivery] = []
    waits = set(parked_keys)
    for delivery in fresh:
        key = key_of(delivery)
        if delivery.fault and not delivery.parks:
            dead.append(delivery)
        elif delivery.fault or key in waits:
            waits.add(key)
            waiting.append(delivery)
        else:
            writes.append(delivery)
    return writes, dead, waiting


def _up_to_unreadable(deliveries: Sequence[Delivery], read: Read) -> tuple[list[Delivery], PermanentError | None]:
    """The messages before the first that can't be read, and what is wrong with that one."""
    readable: list[Delivery] = []
    for delivery in deliveries:
        try:
            read(delivery)
        except PermanentError as fault:
            return readable, fault
        readable.append(delivery)
    return readable, None


def _needs_dead_letter(delivery: Delivery) -> bool:
    """At fault for good, and neither on the dead-letter topic yet nor to be parked."""
    return delivery.fault is not None and not (delivery.parks or delivery.dead_lettered)


def _commit_only_without(poison: Sequence[Delivery]) -> None:
    if poison:
        raise _PoisonFoundError(poison)


def _type_not_ready(fault: DataFaultError) -> str | None:
    """The message type whose table isn't ready; None where the fault is another, or may be of several types."""
    types = fault.message_types if isinstance(fault, TableNotReadyError) else ()
    return next(iter(types)) if len(types) == 1 else None


def _of_type_not_ready(deliveries: Sequence[Delivery], fault: DataFaultError) -> tuple[Delivery, ...]:
    """All messages of the type whose table isn't ready, with the fault for which they are to be parked."""
    message_type = _type_not_ready(fault)
    waiting = tuple(d for d in deliveries if d.message_type == message_type and d.fault is None)
    for delivery in waiting:
        delivery.fault, delivery.parks = PermanentError(fault.reason, fault.detail), True
    return waiting


def _was_active(lane: int, here: Lanes) -> bool:
    other = here.others.get(lane)
    return lane in here.active or (other is not None and other.state == LaneState.LEFT)


def _is_active(lane: Lane | None) -> bool:
    return lane is not None and lane.state == LaneState.ACTIVE
