"""What an answer means for its write, and how long to wait before the next call. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus

LONGEST_RETRY_AFTER_SECONDS = (
    300.0  # the most that a backend may ask for: a wrong clock there must not stop a shard for a year
)


class Meaning(StrEnum):
    OK = "ok"
    REFUSED = "refused"  # the write can never succeed
    FAILED = "failed"  # it may succeed later
    THROTTLED = "throttled"  # too many calls: neither the write nor the backend is at fault


# No refusals: a timeout; too early; and 401, since wrong or outdated credentials are no fault of the write, and a wrong
# deployment must not empty a topic.
_MAY_PASS = frozenset((HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.UNAUTHORIZED))


def meaning(status: int, *, unsure: bool = False, grants_may_lack: bool = False) -> Meaning:
    """`unsure`: an earlier call of the write may have reached the backend and still be at work there, which answers 409.

    `grants_may_lack`: 403 may mean that the caller's identity lacks a role, which is no fault of the write either.
    """
    if 200 <= status < 300:
        return Meaning.OK
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Meaning.THROTTLED
    if grants_may_lack and status == HTTPStatus.FORBIDDEN:
        return Meaning.FAILED
    if status in _MAY_PASS or (unsure and status == HTTPStatus.CONFLICT) or not 400 <= status < 500:
        return Meaning.FAILED
    return Meaning.REFUSED


def retry_after(text: str | None, now: datetime) -> float:
    """Seconds that a Retry-After asks for, at most LONGEST_RETRY_AFTER_SECONDS; 0 if it can't be read."""
    text = (text or "").strip()
    if text.isascii() and text.isdecimal():
        seconds = float(text[:10])
    else:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, IndexError, TypeError, OverflowError):
            return 0.0
        seconds = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_SECONDS)


def phrase(status: int) -> str:
    """`503 Service Unavailable`, in the standard's words and not the backend's, which may hold anything."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
