"""Schemas and the topics that have one, through the real client."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from google.api_core.exceptions import (
    AlreadyExists,
    GoogleAPICallError,
    InvalidArgument,
    MethodNotImplemented,
    NotFound,
)
from google.auth.credentials import AnonymousCredentials
from google.pubsub_v1.services.schema_service import SchemaServiceClient
from google.pubsub_v1.services.schema_service.transports import SchemaServiceGrpcTransport

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The return_immediately flag")]


def record(*fields):
    return json.dumps(
        {"type": "record", "name": "Order", "fields": [{"name": field, "type": "string"} for field in fields]}
    )


A = record("a")


def avro(definition):
    return {"type_": "AVRO", "definition": definition}


@pytest.fixture
def schemas(pubsub):
    """The client, with the names of this test's project."""
    client = SchemaServiceClient(
        transport=SchemaServiceGrpcTransport(channel=pubsub.channel, credentials=AnonymousCredentials())
    )
    parent = f"projects/{pubsub.project}"
    name = f"{parent}/schemas/orders"

    def create(schema_id, definition=A):
        return client.create_schema(request={"parent": parent, "schema_id": schema_id, "schema": avro(definition)})

    def commit(definition):
        return client.commit_schema(request={"name": name, "schema": {"name": name, **avro(definition)}})

    def revision_ids():
        return [schema.revision_id for schema in client.list_schema_revisions(request={"name": name})]

    return SimpleNamespace(
        client=client, parent=parent, name=name, create=create, commit=commit, revision_ids=revision_ids
    )


def test_a_schema_exists_once_and_is_gone_when_deleted(schemas):
    made = schemas.create("orders")
    assert (made.name, made.definition) == (schemas.name, record("a"))
    with pytest.raises(AlreadyExists):
        schemas.create("orders")
    assert schemas.client.get_schema(name=schemas.name) == made
    assert not schemas.client.get_schema(request={"name": schemas.name, "view": "BASIC"}).definition
    schemas.create("items")
    listed = schemas.client.list_schemas(request={"parent": schemas.parent, "view": "FULL", "page_size": 1})
    assert [(schema.name, bool(schema.definition)) for schema in listed] == [
        (f"{schemas.parent}/schemas/items", True),
        (schemas.name, True),
    ]
    schemas.client.delete_schema(name=schemas.name)
    for call in (schemas.client.get_schema, schemas.client.delete_schema, schemas.client.list_schema_revisions):
        with pytest.raises(NotFound):
            call(name=schemas.name)


def test_revisions_are_committed_rolled_back_and_deleted(schemas):
    first = schemas.create("orders").revision_id
    second = schemas.commit(record("b")).revision_id
    assert schemas.client.get_schema(name=schemas.name).revision_id == second
    assert schemas.client.get_schema(name=f"{schemas.name}@{first}").definition == record("a")
    third = schemas.client.rollback_schema(name=schemas.name, revision_id=first)
    assert third.definition == record("a")
    assert schemas.revision_ids() == [first, second, third.revision_id]
    for revision_id in (first, second):
        schemas.client.delete_schema_revision(request={"name": f"{schemas.name}@{revision_id}"})
    assert schemas.revision_ids() == [third.revision_id]
    with pytest.raises(NotFound):
        schemas.client.get_schema(name=f"{schemas.name}@{first}")
    with pytest.raises(InvalidArgument):
        schemas.client.delete_schema_revision(request={"name": f"{schemas.name}@{third.revision_id}"})


@pytest.mark.parametrize("definition", ["", "text", "{}", '{"type": "record", "name": "Order"}', '{"type": "unknown"}'])
def test_what_is_no_avro_is_refused(schemas, definition):
    with pytest.raises(InvalidArgument):
        schemas.create("orders", definition)
    with pytest.raises(InvalidArgument):
        schemas.client.validate_schema(request={"parent": schemas.parent, "schema": avro(definition)})


def test_a_schema_of_protocol_buffers_is_refused_by_name(schemas):
    schema = {"type_": "PROTOCOL_BUFFER", "definition": 'syntax = "proto3"; message Order { string a = 1; }'}
    with pytest.raises(MethodNotImplemented):
        schemas.client.create_schema(request={"parent": schemas.parent, "schema_id": "orders", "schema": schema})


