"""`shardctl rebalance go` on a broker and SQLite: its exit codes, what it refuses, and that it finds where it was."""

import itertools
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from shardctl import audit, lockfile
from shardctl.cli import main
from shardctl.cli.rebalance.going import Going
from shardctl.cli.rebalance.intent import intended
from shardctl.cli.rebalance.journey import Journey, Terms
from shardctl.cli.rebalance.proposal import Options
from shardctl.cli.rebalance.rollout import Patience, Rollout
from shardctl.fleet.load import load_fleet
from shardctl.status.localfile import LocalFile

pytestmark = pytest.mark.slow

ADD = ("--add", "s2")
APPLIED = "applied.txt"


@pytest.fixture
def go(site):
    """The command on a settled file, without a plan beside it."""
    site.next.unlink()
    lockfile.write(site.file, site.settled)
    return lambda *arguments: site("go", *arguments)


def slots(site):
    return {shard.name: len(shard.slots) for shard in load_fleet(site.file).shards}


def is_finished(site):
    fleet = load_fleet(site.file)
    wanted = {(shard.name, shard.generation): set(shard.slots) for shard in fleet.shards}
    return (
        not fleet.rebalancing
        and lockfile.read(site.file) == lockfile.lock_of(fleet)
        and not site.next.exists()
        and site.world.active() == wanted
        and not any(name.endswith(("s0-g1", "s1-g1")) for name in site.subscriptions())
    )


@pytest.mark.proof
def test_a_pipeline_applies_the_file_until_nothing_is_left(go, site):
    before = site.file.read_text()
    code, out, err = go(*ADD)
    assert (code, site.file.read_text(), site.next.exists(), site.journal()) == (2, before, False, {})
    assert "no plan moves fewer" in out
    assert "--yes" in err

    code, _, err = go(*ADD, "--yes")
    assert code == 4
    assert "`shardctl apply -f shards.yaml --yes`" in err
    assert "continue with `shardctl rebalance go -f shards.yaml --yes`" in err
    assert site.journal() == dict.fromkeys(("s0", "s1", "s2"), "open")
    assert go("--yes")[0] == 4

    site.apply()
    code, out, err = go(*ADD, "--yes", "--hold", "1h", "--no-wait")
    assert code == 4
    assert "the sources keep their copies of moved rows until" in err
    assert "16 of 16 slots handed over" in out
    assert "orders-s0-g1" in site.subscriptions()

    code, _, err = go("--yes")
    assert code == 4
    assert "this alone is left" in err
    assert is_finished(site)
    assert go("--yes")[0] == 4

    site.apply()
    code, _, err = go("--yes")
    assert (code, "no rebalance is open" in err) == (0, True)
    code, _, err = go(*ADD, "--yes")
    assert (code, "is what these options ask for" in err) == (0, True)
    assert slots(site) == {"s0": 5, "s1": 6, "s2": 5}


def test_a_command_applies_and_what_it_does_is_waited_for(go, site, capsys):
    """What a cluster takes a while for: the consumers are new some looks later."""
    looks = []

    def sleep(_):
        looks.append(site.read("s0", "1") if len(looks) < 2 else site.apply())

    parts = Rollout(f"echo applied >> {APPLIED}"), Patience(clock=itertools.count().__next__, sleep=sleep)
    code = Journey(site.file, Options(add=("s2",)), {}, *parts, Going(as_json=True), Terms(yes=True)).to_its_end()
    out, err = capsys.readouterr()
    assert code == 0
    assert is_finished(site)
    assert Path(APPLIED).read_text() == "applied\n" * 2
    events = [json.loads(line) for line in out.splitlines()]
    assert [(event["step"], event["state"]) for event in events if event["state"] in {"begun", "done"}] == [
        (step, state) for step in ("start", "rollout", "run", "finish", "final rollout") for state in ("begun", "done")
    ]
    assert events[0]["plan"]["moved"] == 5
    waiting = [event for event in events if (event["step"], event["state"]) == ("rollout", "waiting")]
    assert [event["seconds"] for event in waiting] == sorted(event["seconds"] for event in waiting)
    assert "no consumer of shard s2 has been reading generation 1" in waiting[0]["reasons"][-1]
    assert "no consumer of shard s2 has been reading generation 1" in err
    assert '"action": "rebalance apply"' in err


