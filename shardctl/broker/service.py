"""What google.pubsub.v1's methods do, and the broker's own admin calls, whatever protocol a call came by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shardctl.broker import names
from shardctl.broker.errors import AckIdsError, InvalidArgumentError, UnavailableError
from shardctl.broker.faults import Faults
from shardctl.broker.method import Method
from shardctl.broker.paging import page_of
from shardctl.broker.protos import Empty, Proto, of, to_seconds
from shardctl.broker.registry import Registry
from shardctl.broker.schemaservice import SchemaService
from shardctl.broker.stream import END, Clock, StreamingPull, Waiters, check_ack_request, check_modify_seconds, pull
from shardctl.broker.subscription import MAX_BATCH_MESSAGES, Subscription

PULL_WAIT_SECONDS = 5.0
"""An empty Pull returns after this long: well inside the client's own deadline."""

_LOSES_REPLIES = frozenset({"Publish", "Acknowledge"})  # clients repeat these calls


class Service:
    def __init__(self, registry: Registry, waiters: Waiters, clock: Clock) -> None:
        self._registry = registry
        self._waiters = waiters
        self._clock = clock
        self.publisher: Mapping[str, Method] = {
            "CreateTopic": Method("Topic", registry.create_topic),
            "UpdateTopic": Method("UpdateTopicRequest", lambda r: registry.update_topic(r.topic, r.update_mask)),
            "Publish": Method("PublishRequest", self._publish),
            "GetTopic": Method("GetTopicRequest", lambda r: registry.topic(r.topic).config),
            "ListTopics": Method("ListTopicsRequest", self._list_topics),
            "ListTopicSubscriptions": Method("ListTopicSubscriptionsRequest", self._list_topic_subscriptions),
            "ListTopicSnapshots": Method("ListTopicSnapshotsRequest", self._list_topic_snapshots),
            "DeleteTopic": Method("DeleteTopicRequest", lambda r: registry.delete_topic(r.topic)),
            "DetachSubscription": Method("DetachSubscriptionRequest", self._detach),
        }
        self.subscriber: Mapping[str, Method] = {
            "CreateSubscription": Method("Subscription", registry.create_subscription),
            "GetSubscription": Method("GetSubscriptionRequest", lambda r: registry.subscription(r.subscription).config),
            "UpdateSubscription": Method("UpdateSubscriptionRequest", self._update_subscription),
            "ListSubscriptions": Method("ListSubscriptionsRequest", self._list_subscriptions),
            "DeleteSubscription": Method("DeleteSubscriptionRequest", self._delete_subscription),
            "ModifyAckDeadline": Method("ModifyAckDeadlineRequest", self._modify_ack_deadline),
            "Acknowledge": Method("AcknowledgeRequest", self._acknowledge),
            "ModifyPushConfig": Method("ModifyPushConfigRequest", self._modify_push_config),
            "GetSnapshot": Method("GetSnapshotRequest", lambda r: registry.snapshot(r.snapshot).config),
            "ListSnapshots": Method("ListSnapshotsRequest", self._list_snapshots),
            "CreateSnapshot": Method("CreateSnapshotRequest", self._create_snapshot),
            "UpdateSnapshot": Method(
                "UpdateSnapshotRequest", lambda r: registry.update_snapshot(r.snapshot, r.update_mask)
            ),
            "DeleteSnapshot": Method("DeleteSnapshotRequest", lambda r: registry.delete_snapshot(r.snapshot)),
            "Seek": Method("SeekRequest", self._seek),
        }
        self.schemas = SchemaService(registry, clock).methods
        self.methods = {**self.publisher, **self.subscriber, **self.schemas}  # no two of them have the same name

    async def call(self, name: str, request: Proto) -> Proto:
        """The reply. Raises RefusedError; injected faults come before and, for calls that clients repeat, after the effect."""
        self._refuse_some(name)
        injector = self._registry.injector
        reply = self.methods[name].handler(request)
        if name in _LOSES_REPLIES and injector.happens("lost_reply", injector.faults.lost_reply_rate):
            raise UnavailableError(f"The reply to {name} was lost (injected fault).")
        return Empty() if reply is None else reply

    async def pull(self, request: Proto, seconds_left: float | None) -> bytes:
        """A PullResponse, as serialised. Waits no longer than half the time that the caller has left. Raises RefusedError."""
        self._refuse_some("Pull")
        if request.max_messages <= 0:
            raise InvalidArgumentError("max_messages must be greater than 0.")
        core = self._registry.pullable(request.subscription).core
        wait_seconds = 0.0 if request.return_immediately else PULL_WAIT_SECONDS
        if seconds_left is not None:
            wait_seconds = min(wait_seconds, seconds_left / 2)
        limit = min(request.max_messages, MAX_BATCH_MESSAGES)
        return await pull(core, limit, wait_seconds, waiters=self._waiters, clock=self._clock)

    async def stream(self, context: Any) -> None:
        """One StreamingPull, to its end. Raises RefusedError."""
        first = await context.read()
        if first is not END:
            subscription = self._registry.pullable(first.subscription)
            await StreamingPull(subscription, first, context, self._waiters, self._clock).run()

    def stats(self, _request: bytes) -> bytes:
        now = self._clock()
        self._registry.tick(now)
        return json.dumps(self._registry.stats(now)).encode()

    def faults(self, request: bytes) -> bytes:
        self._registry.injector.set(Faults.from_mapping(json.loads(request)))
        return b"{}"

    def _refuse_some(self, name: str) -> None:
        injector = self._registry.injector
        if injector.happens("unavailable", injector.faults.unavailable_rate):
            raise UnavailableError(f"{name} was refused (injected fault).")

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
        page, token = page_of(names.in_project(configs, request.project), request)
        return of("ListTopicsResponse")(topics=[configs[name] for name in page], next_page_token=token)

    def _list_topic_subscriptions(self, request: Proto) -> Proto:
        page, token = page_of(self._registry.topic(request.topic).subscriptions, request)
        return of("ListTopicSubscriptionsResponse")(subscriptions=page, next_page_token=token)

    def _list_topic_snapshots(self, request: Proto) -> Proto:
        page, token = page_of(self._registry.topic(request.topic).pins, request)
        return of("ListTopicSnapshotsResponse")(snapshots=page, next_page_token=token)

    def _detach(self, request: Proto) -> Proto:
        self._wake(self._registry.detach_subscription(request.subscription))
        return of("DetachSubscriptionResponse")()

    # -- subscriber ------------------------------------------------------------------------------------------------

    def _list_subscriptions(self, request: Proto) -> Proto:
        configs = {name: subscription.config for name, subscription in self._registry.subscriptions.items()}
        page, token = page_of(names.in_project(configs, request.project), request)
        return of("ListSubscriptionsResponse")(subscriptions=[configs[name] for name in page], next_page_token=token)

    def _list_snapshots(self, request: Proto) -> Proto:
        configs = {name: snapshot.config for name, snapshot in self._registry.snapshots.items()}
        page, token = page_of(names.in_project(configs, request.project), request)
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

    def _delete_subscription(self, request: Proto) -> None:
        self._wake(self._registry.delete_subscription(request.subscription))

    def _modify_push_config(self, request: Proto) -> None:
        self._registry.modify_push_config(request.subscription, request.push_config)
        self._wake(self._registry.subscription(request.subscription).core)

    def _update_subscription(self, request: Proto) -> Proto:
        updated = self._registry.update_subscription(request.subscription, request.update_mask)
        self._wake(self._registry.subscription(updated.name).core)
        return updated

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
        check_ack_request(core, request, request.ack_ids)
        return core


def _refuse_stale(core: Subscription, stale: Sequence[str]) -> None:
    """A stale ack id is an error on an exactly-once subscription, and nothing at all elsewhere."""
    if stale and core.settings.exactly_once:
        raise AckIdsError(dict.fromkeys(stale, "PERMANENT_FAILURE_INVALID_ACK_ID"))
