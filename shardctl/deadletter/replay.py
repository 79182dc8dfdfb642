"""Letters published again, or dropped: let go of → archived → published and confirmed → taken off. In parts, each whole.

Killed anywhere and run again, nothing is lost or doubled: what wasn't taken off is met again, its note says that it was let go
of, and the inbox knows each copy by the write's own idempotency key.
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


def in_order(found: Iterable[Found], limit: int | None = None) -> list[Found]:
    """By slot, and there as they were published first. Of a limited number, those published first of all."""
    if limit is None:
        return sorted(found, key=lambda each: each.letter.order)
    first = sorted(found, key=lambda each: each.letter.order[1:])[:limit]
    return sorted(first, key=lambda each: each.letter.order)


def replay(
    fleet: Fleet,
    found: Sequence[Found],
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
    for part in _parts(found):
        decided = list(_decided(part, inboxes))
        going = [each for each, verdict in decided if verdict is GO]
        done = [each for each, verdict in decided if verdict is DONE]
        report.left += [(each.letter, verdict) for each, verdict in decided if verdict not in (GO, DONE)]
        messages = [fetch(each) for each in going]
        if keep:
            keep(
                [_line(*each) for each in zip(going, messages, strict=True)]
                + [_line(each, fetch(each)) for each in done]
            )
        copies = [copy_of(fleet, each.letter, message) for each, message in zip(going, messages, strict=True)]
        refused = outlet.publish(_topics(going), copies)
        report.left += [
            (going[number].letter, Verdict("refused", f"Pub/Sub refused it: {why}")) for number, why in refused.items()
        ]
        gone = [each for number, each in enumerate(going) if number not in refused]
        report.lost_acks += take_off(each.letter.identity for each in (*gone, *done))
        report.replayed += len(gone)
        report.applied += len(done)
        advance(len(part))


def _decided(part: Sequence[Found], inboxes: Inboxes) -> Iterator[tuple[Found, Verdict]]:
    """What becomes of each; those that go are let go of. What may pass by itself is asked again: then it counts for its key."""
    surveyed = list(zip(part, inboxes.survey([each.letter for each in part]), strict=True))
    tried = [each for each, verdict in surveyed if verdict in (GO, DONE) or verdict.passes]
    yield from ((each, verdict) for each, verdict in surveyed if not (verdict in (GO, DONE) or verdict.passes))
    yield from zip(tried, inboxes.let_go([each.letter for each in tried]), strict=True)


def drop(
    found: Sequence[Found],
    fetch: Fetch,
    report: Report,
    *,
    keep: Keep | None = None,
    take_off: TakeOff,
    advance: Advance = lambda _: None,
) -> None:
    """Take letters off for good."""
    for part in _parts(found):
        if keep:
            keep([_line(each, fetch(each)) for each in part])
        report.lost_acks += take_off(each.letter.identity for each in part)
        report.dropped += len(part)
        advance(len(part))


def _topics(going: Iterable[Found]) -> dict[str, str]:
    return {each.letter.place.digits: each.letter.place.topic for each in going if each.letter.place}


def _line(each: Found, message: Message) -> bytes:
    return archive.encode(each.letter.subscription, message, stray=each.letter.origin == Origin.STRAY)


def _parts(found: Sequence[Found]) -> Iterator[list[Found]]:
    part: list[Found] = []
    size = 0
    for each in found:
        part.append(each)
        size += each.letter.size
        if len(part) >= PART_LETTERS or size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