def test_with_gitops_it_stops_where_a_merge_is_due_and_goes_on_when_consumers_report_it(go, site):
    folder = Path("deploy")
    assert main(["render", "-o", str(folder), "--kustomize", "kustomization"]) == 0
    (folder / "ours.yaml").write_text("kind: ConfigMap\nmetadata: {name: ours}\n")
    code, _, err = go(*ADD, "--yes", "--gitops", str(folder))
    assert code == 4
    assert "no consumer of shard s0 has been reading generation 2" in err
    assert "Commit and merge: `git add --all deploy shards.yaml shards.lock`" in err
    assert "continue with `shardctl rebalance go -f shards.yaml --gitops=deploy --yes`" in err
    assert main(["render", "--check", str(folder)]) == 1  # for ours.yaml alone
    assert "shards/s2/deployment.yaml" in (folder / "kustomization.yaml").read_text()
    old = folder / "shards/s0/pubsubsubscription-g1.yaml"
    assert old.exists()

    code, _, err = go("--yes", "--gitops", str(folder))
    assert (code, "update" in err) == (4, False)

    site.apply()
    code, out, err = go(*ADD, "--yes", "--gitops", str(folder))
    assert code == 4
    assert "16 of 16 slots handed over" in out
    assert f"delete {old}" in err
    assert (old.exists(), (folder / "ours.yaml").exists()) == (False, True)
    assert "s0/pubsubsubscription-g1.yaml" not in (folder / "kustomization.yaml").read_text()
    assert is_finished(site)
    assert go("--yes", "--gitops", str(folder))[0] == 4

    site.apply()
    assert go(*ADD, "--yes", "--gitops", str(folder))[0] == 0


def test_gitops_and_apply_exclude_each_other(go):
    code, _, err = go(*ADD, "--yes", "--gitops", "deploy", "--apply", "none")
    assert (code, "exclude each other" in err) == (2, True)


def test_a_wait_that_takes_too_long_is_not_a_failure(go, site):
    code, _, err = go(*ADD, "--yes", "--apply", "none", "--wait-at-most", "0s")
    assert code == 4
    assert "somebody else applies shards.yaml" in err
    assert "no consumer of shard s0 has been reading generation 2" in err


def test_a_command_that_fails_is_a_failure(go, site):
    code, _, err = go(*ADD, "--yes", "--apply", "exit 7")
    assert code == 1
    assert "failed with exit code 7" in err
    site.apply()
    assert go("--yes", "--apply", "true")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--remove", "s1"], 2, "another rebalance of shards.yaml has begun: it adds s2"),
        (["--add", "s3"], 2, "it adds s2"),
        (["--level"], 2, "it adds s2, and these options give another plan"),
        (["--add", "s2", "--tolerance", "50%"], 2, "give another plan"),
        (["--add", "s2", "--by-load"], 4, "so this stops here"),
        (["--add", "s3", "--by-load"], 2, "it adds s2"),
        (["--add", "s2"], 4, "so this stops here"),
        ([], 4, "so this stops here"),
    ],
)
def test_an_open_rebalance_is_continued_and_no_other_begun(go, site, arguments, code, message):
    assert go(*ADD, "--yes")[0] == 4
    before = site.file.read_text()
    got, _, err = go(*arguments, "--yes")
    assert (got, message in err) == (code, True), err
    assert (site.file.read_text(), site.next.exists()) == (before, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tolerance", "1%"], "Name a change too"),
        (["--split", "s0", "--yes"], "wants --into"),
        (["--level", "--add", "s2"], "--level is a change of its own"),
        (["--no-wait", "--wait-at-most", "1m"], "exclude each other"),
        (["--hold", "soon"], "--hold: a duration is"),
        (["--back"], "no rebalance is open"),
        (["--remove", "s9"], "no shard 's9'"),
    ],
)
def test_a_wrong_call_changes_nothing(go, site, arguments, message):
    code, _, err = go(*arguments)
    assert (code, message in err) == (2, True), err
    assert site.journal() == {}


