"""What subscriptions hold, as Cloud Monitoring and brokers report it."""

import asyncio
import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import grpc
import pytest
import requests
from google.cloud import pubsub_v1
from rebalance_kit import running_broker

from shardctl.rebalance import backlog
from shardctl.rebalance.backlog import Backlog, UnknownError

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
US = int(NOW.timestamp() * 1e6)
SECOND = 1_000_000


@pytest.mark.parametrize(
    ("backlog_read", "drained"),
    [
        (Backlog(0, None, US + 1), True),
        (Backlog(0, None, US), None),
        (Backlog(7, US + 1, US + 2), True),
        (Backlog(7, US, US + 2), False),
        (Backlog(7, None, US + 2), False),
        (Backlog(), None),
    ],
    ids=["empty", "empty before the barrier", "newer alone", "some older", "age unknown", "unknown"],
)
def test_drained(backlog_read, drained):
    assert backlog_read.drained(US) is drained


class Monitoring(BaseHTTPRequestHandler):
    """Answers as `projects.timeSeries.list` of Cloud Monitoring does, from `series`: two time series a page."""

    series = ()
    asked = ()
    status = 200

    def do_GET(self):
        self.__class__.asked += (self.path,)
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        assert parts.path == "/v3/projects/my-project/timeSeries"
        metric = query["filter"].split('"')[1].rpartition("/")[2]
        start, end = (datetime.fromisoformat(query[f"interval.{name}Time"]) for name in ("start", "end"))
        series = [
            {
                "metric": {"type": f"pubsub.googleapis.com/subscription/{metric}"},
                "resource": {"type": "pubsub_subscription", "labels": {"project_id": "p", "subscription_id": name}},
                "metricKind": "GAUGE",
                "valueType": "INT64",
                "points": [
                    {
                        "interval": {"startTime": at.isoformat(), "endTime": at.isoformat()},
                        "value": {"int64Value": str(value)},
                    }
                    for at, value in points
                    if start < at <= end
                ],
            }
            for (name, name_of_metric), points in self.series.items()
            if name_of_metric == metric and f'"{name}"' in query["filter"]
        ]
        first = int(query.get("pageToken", 0))
        page = {"timeSeries": series[first : first + 2]} | (
            {"nextPageToken": str(first + 2)} if series[first + 2 :] else {}
        )
        body = json.dumps(page if self.status == 200 else {"error": {"message": "no permission"}}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def monitoring():
    handler = type("Handler", (Monitoring,), {"series": {}, "asked": ()})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def ask(url, *ids):
    with requests.Session() as session:
        return backlog.of_monitoring("my-project", ids, session=session, url=url, now=lambda: NOW)


def test_the_newest_points_count(monitoring):
    handler, url = monitoring
    minute = timedelta(minutes=1)
    handler.series = {
        ("a", "num_undelivered_messages"): [(NOW - minute, 3), (NOW - 2 * minute, 99)],
        ("a", "oldest_unacked_message_age"): [(NOW - 2 * minute, 30), (NOW - minute, 20)],
        ("b", "num_undelivered_messages"): [(NOW - minute, 0)],
        ("c", "num_undelivered_messages"): [(NOW - timedelta(hours=1), 5)],
        ("d", "num_undelivered_messages"): [(NOW - minute, 5)],
    }
    slack = backlog.SLACK_SECONDS * SECOND
    assert ask(url, "a", "b", "c", "d") == {
        "a": Backlog(3, US - 80 * SECOND - slack, US - 60 * SECOND - slack),
        "b": Backlog(0, None, US - 60 * SECOND - slack),
        "d": Backlog(5, None, US - 60 * SECOND - slack),
    }
    assert len(handler.asked) == 3  # two pages of counts, one of ages


def test_many_subscriptions_take_several_requests(monitoring):
    handler, url = monitoring
    names = [f"s{number}" for number in range(backlog.IDS_A_REQUEST + 1)]
    handler.series = {(name, "num_undelivered_messages"): [(NOW, 1)] for name in (names[0], names[-1])}
    assert set(ask(url, *names)) == {names[0], names[-1]}


def test_a_missing_permission_is_reported(monitoring):
    handler, url = monitoring
    handler.status = 403
    with pytest.raises(UnknownError, match=r"refused to report backlogs \(403\).*no permission"):
        ask(url, "a")


def test_nobody_there():
    with pytest.raises(UnknownError, match="can't be asked"):
        ask("http://127.0.0.1:9", "a")


def test_the_embedded_broker_reports_its_backlog(monkeypatch):
    with running_broker() as host:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", host)
        topic = "projects/my-project/topics/the-topic"
        with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
            publisher.create_topic(name=topic)
            for name in ("one", "two"):
                subscriber.create_subscription(name=f"projects/my-project/subscriptions/{name}", topic=topic)
            empty = backlog.source("my-project")(["one", "two", "three"])
            publisher.publish(topic, b"x").result()
            full = backlog.source("my-project")(["one"])
    assert {name: (backlog_read.messages, backlog_read.oldest_us) for name, backlog_read in empty.items()} == {
        "one": (0, None),
        "two": (0, None),
    }
    assert full["one"].messages == 1
    assert empty["one"].at_us - SECOND < full["one"].oldest_us <= full["one"].at_us


def test_googles_emulator_reports_no_backlog():
    async def asked():
        server = grpc.aio.server()  # knows no service of ours
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            with pytest.raises(UnknownError, match="doesn't report"):
                await asyncio.to_thread(backlog.of_broker, f"127.0.0.1:{port}", "my-project", ["one"])
        finally:
            await server.stop(0)

    asyncio.run(asked())
