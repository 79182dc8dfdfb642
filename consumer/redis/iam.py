"""Logins by IAM, as Memorystore for Valkey takes them: the password is an access token of the process's own Google identity."""

from __future__ import annotations

import threading
from typing import Protocol

import google.auth
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.auth.transport.requests import Request
from redis.exceptions import AuthenticationError

from consumer.redis.url import Login
from shardctl.errors import UsageError

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
USER = "default"  # Memorystore has no other


class TokenSource(Protocol):
    """What is used of Google's credentials."""

    token: str | None

    @property
    def valid(self) -> bool: ...
    def refresh(self, request: Request) -> None: ...


class IamLogins:
    """Called for each new connection, in any thread: it may wait for Google."""

    def __init__(self, credentials: TokenSource) -> None:
        self._credentials, self._lock = credentials, threading.Lock()

    def __call__(self) -> Login:
        """Raises AuthenticationError where Google gives no token."""
        with self._lock:
            try:
                if not self._credentials.valid:
                    self._credentials.refresh(Request())
            except GoogleAuthError as error:
                raise AuthenticationError(f"no access token to log in with: {error}") from error
            return USER, self._credentials.token


def logins_of_this_process() -> IamLogins:
    """Raises UsageError where it has no identity."""
    try:
        credentials, _ = google.auth.default(scopes=[SCOPE])
    except DefaultCredentialsError as error:
        raise UsageError(
            f"no Google credentials to log in to Redis with: {error}. In a pod, bind its service account to a Google one."
        ) from error
    return IamLogins(credentials)
