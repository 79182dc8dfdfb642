"""`replay` and `drop` of dead letters and strays: a plan, and with --yes its execution."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from shardctl.cli.deadletter import screen, session
from shardctl.cli.deadletter.look import known_urls
from shardctl.cli.terminal import print_json, print_table, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, ShardctlError, UsageError

if TYPE_CHECKING:
    from shardctl.deadletter.inboxes import Allowed


@dataclass(frozen=True, slots=True)
class How:
    """`limit` None: all. `source` None: the subscriptions."""

    strays: bool
    limit: int | None
    archive: Path | None
    source: Path | None
    wait_seconds: float
    dry_run: bool
    yes: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class Gathered:
    """The letters in order, how to get their messages, and how to ack them."""

    entries: Sequence[Any]
    fetch: Any
    take_off: Any
    outlet: Any
    unreadable: int = 0


def replay_letters(fleet: Any, choice: Any, given: Mapping[str, str], how: How, allowed: Allowed) -> int:
    from shardctl import audit
    from shardctl.deadletter.inboxes import Inboxes
    from shardctl.deadletter.replay import Report, replay

    with ExitStack() as opened:
        gathered = _gathered(opened, fleet, choice, how)
        letters = [entry.letter for entry in gathered.entries]
        names = {name for letter in letters if letter.place for name in letter.place.shards}
        inboxes = opened.enter_context(Inboxes(fleet, known_urls(fleet, given, sorted(names)), allowed))
        _refuse_without_databases(fleet, inboxes, letters)
        verdicts = inboxes.survey(letters)
        planned = Counter(verdict.code for verdict in verdicts)
        going = [letter for letter, verdict in zip(letters, verdicts, strict=True) if verdict.code == "replay"]
        left = [pair for pair in zip(letters, verdicts, strict=True) if pair[1].code not in ("replay", "applied")]
        _tell_plan(planned, going, left, how)
        if not how.yes or how.dry_run:
            _print_json(how, planned=dict(planned), left=screen.left_json(left))
            return _undone(how, len(letters), "publish them again")
        audit.begin("deadletter replay", fleet.fleet, **dict(planned))
        report = Report()
        with screen.Progress("replay", len(letters)) as bar:
            replay(
                fleet,
                gathered.entries,
                gathered.fetch,
                inboxes,
                gathered.outlet,
                report,
                keep=_archive(opened, how),
                take_off=gathered.take_off,
                advance=bar.advance,
            )
    _tell_replayed(report, planned, how)
    return _code(choice, letters, how, refused=bool(report.left or gathered.unreadable))


def drop_letters(fleet: Any, choice: Any, how: How) -> int:
    from shardctl import audit
    from shardctl.deadletter.reading import Tally
    from shardctl.deadletter.replay import Report, drop

    with ExitStack() as opened:
        gathered = _gathered(opened, fleet, choice, how)
        tally = Tally()
        for entry in gathered.entries:
            tally.count(entry.letter)
        if tally.letters and not how.as_json:
            screen.print_tally(tally)
        if not how.yes or how.dry_run:
            _print_json(how, planned=screen.tally_json(tally))
            return _undone(how, tally.letters, "delete them permanently (--archive FILE keeps a copy)")
        audit.begin("deadletter drop", fleet.fleet, letters=tally.letters, archive=how.archive and str(how.archive))
        report = Report()
        with screen.Progress("drop", tally.letters) as bar:
            drop(
                gathered.entries,
                gathered.fetch,
                report,
                keep=_archive(opened, how),
                take_off=gathered.take_off,
                advance=bar.advance,
            )
    _print_json(how, dropped=report.dropped, planned=screen.tally_json(tally))
    kept = f" They are in {how.archive}." if how.archive else ""
    say(f"{report.dropped:,} letters deleted.{kept}")
    _say_lost(report)
    return _code(choice, [entry.letter for entry in gathered.entries], how, refused=False)


def _gathered(opened: ExitStack, fleet: Any, choice: Any, how: How) -> Gathered:
    """Read all chosen letters. Bodies go to an unnamed file, so that thousands of large ones don't fill the memory."""
    from shardctl.deadletter import archive, reading
    from shardctl.deadletter.replay import in_order

    if how.source is not None:
        if how.archive and how.archive.exists() and how.source.samefile(how.archive):
            raise UsageError(f"--from and --archive both name {how.source}.")
        file = opened.enter_context(archive.opened(how.source))
        refusals = _Refusals(how.source)
        with screen.Progress("read") as bar:
            entries = in_order(reading.out_of_archive(fleet, file, choice, refusals.count, bar.advance), how.limit)
        outlet = opened.enter_context(session.outlet_alone(fleet))
        return Gathered(entries, reading.fetch_from(archive.Spool(file)), lambda _: 0, outlet, refusals.number)
    file = opened.enter_context(cast(BinaryIO, tempfile.TemporaryFile(prefix="shardctl-letters-")))  # noqa: SIM115
    spool = archive.Spool(file)
    desk = opened.enter_context(session.opened(fleet, strays=how.strays, wait_seconds=how.wait_seconds))
    with screen.Progress("read") as bar:
        read = reading.off_desk(fleet, desk.desk, choice, strays=how.strays, looked_at=bar.advance)
        kept = reading.spooled(read, spool, strays=how.strays, max_bytes=session.MAX_SPOOL_BYTES)
        letters, seen = list(kept), bar.done
    if spool.bytes >= session.MAX_SPOOL_BYTES:
        desk.desk.whole, seen = False, len(letters)
    session.say_missed(desk, seen)
    return Gathered(in_order(letters, how.limit), reading.fetch_from(spool), desk.desk.take_off, desk.outlet)


