"""Letters published again, or dropped: released → archived → published and confirmed → taken off. In parts, each whole.

Killed anywhere and run again, nothing is lost or doubled: what wasn't taken off is met again, its note says that it was
released, and the inbox knows each copy by the write's own idempotency key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from shardctl.deadletter import archive
from shardctl.deadletter.inboxes import DONE, GO, Inboxes, Verdict
from shardctl.deadletter.letter import Letter, Message, Origin, copy_of
from shardctl.deadletter.pubsub import Outlet
from shardctl.deadletter.reading import Fetch, Found
from shardctl.fleet.spec import Fleet

PART_LETTERS = 500
PART_BYTES = 16 * 1024**2  # the letter that crosses it still goes along

Keep = Callable[[Sequence[bytes]], None]  # durable on return
TakeOff = Callable[[Iterable[tuple[str, str]]], int]  # by subscription and id; how many acks were lost
Advance = Callable[[int], None]


@dataclass(slots=True)
class Report:
    """What became of the letters. `left` are those that stay, and why. `lost_acks` were done, and come once more."""

    replayed: int = 0
    applied: int = 0
    dropped: int = 0
    lost_acks: int = 0
    left: list[tuple[Letter, Verdict]] = field(default_factory=list)


def in_order(items: Iterable[Found], limit: int | None = None) -> list[Found]:
    """By slot, and there as they were published first. Of a limited number, those published first of all."""
    if limit is None:
        return sorted(items, key=lambda item: item.letter.order)
    first = sorted(items, key=lambda item: item.letter.order[1:])[:limit]
    return sorted(first, key=lambda item: item.letter.order)


def replay(
    fleet: Fleet,
    items: Sequence[Found],
    fetch: Fetch,
    inboxes: Inboxes,
    outlet: Outlet,
    report: Report,
    *,
    keep: Keep | None = None,
    take_off: TakeOff = lambda _: 0,
    advance: Advance = lambda _: None,
) -> None:
    """Publish letters again, `in_order`, and take them off; likewise those whose writes had taken effect. Counts into `report`.

    Each part is surveyed just before, whatever a plan has said. Raises ShardctlError; what isn't counted stays as it was, and may
    be tried again.
    """
    for part in _parts(items):
        decided = list(_decided(part, inboxes))
        going = [item for item, verdict in decided if verdict is GO]
        done = [item for item, verdict in decided if verdict is DONE]
        report.left += [(item.letter, verdict) for item, verdict in decided if verdict not in (GO, DONE)]
        messages = [fetch(item) for item in going]
        if keep:
            keep(
                [_line(*item) for item in zip(going, messages, strict=True)]
                + [_line(item, fetch(item)) for item in done]
            )
        copies = [copy_of(fleet, item.letter, message) for item, message in zip(going, messages, strict=True)]
        refused = outlet.publish(_topics(going), copies)
        report.left += [
            (going[number].letter, Verdict("refused", f"Pub/Sub refused it: {why}")) for number, why in refused.items()
        ]
        gone = [item for number, item in enumerate(going) if number not in refused]
        report.lost_acks += take_off(item.letter.identity for item in (*gone, *done))
        report.replayed += len(gone)
        report.applied += len(done)
        advance(len(part))


def _decided(part: Sequence[Found], inboxes: Inboxes) -> Iterator[tuple[Found, Verdict]]:
    """What becomes of each; those to replay are released. What may pass is checked again: then it counts for its key."""
    surveyed = list(zip(part, inboxes.survey([item.letter for item in part]), strict=True))
    tried = [item for item, verdict in surveyed if verdict in (GO, DONE) or verdict.passes]
    yield from ((item, verdict) for item, verdict in surveyed if not (verdict in (GO, DONE) or verdict.passes))
    unsure = {item.letter.identity for item, verdict in surveyed if verdict.passes}
    yield from zip(tried, inboxes.let_go([item.letter for item in tried], unsure), strict=True)


def drop(
    items: Sequence[Found],
    fetch: Fetch,
    report: Report,
    *,
    keep: Keep | None = None,
    take_off: TakeOff,
    advance: Advance = lambda _: None,
) -> None:
    """Take letters off for good."""
    for part in _parts(items):
        if keep:
            keep([_line(item, fetch(item)) for item in part])
        report.lost_acks += take_off(item.letter.identity for item in part)
        report.dropped += len(part)
        advance(len(part))


def _topics(going: Iterable[Found]) -> dict[str, str]:
    return {item.letter.place.digits: item.letter.place.topic for item in going if item.letter.place}


def _line(item: Found, message: Message) -> bytes:
    return archive.encode(item.letter.subscription, message, stray=item.letter.origin == Origin.STRAY)


def _parts(items: Sequence[Found]) -> Iterator[list[Found]]:
    part: list[Found] = []
    size = 0
    for item in items:
        part.append(item)
        size += item.letter.size
        if len(part) >= PART_LETTERS or size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
