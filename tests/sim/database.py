"""A shard's database at the seam of `consumer.store.Store`: transactions that wait for each other and commit at one instant.

Two transactions that record the same message meet as they would on PostgreSQL's unique index: the second waits for the first to
end, and then finds the message there, or records it itself. The log of a routing key only grows, so loss, doubling and
reordering all stay visible.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from consumer.delivery import Delivery
from consumer.errors import BlockedError, PermanentError, TransientError
from consumer.store import inbox
from consumer.store.transaction import Outcome
from tests.sim.loop import Process, SimLoop
from tests.sim.network import Answer, Network

Identity = tuple[int, bytes]  # slot, and what the inbox knows the write by
APPLIED, DEAD = "applied", "dead"
ANSWER_SECONDS = 5.0  # after the statement timeout a client believes the connection dead
GONE = "the transaction is gone: the connection was lost"


class Watcher(Protocol):
    """Receives what the database sees."""

    def tell(self, who: object, what: str, *about: object) -> None: ...
    def committed(self, process: Process, writes: Sequence[Delivery], dead: Sequence[Delivery]) -> None: ...


def identity_of(delivery: Delivery) -> Identity:
    return (delivery.slot, delivery.identity)


def number_of(write: Delivery) -> int:
    return int(write.body["number"])


class Transaction:
    """The server's side. Open until it commits, rolls back, idles too long, or loses its connection."""

    def __init__(self, process: Process, arriving: frozenset[int]) -> None:
        self.process = process
        self.arriving = arriving  # the slot map, as it was when this one shared the fence
        self.open = True
        self.claims: list[Identity] = []
        self.recorded: list[Delivery] = []
        self.writes: list[Delivery] = []
        self.waiters: list[Callable[[], None]] = []  # who waits for this one's end
        self.operations = 0  # begun so far: shows an idle timer that it is out of date


