"""`shardctl ui` in a real browser, and `shardctl status`, over a fleet that runs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import fleets
import pytest
from browser_kit import ENTER, ESCAPE, HOME, TAB, UP, Browser, until
from patience import PATIENCE_SECONDS
from prometheus_kit import PrometheusServer
from sqlalchemy import insert, update
from status_kit import AFTER, BITS, Databases, transitional

from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from, load_fleet
from shardctl.local.feed import Feed
from shardctl.local.fleet import LocalFleet
from shardctl.local.load import Stream
from shardctl.local.servers import BinaryMissingError
from shardctl.publisher import Publisher
from shardctl.shard import schema
from shardctl.shard.schema import LaneState
from shardctl.status import history, localfile
from shardctl.status.prometheus import Prometheus, PrometheusError
from shardctl.wire.message import Write

pytestmark = pytest.mark.slow

FLEET = """
fleet: seen
project: my-project
image: example.com/consumer:1
message_types:
  customer: {table: customers, key: customer_id, columns: {customer_id: text, credit: bigint, revision: bigint}}
  order: {table: orders, key: order_id, on_poison: park, columns: {order_id: text, amount: decimal}}
local: {database: sqlite, replicas: 1}
shards:
  - {name: s0, slots: 0-511}
  - {name: s1, slots: 512-1023}
