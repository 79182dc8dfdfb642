"""`delivery` of `shards.yaml`: whether consumers fetch messages, or Pub/Sub sends them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shardctl.fleet.model import Model, OrJust
from shardctl.fleet.scalars import Text
from shardctl.fleet.settings.httpauth import LOOPBACK, Audience, Url

ServiceAccountEmail = Annotated[
    str, Text(r"[-a-z0-9]+@[-a-z0-9.]+", "a service account's address, name@project.iam.gserviceaccount.com", 254)
]


class Delivery(Model):
    kind: Literal["pull", "push"] = "pull"
    url: Annotated[
        Url | None,
        Field(
            description="push: where Pub/Sub reaches the consumers. The shard's name and the subscription's id are added to it."
        ),
    ] = None
    service_account: Annotated[
        ServiceAccountEmail | None, Field(description="push: who signs the requests; each must carry its token.")
    ] = None
    audience: Annotated[
        Audience | None,
        Field(description="push: what the tokens are for; by default `url`."),
    ] = None
    wrapped: Annotated[bool, Field(description="push: false sends the body as it is, and attributes as headers.")] = (
        True
    )

    @model_validator(mode="after")
    def _push_is_whole(self) -> Self:
        if self.kind == "push" and (self.url is None or self.service_account is None):
            raise ValueError("push needs a url and a service_account")
        if self.url and ("?" in self.url or "#" in self.url):
            raise ValueError("url ends in a path, to which more is added: leave out '?' and '#'")
        if self.url and self.url.startswith("http://") and not LOOPBACK.match(self.url):
            raise ValueError("the tokens would go over http:// in the clear; use https://")
        return self

    @property
    def token_audience(self) -> str:
        """What a push's token must be for."""
        return self.audience or self.url or ""


DeliverySetting = Annotated[Delivery, OrJust("kind", ("pull",))]
