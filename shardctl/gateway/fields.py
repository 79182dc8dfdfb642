"""How a request names what is at fault in it. Pure."""

from __future__ import annotations

from shardctl.wire.bodies import BodyError
from shardctl.wire.jsontext import JsonError


class FieldError(ValueError):
    """Something in a request is invalid. `where` is a JSON pointer into the body, or the name of what else is at fault.

    `kind` says which: pointer, parameter or header.
    """

    def __init__(self, where: str, message: str, kind: str = "pointer") -> None:
        super().__init__(message)
        self.where, self.kind = where, kind

    @classmethod
    def of_body(cls, error: BodyError | JsonError) -> FieldError:
        return cls(pointer(*error.where), str(error))


def pointer(*names: str) -> str:
    """A JSON pointer as a URI fragment writes it."""
    return "#" + "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)
