"""`list` and `show` of dead letters and strays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shardctl.cli.deadletter import screen, session
from shardctl.cli.terminal import out, print_json, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED

SHOWN_BYTES = 4_000
ARCHIVED_AT_ONCE = 1_000


def list_letters(
    fleet: Any, choice: Any, *, strays: bool, limit: int, archive: Path | None, wait_seconds: float, as_json: bool
) -> int:
    """The first letters as they come, and a summary of all. With `archive` all are copied there."""
    from shardctl.deadletter.archive import Archive, encode
    from shardctl.deadletter.reading import Tally, off_desk

    tally = Tally()
    shown: list[Any] = []
    lines: list[bytes] = []
    with ExitStack() as opened:
        copies = opened.enter_context(Archive(archive)) if archive else None
        desk = opened.enter_context(session.opened(fleet, strays=strays, wait_seconds=wait_seconds))
        bar = opened.enter_context(screen.Progress("read"))
        for letter, name, message in off_desk(fleet, desk.desk, choice, strays=strays, looked_at=bar.advance):
            tally.count(letter)
            if len(shown) < limit:
                shown.append(letter)
            if copies:
                lines.append(encode(name, message, stray=strays))
                if len(lines) >= ARCHIVED_AT_ONCE:
                    copies.add(lines)
                    lines.clear()
        if copies:
            copies.add(lines)
        total, seen = desk.counted(), bar.done
    if as_json:
        print_json(
            {
                "letters": [screen.letter_json(letter) for letter in shown],
                "summary": screen.tally_json(tally),
                "seen": seen,
                "backlog": total,
                "backlog_unknown": desk.counted.why or None,
            }
        )
    elif tally.letters:
        screen.print_letters(shown, strays=strays)
        screen.print_tally(tally)
    what = "strays" if strays else "dead letters"
    more = f"; the first {len(shown):,} are listed" if len(shown) < tally.letters else ""
    say(f"{tally.letters:,} {what} of {seen:,} seen{more}." if choice != type(choice)() else f"{seen:,} {what}{more}.")
    if archive:
        say(f"{tally.letters:,} copied to {archive}.")
    session.say_missed(desk, seen)
    return EXIT_DONE


def show_letter(
    fleet: Any, choice: Any, given: Mapping[str, str], *, strays: bool, wait_seconds: float, as_json: bool
) -> int:
    from shardctl.deadletter.reading import off_desk

    with session.opened(fleet, strays=strays, wait_seconds=wait_seconds) as desk, screen.Progress("read") as bar:
        entry = next(off_desk(fleet, desk.desk, choice, strays=strays, looked_at=bar.advance), None)
    if entry is None:
        (wanted,) = choice.ids
        say(
            f"error: message {wanted} isn't among the {bar.done:,} {'strays' if strays else 'dead letters'} that were seen."
        )
        session.say_missed(desk, bar.done)
        return EXIT_REFUSED
    letter, _, message = entry
    recorded = _recorded(fleet, letter, given)
    if as_json:
        print_json(screen.letter_json(letter) | {"recorded": recorded} | _whole(message))
    else:
        _print(fleet, letter, message, recorded)
    return EXIT_DONE


def known_urls(fleet: Any, given: Mapping[str, str], names: Any) -> dict[str, str]:
    """The database URLs of these shards, where options or the environment have them."""
    from shardctl.fleet.topology import database_url_variable

    for name in given:
        fleet.shard(name)
    urls = {name: given.get(name) or os.environ.get(database_url_variable(fleet.shard(name)), "") for name in names}
    return {name: url for name, url in urls.items() if url}


def _recorded(fleet: Any, letter: Any, given: Mapping[str, str]) -> str:
    """What the shard's inbox records of the write."""
    from shardctl.deadletter.inboxes import Allowed, Inboxes

    if letter.place is None:
        return ""
    with Inboxes(fleet, known_urls(fleet, given, letter.place.shards), Allowed()) as inboxes:
        if lacking := inboxes.lacking([letter]):
            return f"not asked: no database URL for {', '.join(lacking)}"
        (verdict,) = inboxes.survey([letter])
    return "it can be replayed" if verdict.code == "replay" else f"{verdict.code}: {verdict.why}"


def _whole(message: Any) -> dict[str, Any]:
    import base64

    members: dict[str, Any] = {"ordering_key": message.ordering_key, "attributes": dict(message.attributes)}
    try:
        return members | {"body": message.data.decode()}
    except UnicodeDecodeError:
        return members | {"body_base64": base64.b64encode(message.data).decode()}


def _print(fleet: Any, letter: Any, message: Any, recorded: str) -> None:
    from shardctl.deadletter.letter import slot_shown

    place = letter.place
    rows = [
        ("message id", letter.id),
        ("in", letter.subscription),
        ("dead-lettered", f"{screen.moment(letter.dead_lettered_us)} ({screen.age(letter.dead_lettered_us)} ago)"),
        ("reason", f"{letter.reason}: {letter.detail}"),
        ("written", screen.moment(letter.written_us)),
        ("was message", letter.original_id or "unknown"),
        ("idempotency key", letter.idempotency_key if letter.has_own_key else "unknown: it carries none"),
        ("slot", slot_shown(fleet, letter) or "none"),
        (
            "belongs to",
            f"shard {', '.join(place.shards)}, topic {place.topic}" if place else f"nowhere: {letter.unfit.why}",
        ),
        ("now", recorded),
        ("ordering key", message.ordering_key),
    ]
    for name, value in rows:
        out(f"{name:<16} {screen.clean(value, 1_000)}")
    out("attributes")
    for name in sorted(message.attributes):
        out(f"  {screen.clean(name, 256)}: {screen.clean(message.attributes[name], 1_024)}")
    out(f"body ({len(message.data):,} bytes)")
    shown = message.data[:SHOWN_BYTES].decode(errors="backslashreplace")
    for line in shown.splitlines():
        out(f"  {screen.clean(line, SHOWN_BYTES)}")
    if len(message.data) > SHOWN_BYTES:
        out(f"  … and {len(message.data) - SHOWN_BYTES:,} bytes more (--json prints all)")
