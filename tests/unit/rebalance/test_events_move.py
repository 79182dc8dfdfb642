"""What writes emit while their slots move: published in the order of the writes, once in effect, wherever the executor dies."""

from collections import Counter, defaultdict

import pytest
from busy_kit import BusyWorld, killed_at_every_effect
from sqlalchemy import delete, insert, select

from shardctl.outbox import refusals
from shardctl.outbox.queue import NotDrainedError, wait_drained
from shardctl.rebalance import copying
from shardctl.shard.database import writing
from shardctl.shard.schema import metadata

OUTBOX = metadata.tables["shardctl_outbox"]


class EmittingWorld(BusyWorld):
    """Each write emits its number of its slot. The relays of the sources are slow, and publish some rows twice."""

    def __init__(self, *settings, **more):
        super().__init__(*settings, **more)
        self.emitted, self.topic = Counter(), defaultdict(list)

    def _write(self, connection, slot):
        super()._write(connection, slot)
        self.emitted[slot] += 1
        row = {"slot": slot, "attributes": "{}", "body": str(self.emitted[slot]).encode()}
        connection.execute(insert(OUTBOX), row)

    def consume(self):
        super().consume()
        self.between = True
        for name in sorted(self._provisioned):
            if self.draw.random() < (0.5 if name == "s2" else 0.2):
                self.relay(name)
                self.between = False  # so that the executor may find the outbox empty

    def relay(self, name):
        with writing(self.own[name]) as connection:
            rows = connection.execute(select(OUTBOX).order_by(OUTBOX.c.position)).all()
            for row in [*rows[:2], *rows]:
                self.topic[row.slot].append(int(row.body))
            connection.execute(delete(OUTBOX))

    def check_events(self):
        for name in self._provisioned:
            self.relay(name)
        assert {slot: list(dict.fromkeys(numbers)) for slot, numbers in self.topic.items()} == {
            slot: list(range(1, count + 1)) for slot, count in self.emitted.items()
        }


@pytest.fixture(params=[1])
def world(request, tmp_path, monkeypatch):
    monkeypatch.setattr(copying, "EVENTS_SECONDS", 0.0)  # relays only work between two steps here
    made = EmittingWorld(tmp_path, seed=request.param)
    made.provision()
    made.announce()
    made.between = True
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2], indirect=True)  # a seed at which a slot would overtake its events
def test_events_keep_their_order_while_slots_move(world):
    (progress,) = world.to_its_end(world.run())
    assert progress.complete
    assert not progress.failed
    for _ in range(20):
        world.consume()
    world.check_events()
    assert sum(world.emitted.values()) > 50


@pytest.mark.slow
def test_a_slot_waits_for_its_events_and_says_so(world):
    world.relay = lambda name: None  # the relays are down
    run = world.run()
    progress = None
    for _ in range(40):
        progress = run.step(world.now)
        world.consume()
        world.now += 0.3
    assert progress
    assert not progress.failed
    assert any("events that its writes have emitted still wait" in trouble for trouble in progress.trouble)
    assert not world.active().get(("s2", 1))
    del world.relay
    (progress,) = world.to_its_end(run)
    assert progress.complete
    world.check_events()


def test_a_slot_waits_for_a_persons_decision_on_a_refused_event(world):
    row = {"slot": 1, "attributes": "{}", "body": b"{}"}
    with writing(world.own["s0"]) as connection:
        connection.execute(insert(OUTBOX), row | {"refused": "it is too large."})
        connection.execute(insert(OUTBOX), row | {"behind": 1})
    for until in (1, 2):
        with pytest.raises(NotDrainedError, match=r"write 1 of its outbox can't be published: it is too large\. See"):
            wait_drained(world.own["s0"], until, 1.0)
    refusals.drop(world.own["s0"], [1])
    with pytest.raises(NotDrainedError, match="still wait"):
        wait_drained(world.own["s0"], 2, 0.0)


@pytest.mark.proof
def test_events_keep_their_order_when_the_executor_is_killed_at_every_effect(world):
    killed_at_every_effect(world, "after")
    world.check_events()


def test_what_came_later_isnt_waited_for(world):
    with writing(world.own["s0"]) as connection:
        connection.execute(insert(OUTBOX), [{"slot": 1, "attributes": "{}", "body": b""} for _ in range(2)])
        connection.execute(delete(OUTBOX).where(OUTBOX.c.position == 1))
    slept = []
    wait_drained(world.own["s0"], 1, 1.0, slept.append)
    assert slept == []
    with pytest.raises(NotDrainedError):
        wait_drained(world.own["s0"], 2, 1.0, slept.append)
    assert sum(slept) == pytest.approx(1.0)
