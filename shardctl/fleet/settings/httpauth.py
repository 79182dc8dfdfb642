"""`auth` of an HTTP backend: how its calls say who they are."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from shardctl.fleet.model import Model, OrJust
from shardctl.fleet.scalars import ObjectName, Text, as_tuple

DEFAULT_PORTS = {"http": 80, "https": 443}
CA_KEY = "ca.crt"
AUTH_KEYS: dict[str, tuple[str, ...]] = {
    "basic": ("username", "password"),
    "bearer": ("token",),
    "google": (),
    "oauth2": ("client_id", "client_secret"),
}
_NEEDED: dict[str, tuple[str, ...]] = {
    "basic": ("secret",),
    "bearer": ("secret",),
    "google": (),
    "oauth2": ("secret", "token_url"),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "basic": (),
    "bearer": (),
    "google": ("audience",),
    "oauth2": ("audience", "scopes", "client_auth", "ca_secret"),
}
LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost)[:/]")

Url = Annotated[
    str,
    Text(
        r"https?://[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[!-~]*)?",
        "a URL that begins with https:// or http://, without user, password and blanks",
        2_000,
    ),
]
Audience = Annotated[str, Text(r"[!-~]+", "a URL or a name, without blanks", 500)]
Scope = Annotated[str, Text(r"[!#-\[\]-~]+", "a scope: visible ASCII without blanks, quotes and backslashes", 500)]


def port_of(url: str) -> int:
    """Raises ValueError where no port can be called."""
    parts = urlsplit(url)
    port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    if port == 0:
        raise ValueError("ports run from 1 to 65535")
    return port


class HttpAuth(Model):
    """`basic` and `bearer` send what a Secret holds, `google` an ID token, `oauth2` an access token for client credentials."""

    kind: Literal["basic", "bearer", "google", "oauth2"]
    secret: Annotated[
        ObjectName | None,
        Field(
            description="A Secret, mounted into the pods: `basic` reads its keys `username` and `password`, `bearer` `token`, "
            "`oauth2` `client_id` and `client_secret`."
        ),
    ] = None
    audience: Annotated[
        Audience | None,
        Field(
            description="google: what the ID token is for, by default scheme and host of `url`. oauth2: sent to `token_url`."
        ),
    ] = None
    token_url: Annotated[Url | None, Field(description="oauth2: the token endpoint.")] = None
    scopes: Annotated[tuple[Scope, ...], BeforeValidator(as_tuple), Field(description="oauth2: what to ask for.")] = ()
    client_auth: Annotated[
        Literal["basic", "post"],
        Field(description="oauth2: whether the client's id and secret go into a header or into the body."),
    ] = "basic"
    ca_secret: Annotated[
        ObjectName | None,
        Field(
            description="oauth2: a Secret whose key `ca.crt` holds the authority that signs the token endpoint's certificate."
        ),
    ] = None

    @property
    def fetches_tokens(self) -> bool:
        return self.kind in ("google", "oauth2")

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        needed = _NEEDED[self.kind]
        for name, field in type(self).model_fields.items():
            given = getattr(self, name) != field.default
            if name in needed and not given:
                raise ValueError(f"{self.kind} needs {' and '.join(needed)}")
            if given and name not in ("kind", *needed, *_OPTIONAL[self.kind]):
                raise ValueError(f"{name} has no use with kind: {self.kind}")
        return self

    @model_validator(mode="after")
    def _token_url_can_be_called(self) -> Self:
        if self.token_url is None:
            return self
        try:
            port_of(self.token_url)
        except ValueError as error:
            raise ValueError("token_url: ports run from 1 to 65535") from error
        if "#" in self.token_url:
            raise ValueError("token_url: what follows a '#' is never sent")
        if self.token_url.startswith("http://") and not LOOPBACK.match(self.token_url):
            raise ValueError("token_url: the client's secret would go over http:// in the clear; use https://")
        return self


HttpAuthSetting = Annotated[HttpAuth, OrJust("kind", ("google",))]
