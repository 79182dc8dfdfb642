"""`topic` of `shards.yaml`: the fleet's topics, what encrypts their messages, and where those may be stored."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from shardctl.fleet.model import Model, OrJust
from shardctl.fleet.scalars import TOPIC_ID, Region, Text, TopicId, as_tuple

KmsKey = Annotated[
    str,
    Text(
        r"projects/([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]/locations/[a-z0-9]+(-[a-z0-9]+)*"
        r"/keyRings/[-_A-Za-z0-9]{1,63}/cryptoKeys/[-_A-Za-z0-9]{1,63}",
        "a Cloud KMS key, projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY, without a version",
        300,
    ),
]

Endpoint = Annotated[
    str,
    Text(
        r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+(:[1-9][0-9]{0,4})?",
        "a host of Pub/Sub, such as europe-west3-pubsub.googleapis.com, without https://",
        260,
    ),
]


class Topic(Model):
    """The settings of every topic that the fleet has: those that writes are published to, and the dead-letter topic."""

    name: Annotated[
        TopicId,
        Field(
            description="The topic's id; routing.topic_bits adds a number to it. The dead-letter topic is `NAME-dead`."
        ),
    ] = "data-writes"
    kms_key: Annotated[
        KmsKey | None,
        Field(
            description="A key of yours in Cloud KMS that encrypts the messages. Pub/Sub's service agent must be allowed to use "
            "it, which needs `project_number`."
        ),
    ] = None
    allowed_regions: Annotated[
        tuple[Region, ...],
        Field(
            min_length=1,
            description="The only regions in which messages are stored; by default those of the topic or of an organisation's "
            "policy.",
        ),
        BeforeValidator(as_tuple),
    ] = ()
    enforce_in_transit: Annotated[
        bool,
        Field(description="Pub/Sub also refuses to publish and to deliver in any region but `allowed_regions`."),
    ] = False
    endpoint: Annotated[
        Endpoint | None,
        Field(
            description="Where all that this file configures reaches Pub/Sub: a regional endpoint, such as "
            "europe-west3-pubsub.googleapis.com. By default the global one, which leads to the nearest region."
        ),
    ] = None

    @model_validator(mode="after")
    def _regions_make_sense(self) -> Self:
        if len(set(self.allowed_regions)) != len(self.allowed_regions):
            raise ValueError("allowed_regions: a region is named twice")
        if self.enforce_in_transit and not self.allowed_regions:
            raise ValueError("enforce_in_transit needs allowed_regions")
        return self


TopicSetting = Annotated[Topic, OrJust("name", TOPIC_ID)]
