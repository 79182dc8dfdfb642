"""The site of these pages, built by Sphinx: `make site`. The pages stay plain Markdown with relative links.

Its navigation is README.md's: each `## ` heading there is a part, and the pages that it links to first are the part's pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
INDEX = "README"
LINK = re.compile(r"\]\(((?:\w[\w-]*/)?[\w-]+)\.md[#)]")  # to pages under docs/
OUTSIDE = re.compile(r"\[([^]]+)\]\((\.\./[\w./-]+\.md)\)")  # to pages that are not under docs/

project = "shardctl"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = INDEX
myst_heading_anchors = 4  # as a code host has them
suppress_warnings = ["misc.highlighting_failure"]  # code that leaves something out with "…" has fewer colours
html_theme = "furo"
html_title = "shardctl"
html_favicon = str(ROOT / "shardctl/ui/static/icon.svg")
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"


def navigation(text: str) -> dict[str, list[str]]:
    """The pages of each part, each page once: in the first part that links to it."""
    parts: dict[str, list[str]] = {}
    seen: set[str] = set()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, content = section.partition("\n")
        parts[title] = [page for page in dict.fromkeys(LINK.findall(content)) if page not in seen]
        seen.update(parts[title])
    return parts


def _adapt(_app: object, name: str, content: list[str]) -> None:
    """What a code host needs otherwise: pages outside docs/ are no pages of the site, and it shows a directive as code."""
    if "/" not in name:  # from a page in a folder, `../` still leads to pages of the site
        content[0] = OUTSIDE.sub(r"{download}`\1 <\2>`", content[0])
    if name == INDEX:
        for title, pages in navigation(content[0]).items():
            content[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```\n"


def _add_index(app: Any, fault: Exception | None) -> None:
    """A web server opens index.html."""
    if fault is None and app.builder.name == "html":
        away = f'<meta http-equiv="refresh" content="0; url={INDEX}.html">'
        page = f'<!doctype html><meta charset="utf-8"><title>{project}</title>{away}\n'
        Path(app.outdir, "index.html").write_text(page)


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", _adapt)
    app.connect("build-finished", _add_index)
    return {"parallel_read_safe": True}
