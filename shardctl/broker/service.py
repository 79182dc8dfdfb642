"""google.pubsub.v1 Publisher and Subscriber, and the broker's own admin calls, as gRPC handlers over a registry."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyProto
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from shardctl.broker import names
from shardctl.broker.errors import AckIdsError, InvalidArgumentError, RefusedError, UnavailableError
from shardctl.broker.faults import Faults
from shardctl.broker.protos import Empty, Proto, of, to_seconds
from shardctl.broker.registry import Registry
from shardctl.broker.stream import END, Clock, StreamingPull, Waiters, check_modify_seconds, pull
from shardctl.broker.subscription import MAX_BATCH_MESSAGES, Subscription

ADMIN = "shardctl.local.Broker"
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 100, 1000
PULL_WAIT_SECONDS = 5.0
"""An empty Pull returns after this long: well inside the client's own deadline."""

_ACK_ID = re.compile(r"\d+-\d+")

Handler = Callable[[Proto], Proto]


class Service:
    def __init__(self, registry: Registry, waiters: Waiters, clock: Clock) -> None:
        self._registry = registry
        self._waiters = waiters
        self._clock = clock

    def handlers(self) -> Sequence[Any]:
        """What a grpc.aio server registers."""
        publisher: Mapping[str, tuple[str, Handler]] = {
            "CreateTopic": ("Topic", self._registry.create_topic),
            "UpdateTopic": ("UpdateTopicRequest", lambda r: self._registry.update_topic(r.topic, r.update_mask)),
            "Publish": ("PublishRequest", self._publish),
            "GetTopic": ("GetTopicRequest", lambda r: self._registry.topic(r.topic).config),
            "ListTopics": ("ListTopicsRequest", self._list_topics),
            "ListTopicSubscriptions": ("ListTopicSubscriptionsRequest", self._list_topic_subscriptions),
            "ListTopicSnapshots": ("ListTopicSnapshotsRequest", self._list_topic_snapshots),
            "DeleteTopic": ("DeleteTopicRequest", lambda r: self._registry.delete_topic(r.topic)),
            "DetachSubscription": ("DetachSubscriptionRequest", self._detach),
        }
        subscriber: Mapping[str, tuple[str, Handler]] = {
            "CreateSubscription": ("Subscription", self._registry.create_subscription),
            "GetSubscription": (
                "GetSubscriptionRequest",
                lambda r: self._registry.subscription(r.subscription).config,
            ),
            "UpdateSubscription": (
                "UpdateSubscriptionRequest",
                lambda r: self._registry.update_subscription(r.subscription, r.update_mask),
            ),
            "ListSubscriptions": ("ListSubscriptionsRequest", self._list_subscriptions),
            "DeleteSubscription": (
                "DeleteSubscriptionRequest",
                lambda r: self._wake(self._registry.delete_subscription(r.subscription)),
            ),
            "ModifyAckDeadline": ("ModifyAckDeadlineRequest", self._modify_ack_deadline),
            "Acknowledge": ("AcknowledgeRequest", self._acknowledge),
            "ModifyPushConfig": (
                "ModifyPushConfigRequest",
                lambda r: self._registry.modify_push_config(r.subscription, r.push_config),
            ),
            "GetSnapshot": ("GetSnapshotRequest", lambda r: self._registry.snapshot(r.snapshot).config),
            "ListSnapshots": ("ListSnapshotsRequest", self._list_snapshots),
            "CreateSnapshot": ("CreateSnapshotRequest", self._create_snapshot),
            "UpdateSnapshot": (
                "UpdateSnapshotRequest",
                lambda r: self._registry.update_snapshot(r.snapshot, r.update_mask),
            ),
            "DeleteSnapshot": ("DeleteSnapshotRequest", lambda r: self._registry.delete_snapshot(r.snapshot)),
            "Seek": ("SeekRequest", self._seek),
        }
        admin = {"Stats": self._stats, "Faults": self._faults}
        streaming = {
            "Pull": grpc.unary_unary_rpc_method_handler(self._pull, request_deserializer=of("PullRequest").FromString),
            "StreamingPull": grpc.stream_stream_rpc_method_handler(
                self._streaming_pull, request_deserializer=of("StreamingPullRequest").FromString
            ),
        }
        tables = {
            "google.pubsub.v1.Publisher": {name: self._unary(name, *entry) for name, entry in publisher.items()},
            "google.pubsub.v1.Subscriber": streaming
            | {name: self._unary(name, *entry) for name, entry in subscriber.items()},
            ADMIN: {name: _admin(handler) for name, handler in admin.items()},
        }
        return [grpc.method_handlers_generic_handler(name, table) for name, table in tables.items()]

    def _unary(self, name: str, request: str, handler: Handler) -> Any:
        """Faults before and, for calls that clients repeat, after the effect; refusals become statuses."""
        injector = self._registry.injector
        loses_replies = name in {"Publish", "Acknowledge"}

        async def call(message: Proto, context: Any) -> bytes:
            try:
                if injector.happens("unavailable", injector.faults.unavailable_rate):
                    raise UnavailableError(f"{name} was refused (injected fault).")
                reply = handler(message)
                if loses_replies and injector.happens("lost_reply", injector.faults.lost_reply_rate):
                    raise UnavailableError(f"The reply to {name} was lost (injected fault).")
            except RefusedError as refused:
                await _abort(context, refused)
            return bytes((Empty() if reply is None else reply).SerializeToString())

        return grpc.unary_unary_rpc_method_handler(call, request_deserializer=of(request).FromString)

    def _wake(self, core: Subscription) -> None:
        self._waiters.wake(core)

    # -- publisher -------------------------------------------------------------------------------------------------

    def _publish(self, request: Proto) -> Proto:
        message_ids = self._registry.publish(request, self._clock())
        for core in self._registry.topic(request.topic).subscriptions.values():
            self._waiters.wake(core)
        return of("PublishResponse")(message_ids=message_ids)

    def _list_topics(self, request: Proto) -> Proto:
        configs = {name: topic.config for name, topic in self._registry.topics.items()}
        page, token = _page(_in_project(configs, request.project), request)
        return of("ListTopicsResponse")(topics=[configs[name] for name in page], next_page_token=token)

    def _list_topic_subscriptions(self, request: Proto) -> Proto:
        page, token = _page(self._registry.topic(request.topic).subscriptions, request)
        return of("ListTopicSubscriptionsResponse")(subscriptions=page, next_page_token=token)

    def _list_topic_snapshots(self, request: Proto) -> Proto:
        page, token = _page(self._registry.topic(request.topic).pins, request)
        return of("ListTopicSnapshotsResponse")(snapshots=page, next_page_token=token)

    def _detach(self, request: Proto) -> Proto:
        self._wake(self._registry.detach_subscription(request.subscription))
        return of("DetachSubscriptionResponse")()

    # -- subscriber ------------------------------------------------------------------------------------------------

    def _list_subscriptions(self, request: Proto) -> Proto:
        configs = {name: subscription.config for name, subscription in self._registry.subscriptions.items()}
        page, token = _page(_in_project(configs, request.project), request)
        return of("ListSubscriptionsResponse")(subscriptions=[configs[name] for name in page], next_page_token=token)

    def _list_snapshots(self, request: Proto) -> Proto:
        configs = {name: snapshot.config for name, snapshot in self._registry.snapshots.items()}
        page, token = _page(_in_project(configs, request.project), request)
        return of("ListSnapshotsResponse")(snapshots=[configs[name] for name in page], next_page_token=token)

    def _create_snapshot(self, request: Proto) -> Proto:
        config = of("Snapshot")(name=request.name, labels=request.labels)
        return self._registry.create_snapshot(config, request.subscription, self._clock())

    def _seek(self, request: Proto) -> Proto:
        now = self._clock()
        if request.HasField("time"):
            self._registry.seek_to_time(request.subscription, to_seconds(request.time), now)
        elif request.snapshot:
            self._registry.seek_to_snapshot(request.subscription, request.snapshot, now)
        else:
            raise InvalidArgumentError("Seek needs a time or a snapshot.")
        self._wake(self._registry.subscription(request.subscription).core)
        return of("SeekResponse")()

    def _acknowledge(self, request: Proto) -> None:
        core = self._answered(request)
        stale = core.ack(request.ack_ids, self._clock())
        self._wake(core)
        _refuse_stale(core, stale)

    def _modify_ack_deadline(self, request: Proto) -> None:
        core = self._answered(request)
        check_modify_seconds(request.ack_deadline_seconds)
        stale = core.modify(request.ack_ids, request.ack_deadline_seconds, self._clock())
        self._wake(core)
        _refuse_stale(core, stale)

    def _answered(self, request: Proto) -> Subscription:
        core = self._registry.subscription(request.subscription).core
        if not request.ack_ids:
            raise InvalidArgumentError("No ack ids specified.")
        return core

    async def _pull(self, request: Proto, context: Any) -> bytes:
        try:
            injector = self._registry.injector
            if injector.happens("unavailable", injector.faults.unavailable_rate):
                raise UnavailableError("Pull was refused (injected fault).")
            if request.max_messages <= 0:
                raise InvalidArgumentError("max_messages must be greater than 0.")
            core = self._registry.pullable(request.subscription).core
            wait_seconds = 0.0 if request.return_immediately else PULL_WAIT_SECONDS
            left = context.time_remaining()
            if left is not None:
                wait_seconds = min(wait_seconds, left / 2)
            limit = min(request.max_messages, MAX_BATCH_MESSAGES)
            return await pull(core, limit, wait_seconds, waiters=self._waiters, clock=self._clock)
        except RefusedError as refused:
            return await _abort(context, refused)

    async def _streaming_pull(self, _requests: Any, context: Any) -> None:
        first = await context.read()
        if first is END:
            return
        try:
            subscription = self._registry.pullable(first.subscription)
            await StreamingPull(subscription, first, context, self._waiters, self._clock).run()
        except RefusedError as refused:
            await _abort(context, refused)

    # -- admin -----------------------------------------------------------------------------------------------------

    def _stats(self, _request: bytes) -> bytes:
        now = self._clock()
        self._registry.tick(now)
        return json.dumps(self._registry.stats(now)).encode()

    def _faults(self, request: bytes) -> bytes:
        self._registry.injector.set(Faults.from_mapping(json.loads(request)))
        return b"{}"


