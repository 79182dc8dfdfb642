"""`shardctl job`: a command in the cluster, as a Kubernetes Job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardctl.cli.cluster import ContextOption, NamespaceOption, TemplatesOption, refuse, refuse_another_namespace
from shardctl.cli.duration import read_duration
from shardctl.cli.rebalance.rollout import Patience
from shardctl.cli.terminal import DEFAULT_FILE, FileOption, out, say, waiting
from shardctl.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_WAITING, UsageError

if TYPE_CHECKING:
    from shardctl.cli.job.following import Following
    from shardctl.cluster.api import Api
    from shardctl.fleet.spec import Fleet
    from shardctl.render.jobs import Task

LONGEST = "24h"


def job(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="What to run, such as: rebalance run.")],
    file: FileOption = DEFAULT_FILE,
    follow: Annotated[
        bool, typer.Option("--follow", help="Stream the log, and exit as the command does. Ctrl-C interrupts it there.")
    ] = False,
    render: Annotated[
        bool, typer.Option("--render", "--dry-run", help="Print the Job and its ConfigMap; start nothing.")
    ] = False,
    start_within: Annotated[
        str,
        typer.Option("--start-within", metavar="TIME", help="Delete a Job that hasn't started by then, and exit 1."),
    ] = "5m",
    kube_context: ContextOption = None,
    namespace: NamespaceOption = None,
    templates: TemplatesOption = None,
) -> int:
    """Run a command in the cluster, with the fleet's Secrets and the identity of its operator: shardctl job -- rebalance run.

    Commands: status, verify, provision, adopt, rebalance, migrate, deadletter, parked. The same command on the same files is one
    Job: while it runs, --follow joins it.
    """
    from shardctl.cli.job import files
    from shardctl.cli.job.following import Following
    from shardctl.cluster import kubectl
    from shardctl.render.jobs import name_of

    patience = Patience(read_duration("--start-within", start_within, "1s", LONGEST).total_seconds())
    fleet, task = _task(context, command, file)
    refuse_another_namespace(fleet, namespace)
    if render:
        return _print(fleet, task, templates)
    with kubectl.connected(kube_context, namespace) as api:
        with waiting("what has to be there first"):
            refuse(_reasons(api, fleet, task, templates))
        if task.changes_files and not _is_active(api, fleet, task) and files.take_over(api, fleet, file):
            fleet, task = _task(context, command, file)  # on the files as the last Job left them
        following = Following(api, fleet.namespace, name_of(fleet, task), patience)
        try:
            _begin(following, fleet, task, templates, follow=follow)
            following.until_started()
        except KeyboardInterrupt:
            following.delete()
            say(f"Job {following.name} is deleted; its command hadn't started, as far as is known.")
            return EXIT_INTERRUPTED
        if not follow:
            out(f"Job/{following.name}")
            say(f"started; the same command with --follow shows it: `shardctl job -f {file} --follow -- …`.")
            return EXIT_DONE
        code = following.to_its_end()
        if task.changes_files:
            files.take_over(api, fleet, file)
    _merge(context, command, file, code)
    return code


def _merge(context: typer.Context, command: list[str], file: Path, code: int) -> None:
    """Where the command has --gitops: write here what is to be merged, by the files that the Job has left."""
    from shardctl.cli.job.task import folder_of
    from shardctl.cli.rebalance.gitops import say_merge_is_due, write_manifests

    folder = folder_of(context.find_root(), command)
    if folder is not None and code in {EXIT_DONE, EXIT_WAITING} and write_manifests(file, folder):
        say_merge_is_due(file, folder)


def _task(context: typer.Context, command: list[str], file: Path) -> tuple[Fleet, Task]:
    from shardctl import lockfile
    from shardctl.cli.job import files
    from shardctl.cli.job.task import task_of
    from shardctl.fleet.load import load_fleet

    fleet = load_fleet(file)
    lockfile.check(file, fleet)
    if fleet.operator is None:
        raise UsageError(
            f"{file}: a Job would run as the `operator`, and there is none. Add `operator: {{}}`, and apply the file: "
            "`shardctl apply`."
        )
    return fleet, task_of(context.find_root(), command, fleet, files.read(file))


def _print(fleet: Fleet, task: Task, templates: Path | None) -> int:
    from shardctl.render import jobs

    for document in jobs.documents(fleet, task, templates):
        sys.stdout.buffer.write(b"---\n" + document.text.encode())
    return EXIT_DONE


def _reasons(api: Api, fleet: Fleet, task: Task, templates: Path | None) -> list[str]:
    """Why the Job can't be started."""
    from shardctl.cluster import jobs, requirements
    from shardctl.cluster.manifests import manifest_of
    from shardctl.render.jobs import documents

    api.version()  # raises where nobody answers
    reasons = jobs.lacking_rights(api, fleet.namespace)
    if not reasons:
        reasons = requirements.of_job(
            api, fleet, [manifest_of(document) for document in documents(fleet, task, templates)]
        )
    return reasons


def _is_active(api: Api, fleet: Fleet, task: Task) -> bool:
    """Whether the same command runs. Raises JobError where another one is changing the files that this one would change."""
    from shardctl.cluster import jobs
    from shardctl.render.jobs import CHANGES_FILES, name_of

    selector = f"app.kubernetes.io/part-of={fleet.fleet},{CHANGES_FILES}=true"
    there = (job["metadata"]["name"] for job in api.objects(jobs.JOB, fleet.namespace, selector) if jobs.is_active(job))
    active = set(there)
    if other := active - {name_of(fleet, task)}:
        raise jobs.JobError(
            f"Job {min(other)} in namespace {fleet.namespace} runs, and it changes the fleet's files, as this command "
            f"would. Wait for its end, or delete it: `kubectl get job {min(other)} -n {fleet.namespace}`."
        )
    return bool(active)


def _begin(following: Following, fleet: Fleet, task: Task, templates: Path | None, *, follow: bool) -> None:
    """Start the Job of the task, unless it runs. Raises JobError where it does and nobody asks to follow it."""
    from shardctl import audit
    from shardctl.cluster import jobs
    from shardctl.cluster.manifests import manifest_of
    from shardctl.render.jobs import documents

    name = following.name
    live = following.api.get(jobs.JOB, fleet.namespace, name)
    if live is not None and jobs.is_active(live):
        if not follow:
            raise jobs.JobError(
                f"Job {name} in namespace {fleet.namespace} runs the same command already: --follow shows it."
            )
        say(f"Job {name} runs already; this follows it.")
        return
    files, job = (manifest_of(document) for document in documents(fleet, task, templates))
    if live is not None:
        say(f"Job {name} of an earlier run is deleted, with its log.")
        following.replace(files.id)
    audit.begin("job", fleet.fleet, command=str(task), job=name, namespace=fleet.namespace)
    say(f"Job {name} in namespace {fleet.namespace}: {task}")
    jobs.start(following.api, files, job, changes_files=task.changes_files)
