"""What must be true, by what was published, acked and committed; it knows nothing of how the consumer works."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from consumer.delivery import Delivery
from tests.sim.broker import Lease
from tests.sim.database import Identity, number_of
from tests.sim.loop import Process
from tests.sim.message import Message

EXCUSE_SECONDS = 10.0  # how long after its lease-time a misfortune still explains a lease that ended
PROMPT = 0.25  # of a lease: a message read later than that may lose its lease before it can be renewed


class Oracle:
    """Keeps the history, and `violations`, the first of which ends the schedule.

    - the log of each routing key is, at every commit, a beginning of what was published for it, each write once;
    - nothing is acked before it is recorded in the inbox, or, where it is poison, on the dead-letter topic;
    - poison is on the dead-letter topic before anything behind it in its slot is committed, and nothing else ever is;
    - a replica that is well keeps the lease of what it has read until it acks it.
    """

    def __init__(self, clock: Callable[[], float], messages: Sequence[Message], alarm: Callable[[], None]) -> None:
        self._clock, self._alarm = clock, alarm
        self.history: list[tuple[float, str, str]] = []
        self.violations: list[str] = []
        self.dead_letters: dict[str, int] = {}
        self.arriving: set[int] = set()
        self.recorded: Callable[[Identity], str | None] = lambda _: None
        self._messages = {message.id: message for message in messages}
        self._misfortunes: dict[Process, float] = {}
        self.expected: dict[str, list[int]] = {}
        self.log: dict[str, int] = {}  # of each key: how many of the expected writes are committed
        self.committed_at: dict[str, float] = {}  # by message id
        self._poison_before: dict[str, list[Message]] = {}
        poison: dict[int | None, list[Message]] = {}
        for message in messages:
            self._poison_before[message.id] = list(poison.get(message.slot, ()))
            if message.poison:
                poison.setdefault(message.slot, []).append(message)
            elif not message.repeats:
                self.expected.setdefault(message.key, []).append(message.number)

    def tell(self, who: object, what: str, *about: object) -> None:
        self.history.append((self._clock(), str(who), " ".join([what, *map(str, about)])))

    def violate(self, what: str) -> None:
        self.tell("oracle", "VIOLATION:", what)
        self.violations.append(what)
        self._alarm()

    def misfortune(self, process: Process, what: str) -> None:
        self._misfortunes[process] = self._clock()
        self.tell(process, what)

    # -- called by the services ----------------------------------------------------------------------------------------

    def committed(self, process: Process, writes: Sequence[Delivery], dead: Sequence[Delivery]) -> None:
        for write in writes:
            self.committed_at[write.message_id] = self._clock()
            self._check_next(process, write)
            self._check_poison_told(write.message_id)
            if write.slot in self.arriving:
                self.violate(f"{write.message_id} was committed where its slot {write.slot} isn't active")
        for delivery in dead:
            if delivery.message_id not in self.dead_letters:
                self.violate(f"{delivery.message_id} is recorded as dead and not on the dead-letter topic")
        if writes or dead:
            ids = [delivery.message_id + ("†" if delivery.fault else "") for delivery in (*writes, *dead)]
            self.tell(process, "committed", *ids)

    def _check_next(self, process: Process, write: Delivery) -> None:
        key, number = write.partition_key, number_of(write)
        expected, done = self.expected.get(key, []), self.log.get(key, 0)
        self.log[key] = done + 1
        if done < len(expected) and expected[done] == number:
            return
        if number in expected[:done]:
            self.violate(f"{write.message_id} of {key} was applied twice, now by {process}")
        else:
            due = f"m{expected[done]}" if done < len(expected) else "nothing"
            self.violate(f"{write.message_id} of {key} was applied by {process} where {due} was due")

    def _check_poison_told(self, message_id: str) -> None:
        for poison in self._poison_before[message_id]:
            if poison.id not in self.dead_letters:
                self.violate(f"{message_id} was committed before {poison}, ahead of it, was dead-lettered")

    def acked(self, process: Process, message: Message) -> None:
        if message.poison and message.id not in self.dead_letters:
            self.violate(f"{process} acked {message}, which is not on the dead-letter topic")
        elif message.slot is not None and self.recorded((message.slot, message.identity)) is None:
            self.violate(f"{process} acked {message}, which is not durable")

    def dead_lettered(self, process: Process, message_id: str) -> None:
        self.tell(process, "dead-lettered", message_id)
        self.dead_letters[message_id] = self.dead_letters.get(message_id, 0) + 1
        if not self._messages[message_id].poison:
            self.violate(f"{process} dead-lettered {message_id}, which is sound")

    def buried(self, message: Message) -> None:
        """By the broker, after its last attempt."""
        self.tell("broker", "dead-letters", message)
        self.dead_letters[message.id] = self.dead_letters.get(message.id, 0) + 1
        if not message.poison:
            self.violate(f"{message}, which is sound, became a dead letter after too many attempts")

    def lease_ended(self, lease: Lease, now: float) -> None:
        process = lease.stream.process
        excused_since = lease.deadline - lease.seconds - EXCUSE_SECONDS
        if lease.answered or lease.read_at is None or not process.alive or process.frozen:
            return
        if lease.read_at - lease.given_at > PROMPT * lease.seconds:
            return
        if self._misfortunes.get(process, 0.0) < excused_since:
            self.violate(f"{process}, though well, let the lease of {lease.message} end")

    # -- at the end --------------------------------------------------------------------------------------------------

    def check_end(self, log: dict[str, list[int]], backlog: Iterable[Message]) -> None:
        left = list(backlog)
        if left:
            self.violate(f"still not acked: {left}")
        for key in sorted({*self.expected, *log}):
            if log.get(key, []) != self.expected.get(key, []):
                self.violate(f"log of {key}: {log.get(key, [])}, expected: {self.expected.get(key, [])}")
        for message in self._messages.values():
            if message.poison and message.id not in self.dead_letters:
                self.violate(f"{message} never reached the dead-letter topic")

    def digest(self) -> str:
        """Of the history: equal where and only where everything happened in the same order at the same times."""
        return hashlib.sha256(repr(self.history).encode()).hexdigest()

    def text(self) -> str:
        return "\n".join(f"{when:10.4f}  {who:<8} {what}" for when, who, what in self.history)
