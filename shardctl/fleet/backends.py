"""The HTTP backends that a shard's consumers call: what may go together with the consumer's own limits. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from shardctl.fleet.names import listed
from shardctl.fleet.settings.consuming import Batching
from shardctl.fleet.settings.http import HttpBackend
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec_errors import Fault

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet, Shard

SECRETS_VARIABLE = "SHARDCTL_SECRETS_DIR"
SECRETS_DIRECTORY = "/var/run/secrets/shardctl"  # holds a folder for each Secret, and in it a file for each key

# Calls run inside the transaction that records them, and the database ends one that is idle for statement_timeout.
HELD_SHARE = 0.8


def window_seconds(consumer: Batching, backend: HttpBackend) -> float:
    """How long after its transaction began a call may start, so that it ends in time even if it takes its whole timeout."""
    return HELD_SHARE * consumer.statement_timeout.total_seconds() - backend.timeout.total_seconds()


def called(kinds: Mapping[str, MessageType]) -> dict[str, HttpBackend]:
    """By type, the HTTP backends of these types."""
    return {name: kind.http for name, kind in kinds.items() if kind.http is not None}


def of_shard(fleet: Fleet, shard: Shard) -> dict[str, HttpBackend]:
    """By type, the backends that the shard's consumers call."""
    return {name: backend for name, backend in called(fleet.message_types).items() if shard.takes(name)}


def secrets(fleet: Fleet, shard: Shard) -> dict[str, tuple[str, ...]]:
    """The Secrets that the shard's pods mount, by name, each with the keys that they read; sorted."""
    keys_by_secret: dict[str, set[str]] = {}
    for backend in of_shard(fleet, shard).values():
        for name, keys in backend.secrets.items():
            keys_by_secret.setdefault(name, set()).update(keys)
    return {name: tuple(sorted(keys_by_secret[name])) for name in sorted(keys_by_secret)}


def ports(fleet: Fleet, shard: Shard) -> tuple[int, ...]:
    """Where the shard's backends and their token endpoints listen."""
    return tuple(sorted({port for backend in of_shard(fleet, shard).values() for port in backend.ports}))


def faults(fleet: Fleet) -> Iterator[Fault]:
    """A call that takes its whole timeout must end before the database ends the transaction around it."""
    for name, backend in called(fleet.message_types).items():
        takers = [shard.consumer.statement_timeout for shard in fleet.shards if shard.takes(name)]
        if takers and backend.timeout * 2 > (least := min(takers)):
            yield Fault(
                ("message_types", name, "http", "timeout"),
                f"a call may take {_text(backend.timeout.total_seconds())}, inside a transaction that the database ends after "
                f"consumer.statement_timeout, {_text(least.total_seconds())}.",
                f"make it {_text(least.total_seconds() / 2)} or less, or statement_timeout twice as long as it.",
            )


def advice(fleet: Fleet) -> Iterator[str]:
    calling = [(shard, shard.consumer, of_shard(fleet, shard)) for shard in fleet.shards]
    large: dict[str, int] = {}
    slow, mixed = [], []
    for shard, consumer, backends in calling:
        if not backends:
            continue
        rows = min(_rows_in_time(consumer, backend) for backend in backends.values())
        if consumer.batch_max_rows > rows:
            large[shard.name] = rows
        if 2 * max(backend.timeout for backend in backends.values()) > consumer.drain_timeout:
            slow.append(shard.name)
        if any(kind.table and shard.takes(name) for name, kind in fleet.message_types.items()):
            mixed.append(shard.name)
    if large:
        yield (
            "consumer.batch_max_rows is more than a backend answers in one transaction at a second a call; "
            f"{min(large.values())} or fewer keep a slow backend's batches short: {listed(list(large))}."
        )
    if slow:
        yield (
            "http.timeout is over half of consumer.drain_timeout: a pod that must stop may end in the middle of a call, "
            f"which another replica then repeats: {listed(slow)}."
        )
    if mixed:
        yield (
            "writes to tables share transactions with calls of HTTP backends, and wait for them; `types` and `except_types` give "
            f"the backends' types shards of their own: {listed(mixed)}."
        )


def _rows_in_time(consumer: Batching, backend: HttpBackend) -> int:
    return max(1, int(backend.concurrency * window_seconds(consumer, backend)))


def _text(seconds: float) -> str:
    return f"{seconds:g}s"