class Database:
    def __init__(self, loop: SimLoop, watcher: Watcher, seed: int, statement_timeout_seconds: float) -> None:
        self._loop, self._watcher = loop, watcher
        self._draw = random.Random(f"{seed} database").random
        self.statement_timeout_seconds = statement_timeout_seconds
        self.inbox: dict[Identity, str] = {}
        self.fingerprints: dict[Identity, int] = {}  # of what is in the inbox
        self.log: dict[str, list[int]] = {}
        self.arriving: set[int] = set()  # slots that aren't active here yet
        self.fail_commit = 0.0
        self._locked: set[str] = set()  # routing keys whose row somebody else's transaction holds
        self._row_waiters: list[Callable[[], None]] = []
        self.deadly: frozenset[int] = frozenset()  # numbers of messages that kill the process that writes them
        self.kill: Callable[[Process], None] = lambda _: None
        self._claims: dict[Identity, Transaction] = {}
        self._open: list[Transaction] = []

    def recorded(self, identity: Identity) -> str | None:
        return self.inbox.get(identity)

    # -- one statement each ----------------------------------------------------------------------------------------

    def begin(self, process: Process) -> Transaction:
        transaction = Transaction(process, frozenset(self.arriving))
        self._open.append(transaction)
        self._idle(transaction)
        return transaction

    def record(self, transaction: Transaction, deliveries: Sequence[Delivery], answer: Answer) -> None:
        """INSERT … ON CONFLICT DO NOTHING RETURNING, in the order of the keys; answers with what was not there before."""
        if not self._may_work(transaction, answer):
            return
        turn = transaction.operations
        todo = sorted(deliveries, key=identity_of, reverse=True)
        fresh: set[Identity] = set()

        def go_on() -> None:
            if not transaction.open:
                answer(TransientError(GONE))
                return
            while todo:
                identity = identity_of(todo[-1])
                other = self._claims.get(identity)
                if other is not None and other is not transaction:
                    self._watcher.tell(transaction.process, "waits in the inbox for", other.process)
                    other.waiters.append(go_on)
                    return
                delivery = todo.pop()
                if identity not in self.inbox and other is None:
                    self._claims[identity] = transaction
                    transaction.claims.append(identity)
                    transaction.recorded.append(delivery)
                    fresh.add(identity)
            self._idle(transaction)
            answer(fresh)

        def cancel() -> None:
            if transaction.open and todo and transaction.operations == turn:
                self.end(transaction)

        self._loop.after(self.statement_timeout_seconds, cancel)
        go_on()

    def write(
        self, transaction: Transaction, writes: Sequence[Delivery], lock_seconds: float | None, answer: Answer
    ) -> None:
        """Bring the writes about, unless the data of some is refused; answers with those. Waits for rows that are locked."""
        if not self._may_work(transaction, answer):
            return
        if any(number_of(write) in self.deadly for write in writes):
            self.kill(transaction.process)
            return
        turn = transaction.operations

        def go_on() -> None:
            if not transaction.open:
                answer(TransientError(GONE))
            elif transaction.operations != turn:
                pass
            elif locked := next((write.partition_key for write in writes if write.partition_key in self._locked), None):
                self._watcher.tell(transaction.process, "waits for the row of", locked)
                self._row_waiters.append(go_on)
            else:
                self._write(transaction, writes, answer)

        def give_up() -> None:
            if transaction.open and transaction.operations == turn and go_on in self._row_waiters:
                self._row_waiters.remove(go_on)
                self.end(transaction)
                answer(BlockedError("canceling statement due to lock timeout"))

        self._loop.after(min(lock_seconds or self.statement_timeout_seconds, self.statement_timeout_seconds), give_up)
        go_on()

    def lock_row(self, key: str) -> None:
        """A transaction that nobody ends holds the row of this key until `unlock_rows`."""
        self._locked.add(key)

    def unlock_rows(self) -> None:
        self._locked.clear()
        waiters, self._row_waiters = self._row_waiters, []
        for waiter in waiters:
            self._loop.after(0.0, waiter)

    def _write(self, transaction: Transaction, writes: Sequence[Delivery], answer: Answer) -> None:
        refused = [write for write in writes if number_of(write) < 0]
        transaction.writes += [write for write in writes if number_of(write) >= 0]
        self._idle(transaction)
        answer(refused)

    def commit(self, transaction: Transaction, answer: Answer) -> None:
        if not self._may_work(transaction, answer):
            return
        if self._draw() < self.fail_commit:
            self.end(transaction)
            answer(BlockedError("deadlock detected") if self._draw() < 0.5 else TransientError("commit failed"))
            return
        dead = [delivery for delivery in transaction.recorded if delivery.fault]
        self._watcher.committed(transaction.process, transaction.writes, dead)
        for delivery in transaction.recorded:
            self.inbox[identity_of(delivery)] = DEAD if delivery.fault else APPLIED
            self.fingerprints[identity_of(delivery)] = delivery.fingerprint
        for write in transaction.writes:
            self.log.setdefault(write.partition_key, []).append(number_of(write))
        self.end(transaction)
        answer(None)

    def end(self, transaction: Transaction) -> None:
        """Give up what an open transaction claims; without a commit before, that is a rollback."""
        if transaction.open:
            transaction.open = False
            self._open.remove(transaction)
            for identity in transaction.claims:
                del self._claims[identity]
            for waiter in transaction.waiters:
                self._loop.after(0.0, waiter)

    # -- the world's ----------------------------------------------------------------------------------------------------

    def activate(self) -> None:
        """Make every slot active: what was held for it may be written from now on."""
        self.arriving.clear()

    def close(self) -> None:
        """Nothing outlives a schedule."""

    def fail_over(self) -> None:
        for transaction in list(self._open):
            self.end(transaction)

    def disconnect(self, process: Process) -> None:
        """The process died: its sessions end, sooner or later."""
        for transaction in [transaction for transaction in self._open if transaction.process is process]:
            self._loop.after(self._draw() * 0.5 if self._draw() < 0.8 else 20.0, self.end, transaction)

    def _may_work(self, transaction: Transaction, answer: Answer) -> bool:
        if not transaction.open:
            answer(TransientError(GONE))
        transaction.operations += 1
        return transaction.open

    def _idle(self, transaction: Transaction) -> None:
        """Start the clock of idle_in_transaction_session_timeout."""
        turn = transaction.operations

        def cut_off() -> None:
            if transaction.open and transaction.operations == turn:
                self.end(transaction)

        self._loop.after(self.statement_timeout_seconds, cut_off)


