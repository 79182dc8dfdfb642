"""`databases` of `shards.yaml`: which kinds of database a body must fit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from shardctl.fleet.scalars import one_or_many

DatabaseKind = Literal["postgresql", "mariadb", "mysql", "sqlite"]

DatabaseKinds = Annotated[
    tuple[DatabaseKind, ...],
    BeforeValidator(one_or_many),
    Field(
        min_length=1,
        max_length=4,
        description="The kinds of database that the shards have. Gateway and publishers refuse a value that one of these kinds "
        "can't hold exactly.",
    ),
]
DEFAULT_KINDS: tuple[DatabaseKind, ...] = ("postgresql", "mariadb")
