"""`http` of a message type: the backend that its writes are posted to."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from shardctl.fleet.model import Model
from shardctl.fleet.scalars import Between, ObjectName
from shardctl.fleet.settings.httpauth import AUTH_KEYS, CA_KEY, HttpAuthSetting, Url, port_of


class Breaker(Model):
    """Stops calling a backend that is down, instead of failing write after write."""

    failures: Annotated[int, Field(ge=1, le=1_000, description="This many consecutive failed calls open it.")] = 5
    open: Annotated[
        timedelta, Between("1s", "1h"), Field(description="How long it stays open before one call probes.")
    ] = timedelta(seconds=30)


class HttpBackend(Model):
    url: Url
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    auth: Annotated[HttpAuthSetting | None, Field(description="`google` is short for `{kind: google}`.")] = None
    ca_secret: Annotated[
        ObjectName | None,
        Field(description="A Secret whose key `ca.crt` holds the authority that signs the backend's certificate."),
    ] = None
    timeout: Annotated[timedelta, Between("1s", "5m"), Field(description="Of one call, answer included.")] = timedelta(
        seconds=10
    )
    attempts: Annotated[
        int,
        Field(
            ge=1,
            le=20,
            description="Calls for one write before it is dead-lettered, a backend that is down not counted.",
        ),
    ] = 5
    retry_minimum: Annotated[timedelta, Between("1s", "10m")] = timedelta(seconds=1)
    retry_maximum: Annotated[timedelta, Between("1s", "10m")] = timedelta(seconds=10)
    concurrency: Annotated[int, Field(ge=1, le=256, description="Calls of one replica at once, to this backend.")] = 8
    max_body_bytes: Annotated[
        int, Field(ge=1_024, le=10 * 1024**2, description="A larger body is dead-lettered without a call.")
    ] = 10 * 1024**2
    breaker: Breaker = Breaker()

    @property
    def ports(self) -> frozenset[int]:
        """Where it listens, and where its token endpoint does."""
        urls = (self.url, self.auth and self.auth.token_url)
        return frozenset(port_of(url) for url in urls if url)

    @property
    def token_audience(self) -> str:
        """What an ID token is for."""
        parts = urlsplit(self.url)
        return (self.auth and self.auth.audience) or f"{parts.scheme}://{parts.netloc}"

    @property
    def secrets(self) -> dict[str, tuple[str, ...]]:
        """The Secrets it needs, each with the keys that it reads."""
        keys_by_secret: dict[str, tuple[str, ...]] = {}
        if self.auth and self.auth.secret:
            keys_by_secret[self.auth.secret] = AUTH_KEYS[self.auth.kind]
        for authority in (self.ca_secret, self.auth.ca_secret if self.auth else None):
            if authority and CA_KEY not in (keys := keys_by_secret.get(authority, ())):
                keys_by_secret[authority] = (*keys, CA_KEY)
        return keys_by_secret

    @model_validator(mode="after")
    def _url_can_be_called(self) -> Self:
        try:
            port_of(self.url)
        except ValueError as error:
            raise ValueError("url: ports run from 1 to 65535") from error
        if "#" in self.url:
            raise ValueError("url: what follows a '#' is never sent; write %23 for the character itself")
        if self.ca_secret and self.url.startswith("http://"):
            raise ValueError("ca_secret has no use over http://; use https://")
        return self

    @model_validator(mode="after")
    def _an_outage_is_told_from_a_bad_write(self) -> Self:
        """The breaker must open before a write has used up its attempts, or an outage would dead-letter writes."""
        if self.breaker.failures > self.attempts:
            raise ValueError(
                f"breaker.failures ({self.breaker.failures}) exceeds attempts ({self.attempts}): while the backend is down, "
                "writes would be dead-lettered before the breaker opens"
            )
        return self

    @model_validator(mode="after")
    def _backoff_grows(self) -> Self:
        if self.retry_minimum > self.retry_maximum:
            raise ValueError("retry_minimum exceeds retry_maximum")
        return self

    @model_validator(mode="after")
    def _credentials_are_hidden(self) -> Self:
        if self.auth and self.url.startswith("http://"):
            raise ValueError("auth over http:// would send the credentials in the clear; use https://")
        return self
