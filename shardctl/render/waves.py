"""Argo CD's sync waves: in which order it applies what is rendered. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from shardctl.render.kinds import stage_of

ANNOTATION = "argocd.argoproj.io/sync-wave"
_METADATA = re.compile(r"^metadata:\n(?P<fields>(?:  .*\n)+)", re.MULTILINE)


def of_kind(kind: str) -> Mapping[str, str]:
    """The stages of `shardctl apply`: Argo CD waits until a wave is healthy, too, before it begins the next one."""
    return {ANNOTATION: str(int(stage_of(kind)))}


def annotated(text: str, added: Mapping[str, str]) -> str:
    """The document with more annotations of the object itself. Raises ValueError where its metadata can't be found."""
    metadata = _METADATA.search(text)
    if metadata is None:
        raise ValueError("there is no `metadata:` at the beginning of a line, with its fields below it")
    lines = "".join(f'    {name}: "{value}"\n' for name, value in added.items())
    fields = metadata["fields"]
    head = "  annotations:\n"
    whole = fields.replace(head, head + lines, 1) if head in fields else fields + head + lines
    return text[: metadata.start("fields")] + whole + text[metadata.end("fields") :]