OPTIONAL = json.dumps(
    {
        "type": "record",
        "name": "Order",
        "fields": [
            {"name": "name", "type": "string"},
            {"name": "count", "type": ["null", "int"], "default": None},
            {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        ],
    }
)


@pytest.mark.parametrize(
    ("message", "encoding", "fits"),
    [
        (b'{"name": "x", "count": null, "day": 1}', "JSON", True),
        (b'{"name": "x",\n "count": {"int": 3},\n "day": 1}', "JSON", True),
        (b'{"name": "x", "count": 3, "day": 1}', "JSON", False),
        (b'{"name": "x", "day": 1}', "JSON", False),
        (b'{"name": "x", "count": null, "day": "1"}', "JSON", False),
        (b"[]", "JSON", False),
        (b"\x02x\x00\x02", "BINARY", True),
        (b"\x02x\x02\x06\x02", "BINARY", True),
        (b"\x02x\x00\xfe\xff\xff\xff\x0f", "BINARY", True),
        (b"\x02x\x04\x02", "BINARY", False),
        (b"\x02x", "BINARY", False),
        (b"", "BINARY", False),
    ],
)
def test_a_message_is_validated_as_avro(schemas, message, encoding, fits):
    request = {"parent": schemas.parent, "schema": avro(OPTIONAL), "message": message, "encoding": encoding}
    if fits:
        schemas.client.validate_message(request=request)
    else:
        with pytest.raises(InvalidArgument):
            schemas.client.validate_message(request=request)


def test_a_topic_takes_messages_of_its_schema_alone_and_says_of_which_revision(pubsub, schemas):
    first = schemas.create("orders").revision_id
    second = schemas.commit(record("b")).revision_id
    topic = pubsub.topic(schema_settings={"schema": schemas.name, "encoding": "JSON"})
    subscription = pubsub.subscribe(topic)
    for bodies in (("text",), ('{"a": "x"}', '{"c": "x"}')):
        with pytest.raises(InvalidArgument):
            pubsub.publish(topic, *bodies)
    pubsub.publish(topic, '{"a": "x"}', '{"b": "x"}', googclient_schemaencoding="mine")
    received = pubsub.pull(subscription, 2)
    assert {message.message.data: dict(message.message.attributes) for message in received} == {
        body: {
            "googclient_schemaencoding": "JSON",
            "googclient_schemaname": schemas.name,
            "googclient_schemarevisionid": revision,
        }
        for body, revision in ((b'{"a": "x"}', first), (b'{"b": "x"}', second))
    }


def test_a_topics_range_of_revisions_bounds_what_it_takes(pubsub, schemas, needs):
    needs("update topic")
    first = schemas.create("orders").revision_id
    schemas.commit(record("b"))
    settings = {"schema": schemas.name, "encoding": "JSON", "last_revision_id": first}
    topic = pubsub.topic(schema_settings=settings)
    pubsub.publish(topic, '{"a": "x"}')
    with pytest.raises(InvalidArgument):
        pubsub.publish(topic, '{"b": "x"}')
    schemas.client.delete_schema_revision(request={"name": f"{schemas.name}@{first}"})
    shown = pubsub.publisher.get_topic(topic=topic).schema_settings
    assert shown.last_revision_id == "_deleted-schema-revision_"
    with pytest.raises(InvalidArgument):
        pubsub.publish(topic, '{"b": "x"}')
    settings["last_revision_id"] = ""
    pubsub.publisher.update_topic(
        request={"topic": {"name": topic, "schema_settings": settings}, "update_mask": {"paths": ["schema_settings"]}}
    )
    pubsub.publish(topic, '{"b": "x"}')


def test_a_topic_outlives_its_schema_and_takes_no_messages_until_it_has_none(pubsub, schemas, needs):
    needs("update topic")
    schemas.create("orders")
    topic = pubsub.topic(schema_settings={"schema": schemas.name, "encoding": "JSON"})
    schemas.client.delete_schema(name=schemas.name)
    assert pubsub.publisher.get_topic(topic=topic).schema_settings.schema == "_deleted-schema_"
    with pytest.raises(NotFound):
        pubsub.publish(topic, '{"a": "x"}')
    pubsub.publisher.update_topic(request={"topic": {"name": topic}, "update_mask": {"paths": ["schema_settings"]}})
    pubsub.publish(topic, "text")


@pytest.mark.parametrize(
    "settings",
    [
        {"schema": "missing", "encoding": "JSON"},
        {"schema": "orders"},
        {"encoding": "JSON"},
        {"schema": "orders", "encoding": "JSON", "first_revision_id": "00000000"},
    ],
    ids=str,
)
def test_settings_of_no_schema_are_refused(pubsub, schemas, settings):
    schemas.create("orders")
    if "schema" in settings:
        settings = {**settings, "schema": f"{schemas.parent}/schemas/{settings['schema']}"}
    with pytest.raises(GoogleAPICallError) as caught:
        pubsub.topic(schema_settings=settings)
    assert isinstance(caught.value, InvalidArgument | NotFound)