"""
SHARDCTL = (sys.executable, "-c", "import sys; from shardctl.cli import main; sys.exit(main())")
# A producer whose file is of another day lets through what today's columns can't hold.
OLDER = FLEET.replace("amount: decimal", "amount: text").replace("credit: bigint", "credit: text")
BROKE = "<img src=x onerror=document.title='owned'>"
POISON = (
    Write("order", {"order_id": "<b>bold</b>", "amount": "not a number"}),
    Write("order", {"order_id": "<b>bold</b>", "amount": "5"}),
    Write("customer", {"customer_id": BROKE, "credit": "<script>document.title = 'owned'</script>"}),
)


class Place:
    """A fleet under a little load, and a folder with its file."""

    def __init__(self, folder, local) -> None:
        self.folder, self.local = folder, local
        self.environment = os.environ | local.environment()
        self.told_in = Path(self.environment[localfile.VARIABLE])

    def shardctl(self, *arguments, **more):
        settings = {"cwd": self.folder, "env": self.environment, "text": True} | more
        return subprocess.Popen([*SHARDCTL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)

    def status(self):
        process = self.shardctl("status", "--json")
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, err
        return json.loads(out)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seen")
    (folder / "shards.yaml").write_text(FLEET)
    fleet = fleet_from(yamlfile.parse(FLEET, "shards.yaml"))
    try:
        with LocalFleet(fleet, folder / "run") as local:
            with local.as_emulator(), Publisher(fleet_from(yamlfile.parse(OLDER, "shards.yaml"))) as producer:
                assert all(outcome.message_id for outcome in producer.publish_all(POISON))
            feed = Feed(fleet, local.broker.host, Stream(fleet, None, 200), writes_per_second=40, remember=False)
            feed.start()
            yield Place(folder, local)
            feed.stop()
    except BinaryMissingError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def url(place):
    process = place.shardctl("ui", "--port", "0")
    yield process.stdout.readline().strip()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 0
    assert "Traceback" not in process.stderr.read()


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture
def page(browser, url):
    browser.look(dark=False, width=1280)
    browser.open("about:blank")  # else another # would be the same page
    browser.open(url)
    browser.until_text("#connection", "live")
    yield browser
    assert browser.complaints() == []


def cell(page, shard, column):
    return page.text(f"tr[data-shard={shard}] td:nth-child({column}) .value")


def test_the_page_shows_the_fleet_as_it_goes(page, url):
    assert "seen" in page.text("h1")
    assert until(lambda: re.fullmatch("[1-9].*", cell(page, "s0", 5)), PATIENCE_SECONDS), "no writes a second"
    assert [cell(page, shard, 2) for shard in ("s0", "s1")] == ["1 of 1", "1 of 1"]
    page.until_text("#history-text", "seen itself since")
    page.until_text("#troubles", "Dead letters wait for an operator")
    token = url.partition("#")[2]
    assert len(token) >= 32
    assert token not in page.run("location.href")
    page.run("location.reload()")
    page.until_text("#connection", "live")


def test_slots_are_drawn_by_shard_and_listed_as_a_table(page):
    page.until_text("#maps .legend", "s1 512")
    assert (
        page.run("document.querySelector('canvas').getAttribute('aria-label')")
        == "Map of 1,024 slots: s0 holds 512, s1 holds 512"
    )
    first = pixel(page, 1)
    assert pixel(page, 511) == first
    assert pixel(page, 512) == pixel(page, 1023) != first
    page.click("figure summary")
    assert page.text("figure tbody").split() == ["s0", "512", "0-511", "s1", "512", "512-1023"]
    page.click("#heat")
    page.until_text("#heat-text", "The fuller the colour")
    assert until(lambda: pixel(page, 1) != first, PATIENCE_SECONDS)


def pixel(page, slot):
    """The colour in the middle of a slot's cell."""
    columns, cell = page.run("Object.values(document.querySelector('canvas').dataset).map(Number)")
    x, y = (int((at + 0.5) * cell) for at in (slot % columns, slot // columns))
    return page.run(f"[...document.querySelector('canvas').getContext('2d').getImageData({x}, {y}, 1, 1).data]")


def test_the_keyboard_is_enough(page):
    page.press(TAB)
    assert page.run("document.activeElement.className") == "skip"
    page.press(ENTER)
    assert page.run("document.activeElement.id") == "shards"
    page.press("s")
    page.type("#slot", "510" + UP)
    page.until_text("#slot-text", "s0")
    page.press(UP)
    page.until_text("#slot-text", "s1")

    page.run("document.querySelector('#parked-look').focus()")
    page.press(ENTER)
    page.until_text("#parked-text", "1 parked")
    assert "<b>bold</b>" in page.text("#parked tbody th")
    page.run("document.querySelector('#parked summary').focus()")
    page.press(ENTER)
    page.until_text("#parked pre", "not a number")

    page.run("document.querySelector('#parked button').focus()")
    page.press(ENTER)
    page.until_text("#confirm", "its 2 waiting messages")
    assert page.run("document.activeElement.id") == "confirm-no"
    page.press(ESCAPE)
    closed(page, "confirm")
    assert page.run("document.activeElement.textContent") == "Release …"
    page.press(ENTER)
    page.run("document.querySelector('#confirm-yes').focus()")
    page.press(ENTER)
    closed(page, "confirm")


def closed(page, dialog):
    assert until(lambda: not page.run(f"document.querySelector('#{dialog}').open"), PATIENCE_SECONDS), page.text(
        "dialog"
    )


def test_keys_are_listed_and_can_be_switched_off(page):
    page.press("?")
    page.until_text("#help", "look up a routing key")
    page.click("#help-on")
    page.press(ESCAPE)
    closed(page, "help")
    page.press("1")
    assert not page.run("document.querySelector('#overview').hidden")
    page.click("#help-open")
    page.click("#help-on")
    page.click("#help-close")
    page.press("1")
    page.until_text("#shard-title", "Shard s0")


def test_a_key_is_looked_up(page):
    page.press("/")
    page.type("#find-key", BROKE + ENTER)
    answer = page.until_text("#key-answer", "Parked")
    assert re.search("Subscription\nseen-s[01]-g1", answer)
    assert "active in generation 1" in answer
    assert page.text("#key-title") == f"Key {BROKE}"
    page.click("#find-key")
    page.type("#find-key", "x" * 600 + ENTER)
    page.until_text("#key-answer", "the key must have 1 to")
    assert all("400" in complaint for complaint in page.complaints())
    page.press(ESCAPE)
    assert page.run("document.querySelector('#key').hidden")


def test_a_shard_is_opened_and_closed(page):
    page.click("tr[data-shard=s1] button")
    page.until_text("#shard-lanes", "512-1023")
    page.until_text("#shard-replicas", "seen-s1-0")
    page.until_text("#shard-subscriptions", "seen-s1-g1")
    page.until_text("#shard-errors", "No key is parked")
    assert page.run("document.activeElement.id") == "shard-title"
    page.run("location.reload()")
    page.until_text("#shard-title", "Shard s1")
    page.press(ESCAPE)
    assert until(lambda: not page.run("document.querySelector('#overview').hidden"), PATIENCE_SECONDS)
    page.run("history.back()")
    page.until_text("#shard-title", "Shard s1")
    page.run("history.pushState(null, '', '?shard=' + encodeURIComponent(" + json.dumps(BROKE) + "))")
    page.run("location.reload()")
    page.until_text("#shard-text", "no such shard")
    assert page.text("#shard-title") == f"Shard {BROKE}"


def test_a_dead_letter_is_looked_at_and_replayed(page):
    page.click("#letters-look")
    page.until_text("#letters-text", "1 found")
    assert BROKE in page.text("#letters tbody")
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    assert page.run("document.title") == "seen · shardctl"
    page.click("#letters button")
    page.click("#confirm-yes")
    closed(page, "confirm")


@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_and_can_be_read_in_light_and_dark(page, width):
    papers = set()
    page.type("#find-key", BROKE + ENTER)
    page.until_text("#key-answer", "Parked")
    for shown in ("#overview", "#shard"):
        for dark in (False, True):
            page.look(dark=dark, width=width)
            page.until_text(shown, "s1")
            assert page.run("document.documentElement.scrollWidth") <= width
            assert page.faint() == []
            papers.add(page.run("getComputedStyle(document.body).backgroundColor"))
        assert page.nameless() == []
        if shown == "#overview":
            assert page.run("document.querySelector('tr[data-shard=s1]').offsetHeight") < 130, "a shard takes few lines"
            page.click("tr[data-shard=s1] button")
            page.until_text("#shard-lanes", "512-1023")
    assert len(papers) == 2


@contextmanager
def opened(browser, place, *arguments, **changes):
    """The page of another `shardctl ui`, with another environment."""
    process = place.shardctl("ui", "--port", "0", *arguments, **changes)
    try:
        browser.look(dark=False, width=1280)
        browser.open("about:blank")
        browser.open(process.stdout.readline().strip())
        yield browser
        browser.open("about:blank")  # or it would ask on
        assert browser.complaints() == []
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_SECONDS)


def test_without_a_fleet_nothing_looks_calm(browser, place):
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("SHARDCTL", "PUBSUB", "GOOGLE"))}
    with opened(browser, place, env=bare | {"GOOGLE_APPLICATION_CREDENTIALS": "none.json"}) as page:
        page.until_text("#connection", "nothing known")
        page.until_text("#blind", "No source answers")
        page.until_text("#troubles", "not known: metrics")
        assert set(page.run("[...document.querySelectorAll('#totals dd')].map((value) => value.textContent)")) == {"?"}
        assert {cell(page, "s0", column) for column in (2, 3, 4, 5, 7, 8)} == {"?"}
        assert until(lambda: page.text("#charts").count("unknown") == 3, PATIENCE_SECONDS)
        assert page.faint() == []


