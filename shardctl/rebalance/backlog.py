"""What subscriptions still hold: asked of the embedded broker, or of Cloud Monitoring, whose answer is minutes old.

A subscription of an old generation is never empty while its topic has traffic: it gets what the new generation gets, and its
consumer acks that. What counts is whether anything is left in it from before the last barrier.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

MONITORING_URL = "https://monitoring.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/monitoring.read"
LOOK_BACK = timedelta(minutes=10)
TIMEOUT_SECONDS = 30.0
IDS_A_REQUEST = 50
SLACK_SECONDS = 10  # by which points and ages of Cloud Monitoring may be off
_METRIC = "pubsub.googleapis.com/subscription/"
_MESSAGES, _AGE = "num_undelivered_messages", "oldest_unacked_message_age"


@dataclass(frozen=True, slots=True)
class Backlog:
    """Messages not acked at `at_us`, and when the oldest of them was published. None: not known."""

    messages: int | None = None
    oldest_us: int | None = None
    at_us: int = 0

    def drained(self, barrier_time_us: int) -> bool | None:
        """Whether nothing is left that was published before the barrier; None where that isn't known, or not yet."""
        if self.messages is None or self.at_us <= barrier_time_us:
            return None
        return self.messages == 0 or (self.oldest_us is not None and self.oldest_us > barrier_time_us)


UNKNOWN = Backlog()
Source = Callable[[Sequence[str]], Mapping[str, Backlog]]  # by subscription id


class UnknownError(Exception):
    """The number is unknown. Says why."""


def source(project: str) -> Source:
    """Whom to ask here. It raises UnknownError."""
    if host := os.environ.get("PUBSUB_EMULATOR_HOST"):
        return lambda ids: of_broker(host, project, ids)
    return lambda ids: of_monitoring(project, ids, session=_session())


def of_broker(host: str, project: str, ids: Sequence[str]) -> dict[str, Backlog]:
    """From the broker of this project. Raises UnknownError: Google's emulator doesn't report it."""
    import grpc

    from shardctl import broker

    at = time.time()  # before it is asked, so that the oldest is rather too old
    try:
        subscriptions = broker.stats(host)["subscriptions"]
    except grpc.RpcError as error:
        raise UnknownError(f"the emulator at {host} doesn't report what its subscriptions hold") from error
    named = {name: subscriptions.get(f"projects/{project}/subscriptions/{name}") for name in ids}
    return {
        name: Backlog(
            subscription["undelivered"],
            int((at - subscription["oldest_unacked_age_seconds"]) * 1e6) if subscription["undelivered"] else None,
            int(at * 1e6),
        )
        for name, subscription in named.items()
        if subscription is not None
    }


class Session(Protocol):
    """What is used of `google.auth.transport.requests.AuthorizedSession`."""

    def get(self, url: str, *, params: Mapping[str, str], timeout: float) -> Any: ...


def of_monitoring(
    project: str,
    ids: Sequence[str],
    *,
    session: Session,
    url: str = MONITORING_URL,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> dict[str, Backlog]:
    """The newest points of the last minutes. Raises UnknownError. A subscription without points isn't among them."""
    backlogs: dict[str, Backlog] = {}
    for first in range(0, len(ids), IDS_A_REQUEST):
        asked = ids[first : first + IDS_A_REQUEST]
        messages = dict(_newest(session, url, project, _MESSAGES, asked, now()))
        ages = dict(_newest(session, url, project, _AGE, asked, now()))
        for name, (at, count) in messages.items():
            aged, age = ages.get(name, (at, None))
            oldest = _microseconds(aged - timedelta(seconds=age)) if age is not None and count else None
            backlogs[name] = Backlog(count, oldest, _microseconds(min(at, aged)))
    return backlogs


def _newest(
    session: Session, url: str, project: str, metric: str, ids: Sequence[str], now: datetime
) -> Iterator[tuple[str, tuple[datetime, int]]]:
    """Of each subscription the newest point's time and value."""
    named = ",".join(f'"{name}"' for name in ids)
    params = {
        "filter": f'metric.type="{_METRIC}{metric}" AND resource.labels.subscription_id=one_of({named})',
        "interval.startTime": _text(now - LOOK_BACK),
        "interval.endTime": _text(now),
    }
    while True:
        page = _page(session, f"{url}/v3/projects/{project}/timeSeries", params)
        for series in page.get("timeSeries", ()):
            points = [
                (datetime.fromisoformat(point["interval"]["endTime"]), int(point["value"]["int64Value"]))
                for point in series["points"]
            ]
            if points:
                yield series["resource"]["labels"]["subscription_id"], max(points)
        if not page.get("nextPageToken"):
            return
        params = {**params, "pageToken": page["nextPageToken"]}


def _page(session: Session, url: str, params: Mapping[str, str]) -> dict[str, Any]:
    from google.auth.exceptions import GoogleAuthError
    from requests import RequestException

    try:
        answer = session.get(url, params=params, timeout=TIMEOUT_SECONDS)
        if answer.status_code != 200:
            raise UnknownError(
                f"Cloud Monitoring refused to report backlogs ({answer.status_code}): {answer.text[:300]}"
            )
        return dict(answer.json())
    except (RequestException, GoogleAuthError, ValueError) as error:
        raise UnknownError(f"Cloud Monitoring can't be asked: {error}") from error


def _session() -> Session:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError
    from google.auth.transport.requests import AuthorizedSession

    try:
        credentials, _ = google.auth.default(scopes=[SCOPE])
    except DefaultCredentialsError as error:
        raise UnknownError("there are no Google Cloud credentials to ask Cloud Monitoring with") from error
    session: Session = AuthorizedSession(credentials)
    return session


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _microseconds(moment: datetime) -> int:
    return int((moment.timestamp() - SLACK_SECONDS) * 1e6)
