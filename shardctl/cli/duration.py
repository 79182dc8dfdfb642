"""An option that is a length of time."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from shardctl.errors import UsageError


def read_duration(option: str, text: str, least: str, most: str) -> timedelta:
    """What the option says, such as 10m. Raises UsageError."""
    from pydantic import TypeAdapter, ValidationError

    from shardctl.fleet.scalars import Between

    try:
        return TypeAdapter(Annotated[timedelta, Between(least, most)]).validate_python(text)
    except ValidationError as error:
        raise UsageError(f"{option}: {error.errors()[0]['ctx']['error']}.") from error