class SimStore:
    """Does what `consumer.store.Store` does, with the simulated database instead of SQL."""

    def __init__(self, loop: SimLoop, network: Network, database: Database) -> None:
        self._loop, self._network, self._database = loop, network, database

    async def apply(self, deliveries: Sequence[Delivery], lock_seconds: float | None = None) -> Outcome:
        process = self._loop.current()
        begun: list[Transaction] = []
        try:
            return await self._apply(process, deliveries, begun, lock_seconds)
        except TransientError:
            for transaction in begun:  # the pool drops the connection, and the server will notice
                self._loop.after(self._network.delay("database") * 3, self._database.end, transaction)
            raise

    async def _apply(
        self, process: Process, deliveries: Sequence[Delivery], begun: list[Transaction], lock_seconds: float | None
    ) -> Outcome:
        def begin_and_record(answer: Answer) -> None:
            transaction = self._database.begin(process)
            begun.append(transaction)
            owned = [delivery for delivery in deliveries if delivery.slot not in transaction.arriving]
            self._record(transaction, _first(owned), answer)

        fresh: set[Identity] = await self._request(begin_and_record)
        (transaction,) = begun
        owned = [delivery for delivery in deliveries if delivery.slot not in transaction.arriving]
        waiting = tuple(delivery for delivery in deliveries if delivery.slot in transaction.arriving)
        new = [delivery for delivery in _first(owned) if identity_of(delivery) in fresh]
        unset = tuple(delivery for delivery in new if delivery.fault and not delivery.dead_lettered)
        unset = (*self._reused(transaction, owned), *unset)
        if unset:
            self._loop.after(0.0, self._database.end, transaction)
            return Outcome(poison=unset)
        writes = [delivery for delivery in new if delivery.fault is None]
        refused: list[Delivery] = await self._request(
            lambda answer: self._database.write(transaction, writes, lock_seconds, answer)
        )
        if refused:
            self._loop.after(0.0, self._database.end, transaction)
            for delivery in refused:
                delivery.fault = PermanentError("constraint", "number must not be negative")
            return Outcome(poison=tuple(refused))
        await self._commit(transaction)
        return Outcome(len(writes), len(owned) - len(new), len(new) - len(writes), held=waiting)

    def _reused(self, transaction: Transaction, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those whose identity is another write's, unless that was recorded before."""
        known = self._database.fingerprints | {
            identity_of(delivery): delivery.fingerprint for delivery in transaction.recorded
        }
        reused = [
            delivery
            for delivery in deliveries
            if known.get(identity_of(delivery), delivery.fingerprint) != delivery.fingerprint
            and inbox.refusal_of(delivery) not in known
        ]
        for delivery in reused:
            inbox.refuse(delivery)
        return reused

    def _record(self, transaction: Transaction, deliveries: Sequence[Delivery], answer: Answer) -> None:
        self._database.record(transaction, deliveries, answer)

    async def _commit(self, transaction: Transaction) -> None:
        await self._request(lambda answer: self._database.commit(transaction, answer))

    async def _request(self, serve: Callable[[Answer], None]) -> Any:
        timeout = self._database.statement_timeout_seconds + ANSWER_SECONDS
        return await self._network.request("database", serve, timeout, lambda why: TransientError(f"database: {why}"))


def _first(deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Each message once, where it comes first."""
    first: dict[Identity, Delivery] = {}
    for delivery in deliveries:
        first.setdefault(identity_of(delivery), delivery)
    return list(first.values())
