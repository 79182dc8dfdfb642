"""A command of `shardctl` as a Kubernetes Job, with the identity of the fleet's operator. Pure.

It isn't part of what a fleet renders: `shardctl job` makes one for each command, and Kubernetes deletes it a day after its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shlex import join
from typing import Any

from shardctl.errors import EXIT_BUG, EXIT_REFUSED, EXIT_USAGE, EXIT_WAITING
from shardctl.fleet import operators, sqlproxies, topology
from shardctl.fleet.settings.operator import Operator
from shardctl.fleet.spec import Fleet
from shardctl.fleet.topology import database_url_variable
from shardctl.render import Document, cloudsql, document_of, operator
from shardctl.render.limits import certificates
from shardctl.render.objects import Object, Plan
from shardctl.render.templates import environment, lines

CONTAINER = "shardctl"
CHANGES_FILES, SENT = "shardctl/changes-files", "shardctl/sent"  # a label, and an annotation
LONGEST_NAME, DIGEST_CHARACTERS = 63, 8
TRIES = 6
KEPT_SECONDS = 24 * 60 * 60
GRACE_SECONDS = 120  # a command that is interrupted ends what it has begun
# What the command has decided: running it again would decide the same.
DECIDED = (EXIT_REFUSED, EXIT_USAGE, EXIT_BUG, EXIT_WAITING)


@dataclass(frozen=True, slots=True)
class Task:
    """What a Job runs. `words` name the command, `arguments` follow it.

    `files` are texts by name, the fleet's own file first. `new_shards` are shards to come, whose databases the command needs.
    `restarts`: it may be run again after a kill. `actor` is whom the audit log names.
    """

    words: tuple[str, ...]
    arguments: tuple[str, ...]
    files: Mapping[str, str]
    new_shards: tuple[str, ...] = ()
    changes_files: bool = False
    restarts: bool = True
    actor: str = ""

    @property
    def file(self) -> str:
        return next(iter(self.files))

    @property
    def command(self) -> tuple[str, ...]:
        return (*self.words, "-f", self.file, *self.arguments)

    def __str__(self) -> str:
        return join(["shardctl", *self.words, *self.arguments])


def name_of(fleet: Fleet, task: Task) -> str:
    """The same for the same command on the same files, so that two of them are one Job."""
    content = json.dumps([task.command, dict(task.files), fleet.image], ensure_ascii=False)
    digest = sha256(content.encode()).hexdigest()[:DIGEST_CHARACTERS]
    words = "-".join((fleet.fleet, *task.words))[: LONGEST_NAME - DIGEST_CHARACTERS - 1].rstrip("-")
    return f"{words}-{digest}"


def files_name(fleet: Fleet, task: Task) -> str:
    """The ConfigMap that holds the task's files: the operator's own, which its account may change, or one beside the Job."""
    return operators.name_of(fleet) if task.changes_files else name_of(fleet, task)


def digest_of(files: Mapping[str, str]) -> str:
    """Which texts these are, by name, as JSON."""
    return json.dumps({name: sha256(files[name].encode()).hexdigest()[:16] for name in sorted(files)})


def documents(fleet: Fleet, task: Task, templates: Path | None = None) -> tuple[Document, Document]:
    """The ConfigMap with the files, and the Job. Raises UsageError as `render.documents` does. The fleet has an operator."""
    plan = Plan(fleet, fleet.shards, whole=True)
    built_in = environment(templates)
    return document_of(fleet, _files(plan, task), built_in), document_of(fleet, _job(plan, task), built_in)


def _files(plan: Plan, task: Task) -> Object:
    name = files_name(plan.fleet, task)
    labels = operator.labels(plan) if task.changes_files else _labels(plan, task)
    return plan.object(
        "ConfigMap",
        name,
        None,
        template="jobconfigmap",
        labels=labels,
        files={name: lines(text) for name, text in task.files.items()},
        sent=digest_of(task.files),
        sent_annotation=SENT,
    )


def _job(plan: Plan, task: Task) -> Object:
    fleet, settings = plan.fleet, plan.fleet.operator or Operator()
    kept = ("--keep-in", files_name(fleet, task)) if task.changes_files else ()
    return plan.object(
        "Job",
        name_of(fleet, task),
        None,
        labels=_labels(plan, task),
        command_text=str(task),
        account=operators.name_of(fleet),
        image=fleet.image,
        container=CONTAINER,
        arguments=("--files", "/etc/shardctl", "--into", "/fleet", *kept, "--", *task.command),
        files=files_name(fleet, task),
        urls=tuple(_urls(fleet, task)),
        actor=task.actor,
        tries=TRIES if task.restarts else 0,
        restarts=task.restarts,
        decided=DECIDED,
        kept_seconds=KEPT_SECONDS,
        grace_seconds=GRACE_SECONDS,
        proxy=_proxy(fleet),
        probes=fleet.probes,
        resources=settings.resources,
        placement=fleet.placement,
        mounted=tuple(certificates(fleet)),
        asks_kubernetes=task.changes_files,
    )


def _labels(plan: Plan, task: Task) -> tuple[tuple[str, str], ...]:
    """Not those by which `shardctl apply` finds what the file no longer names: a Job isn't in the file."""
    own = {"app.kubernetes.io/component": "job", "app.kubernetes.io/managed-by": "shardctl-job"}
    changes = {CHANGES_FILES: "true"} if task.changes_files else {}
    return tuple(sorted({**dict(operator.labels(plan)), **own, **changes}.items()))


def _urls(fleet: Fleet, task: Task) -> Iterator[Mapping[str, Any]]:
    """Each shard's variable, with its URL or the Secret that holds it."""
    by_iam = sqlproxies.urls(fleet, operators.email(fleet))
    new = [fleet.new_shard(name, fleet.shards[0]) for name in task.new_shards]
    known = {shard.name for shard in fleet.shards}
    for shard in (*fleet.shards, *(shard for shard in new if shard.name not in known)):
        secret = topology.database_secret(fleet, shard)
        yield {"variable": database_url_variable(shard), "url": by_iam.get(shard.name), "secret": secret}


def _proxy(fleet: Fleet) -> Mapping[str, Any] | None:
    return cloudsql.shared_proxy(fleet, sqlproxies.instances(fleet), GRACE_SECONDS)
