"""A folder with a fleet's files, SQLite databases and a broker of its own project; a thread plays the consumers."""

import threading
import time
from contextlib import suppress
from pathlib import Path

from fleets import text
from google.api_core.exceptions import NotFound
from google.cloud import pubsub_v1
from rebalance_kit import AFTER, BEFORE, BITS
from sqlalchemy import delete, func, insert, update

from shardctl.cli import main
from shardctl.fleet import topology
from shardctl.fleet.load import load_fleet
from shardctl.provision import provision_pubsub
from shardctl.rebalance import journal
from shardctl.shard import lanes
from shardctl.shard.database import writing
from shardctl.shard.lanes import Met
from shardctl.shard.schema import replicas
from shardctl.wire import barrier

REPORT_SECONDS = 5.0
LANES = tuple(f"{shard}-g{generation}" for shard in ("s0", "s1", "s2") for generation in range(1, 5))


class Site:
    """A folder with the files, databases and a broker of its own project, and the command line in it."""

    def __init__(self, world, project, capsys):
        self.world, self.project, self._capsys = world, project, capsys
        self.publisher, self.subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
        self.file, self.next = Path("shards.yaml"), Path("shards.next.yaml")
        self.file.write_text(self.text(BEFORE))
        self.next.write_text(self.text(AFTER))
        self.settled = load_fleet(self.file)
        provision_pubsub(self.settled, self.publisher, self.subscriber)
        self._ending = threading.Event()
        self._consumers = threading.Thread(target=self._consume)
        self._deaf = False
        self._receiving = threading.Lock()
        self._reading, self._reported_at = set(), time.monotonic()

    def text(self, shards):
        return text(shards, slot_bits=BITS).replace("my-project", self.project)

    def __call__(self, *arguments):
        code = main(["rebalance", *map(str, arguments)])
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    def consume(self):
        """From now on there are consumers of both generations."""
        for name, generations in (("s0", "1,2"), ("s1", "1,2"), ("s2", "1")):
            self.read(name, generations)
        self._consumers.start()

    def apply(self):
        """Consumers are as the file says."""
        for shard in load_fleet(self.file).shards:
            self.read(shard.name, ",".join(str(version.generation) for version in topology.generations(shard)))
        if not self._consumers.is_alive():
            self._consumers.start()

    def read(self, name, generations):
        """The consumer of this shard reports that it reads these generations."""
        self._reading.add(name)
        with writing(self.world.own[name]) as connection:
            connection.execute(delete(replicas))
            connection.execute(insert(replicas).values(replica=name, generations=generations))

    def _consume(self):
        while not self._ending.wait(0.02):
            self._stay_present()
            for lane in LANES:
                name = f"projects/{self.project}/subscriptions/orders-{lane}"
                request = {"subscription": name, "max_messages": 100, "return_immediately": True}
                with self._receiving, suppress(NotFound):  # before `start` has made it, or once `finish` has deleted it
                    for received in self.subscriber.pull(request=request).received_messages if not self._deaf else ():
                        self._meet(received.message, lane)
                        self.subscriber.acknowledge(subscription=name, ack_ids=[received.ack_id])

    @property
    def deaf(self):
        """Whether the consumers receive nothing. What they had received when this became true is acked."""
        return self._deaf

    @deaf.setter
    def deaf(self, deaf):
        with self._receiving:
            self._deaf = deaf

    def _stay_present(self):
        """As consumers do: a reader that is silent for a minute counts as gone."""
        if time.monotonic() - self._reported_at < REPORT_SECONDS:
            return
        self._reported_at = time.monotonic()
        for name in tuple(self._reading):
            with writing(self.world.own[name]) as connection:
                connection.execute(update(replicas).values(seen_time=func.now()))

    def _meet(self, message, lane):
        """A barrier ends the lane that it names where it is met on that lane: all copies that come elsewhere are only acked."""
        met = barrier.read(message.attributes)
        if lane != f"{met.shard}-g{met.generation}":
            return
        time_us = int(message.publish_time.timestamp() * 1e6)
        with writing(self.world.own[met.shard]) as connection:
            lanes.leave(connection, [Met(int(message.ordering_key, 2), met.token, time_us)], met.generation)

    def subscriptions(self):
        subscriptions = self.subscriber.list_subscriptions(project=f"projects/{self.project}")
        return {subscription.name.rpartition("/")[2] for subscription in subscriptions}

    def journal(self):
        states_of = {}
        for name, engine in self.world.own.items():
            with engine.connect() as connection:
                if engine.dialect.has_table(connection, "shardctl_rebalances"):
                    states_of[name] = ", ".join(str(entry.state) for entry in journal.read(connection).values())
        return {name: states for name, states in states_of.items() if states}

    def close(self):
        self._ending.set()
        if self._consumers.is_alive():
            self._consumers.join()
        self.publisher.stop()
        self.subscriber.close()
