"""Refusals of the page's server as RFC 9457 describes them: `application/problem+json`."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818 - the RFC's word
    """A request ends with this answer. `now` is the present state where that isn't what the page showed."""

    def __init__(self, status: int, detail: str, now: Mapping[str, object] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.now = status, detail, now

    def response(self) -> JSONResponse:
        members = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": int(self.status)}
        content = {**members, "detail": self.detail, **({"now": dict(self.now)} if self.now is not None else {})}
        headers = {"WWW-Authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else None
        return JSONResponse(content, self.status, headers, MEDIA_TYPE)
