"""What google.pubsub.v1.SchemaService's methods do."""

from __future__ import annotations

from collections.abc import Mapping

from shardctl.broker import names
from shardctl.broker.errors import InvalidArgumentError
from shardctl.broker.method import Method
from shardctl.broker.paging import page_of
from shardctl.broker.protos import Encoding, Proto, SchemaView, of
from shardctl.broker.registry import Registry
from shardctl.broker.schemas import read_definition
from shardctl.broker.stream import Clock

Schema = of("Schema")


class SchemaService:
    """A view that isn't given is full for one schema, and basic, without definitions, in listings."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry, self._schemas, self._clock = registry, registry.schemas, clock
        self.methods: Mapping[str, Method] = {
            "CreateSchema": Method("CreateSchemaRequest", self._create),
            "GetSchema": Method(
                "GetSchemaRequest", lambda r: _viewed(self._schemas.get(r.name).config, r.view != SchemaView.BASIC)
            ),
            "ListSchemas": Method("ListSchemasRequest", self._list),
            "ListSchemaRevisions": Method("ListSchemaRevisionsRequest", self._list_revisions),
            "CommitSchema": Method(
                "CommitSchemaRequest", lambda r: self._schemas.commit(r.name, r.schema, self._clock())
            ),
            "RollbackSchema": Method(
                "RollbackSchemaRequest", lambda r: self._schemas.rollback(r.name, r.revision_id, self._clock())
            ),
            "DeleteSchemaRevision": Method(
                "DeleteSchemaRevisionRequest", lambda r: registry.delete_schema_revision(r.name)
            ),
            "DeleteSchema": Method("DeleteSchemaRequest", lambda r: registry.delete_schema(r.name)),
            "ValidateSchema": Method("ValidateSchemaRequest", self._validate),
            "ValidateMessage": Method("ValidateMessageRequest", self._validate_message),
        }

    def _create(self, request: Proto) -> Proto:
        parent = names.check_project(request.parent)
        return self._schemas.create(f"{parent}/schemas/{request.schema_id}", request.schema, self._clock())

    def _list(self, request: Proto) -> Proto:
        page, token = page_of(names.in_project(self._schemas.revisions, request.parent), request)
        shown = [_viewed(self._schemas.get(name).config, request.view == SchemaView.FULL) for name in page]
        return of("ListSchemasResponse")(schemas=shown, next_page_token=token)

    def _list_revisions(self, request: Proto) -> Proto:
        """Oldest first. They have at most as many as a page holds, so they page by their place."""
        configs = {f"{place:04}": revision.config for place, revision in enumerate(self._schemas.of(request.name))}
        page, token = page_of(configs, request)
        shown = [_viewed(configs[place], request.view == SchemaView.FULL) for place in page]
        return of("ListSchemaRevisionsResponse")(schemas=shown, next_page_token=token)

    def _validate(self, request: Proto) -> Proto:
        names.check_project(request.parent)
        read_definition(request.schema)
        return of("ValidateSchemaResponse")()

    def _validate_message(self, request: Proto) -> Proto:
        """Against the schema that is given or the latest revision of the one that is named."""
        names.check_project(request.parent)
        if request.encoding not in {Encoding.JSON, Encoding.BINARY}:
            raise InvalidArgumentError("ValidateMessage needs an encoding, JSON or BINARY.")
        definition = self._schemas.get(request.name).definition if request.name else read_definition(request.schema)
        if not definition.fits(request.message, json=request.encoding == Encoding.JSON):
            raise InvalidArgumentError("The message doesn't fit the schema.")
        return of("ValidateMessageResponse")()


def _viewed(config: Proto, full: bool) -> Proto:
    if full:
        return config
    basic = Schema()
    basic.CopyFrom(config)
    basic.ClearField("definition")
    return basic