class _Refusals:
    """Lines of an archive that hold no letter."""

    def __init__(self, source: Path) -> None:
        self._source, self.number = source, 0

    def count(self, line: int, why: str) -> None:
        self.number += 1
        if self.number <= screen.SHOWN_LEFT:
            say(f"{self._source}, line {line}: {screen.clean(why, 200)}")


def _refuse_without_databases(fleet: Any, inboxes: Any, letters: Sequence[Any]) -> None:
    """Raise where a copy of a dead letter would count as a duplicate, since its inbox row can't be deleted."""
    from shardctl.deadletter.letter import Origin
    from shardctl.fleet.topology import database_url_variable

    lacking = inboxes.lacking([letter for letter in letters if letter.origin != Origin.STRAY])
    if lacking:
        variable = database_url_variable(fleet.shard(lacking[0]))
        raise ShardctlError(
            f"no database URL for shard {', '.join(lacking)}, whose inbox records these letters as dead: their copies would "
            f"count as duplicates. Set {variable}, or give --database {lacking[0]}=URL; --shard chooses one shard's letters."
        )
    if unasked := inboxes.lacking(letters):
        say(
            f"No database URL for shard {', '.join(unasked)}: so it is unknown whether these strays took effect before (then "
            "their copies change nothing), or whether later writes of their keys did (then they overwrite these)."
        )


def _tell_plan(planned: Counter[str], going: Sequence[Any], left: Sequence[Any], how: How) -> None:
    if not how.as_json:
        rows = [("publish again", f"{planned['replay']:,}")]
        rows += [("  of these, with another slot", f"{sum(letter.repaired for letter in going):,}")]
        rows += [("took effect before: ack", f"{planned['applied']:,}")]
        rows += [(f"can't: {code}", f"{n:,}") for code, n in planned.most_common() if code not in ("replay", "applied")]
        print_table(("what", "letters"), rows, right=("letters",))
    screen.say_left(left)
    if unsure := sum(not letter.has_own_key for letter in going):
        say(
            f"{unsure:,} of them carry no idempotency key, and Pub/Sub's copy lacks the message id that was used instead. "
            "No write of their key and time is recorded, so each gets a key made from its letter's id. If its first message "
            "is still in flight somewhere, it takes effect twice."
        )


def _undone(how: How, letters: int, what: str) -> int:
    if how.dry_run:
        say("Dry run: nothing was done.")
        return EXIT_DONE
    if not letters:
        say("Nothing matches.")
        return EXIT_DONE
    say(f"Nothing was done. Add --yes to {what}.")
    return EXIT_REFUSED


def _tell_replayed(report: Any, planned: Counter[str], how: How) -> None:
    _print_json(
        how,
        replayed=report.replayed,
        applied_before=report.applied,
        lost_acks=report.lost_acks,
        planned=dict(planned),
        left=screen.left_json(report.left),
    )
    say(
        f"{report.replayed:,} letters published again; {report.applied:,} had taken effect before; {len(report.left):,} stay. "
        "Consumers apply what was published as any other write; what fails again is dead-lettered again."
    )
    _say_lost(report)


def _say_lost(report: Any) -> None:
    if report.lost_acks:
        say(
            f"{report.lost_acks:,} acks were lost: these letters are delivered once more; the same command then finds them done."
        )


def _print_json(how: How, **members: Any) -> None:
    if how.as_json:
        print_json({"dry_run": how.dry_run, "done": how.yes and not how.dry_run} | members)


def _archive(opened: ExitStack, how: How) -> Any:
    from shardctl.deadletter.archive import Archive

    return opened.enter_context(Archive(how.archive)).add if how.archive else None


def _code(choice: Any, letters: Sequence[Any], how: How, *, refused: bool) -> int:
    met = {letter.id for letter in letters} | {letter.original_id for letter in letters}
    if how.limit is None and (missing := sorted(choice.ids - met)):
        say(f"error: not seen: {', '.join(missing[: screen.SHOWN_LEFT])}.")
        return EXIT_REFUSED
    return EXIT_REFUSED if refused else EXIT_DONE