def test_a_database_without_a_url_is_named_before_anything_is_done(go, site, monkeypatch):
    monkeypatch.delenv("SHARDCTL_DATABASE_URL_S2")
    code, _, err = go(*ADD, "--yes")
    assert (code, "no database URL for s2" in err) == (1, True)
    assert not site.next.exists()


def test_a_plan_that_was_written_by_hand_of_plan_is_gone_through(site):
    """Without options: `shards.next.yaml` is what is meant."""
    site.apply()
    code, out, _ = site("go")
    assert (code, "s2: generation 1, 4 slots" in out) == (2, True)
    assert site("go", "--yes", "--apply", "true", "--no-wait")[0] == 4
    site.apply()
    assert site("go", "--yes", "--apply", "true")[0] == 0
    assert slots(site) == {"s0": 6, "s1": 6, "s2": 4}


def test_an_aborted_rebalance_stays_aborted_until_an_operator_resumes_it(go, site):
    assert go(*ADD, "--yes")[0] == 4
    site.apply()
    assert site("abort", "--yes")[0] == 0
    for arguments in ((), ADD):
        code, _, err = go(*arguments, "--yes")
        assert (code, "was aborted" in err, "go --back" in err) == (1, True, True)
    assert site("start", "--yes")[0] == 0
    assert go("--yes", "--apply", "true")[0] == 0


@pytest.mark.parametrize("moved", [False, True])
def test_the_way_back(go, site, moved):
    assert go(*ADD, "--yes")[0] == 4
    site.apply()
    if moved:
        assert go("--yes", "--hold", "1h", "--no-wait")[0] == 4
    code, _, err = site("back", "--yes") if moved else go("--back", "--yes")
    assert code == 4
    assert "aborted: " in err
    site.apply()
    assert go("--back", "--yes")[0] == 4
    assert slots(site) == {"s0": 8, "s1": 8}
    site.apply()
    code, _, err = go("--back", "--yes")
    assert (code, "is what these options ask for" in err) == (0, True)
    assert site.world.rows("s0").keys() == set(range(8))


@pytest.mark.proof
def test_some_slots_go_back_and_then_all_go_there_again(go, site):
    """Each is continued by the same command until it waits for the end of the hold, and only then can another begin."""
    hold = ("--yes", "--hold", "1h", "--no-wait")

    def led(*arguments):
        code, _, err = go(*arguments, *hold)
        assert (code, "`shardctl apply" in err) == (4, True)
        site.apply()
        code, _, err = go(*arguments, *hold)
        assert (code, "hold: waiting" in err) == (4, True)
        return slots(site)

    there = led(*ADD)
    gone = load_fleet(site.file).shard("s2").slots
    first, stay = min(gone), set(range(16)) - set(gone)
    assert led("--back", "--slots", str(first)) == {**there, "s0": there["s0"] + 1, "s2": there["s2"] - 1}
    code, _, err = go("--back", "--slots", str(first), *hold)
    assert (code, "hold: waiting" in err) == (4, True)
    code, _, err = go(*ADD, "--yes")
    assert (code, "it leads some slots back" in err) == (2, True)
    assert led("--forward") == there
    mistakes = {str(min(stay)): "doesn't move", "99999": "no slots 99999", f"{first},16": "no slots 16"}
    for (command, *turn), mistake in itertools.product((("back",), ("go", "--back"), ("go", "--forward")), mistakes):
        code, _, err = site(command, *turn, "--slots", mistake, "--yes")
        assert (code, mistakes[mistake] in err, "finish" in err) == (2, True, False)
    assert site("plan", "--forward")[0] == 1
    code, out, _ = site("plan", "--back", "--json")
    assert (code, json.loads(out)["moved"]) == (0, there["s2"])
    site.next.unlink()
    assert go("--forward", "--yes")[0] == 4
    site.apply()
    code, _, err = go("--forward", "--yes")
    assert (code, "is what these options ask for" in err) == (0, True)
    assert site.world.rows("s2").keys() == set(load_fleet(site.file).shard("s2").slots)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("--back", "--slots", "7"), 2, "this rebalance doesn't move 7. It moves "),
        (("--back", "--slots", "16"), 2, "there are no slots 16"),
        (("--back", "--slots", "3-1"), 2, "--slots: "),
        (("--back", "--slots", "\x1b[2J"), 2, "--slots: "),
        (("--back", "--forward"), 2, "each goes with no other change"),
        (("--back", "--slots", ""), 2, "--slots: "),
        (("--slots", "1"), 2, "with --back or --forward"),
        (("--add", "s4", "--slots", "1"), 2, "with --back or --forward"),
        (("--level", "--forward"), 2, "--level is a change of its own"),
    ],
)
def test_slots_that_cant_go_are_named(go, site, arguments, code, reason):
    assert go(*ADD, "--yes")[0] == 4
    before = site.file.read_text()
    exit_code, _, err = go(*arguments, "--yes")
    assert (exit_code, reason in err, "\x1b" in err) == (code, True, False), err
    assert (site.file.read_text(), site.next.exists()) == (before, False)


