"""`shardctl render`: manifests to stdout, or one file an object."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardctl.cli.cluster import TemplatesOption
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, print_diff, say
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, ShardctlError, UsageError

if TYPE_CHECKING:
    from shardctl.fleet.spec import Fleet
    from shardctl.render import Document


class Format(StrEnum):
    kubernetes = "kubernetes"
    terraform = "terraform"
    gcloud = "gcloud"


class NothingRenderedError(ShardctlError):
    """No object is of the kinds that were asked for."""

    exit_code = EXIT_REFUSED


class Kustomize(StrEnum):
    kustomization = "kustomization"
    component = "component"


KustomizeOption = Annotated[
    Kustomize | None,
    typer.Option(
        "--kustomize", help="With --output: also write kustomization.yaml, as a base or as a component of overlays."
    ),
]


def render(
    file: FileOption = DEFAULT_FILE,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write one file an object into this folder.")
    ] = None,
    shard: Annotated[
        list[str] | None, typer.Option("--shard", metavar="S", help="Only this shard's objects; may be repeated.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", metavar="K", help="Only objects of this kind; may be repeated.")
    ] = None,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="Kubernetes manifests, or what lies in Google Cloud as a Terraform module or as a shell script.",
        ),
    ] = Format.kubernetes,
    templates: TemplatesOption = None,
    kustomize: KustomizeOption = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check", metavar="DIR", help="Write nothing; compare with this folder, and exit 1 on a difference."
        ),
    ] = None,
) -> int:
    """Print the fleet's Kubernetes manifests, ready for `kubectl apply --server-side -f -`; or its part in Google Cloud.

    The namespace has to be there, or be rendered with `create_namespace: true`. `shardctl apply` also checks, waits and deletes.
    """
    from shardctl import lockfile
    from shardctl.fleet.load import load_fleet
    from shardctl.render import documents, warnings

    if output and check:
        raise UsageError("--output writes and --check doesn't; give one of the two.")
    if kustomize and (output is None or shard or kind or form is not Format.kubernetes):
        raise UsageError(
            "--kustomize lists all files of a folder: give --output, and leave out --shard, --kind, --format."
        )
    fleet = load_fleet(file)
    lockfile.check(file, fleet)
    if form is Format.kubernetes:
        rendered = documents(fleet, shards=shard or (), kinds=kind or (), templates=templates)
    elif shard or kind or templates:
        raise UsageError(
            f"--format {form} renders the whole fleet without templates; leave out --shard, --kind, --templates."
        )
    else:
        rendered = iter([_in_one_file(fleet, form)])
    for warning in warnings(fleet):
        say(f"warning: {warning}")
    everything = form is Format.kubernetes and not (shard or kind)
    rendered = _with_each(rendered, kind or (), shard or ())
    if check is not None:
        return _check(rendered, check, everything=everything)
    if output is not None:
        return _write(rendered, output, kustomize, everything=everything)
    return _print(rendered, parted=form is Format.kubernetes)


def _with_each(rendered: Iterable[Document], kinds: Sequence[str], shards: Sequence[str]) -> Iterator[Document]:
    """The documents; names the asked kinds that the fleet has none of. Raises NothingRenderedError after none at all.

    What reads the output would take nothing for success, or fail without a reason.
    """
    from shardctl.fleet.names import listed

    seen = set()
    for document in rendered:
        seen.add(document.kind.lower())
        yield document
    absent = list(dict.fromkeys(kind for kind in kinds if kind.lower() not in seen))
    whose = f"of {listed(shards)} alone" if shards else "of the fleet"
    if absent and not seen:
        raise NothingRenderedError(
            f"nothing is rendered: with the file as it is, no object {whose} has the kind {listed(absent)}."
        )
    if absent:
        say(f"no object {whose} has the kind {listed(absent)}.")


def _in_one_file(fleet: Fleet, form: Format) -> Document:
    from shardctl.render import Document, gcloud, terraform

    if fleet.provisioner == "config-connector":
        say(f"warning: provisioner is config-connector, which would make the same objects; set `provisioner: {form}`")
    if form is Format.terraform:
        return Document("Terraform", fleet.fleet, None, f"{fleet.fleet}.tf.json", terraform.text(fleet))
    return Document("gcloud", fleet.fleet, None, f"{fleet.fleet}.sh", gcloud.text(fleet))


def _check(rendered: Iterable[Document], folder: Path, *, everything: bool) -> int:
    """Diffs go to stdout, one line a file to stderr."""
    from shardctl.render.check import differences

    count = 0
    for difference in differences(rendered, folder, everything=everything):
        say(str(difference))
        print_diff(difference.diff)
        count += 1
    if count:
        say(
            f"{count} of the files in {folder} differ from the rendered ones; the same command with -o for --check writes them."
        )
        return EXIT_REFUSED
    say(f"{folder}: as rendered")
    return EXIT_DONE


def _print(rendered: Iterable[Document], *, parted: bool) -> int:
    for document in rendered:
        sys.stdout.buffer.write(b"---\n" * parted + document.text.encode())
    return EXIT_DONE


def _write(rendered: Iterable[Document], folder: Path, kustomize: Kustomize | None, *, everything: bool) -> int:
    """Write the files whose bytes differ, each whole. Deletes nothing: files of an earlier render are only reported.

    After an error, the files that were reported before it are written.
    """
    from shardctl.render import kustomize as kustomizations
    from shardctl.render import manifests
    from shardctl.render.check import unknown

    known = []
    for document in rendered:
        path, change = manifests.write(document, folder)
        known.append(path)
        say(f"{change} {path}")
    if everything:
        for path in unknown(folder, known):
            say(f"unknown {path}: not part of this fleet, left as it is; delete it if an earlier render wrote it")
    if kustomize is not None:
        kustomizations.write(folder, known, "Component" if kustomize is Kustomize.component else "Kustomization")
    return EXIT_DONE
