"""One topic with its subscriptions, which come and go; what producers, consumers and the executor see of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from google.api_core.exceptions import NotFound, ServiceUnavailable

from shardctl import provision
from shardctl.fleet import topology
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet
from shardctl.rebalance.backlog import Backlog
from shardctl.wire import barrier
from tests.sim.broker import Broker, Habits, Lease
from tests.sim.loop import Process, SimLoop
from tests.sim.message import EPOCH_SECONDS
from tests.sim.network import Answer, Network
from tests.sim.rebalance.message import Order, Posted, Write, posted

LATE, LATE_SECONDS = 0.3, 6.0
SKEW_SECONDS = 0.45  # of the service's clocks, either way: two of them differ by less than the executor waits


class Watcher(Protocol):
    def tell(self, who: object, what: str, *about: object) -> None: ...
    def published(self, message: Posted, who: object) -> None: ...
    def acked_on(self, subscription: str, process: Process, message: Posted) -> None: ...
    def lease_ended(self, lease: Lease, now: float) -> None: ...
    def dead_lettered(self, process: Process, message_id: str) -> None: ...


class _Ear:
    """A subscription's own watcher: it adds which one it is."""

    def __init__(self, name: str, watcher: Watcher) -> None:
        self._name, self._watcher = name, watcher
        self.lease_ended = watcher.lease_ended

    def tell(self, who: object, what: str, *about: object) -> None:
        if what != "published":
            self._watcher.tell(self._name if who == "broker" else who, what, *about)

    def acked(self, process: Process, message: Any) -> None:
        self._watcher.acked_on(self._name, process, message)


class Brokers(dict[str, Broker]):
    """Subscriptions by path."""

    def __missing__(self, path: str) -> Broker:
        raise NotFound(f"there is no {path}")


class Topic:
    def __init__(
        self, loop: SimLoop, network: Network, watcher: Watcher, seed: int, orders: Mapping[int, Order], habits: Habits
    ) -> None:
        self._loop, self._network, self._watcher, self._seed = loop, network, watcher, seed
        self._orders, self._habits = orders, habits
        self._draw = random.Random(f"{seed} topic").random
        self._count = 0
        self._times: dict[str, int] = {}  # the last publish time of each lane
        self._slots: dict[str, SlotSet] = {}
        self._late: dict[str, list[Posted]] = {}  # on their way into a subscription, by path
        self._arrives: dict[tuple[str, str], float] = {}  # when the last one of a lane gets into a subscription
        self.brokers = Brokers()
        self.tokens: list[str] = []  # of the barriers that were published, in order
        self.again = 0  # messages that consumers have published once more

    def now_us(self) -> int:
        return int((EPOCH_SECONDS + self._loop.time()) * 1e6)

    # -- subscriptions ---------------------------------------------------------------------------------------------

    def subscribe(self, path: str, slots: SlotSet) -> None:
        """What is published from now on goes there too."""
        name = path.rpartition("/")[2]
        broker = Broker(self._loop, self._network, _Ear(name, self._watcher), self._seed, name)
        broker.habits = self._habits
        self.brokers[path], self._slots[path], self._late[path] = broker, slots, []
        self._watcher.tell("topic", "has a subscription", name, slots)

    def unsubscribe(self, path: str) -> None:
        broker = self.brokers[path]
        for stream in list(broker.streams):
            broker.close_stream(stream)
            stream.put(NotFound("subscription deleted"))
        self._watcher.tell("topic", "lost", path.rpartition("/")[2], "which held", self._held(path))
        del self.brokers[path]

    def backlog(self) -> list[Posted]:
        return [message for path in self.brokers for message in self._held(path)]

    def _held(self, path: str) -> list[Posted]:
        return [*self.brokers[path].backlog(), *self._late[path]]

    def holds_another(self, subscription: str, message: Posted) -> bool:
        """Whether any subscription has yet to give a message of the same write, but for this one in this subscription."""
        return any(
            other.write is message.write and not (other is message and path.endswith(f"/{subscription}"))
            for path in self.brokers
            for other in self._held(path)
        )

    def backlogs(self, names: Sequence[str]) -> dict[str, Backlog]:
        """As `shardctl.rebalance.backlog` reports them."""
        backlogs = {}
        for path in self.brokers:
            if (name := path.rpartition("/")[2]) in names:
                times = [message.time_us for message in self._held(path)]
                backlogs[name] = Backlog(len(times), min(times, default=None), self.now_us())
        return backlogs

    # -- publishing ------------------------------------------------------------------------------------------------

    def publish(self, write: Write | None, data: bytes, attributes: Mapping[str, str], who: object) -> None:
        slot = int(attributes["slot"], 2)
        lane = self._lane_of(attributes["slot"], self._orders[slot], by_producer=who == "producer")
        skew = (self._draw() * 2 - 1) * SKEW_SECONDS
        time_us = max(self._times.get(lane, 0), self.now_us() + int(skew * 1e6))
        self._times[lane] = time_us
        self._count += 1
        message = posted(self._count, write, lane, time_us, data, attributes)
        if write is None:
            self.tokens.append(attributes[barrier.TOKEN])
        self._watcher.published(message, who)
        for path, broker in self.brokers.items():
            if slot not in self._slots[path]:
                continue
            if self._orders[slot] is Order.KEPT:
                broker.publish(message)
            else:
                self._send(path, message)

    def _send(self, path: str, message: Posted) -> None:
        """Where order isn't kept, one subscription may have a message long after another message, or another subscription."""
        lane, now = (path, message.lane), self._loop.time()
        late = self._draw() * LATE_SECONDS if self._draw() < LATE else 0.0
        at = self._arrives[lane] = max(self._arrives.get(lane, 0.0), now + late)
        self._late[path].append(message)
        self._loop.at(at, self._arrive, path, message)

    def _arrive(self, path: str, message: Posted) -> None:
        if path in self.brokers:
            self._late[path].remove(message)
            self.brokers[path].publish(message)

    def _lane_of(self, digits: str, order: Order, *, by_producer: bool) -> str:
        """Of what must come in order. Barriers and what is published again always have an ordering key."""
        if order is Order.NONE and by_producer:
            return f"{digits} alone {self._count}"
        if order is Order.REGIONS:
            return f"{digits} {'east' if self._draw() < 0.5 else 'west'}"
        return digits


