"""What must be true while slots move, by what was published, acked and committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from shardctl.fleet.spec import Fleet
from shardctl.wire import identity
from tests.sim.loop import Process
from tests.sim.oracle import Oracle
from tests.sim.rebalance.message import BALANCE, ENTRY, NOTE, Order, Poison, Posted, Write
from tests.sim.rebalance.shard import ShardDatabase, active
from tests.sim.rebalance.topic import Topic


class MovingOracle(Oracle):
    """Keeps the history, and `violations`, the first of which ends the schedule.

    - each write is committed once, in a database that holds its slot active, and where producers keep order, in order;
    - nothing is acked that is neither recorded in an inbox, nor on the dead-letter topic, nor in some subscription;
    - nothing is published again where producers keep order, but what is dead-lettered because its key was reused;
    - a slot is active once, and the shard that holds it active has all of its rows;
    - poison is dead-lettered before what follows it in its slot, and a parked key waits for a person;
    - in the end everything that can be written is, and each row, inbox row and lane lies where the file says.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        writes: Sequence[Write],
        orders: Mapping[int, Order],
        alarm: Callable[[], None],
        databases: Mapping[str, ShardDatabase],
    ) -> None:
        super().__init__(clock, (), alarm)
        self._writes = {write.number: write for write in writes}
        self._orders, self._databases = orders, databases
        self.topic: Topic | None = None
        self._posted: dict[str, Posted] = {}
        self._identities: dict[int, set[bytes]] = {write.number: set() for write in writes}
        self._of_identity: dict[bytes, int] = {}
        self._applied: dict[int, Process | object] = {}
        self._of_key: dict[str, list[Write]] = {}
        for write in writes:
            self._of_key.setdefault(write.key, []).append(write)
        self._dropped: set[int] = set()
        self._versions: dict[str, int | None] = {}
        self.active: dict[str, dict[int, int]] = {name: {} for name in databases}  # slot → generation
        self.watchers: list[Callable[[], None]] = []  # called after each transaction that has written

    # -- called by the topic -------------------------------------------------------------------------------------------

    def published(self, message: Posted, who: object) -> None:
        self.tell(who, "publishes", message)
        self._posted[message.id] = message
        if message.write is not None:
            its_identity = self._identity_of(message)
            self._identities[message.write.number].add(its_identity)
            self._of_identity[its_identity] = message.write.number
            in_order = self._orders[message.slot] is Order.KEPT
            if who != "producer" and in_order and not self._is_judged_again(message.write):
                self.violate(f"{who} published {message} again, though its producers keep order")

    @staticmethod
    def _identity_of(message: Posted) -> bytes:
        attributes = message.body.attributes
        if key := attributes.get("idempotency_key"):
            base = identity.of_key(attributes.get("caller", ""), attributes["message_type"], key)
        else:
            base = identity.of_message(attributes.get(identity.COPY_OF) or message.id)
        return identity.in_slot(base, message.slot)

    def acked_on(self, subscription: str, process: Process, message: Posted) -> None:
        write = message.write
        if write is None or self._settled(write) or (self.topic and self.topic.holds_another(subscription, message)):
            return
        self.violate(f"{process} acked {message} on {subscription}, and nobody else has it")

    def _settled(self, write: Write) -> bool:
        if write.poison and write.kind == ENTRY and self._is_dead_lettered(write):
            return True
        if write.poison is Poison.KEY_REUSED:
            return False  # what is recorded under its identity is another write
        return any(
            shard.recorded(write.slot, its_identity) is not None
            for shard in self._databases.values()
            for its_identity in self._identities[write.number]
        )

    def dead_lettered(self, process: Process, message_id: str) -> None:
        self.tell(process, "dead-lettered", message_id)
        self.dead_letters[message_id] = self.dead_letters.get(message_id, 0) + 1
        write = self._posted[message_id].write
        if write is None or not write.poison or write.kind == NOTE:
            self.violate(f"{process} dead-lettered {self._posted[message_id]}")

    def _is_judged_again(self, write: Write) -> bool:
        """Dead-lettered, and its ack got lost: its old lane can't know, since the inbox has another write under its key."""
        return write.poison is Poison.KEY_REUSED and self._is_dead_lettered(write)

    def _is_dead_lettered(self, write: Write) -> bool:
        return any(self._posted[message_id].write is write for message_id in self.dead_letters)

    # -- called by the databases ---------------------------------------------------------------------------------------

    def observe(self, shard: ShardDatabase, who: object, *, copies: bool) -> None:
        """After each transaction. Rows that the executor has copied are no writes."""
        self._look_at_lanes(shard, who)
        rows, changes = shard.written()
        numbers = [int(row_id.rpartition("-")[2]) for row_id in rows]
        changed = sorted(self._of_identity[its_identity] for its_identity in changes)
        numbers += changed
        if not numbers:
            return
        self.tell(who, "copied to" if copies else "wrote in", shard.name, *(f"w{number}" for number in numbers))
        if not copies:
            for number in numbers:
                self._check_write(shard, who, self._writes[number])
            for slot in {self._writes[number].slot for number in changed}:
                self._check_rows(shard, slot)  # so those of one transaction were written in order
            for watcher in self.watchers:
                watcher()

    def _look_at_lanes(self, shard: ShardDatabase, who: object) -> None:
        version = shard.version()
        if version == self._versions.get(shard.name):
            return
        self._versions[shard.name] = version
        lanes = shard.lanes()
        before, now = self.active[shard.name], {}
        for slot, generation in active(lanes):
            if slot in now:
                self.violate(f"slot {slot} is active in {shard.name} g{now[slot]} and g{generation}")
            now[slot] = generation
        self.active[shard.name] = now
        listing = " ".join(f"{lane.slot}/g{lane.generation}:{lane.state}" for lane in lanes)
        self.tell(shard.name, f"has after {who}:", listing)
        for name, others in self.active.items():
            if twice := sorted(others.keys() & now.keys()) if name != shard.name else []:
                self.violate(f"slots {twice} are active in {name} and in {shard.name}")
        for slot in now.keys() - before.keys():
            self._check_rows(shard, slot)

    def _check_rows(self, shard: ShardDatabase, slot: int) -> None:
        wanted = sorted(self._rows_of(slot))
        if (there := shard.ids(slot)) != wanted:
            self.violate(f"slot {slot} is active in {shard.name} with rows {there}; written were {wanted}")

    def _rows_of(self, slot: int) -> Iterator[str]:
        """What the writes so far have made of its rows."""
        balances: dict[str, Write] = {}
        for number in self._applied:  # in order
            write = self._writes[number]
            if write.slot == slot and write.kind == BALANCE:
                balances[write.key] = write
            elif write.slot == slot:
                yield write.row
        yield from (write.row for write in balances.values() if write.operation != "delete")

    @property
    def writes(self) -> list[Write]:
        return list(self._writes.values())

    def is_applied(self, write: Write) -> bool:
        return write.number in self._applied

    def rows_of(self, slot: int, kind: str) -> Iterator[str]:
        """The ids of a slot's rows in one table, as the writes so far have made them."""
        return (row for row in self._rows_of(slot) if self._writes[int(row.rpartition("-")[2])].kind == kind)

    def _check_write(self, shard: ShardDatabase, who: object, write: Write) -> None:
        due = self._due(write.key)
        if write.number in self._applied:
            self.violate(f"{write} was written by {self._applied[write.number]}, and now by {who} in {shard.name}")
        self._applied[write.number] = who
        if write.slot not in self.active[shard.name]:
            self.violate(f"{write} was written in {shard.name}, where its slot {write.slot} isn't active")
        if self._orders[write.slot] is not Order.KEPT:
            return
        if due is not write:
            self.violate(f"{write} was written by {who} in {shard.name} where {due} was due")
        for poison in self._writes.values():
            if poison.number >= write.number:
                break
            ahead = poison.poison and poison.kind == ENTRY and poison.slot == write.slot
            if ahead and not self._is_dead_lettered(poison):
                self.violate(f"{write} was written before {poison}, ahead of it, was dead-lettered")

    def _due(self, key: str) -> Write | None:
        """The first write of a key that is neither written nor out of the way."""
        for write in self._of_key[key]:
            out_of_the_way = write.number in self._dropped or (write.poison and write.kind == ENTRY)
            if write.number not in self._applied and not out_of_the_way:
                return write
        return None

    def dropped(self, slot: int, its_identity: bytes) -> Write:
        """A person took the head of a parked key away."""
        (write,) = (w for w in self._writes.values() if w.slot == slot and its_identity in self._identities[w.number])
        self.tell("person", "drops", write)
        if not write.poison:
            self.violate(f"{write} heads its parked key, and is sound")
        self._dropped.add(write.number)
        return write

    # -- at the end --------------------------------------------------------------------------------------------------

    def check_settled(self, fleet: Fleet, backlog: Sequence[Posted], subscriptions: set[str], wanted: set[str]) -> None:
        """After `finish`, with everything acked."""
        if backlog:
            self.violate(f"still not acked: {list(backlog)}")
        if subscriptions != wanted:
            self.violate(f"there are subscriptions {sorted(subscriptions)}, wanted: {sorted(wanted)}")
        self._check_everything_written()
        owned = {shard.name: dict.fromkeys(shard.slots, shard.generation) for shard in fleet.shards}
        for name, shard in self._databases.items():
            here = owned.get(name, {})
            lanes = [(lane.slot, lane.generation, str(lane.state)) for lane in shard.lanes()]
            if sorted(lanes) != sorted((slot, generation, "active") for slot, generation in here.items()):
                self.violate(f"lanes of {name}: {lanes}, wanted: {here}")
            if strays := shard.slots_with_rows() - here.keys():
                self.violate(f"{name} has rows of slots {strays}, which aren't its own")
            if open_ones := [state for state in shard.rebalance_states() if state == "open"]:
                self.violate(f"{name} has {len(open_ones)} open rebalances")
            if parked := shard.parked():
                self.violate(f"{name} still parks {parked}")
            for slot in here:
                self._check_rows(shard, slot)

    def check_served(self, backlog: Sequence[Posted]) -> None:
        """Half done, as an abort leaves it: every slot is active once, and everything is written."""
        if backlog:
            self.violate(f"still not acked: {list(backlog)}")
        self._check_everything_written()
        active_slots = sorted(slot for slots in self.active.values() for slot in slots)
        if active_slots != sorted(self._orders):
            self.violate(f"active are slots {active_slots}")

    def _check_everything_written(self) -> None:
        for write in self._writes.values():
            if not write.poison and write.number not in self._applied:
                self.violate(f"{write} was never written")
            elif write.poison and write.kind == ENTRY and not self._is_dead_lettered(write):
                self.violate(f"{write} never reached the dead-letter topic")
            elif write.poison and write.kind == NOTE and write.number not in self._dropped:
                self.violate(f"{write} was never parked")
