"""A span for each write that its producer chose to trace, from the moment at which its batch begins to its commit.

Pub/Sub's client libraries carry a producer's trace context in an attribute of the message. A producer that doesn't trace sets
none, and one that samples marks few. So the producers choose what is exported; any other message costs one lookup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from consumer.delivery import Delivery
from shardctl.errors import UsageError
from shardctl.fleet.shardconfig import ShardConfig

TRACEPARENT = "googclient_traceparent"  # as the libraries name it
EXPORT_SECONDS = 5.0  # for the spans that are left at the end
_SAMPLED = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][13579bdf]")


class Traces:
    """Spans are exported in the background, in batches; if the collector doesn't answer they are dropped, and nothing waits for
    them.
    """

    def __init__(self, config: ShardConfig, endpoint: str, replica: str, processor: Any = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise UsageError("`tracing` needs the extra `tracing`: pip install 'shardctl[tracing]'") from error
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create(
            {"service.name": f"{config.fleet}-consumer", "service.instance.id": replica, "shardctl.shard": config.shard}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            processor or BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS))
        )
        self._tracer = self._provider.get_tracer("shardctl.consumer")
        self._propagator = TraceContextTextMapPropagator()

    def settled(self, deliveries: Sequence[Delivery], began_ns: int, ended_ns: int) -> None:
        """Record deliveries that were settled in one batch, between these times since 1970. Doesn't wait, doesn't raise.

        A span's destination is the subscription, as in OpenTelemetry's conventions for Pub/Sub.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode

        for delivery in deliveries:
            parent = delivery.message.attributes.get(TRACEPARENT, "")
            if not _SAMPLED.fullmatch(parent):
                continue
            subscription = delivery.subscription.rpartition("/")[2]
            span = self._tracer.start_span(
                f"process {subscription}",
                context=self._propagator.extract({"traceparent": parent}),
                kind=SpanKind.CONSUMER,
                start_time=began_ns,
                attributes={
                    "messaging.system": "gcp_pubsub",
                    "messaging.operation.name": "process",
                    "messaging.operation.type": "process",
                    "messaging.destination.name": subscription,
                    "messaging.destination.subscription.name": subscription,
                    "messaging.message.id": delivery.message_id,
                    "gcp.pubsub.message.ordering_key": delivery.message.ordering_key,
                    "shardctl.batch_messages": len(deliveries),
                    "shardctl.slot": delivery.slot,
                    "shardctl.message_type": delivery.message_type,
                    "shardctl.outcome": delivery.fault.reason if delivery.fault else "committed",
                    "shardctl.publish_to_commit_ms": (ended_ns // 1_000 - delivery.publish_time_us) / 1_000,
                },
            )
            if delivery.fault:
                span.set_attribute("error.type", delivery.fault.reason)
                span.set_status(Status(StatusCode.ERROR))
            span.end(ended_ns)

    def close(self) -> None:
        """Export what is left, for a bounded time."""
        self._provider.shutdown()
