"""Which letters a person means. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from shardctl.deadletter.letter import Letter
from shardctl.errors import UsageError

_AGO = re.compile(r"([0-9]{1,6})\s*(s|m|h|d|w)(\s+ago)?")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class Choice:
    """What is left out chooses all. `ids` are of letters, or of the messages that they were; times, of dead-lettering."""

    ids: frozenset[str] = frozenset()
    type: str | None = None
    shard: str | None = None
    reason: str | None = None
    key: str | None = None
    since_us: int | None = None
    until_us: int | None = None

    def takes(self, letter: Letter) -> bool:
        return (
            (not self.ids or not self.ids.isdisjoint({letter.id, letter.original_id or letter.id}))
            and self.type in (None, letter.type)
            and self.shard in (None, letter.shard)
            and self.reason in (None, letter.reason)
            and self.key in (None, letter.key)
            and (self.since_us is None or letter.dead_lettered_us >= self.since_us)
            and (self.until_us is None or letter.dead_lettered_us < self.until_us)
        )


def moment_us(option: str, text: str | None, now: datetime) -> int | None:
    """`2h` or `3d ago` before `now`, or an RFC 3339 time, in microseconds since 1970. Raises UsageError naming the option."""
    if text is None:
        return None
    if match := _AGO.fullmatch(text.strip()):
        return _us(now) - int(match[1]) * _UNIT_SECONDS[match[2]] * 1_000_000
    try:
        moment = datetime.fromisoformat(text.strip())
        return _us(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{option} {text[:40]!r} is no time. Give an age such as 90s, 30m, 2h or 3d, or a time such as "
            "2026-01-31T12:00:00Z."
        ) from error


def _us(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)
