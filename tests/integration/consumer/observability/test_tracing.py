"""Spans from publish to commit: a producer that traces, the real client, broker and consumer, and a collector that listens."""

from __future__ import annotations

import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from consumer_kit import SLOT_BITS, config
from consumerprocess_kit import TOPIC, consumers, customers, until
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shardctl.fleet.keyspace import digits_of, slot_of
from shardctl.fleet.settings.tracing import Tracing
from shardctl.publisher import connect

pytestmark = pytest.mark.slow


class Collector:
    """Takes spans in as an OpenTelemetry collector does."""

    def __init__(self):
        self.spans = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = ExportTraceServiceRequest()
                request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
                for of_resource in request.resource_spans:
                    resource = {
                        attribute.key: attribute.value.string_value for attribute in of_resource.resource.attributes
                    }
                    for of_scope in of_resource.scope_spans:
                        collector.spans += [(resource, span) for span in of_scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"


@pytest.fixture
def collector():
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def start(tmp_path, redis_url, broker, shard):
    traced = config(lease=timedelta(seconds=10))
    with consumers(tmp_path, shard.url, redis_url, broker) as start:
        yield lambda endpoint: start(traced.model_copy(update={"tracing": Tracing(endpoint=endpoint)}))


def test_a_traced_write_has_a_span_up_to_its_commit_and_others_have_none(start, collector, broker, shard, monkeypatch):
    consumer = start(collector.url)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.broker.host)
    produced, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(produced))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    client = connect(tracing=True)
    tracer = trace.get_tracer("a producer")
    with tracer.start_as_current_span("an order comes in") as order:
        slot = digits_of(slot_of("1", SLOT_BITS), SLOT_BITS)
        attributes = {"slot": slot, "partition_key": "1", "message_type": "customer"}
        message_id = client.publish(
            TOPIC, b'{"customer_id": "1", "name": "traced"}', ordering_key=slot, **attributes
        ).result()
    client.stop()
    (create,) = [span for span in produced.get_finished_spans() if span.kind is trace.SpanKind.PRODUCER]
    topic = TOPIC.rpartition("/")[2]
    assert create.name == f"create {topic}"
    assert create.attributes == {
        "messaging.system": "gcp_pubsub",
        "messaging.operation.name": "create",
        "messaging.operation.type": "create",
        "messaging.destination.name": topic,
        "gcp.pubsub.message.ordering_key": slot,
        "messaging.message.id": message_id,
    }
    broker.publish({"customer_id": "2", "name": "not traced"}, key="2")
    broker.publish(
        {"customer_id": "3", "name": "not sampled"}, key="3", googclient_traceparent=f"00-{7:032x}-{7:016x}-00"
    )
    broker.publish({"customer_id": 4}, key="4", googclient_traceparent=f"00-{7:032x}-{7:016x}-01")
    broker.publish({"customer_id": "4", "name": "no trace"}, key="4", googclient_traceparent="nonsense")
    until(lambda: len(customers(shard)) == 4)
    assert consumer.terminate() == 0
    spans = {span.trace_id: (resource, span) for resource, span in collector.spans}
    _, failed = spans.pop((7).to_bytes(16))
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert attributes_of(failed)["error.type"] == attributes_of(failed)["shardctl.outcome"] == "bad_value"
    [(resource, span)] = spans.values()
    assert (resource["service.name"], resource["shardctl.shard"]) == ("shop-consumer", "s0")
    assert span.name == "process shop-s0-g1"
    assert span.trace_id == order.get_span_context().trace_id.to_bytes(16)
    span_attributes = attributes_of(span)
    assert span_attributes.pop("shardctl.publish_to_commit_ms") is not None
    assert span_attributes == {
        "messaging.system": "gcp_pubsub",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "shop-s0-g1",
        "messaging.destination.subscription.name": "shop-s0-g1",
        "messaging.message.id": message_id,
        "gcp.pubsub.message.ordering_key": slot,
        "shardctl.batch_messages": 1,
        "shardctl.slot": slot_of("1", SLOT_BITS),
        "shardctl.message_type": "customer",
        "shardctl.outcome": "committed",
    }
    assert order.start_time < span.start_time_unix_nano < span.end_time_unix_nano


def attributes_of(span):
    return {
        attribute.key: attribute.value.string_value or attribute.value.int_value or attribute.value.double_value
        for attribute in span.attributes
    }


def test_a_collector_that_is_away_costs_nothing_but_spans(start, broker, shard):
    consumer = start("http://127.0.0.1:9/v1/traces")
    broker.publish({"customer_id": "1", "name": "traced"}, googclient_traceparent=f"00-{7:032x}-{7:016x}-01")
    until(lambda: len(customers(shard)) == 1)
    code = consumer.terminate()
    assert code == 0
