"""The consumers' metrics from a Prometheus server, or from Google Cloud's managed one with Google credentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from shardctl.errors import ShardctlError, UsageError
from shardctl.fleet.spec import Fleet
from shardctl.rebalance.backlog import SCOPE
from shardctl.redaction import redacted_value
from shardctl.render.series import Series
from shardctl.status.consumers import whole
from shardctl.status.report import Work

GOOGLES_HOST = "monitoring.googleapis.com"
WINDOW = "5m"  # as in the alerts: a rate needs a few scrapes
TIMEOUT_SECONDS = 7.0
AT_ONCE = 6
INBOX = ("inbox_rows", "inbox_bytes", "inbox_overdue_seconds")  # every replica of a shard reports the same one
MAX_ANSWER_CHARACTERS = 300
_WANTED = (
    "--prometheus wants the URL of a server, such as http://prometheus.example.com:9090. In a user or password, write %2F for /, "
    "%40 for @, %23 for # and %3F for ?."
)

Range = Mapping[str, tuple[float | None, ...]]  # by shard; None where there is no value


class PrometheusError(ShardctlError):
    """The server can't be asked, or refused to answer. Never shows a password or a token."""


class Prometheus:
    """Asks `url`, the part before `/api/v1`. `authorization` gives the header's value, read for each look."""

    def __init__(self, url: str, authorization: Callable[[], str] | None = None) -> None:
        try:
            parts, self._url = urlsplit(url), httpx.URL(url.rstrip("/") + "/api/v1/")
        except (httpx.InvalidURL, ValueError):
            raise UsageError(_WANTED) from None  # the error would repeat what may be a password
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(_WANTED)
        self._google = parts.hostname == GOOGLES_HOST
        if self._google and parts.scheme != "https":
            raise UsageError("--prometheus: Google is asked by https alone, since a token goes with it.")
        self._shown = redacted_value(str(self._url))
        self._authorization = authorization or (_google_token() if self._google else None)
        self._client = httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def work(self, fleet: Fleet) -> dict[str, Work]:
        """By shard, of those whose consumers the server scrapes. Raises PrometheusError, also where there are none."""
        answers = {name: dict(_values(result)) for name, result in self._ask_all("query", queries(fleet), {}).items()}
        if not any(answers.values()):
            chosen = f"namespace {fleet.namespace}, app {fleet.fleet}-consumer"
            raise PrometheusError(f"{self._shown} has no metrics of consumers ({chosen}). Does it scrape them?")
        names = {name for by_shard in answers.values() for name in by_shard}
        return {name: _work({what: by_shard.get(name) for what, by_shard in answers.items()}) for name in names}

    def ranges(self, asked: Mapping[str, str], began: float, step_seconds: int, points: int) -> dict[str, Range]:
        """Each query at `points` moments from `began` on, seconds since 1970. Raises PrometheusError."""
        last = began + step_seconds * (points - 1)
        span = {"start": f"{began:.0f}", "end": f"{last:.0f}", "step": str(step_seconds)}
        return {
            name: {series: _at_moments(pairs, began, step_seconds, points) for series, pairs in _series(result)}
            for name, result in self._ask_all("query_range", asked, span).items()
        }

    def _ask_all(self, path: str, asked: Mapping[str, str], more: Mapping[str, str]) -> dict[str, list[Any]]:
        """The result of each query. Raises PrometheusError."""
        headers = {"Authorization": self._authorization()} if self._authorization else {}

        def ask(query: str) -> list[Any]:
            return self._ask(path, {"query": query, **more}, headers)

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="prometheus") as threads:
            return dict(zip(asked, threads.map(ask, asked.values()), strict=True))

    def _ask(self, path: str, form: Mapping[str, str], headers: Mapping[str, str]) -> list[Any]:
        try:
            answer = self._client.post(self._url.join(path), data=dict(form), headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PrometheusError(f"{self._shown} can't be asked: {error or type(error).__name__}") from error
        if answer.status_code != httpx.codes.OK:
            text = answer.text[:MAX_ANSWER_CHARACTERS].strip()
            raise PrometheusError(f"{self._shown} refused the query ({answer.status_code}): {text}")
        try:
            result = answer.json()["data"]["result"]
            list(_series(result))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PrometheusError(f"{self._shown} doesn't answer as Prometheus does. Is it the right URL?") from error
        return list(result)


def queries(fleet: Fleet) -> dict[str, str]:
    """A vector by shard for each figure."""
    series = Series(fleet)

    def total(name: str) -> str:
        return f"sum by (shard) ({series.own(name)})"

    rows, batches = series.rate("shardctl_batch_rows_sum", WINDOW), series.rate("shardctl_batch_rows_count", WINDOW)
    return {
        "applied": total("shardctl_messages_applied_total"),
        "duplicates": total("shardctl_messages_duplicate_total"),
        "dead_lettered": total("shardctl_messages_dead_lettered_total"),
        "writes_per_second": series.rate("shardctl_messages_applied_total", WINDOW),
        "duplicates_per_second": series.rate("shardctl_messages_duplicate_total", WINDOW),
        "locks_contended_per_second": series.rate("shardctl_locks_contended_total", WINDOW),
        "rows_a_batch": f"{rows} / {batches}",
        "replicas": f"count by (shard) ({series.own('shardctl_ready')})",
        "ready": total("shardctl_ready"),
        "without_redis": total("shardctl_redis_degraded"),
        **{name: f"max by (shard) ({series.own(f'shardctl_{name}')})" for name in INBOX},
        "without_database": f"count by (shard) ({series.own('shardctl_database_up')} == 0)",
    }


def _series(result: Any) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """The shard of each series, "" where it has none, and its finite values by time: 0 rows in 0 batches is no number."""
    for series in result:
        pairs = series["values"] if "values" in series else [series["value"]]
        values = [(float(at), float(value)) for at, value in pairs]
        yield str(series["metric"].get("shard", "")), [(at, value) for at, value in values if math.isfinite(value)]


def _values(result: Any) -> Iterator[tuple[str, float]]:
    for name, pairs in _series(result):
        for _, value in pairs:
            yield name, value


def _at_moments(pairs: list[tuple[float, float]], began: float, step: int, points: int) -> tuple[float | None, ...]:
    values: list[float | None] = [None] * points
    for at, value in pairs:
        place = round((at - began) / step)
        if 0 <= place < points:
            values[place] = value
    return tuple(values)


def _work(figures: Mapping[str, float | None]) -> Work:
    replicas, ready = whole(figures["replicas"]), whole(figures["ready"])
    troubles = []
    if replicas and ready is not None and ready < replicas:
        troubles.append(f"{replicas - ready} of {replicas} replicas aren't ready")
    if degraded := whole(figures["without_redis"]):
        troubles.append(f"{degraded} of {replicas} replicas work without Redis: they may repeat each other's work")
    if cut_off := whole(figures["without_database"]):
        troubles.append(f"{cut_off} of {replicas} replicas can't reach the database")
    dead = whole(figures["dead_lettered"])
    applied = whole(figures["applied"])
    return Work(
        applied,
        whole(figures["duplicates"]),
        # The counter is labelled by reason, so it doesn't exist before the first dead letter.
        0 if dead is None and applied is not None else dead,
        figures["writes_per_second"],
        figures["duplicates_per_second"],
        figures["locks_contended_per_second"],
        figures["rows_a_batch"],
        replicas,
        ready,
        None,
        tuple(troubles),
        whole(figures["inbox_rows"]),
        whole(figures["inbox_bytes"]),
        figures["inbox_overdue_seconds"],
    )


def _google_token() -> Callable[[], str]:
    """From the application default credentials, refreshed when they expire. Raises PrometheusError when called."""
    credentials: list[Any] = []

    def authorization() -> str:
        import google.auth
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request

        try:
            if not credentials:
                credentials.append(google.auth.default(scopes=[SCOPE])[0])
            if not credentials[0].valid:
                credentials[0].refresh(Request())
        except GoogleAuthError as error:
            raise PrometheusError(
                "there are no Google Cloud credentials to ask managed Prometheus with. "
                "Run `gcloud auth application-default login`."
            ) from error
        return f"Bearer {credentials[0].token}"

    return authorization
