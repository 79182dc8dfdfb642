"""How long a fleet of 1,000 shards takes to render, and whether 10,000 take ten times as long.

    python -m bench.render [--json] [--runs N] [--no-others]

Each figure is wall time on one core, from the text of shards.yaml in memory to the last byte of the last object; the best of
the runs, each in this process after one small run that compiles the templates. `_cpu_s` is the same run's CPU time: on a busy
machine it is the better figure. Beside it stand kustomize (`kubectl kustomize` over one overlay a shard) and cdk8s, where they
are found: they make the objects of 1,000 shards from a base that is already rendered, so they do less.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from bench.report import parser_of, show
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.render import documents

HEAD = """
fleet: orders
project: my-project
project_number: "123456789012"
image: example.com/consumer:1.0
routing: {slot_bits: 14}
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text, note: text}}
shards:
"""
SLOTS = 1 << 14
OTHERS_SECONDS = 600


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-others", action="store_true", help="leave out kustomize and cdk8s")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    _render(10)
    result: dict[str, float | int | None] = {}
    for shards in (1_000, 10_000):
        wall, cpu, objects = min(_timed(shards) for _ in range(options.runs if shards == 1_000 else 1))
        result |= {f"shards_{shards}_s": wall, f"shards_{shards}_cpu_s": cpu, f"shards_{shards}_objects": objects}
    for name, run in {"kustomize": _kustomize, "cdk8s": _cdk8s}.items():
        result[f"{name}_1000_s"] = None if options.no_others else _elapsed(run, 1_000)
    show(result, options.json)


def file_of(shards: int) -> str:
    """shards.yaml with as many shards, of one size or its double, the larger first: on boundaries that keep filters short."""
    size = 1 << ((SLOTS // shards).bit_length() - 1)
    doubles, lines, first = SLOTS // size - shards, [], 0
    for number in range(shards):
        last = first + (2 * size if number < doubles else size) - 1
        lines.append(f"  - {{name: s{number}, slots: {first}-{last}}}\n")
        first = last + 1
    return HEAD + "".join(lines)


def _render(shards: int) -> int:
    return sum(1 for _ in documents(fleet_from(parse(file_of(shards)))))


def _timed(shards: int) -> tuple[float, float, int]:
    cpu, wall = time.process_time(), time.perf_counter()
    objects = _render(shards)
    return round(time.perf_counter() - wall, 2), round(time.process_time() - cpu, 2), objects


# --- others -----------------------------------------------------------------------------------------------------------


def _elapsed(run: Callable[[int, Path], list[str] | None], shards: int) -> float | None:
    """Seconds of the command that `run` prepares in a folder; None where its tool isn't here, or takes too long."""
    with tempfile.TemporaryDirectory() as name:
        command = run(shards, Path(name))
        if command is None:
            return None
        begun = time.perf_counter()
        try:
            subprocess.run(command, cwd=name, stdout=subprocess.DEVNULL, check=True, timeout=OTHERS_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{command[0]}: not done after {OTHERS_SECONDS} s", file=sys.stderr)
            return None
        return round(time.perf_counter() - begun, 2)


def _base() -> list[dict]:
    """The objects of one shard."""
    fleet = fleet_from(parse(file_of(2)))
    return [yaml.safe_load(document.text) for document in documents(fleet, shards=["s0"])]


def _kustomize(shards: int, folder: Path) -> list[str] | None:
    """A base of one shard's objects, and an overlay a shard that renames and relabels it and sets the filter."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return None
    _write(folder / "base/all.yaml", yaml.safe_dump_all(_base()))
    _write(folder / "base/kustomization.yaml", "resources: [all.yaml]\n")
    for number in range(shards):
        overlay = {
            "resources": ["../../base"],
            "nameSuffix": f"-{number}",
            "labels": [{"pairs": {"shard": f"s{number}"}, "includeSelectors": True, "includeTemplates": True}],
            "patches": [
                {
                    "target": {"kind": "PubSubSubscription"},
                    "patch": f"- {{op: replace, path: /spec/filter, value: 'hasPrefix(attributes.slot,\"{number:014b}\")'}}",
                }
            ],
        }
        _write(folder / f"overlays/s{number}/kustomization.yaml", yaml.safe_dump(overlay))
    # One build an overlay: one build over all of them takes ever longer for each (77 s for 200 where 100 took 14 s).
    return ["sh", "-c", f'for overlay in overlays/*; do "{kubectl}" kustomize "$overlay"; done']


CDK8S = """
import json, sys
from cdk8s import ApiObject, App, Chart, JsonPatch
base, shards = json.load(open("base.json")), int(sys.argv[1])
app = App(outdir="out")
for number in range(shards):
    chart = Chart(app, f"s{number}")
    for at, item in enumerate(base):
        metadata = {**item["metadata"], "name": item["metadata"]["name"] + f"-{number}"}
        made = ApiObject(chart, str(at), api_version=item["apiVersion"], kind=item["kind"], metadata=metadata)
        for key in item.keys() - {"apiVersion", "kind", "metadata"}:
            made.add_json_patch(JsonPatch.add("/" + key, item[key]))
app.synth()
"""


def _cdk8s(shards: int, folder: Path) -> list[str] | None:
    if importlib.util.find_spec("cdk8s") is None or shutil.which("node") is None:
        return None
    _write(folder / "base.json", json.dumps(_base()))
    _write(folder / "app.py", CDK8S)
    return [sys.executable, "app.py", str(shards)]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main()
