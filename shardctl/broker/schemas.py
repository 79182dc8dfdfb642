"""Every schema of the broker with its revisions, and what they make of a topic's messages. No I/O; `now` is passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from shardctl.broker import names
from shardctl.broker.avro import Avro
from shardctl.broker.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from shardctl.broker.protos import Encoding, Proto, of

DELETED_SCHEMA, DELETED_REVISION = "_deleted-schema_", "_deleted-schema-revision_"
MAX_DEFINITION_BYTES = 300_000
MAX_REVISIONS = 20
_PREFIX = "googclient_schema"

Schema = of("Schema")


@dataclass(frozen=True, slots=True)
class Revision:
    config: Proto
    definition: Avro


class Schemas:
    """By name; the revisions of each in the order in which they were made. A schema has one at least."""

    def __init__(self) -> None:
        self.revisions: dict[str, list[Revision]] = {}

    def create(self, name: str, schema: Proto, now: float) -> Proto:
        names.check("schemas", name)
        definition = read_definition(schema)
        if name in self.revisions:
            raise AlreadyExistsError(f"Resource already exists in the project (resource={name}).")
        self.revisions[name] = []
        return self._add(name, schema, definition, now)

    def get(self, name: str) -> Revision:
        """`projects/P/schemas/S` → its latest revision, `projects/P/schemas/S@R` → that one."""
        name, _, revision_id = name.partition("@")
        revisions = self.of(name)
        return revisions[_position(name, revisions, revision_id)] if revision_id else revisions[-1]

    def of(self, name: str) -> list[Revision]:
        names.check("schemas", name)
        if name not in self.revisions:
            raise NotFoundError(f"Resource not found (resource={name}).")
        return self.revisions[name]

    def commit(self, name: str, schema: Proto, now: float) -> Proto:
        """Unlike the service, this makes no comparison with the revision before."""
        revisions = self.of(name)
        definition = read_definition(schema)
        if schema.type_ != revisions[-1].config.type_:
            raise InvalidArgumentError("A schema's type can't change from one revision to the next.")
        return self._add(name, schema, definition, now)

    def rollback(self, name: str, revision_id: str, now: float) -> Proto:
        """A revision like the named one becomes the latest."""
        revisions = self.of(name)
        earlier = revisions[_position(name, revisions, revision_id)]
        return self._add(name, earlier.config, earlier.definition, now)

    def delete_revision(self, name: str) -> Proto:
        name, _, revision_id = name.partition("@")
        revisions = self.of(name)
        position = _position(name, revisions, revision_id)
        if len(revisions) == 1:
            raise InvalidArgumentError("A schema's last revision can't be deleted: use DeleteSchema.")
        return revisions.pop(position).config

    def delete(self, name: str) -> None:
        self.of(name)
        del self.revisions[name]

    def _add(self, name: str, schema: Proto, definition: Avro, now: float) -> Proto:
        revisions = self.revisions[name]
        if len(revisions) >= MAX_REVISIONS:
            raise FailedPreconditionError(f"A schema has at most {MAX_REVISIONS} revisions: delete some.")
        config = Schema(name=name, type_=schema.type_, definition=schema.definition, revision_id=uuid4().hex[:8])
        config.revision_create_time.FromMicroseconds(int(now * 1e6))
        revisions.append(Revision(config, definition))
        return config

    # -- topics ----------------------------------------------------------------------------------------------------

    def check_settings(self, settings: Proto) -> None:
        """Raises InvalidArgumentError or NotFoundError for a topic's settings that name no encoding, schema or revisions."""
        if settings.schema == DELETED_SCHEMA:
            return
        if settings.encoding not in {Encoding.JSON, Encoding.BINARY}:
            raise InvalidArgumentError("Invalid schema_settings: they need an encoding, JSON or BINARY.")
        revisions = self.of(settings.schema)
        for revision_id in filter(None, (settings.first_revision_id, settings.last_revision_id)):
            if revision_id != DELETED_REVISION:
                _position(settings.schema, revisions, revision_id)

    def stamps(self, settings: Proto, messages: Sequence[Proto]) -> Sequence[Mapping[str, str]]:
        """For each message the attributes that tell its readers its schema. The newest revision that it fits is its own.

        Raises InvalidArgumentError if any fits none, NotFoundError if the schema was deleted.
        """
        if settings.schema not in self.revisions:
            raise NotFoundError("The topic's schema was deleted.")
        allowed = self._allowed(settings)
        as_json = settings.encoding == Encoding.JSON
        stamps = []
        for position, message in enumerate(messages):
            fitting = (revision for revision in allowed if revision.definition.fits(message.data, json=as_json))
            revision = next(fitting, None)
            if revision is None:
                raise InvalidArgumentError(f"Message {position} fits no revision of the topic's schema.")
            stamps.append(
                {
                    f"{_PREFIX}encoding": "JSON" if as_json else "BINARY",
                    f"{_PREFIX}name": settings.schema,
                    f"{_PREFIX}revisionid": revision.config.revision_id,
                }
            )
        return stamps

    def _allowed(self, settings: Proto) -> Sequence[Revision]:
        """Newest first. A bound that was deleted leaves none."""
        revisions = self.revisions[settings.schema]
        ids = [revision.config.revision_id for revision in revisions]
        first, last = settings.first_revision_id or ids[0], settings.last_revision_id or ids[-1]
        if first not in ids or last not in ids:
            return ()
        return revisions[ids.index(first) : ids.index(last) + 1][::-1]


def read_definition(schema: Proto) -> Avro:
    """Raises InvalidArgumentError, or UnimplementedError for what only the service can read."""
    if schema.type_ == Schema.PROTOCOL_BUFFER:
        raise UnimplementedError("This broker can't do schemas of type PROTOCOL_BUFFER: use AVRO, or Pub/Sub itself.")
    if schema.type_ != Schema.AVRO:
        raise InvalidArgumentError("Invalid schema: it needs a type, such as AVRO.")
    if len(schema.definition.encode()) > MAX_DEFINITION_BYTES:
        raise InvalidArgumentError(f"Invalid schema: a definition has at most {MAX_DEFINITION_BYTES} bytes.")
    return Avro(schema.definition)


def _position(name: str, revisions: Sequence[Revision], revision_id: str) -> int:
    for position, revision in enumerate(revisions):
        if revision.config.revision_id == revision_id:
            return position
    raise NotFoundError(f"Resource not found (resource={name}@{revision_id}).")