def test_a_fleet_that_is_level_has_nothing_to_do(go, site):
    code, _, err = go("--level", "--yes")
    assert (code, "nothing to move" in err) == (0, True)


STEPS = {"start", "rollout", "run", "finish", "final rollout"}
FILES = {"shards.next.yaml", "shards.before.yaml", "shards.yaml", "shards.lock"}


class KilledError(BaseException):
    """The process ends here."""


class Kills:
    """Ends a journey once at each place that it comes by: before and after a step, before a file changes or a database commits,
    and among the slots."""

    COMMITS = 4  # of each database in each step

    def __init__(self):
        self.places, self.armed, self.step = [], False, ""
        self._commits = Counter()

    def arm(self):
        self.armed, self.step, self._commits = True, "", Counter()

    def at(self, *place):
        if self.armed and place not in self.places:
            self.places.append(place)
            raise KilledError(place)

    def audited(self, event, arguments):
        """By Python's audit events: a file's draft takes its place, or a file goes."""
        if not self.armed or event not in {"os.rename", "os.remove"}:
            return
        name, draft = Path(str(arguments[0])).name, ".shardctl-"
        if event == "os.rename" and name.startswith(draft):
            self.at(event, Path(str(arguments[1])).name, self.step)
        elif event == "os.remove" and not name.startswith(draft):
            self.at(event, name, self.step)

    def committing(self, connection):
        if threading.current_thread() is threading.main_thread():
            database = Path(connection.engine.url.database).stem
            self._commits[database, self.step] += 1
            if (count := self._commits[database, self.step]) <= self.COMMITS:
                self.at("commit", database, self.step, count)


_hooked = []  # an audit hook stays for the process's life


@pytest.fixture
def kills():
    kills = Kills()
    if not _hooked:
        sys.addaudithook(lambda *audited: _hooked[0].audited(*audited))  # noqa: PLW0108 - the one of the present test
    _hooked[:] = [kills]
    event.listen(Engine, "commit", kills.committing)
    yield kills
    event.remove(Engine, "commit", kills.committing)
    kills.armed = False


class KillingGoing(Going):
    def __init__(self, kills):
        super().__init__(as_json=False)
        self.kills = kills

    def begins(self, step, text):
        super().begins(step, text)
        if step == "rollout":  # which renders the file, and that is refused where the lock doesn't lead to it
            assert lockfile.read(Path("shards.yaml")) == lockfile.lock_of(load_fleet(Path("shards.yaml")))
        self.kills.step = step
        self.kills.at("begun", step)

    def ends(self, step):
        self.kills.at("done", step)

    def moves(self, progress, tally):
        if progress.arrived:
            self.kills.at("slots moved", "run")


