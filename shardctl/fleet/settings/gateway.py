"""`gateway` of `shards.yaml`: the HTTP API that accepts writes. What it doesn't allow is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from shardctl.fleet.model import Model, OrJust
from shardctl.fleet.scalars import Between, Label, SecretKey, Text, TypeName, as_tuple, one_or_many
from shardctl.fleet.settings.cluster import Autoscaling, AutoscalingSetting, Resources
from shardctl.fleet.settings.secrets import SecretRef

GOOGLE_ISSUERS = ("accounts.google.com", "https://accounts.google.com")
GOOGLE_KEYS_URL = "https://www.googleapis.com/oauth2/v3/certs"

KeysUrl = Annotated[
    str,
    Text(
        r"(https://[A-Za-z0-9]|http://(localhost|127\.0\.0\.1|\[::1\])[:/])[!-~]*",
        "a URL that begins with https://, or one of this machine that begins with http://",
        2_000,
    ),
]
Issuer = Annotated[str, Text(r"[!-~]+", "what tokens name as their issuer, such as https://accounts.google.com", 500)]
Audience = Annotated[str, Text(r"[!-~]+", "a URL or a name, without blanks", 500)]
ClientName = Annotated[str, Text(r"[!-~]+", "a client's name, without blanks", 254)]
WritesASecond = Annotated[int, Field(ge=1, le=1_000_000)]

ANY_OTHER = "*"  # under `clients`: every client that has a key and isn't named
_GRACE = {"none": timedelta(), "keys": timedelta(seconds=60), "oidc": timedelta(hours=1)}


class KeysSecret(SecretRef):
    """The Secret whose key holds a line for each client: its name and the SHA-256 of its key."""

    key: SecretKey = "keys"


class Client(Model):
    types: Annotated[
        tuple[TypeName, ...],
        BeforeValidator(as_tuple),
        Field(description="It may write only these message types; all when left out."),
    ] = ()
    rate_limit: Annotated[WritesASecond | None, Field(description="Instead of the gateway's `rate_limit`.")] = None

    @field_validator("types", mode="before")
    @classmethod
    def _names_a_type(cls, value: object) -> object:
        if value in ([], ()):
            raise ValueError("an empty list would let it write no type: name one, or leave `types` out for all")
        return value


class Auth(Model):
    kind: Annotated[
        Literal["none", "keys", "oidc"],
        Field(description="Who may write: anybody who reaches the port; who has a key; who has an issuer's token."),
    ]
    secret: Annotated[KeysSecret | None, Field(description="keys: where the clients' keys are.")] = None
    issuer: Annotated[
        tuple[Issuer, ...],
        BeforeValidator(one_or_many),
        Field(min_length=1, max_length=8, description="oidc: who signs the tokens; by default Google."),
    ] = GOOGLE_ISSUERS
    jwks_url: Annotated[KeysUrl, Field(description="oidc: where the issuer publishes its keys.")] = GOOGLE_KEYS_URL
    audience: Annotated[Audience | None, Field(description="oidc: what the tokens must be for.")] = None
    clients: Annotated[
        dict[ClientName, Client],
        Field(
            min_length=1,
            description='What each client may do; no other client may write. With keys, by the names in the Secret: `"*"` is '
            "every client that isn't named, and without `clients` each key may write everything. With oidc, by the token's "
            "verified email or its subject.",
        ),
    ] = {}
    grace: Annotated[
        timedelta | None,
        Between("0s", "24h"),
        Field(
            description="How long keys stay valid that can't be confirmed. keys: since the file can't be read whole (by default "
            "60s). oidc: since the issuer's keys became an hour old, while it can't be reached (by default 1h)."
        ),
    ] = None

    @property
    def grace_time(self) -> timedelta:
        return _GRACE[self.kind] if self.grace is None else self.grace

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.kind == "keys" and self.secret is None:
            raise ValueError("kind keys needs a secret: {name: …}")
        if self.kind == "oidc" and self.audience is None:
            raise ValueError("kind oidc needs an audience; without one, tokens made for others would pass")
        if self.kind == "oidc" and not self.clients:
            raise ValueError("kind oidc needs clients; without them, everybody who has an account could write")
        if self.kind == "none" and self.clients:
            raise ValueError("clients need kind: keys or kind: oidc, which tell them apart")
        if self.kind == "oidc" and ANY_OTHER in self.clients:
            raise ValueError(f"kind oidc takes no client {ANY_OTHER!r}: everybody who has an account could write")
        if self.kind == "none" and self.grace is not None:
            raise ValueError("grace needs kind: keys or kind: oidc, whose keys it is for")
        return self


AuthSetting = Annotated[Auth, OrJust("kind", ("none",))]


class Outcomes(Model):
    max_wait: Annotated[
        timedelta,
        Between("1s", "60s"),
        Field(
            description="The longest that a request waits for its write; a longer `Prefer: wait` is shortened to it."
        ),
    ] = timedelta(seconds=10)
    max_waiting: Annotated[
        int,
        Field(ge=1, le=100_000, description="Requests that wait at once, at one replica; more of them don't wait."),
    ] = 1_000


class Gateway(Model):
    autoscaling: AutoscalingSetting = Autoscaling()
    resources: Resources = Resources()
    auth: AuthSetting
    rate_limit: Annotated[
        WritesASecond | None,
        Field(description="Writes a second of one client at one replica; without `auth`, of one address."),
    ] = None
    max_body_bytes: Annotated[int, Field(ge=1_024, le=9 * 1024**2, description="Of one write.")] = 1024**2
    max_in_flight_writes: Annotated[
        int,
        Field(
            ge=1, le=1_000_000, description="Accepted and not yet confirmed by Pub/Sub, at one replica; above that 429."
        ),
    ] = 20_000
    max_in_flight_bytes: Annotated[int, Field(ge=1024**2, le=4 * 1024**3)] = 64 * 1024**2
    publish_timeout: Annotated[
        timedelta, Between("1s", "60s"), Field(description="How long Pub/Sub may take for a write before a 503.")
    ] = timedelta(seconds=10)
    drain_timeout: Annotated[
        timedelta,
        Between("1s", "600s"),
        Field(description="How long a stopping replica may take to finish its requests."),
    ] = timedelta(seconds=20)
    pre_stop: Annotated[
        timedelta,
        Between("0s", "300s"),
        Field(description="How long a pod runs on before SIGTERM: time for the Service to stop sending it requests."),
    ] = timedelta(seconds=5)
    outcomes: Annotated[
        Outcomes | None,
        Field(
            description="Tell clients what became of their writes: GET /v1/writes/{type}/{key}/{idempotency_key}, and "
            "`Prefer: wait`. The gateway then reads the shards' databases. Off when left out."
        ),
    ] = None
    from_namespaces: Annotated[
        tuple[Label, ...],
        BeforeValidator(as_tuple),
        Field(
            description="With a network_policy: whose pods may connect, besides those that scrape; everybody when left out."
        ),
    ] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="before")
    @classmethod
    def _says_who_may_write(cls, data: object) -> object:
        if isinstance(data, dict) and "auth" not in data:
            raise ValueError(
                "auth is missing: who may write? Give auth with kind: keys or kind: oidc, or write `auth: none` where anybody "
                "who reaches the gateway may write"
            )
        return data

    @model_validator(mode="after")
    def _no_backlog_to_watch(self) -> Self:
        if self.autoscaling.kind == "keda":
            raise ValueError("autoscaling: a gateway has no backlog for KEDA to watch; use hpa or none")
        return self

    @model_validator(mode="after")
    def _one_write_fits(self) -> Self:
        if self.max_in_flight_bytes < 2 * self.max_body_bytes:
            raise ValueError("max_in_flight_bytes must be at least twice max_body_bytes")
        return self


OPEN = Gateway(auth=Auth(kind="none"))  # where the file has no gateway: for this machine alone