def test_the_last_hour_comes_from_prometheus(browser, place, tmp_path):
    consumers = localfile.read(place.told_in).consumers
    targets = {consumer.url.removeprefix("http://"): consumer.shard for consumer in consumers}
    with PrometheusServer(tmp_path, "seen", targets) as server, Prometheus(server.url) as prometheus:
        fleet = load_fleet(place.folder / "shards.yaml")

        def counted():
            with suppress(PrometheusError):
                return [figure.values.get("s0", (None,))[-1] for figure in history.ask(prometheus, fleet).figures]
            return []

        assert until(lambda: counted() and None not in counted(), PATIENCE_SECONDS)
        with opened(browser, place, "--prometheus", server.url) as page:
            page.until_text("#history-text", "From Prometheus.")
            page.until_text("#charts", "s0")
            reading = "document.querySelectorAll('#charts [role=slider]')[1].getAttribute('aria-valuetext')"
            assert re.search("s0 [0-9.,]+/s, s1 [0-9.,]+/s", page.run(reading)), page.run(reading)
            page.press("t")
            page.press(TAB)
            page.press(HOME)
            assert page.run(reading).endswith("s0 unknown, s1 unknown"), "an hour ago there was no server"


def test_a_rebalance_is_shown_with_its_predicted_end(browser, place, tmp_path):
    databases, now_us = Databases(tmp_path), time.time_ns() // 1_000
    databases.add("s2", transitional())
    databases.open_rebalance(transitional())
    for slot in range(1, 6):
        databases.lane("s0", slot, LaneState.ARRIVING, generation=2)
    for slot in (6, 7):
        databases.lane("s2", slot, LaneState.ARRIVING)
    databases.leave("s0", 0)
    arrived = {"slot": 0, "generation": 2, "state": LaneState.ACTIVE, "barrier_time_us": now_us}
    databases.execute("s0", insert(schema.lanes).values(arrived))
    (tmp_path / "shards.yaml").write_text(fleets.text(AFTER, slot_bits=BITS))
    urls = [f"--database={name}={url}" for name, url in databases.urls.items()]
    with opened(browser, place, "-f", str(tmp_path / "shards.yaml"), *urls) as page:
        page.until_text("#rebalance-text", "1 of 8 slots handed over (7 waiting).")
        assert re.search(r"About 7 min left .* at about \d", page.text("#rebalance-end"))
        assert "still to move from s0 to s2: 2 slots" in page.text("#rebalance-moves")
        databases.execute(
            "s0",
            update(schema.lanes).where(schema.lanes.c.generation == 2).values(barrier_time_us=1),
            update(schema.fence).values(version=schema.fence.c.version + 1),
        )
        page.until_text("#rebalance-end", "its end is unknown")