@pytest.mark.proof
def test_killed_at_each_place_and_run_again(go, site, kills):
    """With the same options and with none in turn: once there is a plan, both mean its rebalance."""
    same, none = Options(add=("s2",)), Options()

    def journey(options):
        kills.arm()
        rollout = Rollout(f"{sys.executable} -c 'pass'")
        parts = (rollout, Patience(sleep=lambda _: site.apply()), KillingGoing(kills), Terms(yes=True))
        try:
            return Journey(site.file, options, {}, *parts).to_its_end()
        except KilledError:
            return None
        finally:
            kills.armed = False
            audit.end(130)

    options, ends, turns = same, [], itertools.cycle(((none, same), (same, none)))
    while (end := journey(options)) is None:
        ends.append(kills.places[-1])
        if site.next.exists() or load_fleet(site.file).rebalancing:
            options, others = next(turns)
            assert intended(site.file, others, {}).wanted.rebalancing
        elif load_fleet(site.file) != site.settled:  # it is finished, but for what follows
            options, _ = next(turns)
    assert end == 0
    assert is_finished(site), ends
    assert slots(site) == {"s0": 5, "s1": 6, "s2": 5}
    assert site.world.rows("s2").keys() == set(load_fleet(site.file).shard("s2").slots)
    kinds = {kind: [place[1:] for place in ends if place[0] == kind] for kind, *_ in ends}
    assert {step for (step,) in kinds["begun"]} == STEPS
    assert {name for name, _ in kinds["os.rename"]} == FILES
    assert {(database, step) for database, step, _ in kinds["commit"]} >= set(
        itertools.product(("s0", "s1", "s2"), ("start", "run", "finish"))
    )


def test_a_local_fleet_makes_the_database_and_follows_the_file(go, site, tmp_path, monkeypatch):
    monkeypatch.delenv("SHARDCTL_DATABASE_URL_S2")
    local_file = tmp_path / "fleet.json"
    monkeypatch.setenv("SHARDCTL_LOCAL_FLEET", str(local_file))
    urls = {"s0": site.world.url("s0"), "s1": site.world.url("s1")}
    LocalFile((), urls, str(site.file.resolve())).write(local_file)
    code, _, err = go(*ADD, "--yes", "--no-wait")
    assert (code, "`shardctl up` follows shards.yaml: it is to make the database of s2" in err) == (4, True)
    assert site.next.exists()
    LocalFile((), urls | {"s2": site.world.url("s2")}, str(site.file.resolve())).write(local_file)
    assert go(*ADD, "--yes", "--no-wait")[0] == 4
    site.apply()
    assert go("--yes", "--no-wait")[0] == 0
    assert is_finished(site)


def test_a_local_fleet_that_follows_another_file(go, site, tmp_path, monkeypatch):
    local_file = tmp_path / "fleet.json"
    monkeypatch.setenv("SHARDCTL_LOCAL_FLEET", str(local_file))
    LocalFile((), {}, "/elsewhere/shards.yaml").write(local_file)
    code, _, err = go(*ADD, "--yes")
    assert (code, "follows /elsewhere/shards.yaml, and not shards.yaml" in err) == (2, True)


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_a_person_is_asked(go, site, answer, code):
    pty = pytest.importorskip("pty")
    site.read("s0", "1")
    terminal, other = pty.openpty()
    command = (sys.executable, "-c", "import sys; from shardctl.cli import main; sys.exit(main())")
    arguments = ("rebalance", "go", *ADD, "--apply", "none", "--no-wait")
    process = subprocess.Popen([*command, *arguments], stdin=other, stdout=other, stderr=other, close_fds=True)
    os.close(other)
    os.write(terminal, f"{answer}\n".encode())
    shown = b""
    while True:
        try:
            more = os.read(terminal, 4096)
        except OSError:
            break
        if not more:
            break
        shown += more
    os.close(terminal)
    assert process.wait() == (4 if code == 0 else code), shown.decode()
    assert b"Go on? [y/N]" in shown
    assert bool(site.journal()) == (answer == "y")
