"""Slots on the move, again and again: a shard is added, another one is taken away, by `shardctl rebalance` as a person would."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from shardctl.errors import ShardctlError
from shardctl.fleet import topology
from shardctl.fleet.load import load_fleet
from shardctl.fleet.spec import Fleet
from tests.chaos import observed
from tests.chaos.commands import CALM_SECONDS, RETRY_SECONDS, Commands, HopelessError
from tests.chaos.scene import FLEET, Scene

SHARDS = ("s0", "s1", "s2", "s3")  # all but one of them, by turns
FILE = "chaos.yaml"
THROUGH, ABORT_BACK, ABORT_ON = "through", "abort and go back", "abort and go on"
WAYS, WEIGHTS = (THROUGH, ABORT_BACK, ABORT_ON), (65, 20, 15)
RUN_BEFORE_ABORT_SECONDS = (2.0, 7.0)
KILLED_IN_ROLLOUT = 0.3
ROLLOUT_SECONDS = (0.2, 5.0)


class Mover:
    """A thread. `error` is what it died of: then slots are wherever they are.

    It calls `tell` with everything it does.
    """

    def __init__(self, scene: Scene, seed: int, tell: Callable[[str], object], command: tuple[str, ...] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self.error: Exception | None = None
        self.file = scene.local.directory / FILE
        self._scene, self._local, self._tell = scene, scene.local, tell
        self._draw = random.Random(f"{seed}/mover")
        options = {"command": command} if command else {}
        folder = scene.local.directory / "commands"
        self.commands = Commands(folder, scene.local.environment, seed, tell, **options)
        self._thread = threading.Thread(target=self._run, name="mover", daemon=True)
        self._over = threading.Event()
        self._leftovers: list[str] = []

    def start(self) -> None:
        self.file.write_text(FLEET)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def come_to_an_end(self) -> None:
        """Begin no more rebalances, and bring the one that is under way to its end in peace. Returns at once."""
        self._over.set()
        self.commands.calm_down()

    def verify(self) -> None:
        """Ask `shardctl verify`, and look for what should be gone. Nobody is at work any more."""
        code, output = self.commands.once("verify", "-f", str(self.file))
        if code:
            self._leftovers.append(f"shardctl verify: exit code {code}\n{output}")
        if self.error:
            return
        wanted = {name for shard in self._local.spec.shards for name in self._local.subscription_ids(shard)}
        known = {*wanted, topology.dead_letter_subscription(self._local.spec)}
        self._leftovers += [
            f"subscription {name} was left behind"
            for name in self._local.subscriptions()
            if name not in known and not topology.is_strays(self._local.spec, name)
        ]
        for shard, url in self._scene.databases.items():
            lanes = observed.lanes_not_active(url)
            self._leftovers += [f"database of {shard}: lane {lane} was left behind" for lane in lanes]

    @property
    def faults(self) -> list[str]:
        """What isn't as it should be, whatever became of the writes."""
        gave_up = f"the rebalance was given up: {type(self.error).__name__}: {self.error}" if self.error else ""
        return [fault for fault in (gave_up, *self.commands.bugs, *self._leftovers) if fault]

    def all_counts(self) -> dict[str, int]:
        """In figures."""
        return {**self.counts, **{f"commands {name}": count for name, count in self.commands.counts.items()}}

    # -- what it does ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            try:
                while not self._over.is_set():
                    self._rebalance(load_fleet(self.file))
            finally:
                self.commands.close()
        except Exception as error:  # noqa: BLE001 - shown in the report
            self.error = error

    def _rebalance(self, fleet: Fleet) -> None:
        names = [shard.name for shard in fleet.shards]
        absent = [name for name in SHARDS if name not in names]
        asked = ("--add", absent[0]) if absent else ("--remove", self._draw.choice(names))
        way = self._draw.choices(WAYS, WEIGHTS)[0]
        self._tell(f"rebalance: {' '.join(asked)}, {way}")
        moved = self._open(*asked)
        if way != THROUGH:
            self.commands.once(
                "rebalance", "run", *self._on_file, seconds=self._draw.uniform(*RUN_BEFORE_ABORT_SECONDS)
            )
            self.commands.until_done(
                "rebalance", "abort", *self._on_file, enough=lambda output: "nothing to abort" in output
            )  # which one that was killed had done
            self.counts["aborts"] += 1
        if way == ABORT_BACK:
            self._open("--back")
        elif way == ABORT_ON:
            self.commands.until_done("rebalance", "start", *self._on_file)
        self._command("run")
        self.counts["slots moved"] += moved if way != ABORT_BACK else 0
        self._command("finish")
        self._roll_out()
        self.counts["rebalances"] += 1

    def _open(self, *asked: str) -> int:
        """Plan, start, roll out; how many slots are to move."""
        output = self.commands.until_done(
            "rebalance", "plan", "-f", str(self.file), "--force", "--json", *asked, spared=True
        )
        following = self.file.with_suffix(f".next{self.file.suffix}")
        self._insist("a new database", lambda: self._prepare(following))
        self._command("start")
        self._roll_out()
        return int(json.loads(output[output.index("{") : output.rindex("}") + 1])["moved"])

    def _prepare(self, following: Path) -> None:
        fleet = load_fleet(following)
        self._local.prepare(fleet)
        for shard in fleet.shards:
            if shard.name not in self._scene.databases:
                self._scene.swear_in(shard.name)

    def _command(self, verb: str) -> None:
        """One that was killed at its very end has nothing left to do: a file without a rebalance says so."""
        self.commands.until_done(
            "rebalance", verb, *self._on_file, enough=lambda _: verb == "finish" and not self._rebalancing()
        )

    def _rebalancing(self) -> bool:
        return load_fleet(self.file).rebalancing

    @property
    def _on_file(self) -> tuple[str, ...]:
        return "-f", str(self.file), "--yes"

    def _roll_out(self) -> None:
        """As `kubectl apply`. No fault has a consumer in its hands meanwhile; but one of them may be killed."""
        fleet = load_fleet(self.file)
        self._insist("a rollout", lambda: self._apply(fleet))

    def _apply(self, fleet: Fleet) -> None:
        with self._scene.turn_of_all(shard.name for shard in fleet.shards):
            victim = threading.Timer(self._draw.uniform(*ROLLOUT_SECONDS), self._kill_one, [self._draw.random()])
            if self._draw.random() < KILLED_IN_ROLLOUT and not self.commands.calm:
                victim.start()
            try:
                self._local.apply(fleet)
            finally:
                victim.cancel()
                for consumer in self._local.consumers:
                    if consumer.died:
                        consumer.revive()

    def _kill_one(self, which: float) -> None:
        alive = [consumer for consumer in self._local.consumers if consumer.running]
        victim = alive[int(which * len(alive))]
        self.counts["consumers killed in a rollout"] += 1
        self._tell(f"{victim.name} is killed in a rollout")
        os.kill(victim.pid, signal.SIGKILL)

    def _insist(self, what: str, call: Callable[[], object]) -> None:
        """Again and again while servers are hurt. Raises HopelessError."""
        deadline: float | None = None
        while True:
            try:
                call()
            except Exception as error:
                if deadline is None and self.commands.calm:
                    deadline = time.monotonic() + CALM_SECONDS
                if deadline is not None and time.monotonic() > deadline:
                    raise HopelessError(f"{what}: {error}") from error
                expected = isinstance(error, ShardctlError)
                first = str(error).partition("\n")[0]
                self._tell(f"{what} doesn't work yet: {'' if expected else type(error).__name__ + ': '}{first}")
                time.sleep(RETRY_SECONDS)
            else:
                return