def test_another_token_is_refused_and_shows_nothing(browser, url):
    browser.open("about:blank")
    browser.open(url.partition("#")[0] + "#wrong")
    browser.until_text("#refusal", "the token is missing or wrong")
    assert browser.run("document.querySelectorAll('main tbody tr').length") == 0
    assert all("401" in complaint for complaint in browser.complaints())


def test_listening_for_others_is_warned_about(place):
    process = place.shardctl("ui", "--host", "0.0.0.0", "--port", "0")
    address = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert address.startswith("http://127.0.0.1:")
    assert err.startswith("warning: anyone who can reach 0.0.0.0")
    assert address.strip().partition("#")[2] not in err


def test_what_is_wrong_is_shown_on_the_page_and_by_the_command(page, place):
    (replica,) = place.local.replicas["s1"]
    replica.kill()
    page.until_text("#troubles", f"s1: replica {replica.name} doesn't answer")
    status = place.status()
    s0, s1 = status["shards"]
    assert (s0["ready"], s0["replicas"], s0["lanes"]["active"], s0["troubles"]) == (1, 1, 512, [])
    assert s0["writes_per_second"] > 0
    assert (s1["ready"], s1["replicas"], s1["writes_per_second"]) == (0, 1, None)
    assert s1["troubles"][0] == f"replica {replica.name} doesn't answer"
    assert status["unknown"] == {}
    replica.start()
    assert until(lambda: "doesn't answer" not in page.text("#troubles"), PATIENCE_SECONDS)


def test_consumers_that_took_others_places_are_found(place):
    before = localfile.read(place.told_in)
    place.local.apply(
        fleet_from(yamlfile.parse(FLEET.replace("slots: 0-511", "slots: 0-511, consumer: {batch_max_age_ms: 10}"), "x"))
    )
    assert [consumer.name for consumer in before.consumers] == ["seen-s0-0", "seen-s1-0"]
    assert [consumer.name for consumer in localfile.read(place.told_in).consumers] == ["seen-s0-1", "seen-s1-0"]


def test_watching_prints_a_line_a_look_and_ends_in_order(place):
    process = place.shardctl("status", "--watch")
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_SECONDS) == 0, process.stderr.read()
    assert all(re.search(r"s0 1/1 ready, backlog \d+, applied [1-9]", line) for line in lines)
