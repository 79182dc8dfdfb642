"""The calls of Pub/Sub, beside those of Google's own client: the same bytes, headers and errors."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager

import grpc.aio
import pytest
from google.api_core.exceptions import GoogleAPICallError
from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient, types
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
from patience import PATIENCE_SECONDS

from consumer.pubsub import calls
from consumer.pubsub.protos import PubsubMessage, PullResponse, StreamingPullRequest, StreamingPullResponse

SUBSCRIPTION, TOPIC = "projects/p é/subscriptions/a+b", "projects/p/topics/t"
RECEIVED = {"ack_id": "a1", "message": {"data": b"x", "message_id": "m1"}}


class Service(grpc.GenericRpcHandler):
    """Answers every call with what a message fits, or refuses it; keeps what was sent."""

    def __init__(self, refusal=None):
        self.calls, self._refusal = [], refusal

    def service(self, details):
        routing = [value for name, value in details.invocation_metadata if name == "x-goog-request-params"]

        async def answer(request, context):
            self.calls.append((details.method, routing, request))
            if self._refusal:
                await context.abort(self._refusal, "because")
            return PullResponse(received_messages=[RECEIVED]).SerializeToString() if "Pull" in details.method else b""

        async def stream(requests, context):
            async for request in requests:
                self.calls.append((details.method, routing, request))
                if self._refusal:
                    await context.abort(self._refusal, "because")
                yield StreamingPullResponse(received_messages=[RECEIVED]).SerializeToString()

        if details.method.endswith("StreamingPull"):
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def clients(service):
    """Ours, and Google's."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([service])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield (
                (calls.subscriber(address), calls.publisher(address)),
                (
                    SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel)),
                    PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel)),
                ),
            )
    finally:
        await server.stop(None)


async def requests(kind):
    yield kind(subscription=SUBSCRIPTION, stream_ack_deadline_seconds=60, client_id="c", max_outstanding_messages=9)


async def read(stream):
    return [received.message.data async for response in stream for received in response.received_messages]


CALLS = {
    "pull": (
        lambda ours: ours[0].pull(subscription=SUBSCRIPTION, max_messages=7, timeout_seconds=5),
        lambda client: client[0].pull(subscription=SUBSCRIPTION, max_messages=7, timeout=5, retry=None),
    ),
    "acknowledge": (
        lambda ours: ours[0].acknowledge(subscription=SUBSCRIPTION, ack_ids=["a", "b"], timeout_seconds=5),
        lambda client: client[0].acknowledge(subscription=SUBSCRIPTION, ack_ids=["a", "b"], timeout=5, retry=None),
    ),
    "modify_ack_deadline": (
        lambda ours: ours[0].modify_ack_deadline(
            subscription=SUBSCRIPTION, ack_ids=["a"], ack_deadline_seconds=60, timeout_seconds=5
        ),
        lambda client: client[0].modify_ack_deadline(
            subscription=SUBSCRIPTION, ack_ids=["a"], ack_deadline_seconds=60, timeout=5, retry=None
        ),
    ),
    "publish": (
        lambda ours: ours[1].publish(
            topic=TOPIC, messages=[PubsubMessage(data=b"x", attributes={"n": "1"}, ordering_key="k")], timeout_seconds=5
        ),
        lambda client: client[1].publish(
            topic=TOPIC,
            messages=[types.PubsubMessage(data=b"x", attributes={"n": "1"}, ordering_key="k")],
            timeout=5,
            retry=None,
        ),
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_is_googles_to_the_byte(call):
    async def scenario():
        service = Service()
        async with clients(service) as (ours, googles):
            await call[0](ours)
            await call[1](googles)
        mine, theirs = service.calls
        assert mine == theirs
        assert mine[1], "without its header, a call may reach a region that doesn't have the subscription"

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


def test_a_stream_is_googles_to_the_byte():
    async def scenario():
        service = Service()
        async with clients(service) as ((ours, _), (googles, _)):
            assert await read(await ours.streaming_pull(requests(StreamingPullRequest))) == [b"x"]
            await read(await googles.streaming_pull(requests=requests(types.StreamingPullRequest), retry=None))
        mine, theirs = service.calls
        assert mine == theirs

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


async def error_of(call):
    with pytest.raises(GoogleAPICallError) as caught:
        await call
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE], ids=lambda code: code.name)
def test_an_error_is_googles(code):
    async def streamed(client, kind, **more):
        return await read(await client.streaming_pull(requests=requests(kind), **more))

    async def scenario():
        async with clients(Service(code)) as (ours, googles):
            for mine, theirs in CALLS.values():
                assert await error_of(mine(ours)) == await error_of(theirs(googles))
            assert await error_of(streamed(ours[0], StreamingPullRequest)) == await error_of(
                streamed(googles[0], types.StreamingPullRequest, retry=None)
            )

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


@pytest.mark.slow
def test_a_sink_of_the_users_that_imports_google_s_package_gets_all_of_it():
    """The package's types were loaded without it, and are the same afterwards."""
    code = """
import sys
from consumer.pubsub.protos import PubsubMessage
assert "google.pubsub_v1" not in sys.modules
from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherAsyncClient, types
import google.pubsub_v1
assert types.PubsubMessage.pb() is google.pubsub_v1.PubsubMessage.pb() is PubsubMessage
assert pubsub_v1.types.PubsubMessage is types.PubsubMessage
"""
    subprocess.run([sys.executable, "-c", code], check=True)
