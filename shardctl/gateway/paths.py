"""The path under which a gateway says what became of a write: `/v1/writes/{type}/{key}/{idempotency_key}`. Pure."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from shardctl.gateway.fields import FieldError
from shardctl.wire.message import InvalidWriteError, check_key

WRITES = "/v1/writes/"


class WritePath(NamedTuple):
    type: str
    key: str
    idempotency_key: str

    @property
    def text(self) -> str:
        """As a URL has it. A slash within a part is encoded; that of a type's name may stand as it is."""
        return f"{WRITES}{quote(self.type)}/{quote(self.key, safe='')}/{quote(self.idempotency_key, safe='')}"

    @classmethod
    def read(cls, raw: bytes) -> WritePath | None:
        """The parts of a path as it came; None where it has fewer. Raises FieldError."""
        rest = raw.removeprefix(WRITES.encode())
        parts = rest.rsplit(b"/", 2)
        if rest == raw or len(parts) != 3:
            return None
        kind, key, idempotency_key = (_decoded(name, part) for name, part in zip(cls._fields, parts, strict=True))
        for name, what, value in (
            ("key", "the routing key", key),
            ("idempotency_key", "the idempotency key", idempotency_key),
        ):
            try:
                check_key(what, value)
            except InvalidWriteError as error:
                raise FieldError(name, str(error), "parameter") from error
        return cls(kind, key, idempotency_key)


def _decoded(name: str, part: bytes) -> str:
    try:
        return unquote_to_bytes(part).decode()
    except UnicodeDecodeError as error:
        raise FieldError(name, "the path isn't UTF-8, percent-encoded", "parameter") from error
