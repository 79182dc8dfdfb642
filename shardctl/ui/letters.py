"""Dead letters and strays on the page: leased from Pub/Sub to show them, and replayed one at a time on request. Blocks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, BinaryIO, cast

from google.auth.exceptions import DefaultCredentialsError

from shardctl.deadletter import archive, pubsub, reading
from shardctl.deadletter.choice import Choice
from shardctl.deadletter.inboxes import Allowed, Inboxes
from shardctl.deadletter.leasedreader import LeasedReader
from shardctl.deadletter.letter import Letter, Origin
from shardctl.deadletter.replay import Report
from shardctl.deadletter.replay import replay as replay_found
from shardctl.fleet.spec import Fleet
from shardctl.rebalance import backlog
from shardctl.status.report import Unknown
from shardctl.ui.problems import Problem

MAX_LETTERS = 2_000  # leased for one listing
MAX_SHOWN = 200
MAX_BODY_BYTES = 2_000
SILENCE_SECONDS = 5.0


def listed(fleet: Fleet, *, strays: bool, shard: str | None = None) -> dict[str, Any]:
    """The first letters that come, of one shard or of all, and how many more came."""
    with _opened(fleet, strays=strays) as (desk, _):
        entries = list(reading.off_desk(fleet, desk, Choice(shard=shard), strays=strays))
    letters = [_letter_json(letter, message.data) for letter, _, message in entries[:MAX_SHOWN]]
    return {"letters": letters, "more": len(entries) - len(letters), "whole": desk.whole}


def replay(
    fleet: Fleet, urls: Mapping[str, str | Unknown], *, strays: bool, letter_id: str, key: str, dead_lettered_us: int
) -> dict[str, Any]:
    """Publish one letter again, as `shardctl deadletter replay` does, if it is the one that the page showed.

    Raises Problem.
    """
    known = {name: url for name, url in urls.items() if not isinstance(url, Unknown)}
    file = cast(BinaryIO, tempfile.TemporaryFile(prefix="shardctl-letter-"))  # noqa: SIM115
    with file, _opened(fleet, strays=strays) as (desk, outlet), Inboxes(fleet, known, Allowed()) as inboxes:
        spool = archive.Spool(file)
        read = reading.off_desk(fleet, desk, Choice(ids=frozenset({letter_id})), strays=strays)
        entry = next(reading.spooled(read, spool, strays=strays, max_bytes=1), None)
        if entry is None:
            raise Problem(
                HTTPStatus.NOT_FOUND, "the letter isn't there, or another reader has leased it: look again in a minute"
            )
        letter = entry.letter
        if (letter.id, letter.key, letter.dead_lettered_us) != (letter_id, key, dead_lettered_us):
            raise Problem(HTTPStatus.CONFLICT, "that letter isn't the one that the page showed: look again")
        lacking = inboxes.lacking([letter] if letter.origin != Origin.STRAY else [])
        if lacking:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"database of {lacking[0]}: {_why(urls[lacking[0]])}")
        report = Report()
        replay_found(fleet, [entry], reading.fetch_from(spool), inboxes, outlet, report, take_off=desk.take_off)
    if report.left:
        raise Problem(HTTPStatus.CONFLICT, f"it stays where it is: {report.left[0][1].why}")
    return {"replayed": report.replayed, "applied_before": report.applied}


@contextmanager
def _opened(fleet: Fleet, *, strays: bool) -> Iterator[tuple[LeasedReader, pubsub.Outlet]]:
    """A desk on the fleet's subscriptions; all leases are released at the end."""
    try:
        with pubsub.clients(fleet.topic.endpoint) as (publisher, subscriber):
            names = pubsub.subscriptions(fleet, subscriber, strays=strays)

            def left() -> int | None:
                """Known exactly only of a local broker: then there is no need to wait until no more letters come."""
                if not os.environ.get("PUBSUB_EMULATOR_HOST"):
                    return None
                try:
                    backlogs = backlog.source(fleet.project)(names)
                except backlog.UnknownError:
                    return None
                counts = [backlogs[name].messages if name in backlogs else None for name in names]
                return None if None in counts else sum(count or 0 for count in counts)

            desk = LeasedReader(
                subscriber,
                fleet.project,
                names,
                left=left,
                silence_seconds=SILENCE_SECONDS,
                max_letters=MAX_LETTERS,
            )
            with desk:
                yield desk, pubsub.Outlet(publisher, fleet.project)
    except DefaultCredentialsError as error:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE, "there are no Google Cloud credentials to ask Pub/Sub with"
        ) from error


def _letter_json(letter: Letter, body: bytes) -> dict[str, Any]:
    return {
        "id": letter.id,
        "key": letter.key,
        "type": letter.type,
        "operation": letter.operation,
        "shard": letter.shard,
        "reason": letter.reason,
        "detail": letter.detail,
        "dead_lettered": datetime.fromtimestamp(letter.dead_lettered_us / 1e6, UTC).isoformat(timespec="milliseconds"),
        "dead_lettered_us": letter.dead_lettered_us,
        "size": letter.size,
        "unfit": letter.unfit.why if letter.unfit else None,
        "body": body[:MAX_BODY_BYTES].decode(errors="replace") + ("…" if len(body) > MAX_BODY_BYTES else ""),
    }


def _why(url: str | Unknown) -> str:
    return url.why if isinstance(url, Unknown) else "it is unknown"
