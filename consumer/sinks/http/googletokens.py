"""ID tokens of the pod's Google service account, which Cloud Run, Cloud Functions and Identity-Aware Proxy accept.

google-auth asks the metadata server, behind which Workload Identity is, or signs with the key that GOOGLE_APPLICATION_CREDENTIALS
names. It blocks, so it runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any

from consumer.sinks.http.tokens import Token, TokenError
from shardctl.supervision.threads import DaemonThreads

TIMEOUT_SECONDS = 10.0  # of one request
_STATUS = re.compile(r"[Ss]tatus: (\d{3})")

log = logging.getLogger(__name__)


class GoogleTokens:
    def __init__(self, audience: str) -> None:
        self.name = f"the ID token for {audience}"
        self._audience = audience
        self._threads = DaemonThreads(1, "google-tokens", log)
        self._credentials: Any = None

    def check(self) -> None:
        """It has no Secrets."""

    async def fetch(self) -> Token:
        future: Future[Token] = Future()
        self._threads.submit(self._run, future)
        return await asyncio.wrap_future(future)

    def _run(self, future: Future[Token]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(self._fetched())
        except Exception as error:  # noqa: BLE001 - raised where the token is awaited
            future.set_exception(error)

    def _fetched(self) -> Token:
        from google.auth import exceptions
        from google.oauth2 import id_token

        try:
            request = _request()
            if self._credentials is None:
                self._credentials = id_token.fetch_id_token_credentials(self._audience, request)
            self._credentials.refresh(request)
        except exceptions.DefaultCredentialsError as error:
            raise TokenError(
                "can't be fetched: no metadata server answers, and GOOGLE_APPLICATION_CREDENTIALS names no key of a service "
                "account; pods need Workload Identity and the annotation of their ServiceAccount"
            ) from error
        except exceptions.RefreshError as error:
            raise TokenError(f"is refused{_status(error)}: does the pod run as a Google service account?") from error
        except exceptions.GoogleAuthError as error:
            raise TokenError(f"can't be fetched: {type(error).__name__}") from error
        lifetime = self._credentials.expiry.replace(tzinfo=UTC) - datetime.now(UTC)
        return Token(self._credentials.token, lifetime.total_seconds())


def _request() -> Any:
    """google-auth's transport, bounded in time: its own limit is two minutes."""
    import requests
    from google.auth.transport.requests import Request

    session = requests.Session()
    session.trust_env = False  # no proxy: as for calls of backends
    send = Request(session)

    def bounded(*arguments: Any, timeout: float | None = None, **others: Any) -> Any:
        return send(*arguments, timeout=min(timeout or TIMEOUT_SECONDS, TIMEOUT_SECONDS), **others)

    return bounded


def _status(error: Exception) -> str:
    """The status of an answer, and nothing else of it."""
    status = _STATUS.search(str(error))
    return f" with status {status[1]}" if status else ""
