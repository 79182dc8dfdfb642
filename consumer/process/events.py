"""The outbox of a shard: what its sinks emit, stored in their transactions and relayed by each of its replicas, one at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass

from sqlalchemy import Engine

from consumer.database import sessions
from consumer.observability.metrics import Metrics
from consumer.process.settings import Settings
from consumer.pubsub import calls
from consumer.pubsub.events import EventTopics
from shardctl.fleet.settings.databases import DatabaseKind
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.settings.routing import Routing
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.outbox.metrics import OutboxMetrics
from shardctl.outbox.outbox import Outbox
from shardctl.outbox.queue import LIMITS, Queue
from shardctl.outbox.relay import Relay
from shardctl.shard.engine import open_engine
from shardctl.shard.membership import Membership

IDLE_SECONDS = 1.0  # between two looks where this replica has stored nothing lately: for what another one left behind

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EmittedRoutes:
    """What is needed to encode an emitted write."""

    message_types: Mapping[str, MessageType]
    databases: tuple[DatabaseKind, ...]
    routing: Routing


def routes_of(config: ShardConfig) -> EmittedRoutes:
    routing = Routing(slot_bits=config.slot_bits, modulo=config.modulo, attributes=config.attributes)
    return EmittedRoutes(config.emitted_types, config.databases, routing)


def relay_of(settings: Settings, sinks: Engine, metrics: Metrics, closing: AsyncExitStack) -> Relay:
    """A relay of what sinks emit in transactions of the engine `sinks`. Raises UsageError. To be called in the event loop."""
    config = settings.config
    engine = open_engine(settings.database_url, LIMITS, connections=1, whose=Membership(config.fleet, config.shard))
    if settings.database_login is not None:
        sessions.log_in_by(engine, settings.database_login)
    closing.callback(engine.dispose)
    threads = ThreadPoolExecutor(1, thread_name_prefix="outbox")
    closing.callback(threads.shutdown, wait=False, cancel_futures=True)
    topics = EventTopics(calls.publisher(settings.pubsub_emulator, config.pubsub_endpoint), config)
    queue = Queue(engine, config.attributes.partition_key)
    relay = Relay(queue, topics, threads, OutboxMetrics(metrics.registry), idle_seconds=IDLE_SECONDS)
    Outbox(routes_of(config), stored=_from_threads(relay.wake)).serve_sinks(sinks)
    return relay


def _from_threads(call: Callable[[], None]) -> Callable[[], None]:
    loop = asyncio.get_running_loop()
    return lambda: _call_soon(loop, call)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
