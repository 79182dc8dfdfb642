"""The broker's REST API, in this process: which requests lead where, and that none of them is answered by a bug."""

from __future__ import annotations

import asyncio
import json
import time
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardctl.broker.registry import Registry
from shardctl.broker.rest.app import MAX_BODY_BYTES, Application
from shardctl.broker.rest.routes import Routes
from shardctl.broker.service import Service
from shardctl.broker.stream import Waiters
from shardctl.broker.unsupported import IAM

TOPIC, SUBSCRIPTION = "/v1/projects/p/topics/writes", "/v1/projects/p/subscriptions/shard"
JSON = {"content-type": "application/json"}


class Door:
    """A broker with a topic and a subscription, asked over HTTP without a socket."""

    def __init__(self):
        self.service = Service(Registry(), Waiters(), time.time)
        self.app = Application(self.service)
        assert self.ask("PUT", TOPIC, b"{}")[0] == 200
        assert self.ask("PUT", SUBSCRIPTION, {"topic": "projects/p/topics/writes"})[0] == 200

    def ask(self, verb, path, body=b"", headers=JSON):
        """Status and JSON; nothing where it would wait for messages, since the client leaves then."""
        path, _, query = path.partition("?")
        scope = {
            "method": verb,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        incoming, events = [{"type": "http.request", "body": content, "more_body": False}], []

        async def receive():
            return incoming.pop() if incoming else {"type": "http.disconnect"}

        async def send(event):
            events.append(event)

        asyncio.run(self.app(scope, receive, send))
        return (events[0]["status"], json.loads(events[1]["body"])) if events else (None, None)

    def publish(self, data="aGk="):
        return self.ask("POST", f"{TOPIC}:publish", {"messages": [{"data": data}]})

    def pull(self):
        reply = self.ask("POST", f"{SUBSCRIPTION}:pull", {"maxMessages": 10, "returnImmediately": True})[1]
        return reply.get("receivedMessages", [])


@pytest.fixture
def door():
    return Door()


def test_every_unary_method_has_a_path_and_every_path_a_method(door):
    routes = list(Routes())
    served = {route.name for route in routes if route.service != IAM}
    assert served == {*door.service.methods, "Pull"}
    refused = {route.name for route in routes if route.service == IAM}
    assert refused == {"GetIamPolicy", "SetIamPolicy", "TestIamPermissions"}


@pytest.mark.parametrize(
    ("verb", "path", "name", "values"),
    [
        ("PUT", TOPIC, "CreateTopic", {"name": "projects/p/topics/writes"}),
        ("PATCH", TOPIC, "UpdateTopic", {"topic.name": "projects/p/topics/writes"}),
        ("POST", "/v1/projects/a:b/topics/t:publish", "Publish", {"topic": "projects/a:b/topics/t"}),
        ("GET", "/v1/projects/p/topics/t/subscriptions", "ListTopicSubscriptions", {"topic": "projects/p/topics/t"}),
        ("GET", "/v1/projects/p/topics/t%2Fx", "GetTopic", {"topic": "projects/p/topics/t/x"}),
        ("GET", "/v1/projects/p/topics/a%25b", "GetTopic", {"topic": "projects/p/topics/a%b"}),
        ("GET", "/v1/projects/p/snapshots/s:getIamPolicy", "GetIamPolicy", {"resource": "projects/p/snapshots/s"}),
    ],
)
def test_a_path_leads_to_its_method(verb, path, name, values):
    match = Routes().match(verb, path)
    assert (match.route.name, dict(match.values)) == (name, values)


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "code", "text"),
    [
        ("GET", "/v1/projects/p/topics/none", b"", 404, "NOT_FOUND", "Resource not found"),
        ("GET", "/v1/projects/p/topics/g%20g", b"", 400, "INVALID_ARGUMENT", "Invalid [topics] name"),
        ("PUT", TOPIC, b"{}", 409, "ALREADY_EXISTS", "already exists"),
        ("GET", "/v2/projects/p/topics", b"", 404, "NOT_FOUND", "There is no GET /v2/projects/p/topics"),
        ("POST", TOPIC, b"{}", 404, "NOT_FOUND", "There is no POST"),
        ("GET", f"{TOPIC}:getIamPolicy", b"", 501, "UNIMPLEMENTED", "no IAM"),
        ("POST", "/v1/projects/p/schemas?schemaId=sch", b'{"type": 1}', 501, "UNIMPLEMENTED", "PROTOCOL_BUFFER"),
        ("POST", "/v1/projects/p/schemas?schemaId=sch", b"{}", 400, "INVALID_ARGUMENT", "needs a type"),
        ("POST", "/v1/projects/p/schemas?schemaId=sch", b'{"type": "AVRO"}', 400, "INVALID_ARGUMENT", "Invalid Avro"),
        ("GET", "/v1/projects/p/topics?pageSize=x", b"", 400, "INVALID_ARGUMENT", "Invalid JSON payload"),
        ("GET", "/v1/projects/p/topics?pageSize=1&pageSize=2", b"", 400, "INVALID_ARGUMENT", "2 times"),
        ("GET", "/v1/projects/p/topics?wrong=1", b"", 400, "INVALID_ARGUMENT", "Unknown query parameter 'wrong'"),
        ("GET", "/v1/projects/p/topics?page_size.x=1", b"", 400, "INVALID_ARGUMENT", "Unknown query parameter"),
        ("GET", "/v1/projects/p/topics?x=%ff", b"", 400, "INVALID_ARGUMENT", "percent-encoded"),
        ("GET", "/v1/projects/p/topics?alt=proto", b"", 400, "INVALID_ARGUMENT", "JSON only"),
        ("GET", "/v1/projects/p/topics", b"{1}", 400, "INVALID_ARGUMENT", "takes no body"),
        ("POST", f"{TOPIC}:publish?topic=x", b"{}", 400, "INVALID_ARGUMENT", "in the body"),
        ("POST", f"{TOPIC}:publish", b"{", 400, "INVALID_ARGUMENT", "Invalid JSON payload"),
        ("POST", f"{TOPIC}:publish", b"[]", 400, "INVALID_ARGUMENT", "PublishRequest is an object"),
        ("POST", f"{TOPIC}:publish", b'{"messages": [{"datum": ""}]}', 400, "INVALID_ARGUMENT", "datum"),
        ("POST", f"{TOPIC}:publish", b"[" * 100_000, 400, "INVALID_ARGUMENT", "Invalid JSON payload"),
        ("POST", f"{TOPIC}:publish", b" " * (MAX_BODY_BYTES + 1), 400, "INVALID_ARGUMENT", "exceeds the limit"),
        ("POST", f"{SUBSCRIPTION}:pull", b"{}", 400, "INVALID_ARGUMENT", "max_messages"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_wrong_request_is_refused_in_googles_form(door, verb, path, body, status, code, text):
    got, reply = door.ask(verb, path, body)
    assert (got, reply["error"]["code"], reply["error"]["status"]) == (status, status, code)
    assert text in reply["error"]["message"]


@pytest.mark.parametrize(
    "headers", [{}, {"content-type": "text/plain"}, {**JSON, "content-encoding": "gzip"}], ids=["none", "text", "gzip"]
)
def test_a_body_is_json_by_its_headers(door, headers):
    assert door.ask("POST", f"{TOPIC}:publish", {"messages": [{"data": "aGk="}]}, headers)[0] == 400
    assert door.pull() == []


def test_the_path_wins_over_the_body(door):
    assert door.ask("PUT", "/v1/projects/p/topics/mine", {"name": "projects/p/topics/yours"})[1] == {
        "name": "projects/p/topics/mine"
    }


def test_a_page_goes_on_where_the_last_one_ended(door):
    for name in ("one", "two", "three"):
        door.ask("PUT", f"/v1/projects/p/topics/{name}", b"{}")
    seen, token = [], ""
    while True:
        page = door.ask("GET", f"/v1/projects/p/topics?page_size=2&pageToken={token}&$alt=json&prettyPrint=true")[1]
        seen += [topic["name"].rpartition("/")[2] for topic in page["topics"]]
        token = page.get("nextPageToken", "").replace("/", "%2F")
        if not token:
            break
    assert seen == ["one", "three", "two", "writes"]


def test_enums_are_names_or_numbers_as_asked(door):
    assert door.ask("GET", SUBSCRIPTION)[1]["state"] == "ACTIVE"
    assert door.ask("GET", f"{SUBSCRIPTION}?$alt=json;enum-encoding=int")[1]["state"] == 1


def test_the_failures_of_exactly_once_acks_are_listed(door):
    door.ask("PUT", "/v1/projects/p/subscriptions/once", {"topic": TOPIC[4:], "enableExactlyOnceDelivery": True})
    status, reply = door.ask("POST", "/v1/projects/p/subscriptions/once:acknowledge", {"ackIds": ["2-1-_"]})
    assert status == 400
    assert reply["error"]["details"][0]["metadata"] == {"2-1-_": "PERMANENT_FAILURE_INVALID_ACK_ID"}


def test_a_client_that_has_gone_gets_no_message(door):
    """Its pull ends with it. Otherwise what is published next would be leased to nobody until its deadline."""

    async def run():
        left = asyncio.Event()
        events = [{"type": "http.request", "body": b'{"maxMessages": 1}', "more_body": False}]
        scope = {"method": "POST", "raw_path": f"{SUBSCRIPTION}:pull".encode(), "query_string": b""}
        scope["headers"] = [(b"content-type", b"application/json")]

        async def receive():
            if events:
                return events.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(event):
            pytest.fail(f"answered: {event}")

        pulling = asyncio.create_task(door.app(scope, receive, send))
        await asyncio.sleep(0)  # it begins
        left.set()
        await pulling

    asyncio.run(run())
    door.publish()
    assert len(door.pull()) == 1


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.just("1e400s")
_FIELDS = st.sampled_from(
    """messages data attributes orderingKey publishTime topic subscription labels pushConfig oidcToken ackIds time snapshot name
    updateMask ackDeadlineSeconds retryPolicy minimumBackoff deadLetterPolicy expirationPolicy ttl maxMessages @type""".split()  # noqa: SIM905
)
_BODIES = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_FIELDS, inner, max_size=4))
_VERBS = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "BREW"])
_PATHS = st.builds(
    "/v1/projects/p/{}/{}{}".format,
    st.sampled_from(["topics", "subscriptions", "snapshots", "schemas", "..", "%00"]),
    st.sampled_from(["writes", "shard", "new", "%ff", "a/b", ""]),
    st.sampled_from(["", ":publish", ":pull", ":seek", ":acknowledge", ":modifyAckDeadline", ":modifyPushConfig", ":x", "/x"]),
)  # fmt: skip
_QUERIES = st.dictionaries(
    _FIELDS | st.sampled_from(["pageSize", "topic.name", "a.b"]), st.text(max_size=5), max_size=2
)


@given(_VERBS, _PATHS, _QUERIES, _BODIES | st.binary(max_size=20))
@pytest.mark.slow
@settings(deadline=None, max_examples=60)
def test_no_request_meets_a_bug(verb, path, query, body):
    status, reply = Door().ask(verb, f"{path}?{urlencode(query)}", body)
    assert status in {None, 200, 400, 404, 409, 501}, reply