def _admin(handler: Callable[[bytes], bytes]) -> Any:
    async def call(request: bytes, context: Any) -> bytes:
        try:
            return handler(request)
        except RefusedError as refused:
            return await _abort(context, refused)

    return grpc.unary_unary_rpc_method_handler(call)


async def _abort(context: Any, refused: RefusedError) -> bytes:
    """Ends the call; the error details list the ack ids that failed permanently, as the client library reads them."""
    code = grpc.StatusCode[refused.code]
    trailing: tuple[tuple[str, bytes], ...] = ()
    if isinstance(refused, AckIdsError):
        info = ErrorInfo(reason="EXACTLY_ONCE_ACKID_FAILURE", domain="pubsub.googleapis.com", metadata=refused.failures)
        detail = AnyProto()
        detail.Pack(info)
        status = Status(code=code.value[0], message=refused.message, details=[detail])
        trailing = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(code, refused.message, trailing)
    return b""


def _refuse_stale(core: Subscription, stale: Sequence[str]) -> None:
    """A stale ack id is an error on an exactly-once subscription and nothing at all elsewhere; one that the broker
    can't have given out is always an error.
    """
    for ack_id in stale:
        if not _ACK_ID.fullmatch(ack_id):
            raise InvalidArgumentError(f"Invalid ack id (ack_id={ack_id})")
    if stale and core.settings.exactly_once:
        raise AckIdsError(dict.fromkeys(stale, "PERMANENT_FAILURE_INVALID_ACK_ID"))


def _in_project(resources: Mapping[str, Any], project: str) -> Sequence[str]:
    prefix = names.check_project(project) + "/"
    return [name for name in resources if name.startswith(prefix)]


def _page(resources: Any, request: Proto) -> tuple[Sequence[str], str]:
    """One page in order of name and the token of the next: the last name shown, so pages survive changes."""
    size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    if size < 0:
        raise InvalidArgumentError("page_size must not be negative.")
    names = sorted(name for name in resources if name > request.page_token)
    page = names[:size]
    return page, page[-1] if len(names) > size else ""
