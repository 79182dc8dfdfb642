"""What the inboxes of real servers say of writes."""

import pytest
from outcomes_kit import FILE, Inboxes
from products_kit import SERVERS, empty_database

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.outcomes.effect import Effect, State
from shardctl.outcomes.watch import Watch
from shardctl.provision import provision_database
from shardctl.shard import database
from shardctl.shard.schema import InboxOutcome

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("product", SERVERS)
def test_each_outcome_is_read(request, product):
    fleet = fleet_from(parse(FILE[: FILE.index("shards:")] + "shards: [{name: s0, slots: 0-15}]\n"))
    with empty_database(request, product) as url:
        provision_database(fleet, fleet.shards[0], url)
        engine = database.connect(url, connections=1)
        inboxes = Inboxes.of(fleet, {"s0": engine})
        applied, dead, unseen, first = (inboxes.sought(f"o-{number}", f"i-{number}") for number in range(4))
        second = inboxes.sought(first.key, "i-5")
        inboxes.settle(applied, shard="s0")
        inboxes.settle(dead, InboxOutcome.DEAD, shard="s0", reason="bad_json")
        inboxes.park(first, second)
        watch = Watch(fleet, {"s0": engine})
        waiters = [watch.begin(write, patient=False) for write in (applied, dead, unseen, first, second)]
        assert [waiter.future.result(60) for waiter in waiters] == [
            Effect(State.APPLIED, shard="s0"),
            Effect(State.DEAD, "bad_json", "s0"),
            Effect(State.NOT_SEEN, shard="s0"),
            Effect(State.PARKED, "constraint", "s0"),
            Effect(State.PARKED, "behind_parked", "s0"),
        ]
        engine.dispose()
