"""`shardctl simulate`: what an expected load would need."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

import typer

from shardctl.cli.duration import read_duration
from shardctl.cli.pairs import read_pairs
from shardctl.cli.terminal import (
    DEFAULT_FILE,
    FileOption,
    JsonOption,
    RateOption,
    out,
    print_json,
    print_table,
    say,
    size_text,
)
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, UsageError

SHOWN_SLOTS = 10


def simulate(
    rate: RateOption,
    file: FileOption = DEFAULT_FILE,
    keys: Annotated[
        int, typer.Option("--keys", metavar="N", min=1, max=10**12, help="How many keys there are.")
    ] = 100_000,
    skew: Annotated[
        float,
        typer.Option(
            "--skew", metavar="Z", min=0, max=5, help="Zipf's exponent: 0 is even, 1 as on the web, 1.5 steep."
        ),
    ] = 1.0,
    key_format: Annotated[
        str, typer.Option("--key-format", metavar="TEXT", help="How keys look, {} their number, the busiest first.")
    ] = "{}",
    body_bytes: Annotated[
        int, typer.Option("--body-bytes", metavar="B", min=0, max=9 << 20, help="Of one write.")
    ] = 500,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            "--type", metavar="TYPE=SHARE", help="A type's share of the writes; may be repeated; by default even."
        ),
    ] = None,
    replica_speed: Annotated[
        float,
        typer.Option(
            "--replica-speed",
            metavar="W",
            min=0.001,
            help="Writes a second of one replica on a full backlog. Measure your own: it depends on rows, indexes and database.",
        ),
    ] = 10_000.0,
    publish_batch: Annotated[
        int, typer.Option("--publish-batch", metavar="N", min=1, max=1_000, help="Messages a producer sends at once.")
    ] = 1,
    outage: Annotated[str, typer.Option("--outage", metavar="TIME", help="How long the consumers are down.")] = "10m",
    as_json: JsonOption = False,
) -> int:
    """Predict replicas, lag after an outage, hot slots, the inbox's size, Pub/Sub volume, what a rebalance by load would do."""
    from shardctl import capacity
    from shardctl.fleet.load import load_fleet

    fleet = load_fleet(file)
    load = capacity.Load(
        rate, keys, skew, body_bytes, _mix(fleet, mix or ()), _format(fleet, key_format), publish_batch
    )
    # A slot is in one batch at a time, and a replica works on several.
    concurrency = fleet.consumer.concurrency
    speed = capacity.Speed(replica_speed, replica_speed / concurrency)
    forecast = capacity.simulate(fleet, load, speed, read_duration("--outage", outage, "0s", "31d").total_seconds())
    if as_json:
        print_json(
            asdict(forecast)
            | {"replicas": forecast.replicas, "inbox_bytes": forecast.inbox_bytes, "fits": forecast.fits}
        )
    else:
        _print(forecast)
    _advise(forecast)
    return EXIT_DONE if forecast.fits else EXIT_REFUSED


def _print(forecast: Any) -> None:
    numbers = (
        "writes/s",
        "replicas",
        "CPU each",
        "writes/batch",
        "hottest slot",
        "its writes/s",
        "backlog",
        "drained after",
        "inbox rows",
        "inbox",
    )
    rows = [
        (
            shard.shard,
            f"{shard.writes_per_second:,.1f}",
            f"{shard.replicas}" + ("!" if shard.capped else ""),
            f"{shard.replica_cores * 1_000:,.0f}m",
            f"{shard.batch_rows:,.1f}",
            f"{shard.hottest_slot}",
            f"{shard.hottest_rate:,.1f}",
            f"{shard.backlog:,}",
            "never" if shard.drain_seconds is None else _time(shard.drain_seconds),
            f"{shard.inbox_rows:,}",
            size_text(shard.inbox_bytes),
        )
        for shard in forecast.shards
    ]
    print_table(("shard", *numbers), rows, right=numbers)
    out()
    out(f"replicas: {forecast.replicas}")
    rows = sum(shard.inbox_rows for shard in forecast.shards)
    out(
        f"The inboxes keep each write for their retention: {rows:,} rows, {size_text(forecast.inbox_bytes)} with indexes, on "
        "PostgreSQL."
    )
    out(
        f"Pub/Sub a month: {forecast.published_tib:,.3f} TiB published, {forecast.delivered_tib:,.3f} TiB delivered, "
        f"about ${forecast.usd:,.0f}."
    )
    if forecast.levelled:
        level = forecast.levelled
        out(
            f"`rebalance plan --by-load` would move {level.slots_moved:,} slots and take the busiest shard from "
            f"{level.before:,.1f} to {level.after:,.1f} writes/s."
        )


def _advise(forecast: Any) -> None:
    for slot, rate in forecast.hot_slots[:SHOWN_SLOTS]:
        say(
            f"warning: slot {slot} gets {rate:,.1f} writes/s, more than one slot can take. It can't be split: split its hot key "
            "into several, such as user-42/0 to user-42/7."
        )
    if len(forecast.hot_slots) > SHOWN_SLOTS:
        say(f"warning: {len(forecast.hot_slots) - SHOWN_SLOTS:,} more slots are too hot.")
    capped = [shard.shard for shard in forecast.shards if shard.capped]
    if capped:
        say(f"warning: {', '.join(capped)}: `max` replicas can't keep up. Raise autoscaling.max, or add shards.")


def _mix(fleet: Any, options: Any) -> dict[str, float] | None:
    from shardctl.fleet.suggestion import suggestion

    shares = {}
    for name, share in read_pairs("--type", options, "TYPE=SHARE, such as order=0.7"):
        if name not in fleet.message_types:
            known = ", ".join(fleet.message_types)
            near = suggestion(name, fleet.message_types)
            raise UsageError(f"--type: {name!r} isn't among message_types: {known}.{near}")
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise UsageError(f"--type: {share!r} is no number. Give TYPE=SHARE, such as {name}=0.7.") from error
        if not 0 < shares[name] < float("inf"):
            raise UsageError(f"--type: the share of {name} must be more than 0.")
    return shares or None


def _format(fleet: Any, text: str) -> str:
    if re.search(r"\{[^}]*[0-9]{4}", text):  # it would fill the memory
        raise UsageError(f"--key-format: {text[:40]!r} makes keys that are too long.")
    try:
        if text.format(1) != text.format(2):
            fleet.routing.rule.slot_of(text.format(1))
            return text
    except (ValueError, IndexError, KeyError, AttributeError) as error:
        raise UsageError(f"--key-format: {text!r} makes no keys for this fleet: {error}.") from error
    raise UsageError(f"--key-format wants {{}} where the number goes, such as user-{{}}, and not {text!r}.")


def _time(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
