"""`delivery` of `shards.yaml`: whether consumers fetch messages, or Pub/Sub sends them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shardctl.model import Model, OrJust
from shardctl.scalars import Text
from shardctl.settings.http import Url

ServiceAccountEmail = Annotated[
    str, Text(r"[-a-z0-9]+@[-a-z0-9.]+", "a service account's address, name@project.iam.gserviceaccount.com", 254)
]


class Delivery(Model):
    kind: Literal["pull", "push"] = "pull"
    url: Annotated[
        Url | None,
        Field(description="push: where Pub/Sub reaches the consumers; the subscription's id is added to it."),
    ] = None
    service_account: Annotated[
        ServiceAccountEmail | None, Field(description="push: who signs the requests; each must carry its token.")
    ] = None
    audience: Annotated[
        Annotated[str, Text(r"[!-~]+", "a URL or a name, without blanks", 500)] | None,
        Field(description="push: what the tokens are for; by default `url`."),
    ] = None
    wrapped: Annotated[bool, Field(description="push: false sends the body as it is, and attributes as headers.")] = (
        True
    )

    @model_validator(mode="after")
    def _push_is_whole(self) -> Self:
        if self.kind == "push" and (self.url is None or self.service_account is None):
            raise ValueError("push needs a url and a service_account")
        return self


DeliverySetting = Annotated[Delivery, OrJust("kind", ("pull",))]
