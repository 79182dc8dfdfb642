"""`http` of a message type: the backend that its writes are posted to."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shardctl.model import Model
from shardctl.scalars import Between, ObjectName, Text

Url = Annotated[
    str,
    Text(
        r"https?://[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[!-~]*)?",
        "a URL that begins with https:// or http://, without user, password and blanks",
        2_000,
    ),
]


class HttpAuth(Model):
    """A Secret, mounted into the pods: `basic` reads its keys `username` and `password`, `bearer` its key `token`."""

    kind: Literal["basic", "bearer"]
    secret: ObjectName


class Breaker(Model):
    """Stops calling a backend that is down, instead of failing one write after the other."""

    failures: Annotated[int, Field(ge=1, le=1_000, description="So many calls that failed in a row open it.")] = 5
    open: Annotated[timedelta, Between("1s", "1h"), Field(description="How long before one call probes again.")] = (
        timedelta(seconds=30)
    )


class HttpBackend(Model):
    url: Url
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    auth: HttpAuth | None = None
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
            ge=1, le=20, description="Calls for one write before it is set aside, a backend that is down not counted."
        ),
    ] = 5
    retry_minimum: Annotated[timedelta, Between("1s", "10m")] = timedelta(seconds=1)
    retry_maximum: Annotated[timedelta, Between("1s", "10m")] = timedelta(seconds=10)
    concurrency: Annotated[int, Field(ge=1, le=256, description="Calls of one replica at once, to this backend.")] = 8
    breaker: Breaker = Breaker()

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
