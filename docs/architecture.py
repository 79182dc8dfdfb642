"""Draws the pictures in ARCHITECTURE.md from the code: the packages, the consumer's folders, and which imports which.

    python docs/architecture.py

An arrow points from the package that imports to the package that is imported. An arrow that follows from two others is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
END = "<!-- end of the drawing -->"
PLANES = ("shardctl", "consumer")


def modules(*planes: str) -> dict[str, Path]:
    """Every module of the planes by its dotted name."""
    paths = [path for plane in planes for path in sorted((ROOT / plane).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(source: str, module: str, known: Mapping[str, Path], *, package: bool = False) -> Iterator[str]:
    """The dotted names of our modules that a module imports: at the top, inside a function, or for the type checker alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in PLANES)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") if package else module.split(".")[:-1]
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            if base.partition(".")[0] in PLANES:
                for alias in node.names:
                    name = f"{base}.{alias.name}"
                    yield name if name in known else base


def graph(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """What each module imports of ours, itself left out."""
    return {
        module: set(imports(path.read_text(), module, known, package=path.name == "__init__.py")) - {module}
        for module, path in known.items()
    }


def folder_of(module: str) -> str:
    """The folder of its plane that a module stands in, or the module itself where it stands at the plane's root."""
    return "/".join(module.split(".")[:2])


def room_of(module: str) -> str:
    """Where the picture of the packages has a module: as `folder_of`, but with the whole data plane as one."""
    return "consumer" if module.partition(".")[0] == "consumer" else folder_of(module)


def rooms(modules_imported: Mapping[str, set[str]], room_of: Callable[[str], str]) -> dict[str, set[str]]:
    """The graph of packages: what the modules of each import outside it."""
    graph_of_rooms: dict[str, set[str]] = {}
    for module, imported in modules_imported.items():
        graph_of_rooms.setdefault(room_of(module), set()).update(room_of(name) for name in imported)
    return {room: imported - {room} for room, imported in graph_of_rooms.items()}


def reachable(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        for room in edges.get(ahead.pop(), set()) - seen:
            seen.add(room)
            ahead.append(room)
    return seen


def joined(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same graph with packages that need each other as one, so that it has no circle. No two of their modules do."""
    names = {
        room: "+".join(sorted({room} | {far for far in reachable(room, edges) if room in reachable(far, edges)}))
        for room in edges
    }
    imports_by_name: dict[str, set[str]] = {}
    for room, imported in edges.items():
        imports_by_name.setdefault(names[room], set()).update(names[far] for far in imported)
    return {room: imported - {room} for room, imported in imports_by_name.items()}


def direct(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The edges that don't follow from others: the transitive reduction of an acyclic graph."""
    return {
        room: imported - {far for near in imported for far in reachable(near, edges)}
        for room, imported in edges.items()
    }


def packages() -> dict[str, set[str]]:
    """What the picture of both planes shows: what imports what, without what every module may import or nobody does."""
    edges = rooms(graph(modules(*PLANES)), room_of)
    edges.pop("shardctl", None)  # the public face names everything it gives
    return {room: imported - {"shardctl"} for room, imported in edges.items() if room != "shardctl/__main__"}


def consumer_folders() -> dict[str, set[str]]:
    """What the picture of the data plane shows: its folders and the modules at its root."""
    edges = rooms(graph(modules("consumer")), folder_of)
    return {
        folder: {name for name in imported if name.startswith("consumer/")}
        for folder, imported in edges.items()
        if folder not in {"consumer", "consumer/__main__"}
    }


def drawing(edges: dict[str, set[str]]) -> str:
    """The picture as a Mermaid flow chart, the same for the same code."""
    edges = joined(edges)
    lines = ["```mermaid", "flowchart LR"]
    for room in sorted(edges):
        titles = [f"{name.rpartition('/')[2]}{'' if _is_module(name) else '/'}" for name in room.split("+")]
        lines.append(f'  {_id(room)}["{" and ".join(titles)}"]')
    lines += [f"  {_id(room)} --> {_id(other)}" for room in sorted(edges) for other in sorted(direct(edges)[room])]
    return "\n".join([*lines, "```"])


def _is_module(room: str) -> bool:
    return (ROOT / f"{room}.py").exists()


def _id(room: str) -> str:
    return room.replace("/", "_").replace("+", "_and_")


PICTURES: Mapping[str, Callable[[], dict[str, set[str]]]] = {
    "<!-- packages, drawn by docs/architecture.py -->": packages,
    "<!-- the consumer's folders, drawn by docs/architecture.py -->": consumer_folders,
}


def page() -> str:
    """ARCHITECTURE.md with today's pictures."""
    text = PAGE.read_text()
    for begin, edges in PICTURES.items():
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(END)
        text = f"{before}{begin}\n{drawing(edges())}\n{END}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