class Publisher:
    """Stands where `consumer.pubsub.calls.Publisher` does: for dead letters, and for what is published again."""

    def __init__(
        self, loop: SimLoop, network: Network, watcher: Watcher, topic: Topic, write_of: Callable[[bytes], Write]
    ) -> None:
        self._loop, self._network, self._watcher, self._topic = loop, network, watcher, topic
        self._write_of = write_of

    async def publish(
        self,
        *,
        topic: str,
        messages: Sequence[Any],
        timeout_seconds: float,
    ) -> None:
        process = self._loop.current()
        letters = topic.endswith("-dead")

        def serve(answer: Answer) -> None:
            for message in messages:
                if letters:
                    self._watcher.dead_lettered(process, message.attributes["shardctl-message-id"])
                else:
                    self._topic.again += 1
                    self._topic.publish(self._write_of(message.data), message.data, message.attributes, process)
            answer(None)

        await self._network.request("deadletters", serve, timeout_seconds, ServiceUnavailable)


class Admin:
    """Stands where `PublisherClient` and `SubscriberClient` do for provisioning. `effect` is the executor's."""

    def __init__(self, topic: Topic, fleet: Fleet, effect: Any) -> None:
        self._topic, self._effect = topic, effect
        self._slots = {sub.id: sub.slots for shard in fleet.shards for sub in topology.every_subscription(fleet, shard)}
        self._wanted = {wanted.name: wanted for wanted in provision.wanted_subscriptions(fleet)}

    def get_topic(self, request: Mapping[str, str], timeout: float, retry: Any = None) -> Any:
        return request["topic"]

    def get_subscription(self, request: Mapping[str, str], timeout: float, retry: Any = None) -> Any:
        path = request["subscription"]
        if path.rpartition("/")[2] in self._slots:  # else of dead letters or strays, which are no concern here
            _ = self._topic.brokers[path]
        return self._wanted[path]

    def create_subscription(self, request: Any, timeout: float) -> None:
        self._effect(
            f"create {request.name}",
            lambda: self._topic.subscribe(request.name, self._slots[request.name.rpartition("/")[2]]),
        )

    def delete_subscription(self, request: Mapping[str, str], timeout: float) -> None:
        path = request["subscription"]
        _ = self._topic.brokers[path]
        self._effect(f"delete {path}", lambda: self._topic.unsubscribe(path))
