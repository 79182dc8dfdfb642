"""How the consumers read and write: `subscription` and `consumer` of `shards.yaml`."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shardctl.fleet.model import Model
from shardctl.fleet.scalars import Between


class Subscriptions(Model):
    """Settings of every subscription the fleet reads from."""

    ack_deadline: Annotated[timedelta, Between("10s", "600s")] = timedelta(seconds=60)
    retention: Annotated[timedelta, Between("10m", "31d")] = timedelta(days=7)
    retain_acked: Annotated[
        bool,
        Field(
            description="Keep acked messages for `retention` too, so that a shard restored from a backup can be sent again what "
            "it lacks. Costs storage."
        ),
    ] = False
    retry_minimum: Annotated[
        Annotated[timedelta, Between("0s", "600s")] | None,
        Field(
            description="How soon a message comes again whose lease has ended or that was handed back; the time doubles with "
            "each attempt. By default 1s, and 10s where a message type has an `http` backend, or `retry_maximum` where that is "
            "less."
        ),
    ] = None
    retry_maximum: Annotated[timedelta, Between("0s", "600s")] = timedelta(seconds=600)
    max_delivery_attempts: Annotated[int, Field(ge=5, le=100)] = 5

    @model_validator(mode="after")
    def _backoff_grows(self) -> Self:
        if self.retry_minimum is not None and self.retry_minimum > self.retry_maximum:
            raise ValueError("retry_minimum exceeds retry_maximum")
        return self


LONE_SHARE = 0.4  # of `batch_max_age_ms`, after a batch of a single message


class Batching(Model):
    """How the consumer works; a shard may override any of it."""

    batch_max_rows: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    batch_max_bytes: Annotated[int, Field(ge=1_024, le=64 * 1024**2)] = 4 * 1024**2
    batch_max_age_ms: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="How long a batch waits to fill after the previous one was sent; 0.4 of that if the previous one held a "
            "single message. A message that arrives later doesn't wait. Shorter: less latency under a steady load, more CPU.",
        ),
    ] = 50
    concurrency: Annotated[int, Field(ge=1, le=64, description="Transactions at once, each on slots of its own.")] = 2
    max_outstanding_messages: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000,
            description="How many messages a replica holds at once. By default as many as `concurrency` and three more batches "
            "may hold, at least 5,000 and at most 20,000, which it is while slots move. With room for fewer than two, batches "
            "wait for `batch_max_age_ms`. What exceeds a few takes memory, and CPU: long before its turn comes, the processor's "
            "caches have forgotten it.",
        ),
    ] = None
    max_outstanding_bytes: Annotated[int, Field(ge=1_024, le=4 * 1024**3)] = 64 * 1024**2
    # With the subscription's minimum back-off, 1 s, another replica has a dead one's messages within 12 s. Pub/Sub takes no
    # shorter lease for a stream. A message's own may be shortened, but what was on its way to the dead replica has the stream's.
    lease: Annotated[
        timedelta,
        Between("10s", "600s"),
        Field(description="The stream's ack deadline: how soon a dead replica's messages go to another."),
    ] = timedelta(seconds=10)
    lock_ttl: Annotated[timedelta, Between("1s", "600s")] = timedelta(seconds=10)
    redis_timeout_ms: Annotated[int, Field(ge=10, le=60_000)] = 500
    statement_timeout: Annotated[timedelta, Between("1s", "600s")] = timedelta(seconds=30)
    drain_timeout: Annotated[timedelta, Between("1s", "600s")] = timedelta(seconds=20)
    rate_limit: Annotated[
        int | None, Field(ge=1, le=1_000_000, description="Writes a second, of all the shard's replicas together.")
    ] = None
    inbox_retention: Annotated[
        Annotated[timedelta, Between("1h", "365d")] | None,
        Field(
            description="How long an applied write is remembered, from its publishing; by default `subscription.retention` and a "
            "day. Letters of older writes can't be replayed unasked."
        ),
    ] = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
