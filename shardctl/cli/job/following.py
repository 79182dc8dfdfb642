"""A Job from its start to its end: what it waits for, its log, and its exit code."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shardctl.cli.job.marks import STDOUT_MARK
from shardctl.cli.rebalance.progress import duration
from shardctl.cli.rebalance.rollout import Patience
from shardctl.cli.terminal import out, say
from shardctl.cluster import jobs
from shardctl.cluster.api import Api, RefusedError, UnreachableError
from shardctl.cluster.incluster import CONFIG_MAP
from shardctl.cluster.manifests import Name
from shardctl.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_REFUSED
from shardctl.render.jobs import CONTAINER, GRACE_SECONDS

LOOK_SECONDS = 1.0
GONE_SECONDS = 60.0  # beyond the pod's grace, until an interrupted Job's pod has to be gone


@dataclass(slots=True)
class Following:
    """One Job. `patience` is for its start; the command itself may take as long as it needs."""

    api: Api
    namespace: str
    name: str
    patience: Patience
    sleep: Callable[[float], None] = time.sleep
    _uid: str = field(default="", init=False)  # of the Job, as it was first seen
    _shown: dict[str, str] = field(default_factory=dict, init=False)  # the time of the last line of each pod's log

    def until_started(self) -> None:
        """Raises JobError where it doesn't start in time, or can't; then it is deleted, so that it won't start unseen."""

        def tell(why: Any, seconds: float) -> None:
            say(f"Job {self.name}: waiting to start, {duration(seconds)} so far: {why[0]}")

        if not self.patience.until(self._reasons, tell):
            self._give_up(self._reasons()[:1] or ("it has just started",))

    def _reasons(self) -> list[str]:
        try:
            pods = self._pods()
            if any(map(jobs.has_started, pods)) or self._state() != "active":
                return []
            why = jobs.why_not_started(self.api, self.namespace, self.name, self._uid, pods)
        except UnreachableError as error:  # an API server that restarts is no reason to stop
            return [str(error)]
        if any(reason in why for reason in jobs.HOPELESS):
            self._give_up([why])
        return [why]

    def _give_up(self, why: Any) -> None:
        self.delete()
        raise jobs.JobError(
            f"Job {self.name} in namespace {self.namespace} didn't start, and was deleted: {why[0]}. Nothing was run. Fix it, "
            "and run the same again; while it waits, its pod's log can be read."
        )

    def to_its_end(self) -> int:
        """Show the log, line by line; the command's exit code. An interrupt here interrupts the command there."""
        try:
            return self._to_its_end()
        except KeyboardInterrupt:
            say(f"Interrupting the command: Job {self.name} is deleted, and the command ends as by Ctrl-C.")
            self.delete()
            self._to_the_end_of_the_pods()
            say(f"Job {self.name} is gone. What the command has done stays done.")
            return EXIT_INTERRUPTED

    def _to_its_end(self) -> int:
        while True:
            try:
                job = self._job()
                pods = self._pods()
                for pod in filter(jobs.has_started, pods):
                    self._show(pod)
                if job is None:
                    say(f"error: Job {self.name} was deleted, so how its command ended is unknown.")
                    return EXIT_REFUSED
                if jobs.state_of(job) != "active":
                    return self._code(job, self._pods())
            except UnreachableError as error:
                say(f"Job {self.name} goes on, and isn't seen from here: {error}")
            self.sleep(LOOK_SECONDS)

    def _code(self, job: Any, pods: list[Any]) -> int:
        if jobs.state_of(job) == "complete":
            return EXIT_DONE
        code = jobs.exit_code(pods[-1]) if pods else None
        if code is not None and 0 < code < jobs.KILLED_CODES:
            return code
        ended = jobs.how_ended(pods[-1]) if pods else "its pods are gone"
        say(f"error: the command didn't end by itself: {ended}. {jobs.why_failed(job)}")
        return EXIT_REFUSED

    def _to_the_end_of_the_pods(self) -> None:
        """What the command says while it ends."""
        deadline = time.monotonic() + GRACE_SECONDS + GONE_SECONDS
        while time.monotonic() < deadline:
            pods = [pod for pod in self._pods() if jobs.has_started(pod)]
            for pod in pods:
                self._show(pod)
            if all(jobs.exit_code(pod) is not None for pod in pods):
                return
            self.sleep(LOOK_SECONDS)

    def _show(self, pod: Any) -> None:
        """What is new in the pod's log, until it ends or is quiet for a while."""
        name = pod["metadata"]["name"]
        if name not in self._shown and self._shown:
            say(f"The pod before was lost. Pod {name} runs the command again.")
        last = self._shown.setdefault(name, "")
        try:
            for moment, line in self.api.log(self.namespace, name, CONTAINER, since=last):
                if moment > last:  # `since` is in whole seconds at the server
                    self._shown[name] = moment
                    _print(line)
        except RefusedError:  # gone meanwhile, or not to be read any more
            return

    def _job(self) -> Any:
        return self.api.get(jobs.JOB, self.namespace, self.name)

    def _pods(self) -> list[dict[str, Any]]:
        if not self._uid and (job := self._job()) is not None:
            self._uid = job["metadata"]["uid"]
        return jobs.pods_of(self.api, self.namespace, self.name, self._uid)

    def _state(self) -> str:
        job = self._job()
        if job is None:
            raise jobs.JobError(f"Job {self.name} was deleted before it started.")
        return jobs.state_of(job)

    def replace(self, files: Name) -> None:
        """Delete the Job that is there, and wait until it and its files are gone: they would take new ones along."""
        self.delete()

        def reasons() -> list[str]:
            is_own = files.name == self.name
            lives = self._job() or (is_own and self.api.get(CONFIG_MAP, self.namespace, files.name))
            return ["it is being deleted"] if lives else []

        def tell(why: Any, seconds: float) -> None:
            say(f"Job {self.name}: {why[0]}, {duration(seconds)} so far")

        if not self.patience.until(reasons, tell):
            raise jobs.JobError(
                f"Job {self.name} in namespace {self.namespace} is being deleted, and takes too long. See what holds it: "
                f"`kubectl get job {self.name} -n {self.namespace} -o yaml`."
            )

    def delete(self) -> None:
        job = self._job()
        if job is not None:
            name = Name("Job", self.name, self.namespace, "batch")
            self.api.delete(jobs.JOB, name, job["metadata"]["uid"])


def _print(line: str) -> None:
    if line.startswith(STDOUT_MARK):
        out(line.removeprefix(STDOUT_MARK), flush=True)
    else:
        say(line, flush=True)
