"""Spin searches the models of a hand-over (docs/handover) whole: no fault as they are, and one in every mutant."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "handover"
HANDOVER, COPY, JOURNAL, EVENTS = (FOLDER / f"{name}.pml" for name in ("handover", "copy", "journal", "events"))


def case(name, settings, states, *, slow=False, model=HANDOVER):
    """`states` is a lower bound: a model that gets stuck early on must not pass for one that is right."""
    return pytest.param(model, settings.split(), states, id=name, marks=[pytest.mark.proof] if slow else [])


CONFIGURATIONS = [  # together two minutes of one core
    case("moves", "MSGS=1 TWICE=2 OLD=2 NEW=2", 115_000),
    case("moves, three messages", "MSGS=3 OLD=2", 355_000, slow=True),
    case("moves, each published twice", "TWICE=6", 1_002_000, slow=True),
    case("moves, barrier twice", "BARRIERS=2 OLD=2", 378_000, slow=True),
    case("moves, clocks disagree", "SKEW", 299_000, slow=True),
    case("moves, order broken", "UNORDERED", 114_000, slow=True),
    case("moves, order broken, all twice", "UNORDERED MSGS=1 TWICE=2 BARRIERS=2", 416_000, slow=True),
    case("moves, order broken, clocks disagree", "UNORDERED MSGS=1 TWICE=2 SKEW", 32_000, slow=True),
    case("stays", "DBS=0 TWICE=2 OLD=2", 510_000, slow=True),
    case("stays, order broken", "DBS=0 UNORDERED", 88_000, slow=True),
    case("moves and returns", "LANES=3 MSGS=1 OLD=2", 445_000, slow=True),
    case("moves, forged barrier", "HOSTILE=1", 376_000, slow=True),
    case("stays, forged barrier", "HOSTILE=1 DBS=0", 319_000, slow=True),
    case("moves and returns, forged barrier", "HOSTILE=1 LANES=3 MSGS=1", 4_133_000, slow=True),
    case("moves, order broken, forged barrier", "HOSTILE=1 UNORDERED MSGS=1 TWICE=2", 518_000, slow=True),
    case("moves, two forged barriers", "HOSTILE=2 MSGS=1", 342_000, slow=True),
    case("moves, many replicas", "MSGS=3 OLD=2 NEW=2", 849_000, slow=True),
    case("moves, many replicas, first twice", "TWICE=2 OLD=2 NEW=2", 1_460_000, slow=True),
    case("moves, two old, first and barrier twice", "TWICE=2 BARRIERS=2 OLD=2", 3_416_000, slow=True),
    case("moves, all twice", "TWICE=6 BARRIERS=2", 4_952_000, slow=True),
    case("moves, clocks disagree, two old", "SKEW OLD=2", 756_000, slow=True),
    case("moves, order broken, first twice", "UNORDERED TWICE=2", 950_000, slow=True),
    case(
        "moves, order broken, all twice, clocks disagree",
        "UNORDERED MSGS=1 TWICE=2 BARRIERS=2 SKEW",
        567_000,
        slow=True,
    ),
    case("stays, many replicas, first twice", "DBS=0 TWICE=2 OLD=2 NEW=2", 1_255_000, slow=True),
    case("stays, order broken, first twice", "DBS=0 UNORDERED TWICE=2", 744_000, slow=True),
    case("moves and returns, two messages", "LANES=3", 2_269_000, slow=True),
    case("stays and stays", "DBS=0 LANES=3", 1_966_000, slow=True),
    case("stays and moves", "DBS=4 LANES=3", 2_339_000, slow=True),
    case("moves and stays", "DBS=6 LANES=3", 2_044_000, slow=True),
    case("moves and returns, order broken", "UNORDERED MSGS=1 LANES=3", 842_000, slow=True),
    case("stays and stays, order broken", "DBS=0 UNORDERED MSGS=1 LANES=3", 505_000, slow=True),
    case("stays and moves, order broken", "DBS=4 UNORDERED MSGS=1 LANES=3", 844_000, slow=True),
    case("moves and stays, order broken", "DBS=6 UNORDERED MSGS=1 LANES=3", 513_000, slow=True),
    case("copy", "RESTARTS", 205_000, slow=True, model=COPY),
    case("copy, there and back", "LANES=3 EXECUTORS=1", 141_000, model=COPY),
    case("copy, three logs", "RESTARTS NAMES=3", 370_000, slow=True, model=COPY),
    case("copy, a row that comes again", "WRITES=4 KEYS=16 DELETIONS=10 RESTARTS", 660_000, slow=True, model=COPY),
    case("copy, there and back, two executors", "LANES=3 RESTARTS", 1_638_000, slow=True, model=COPY),
    case("copy, aborted, planned again", "LANES=3 DBS=6 RESTARTS", 1_376_000, slow=True, model=COPY),
    case("copy, there, back and there", "LANES=4 EXECUTORS=1", 890_000, slow=True, model=COPY),
    case("copy, there, back twice", "LANES=4 EXECUTORS=1 DBS=2", 580_000, slow=True, model=COPY),
    case("copy, there, stays, back", "LANES=4 EXECUTORS=1 DBS=6", 732_000, slow=True, model=COPY),
    case("copy, there, back and there, two executors", "LANES=4", 6_603_000, slow=True, model=COPY),
    case("journal", "", 1_500, model=JOURNAL),
    case("journal, moves to the first database", "TO=0", 1_500, model=JOURNAL),
    case("journal, each twice", "EACH=2", 14_000, model=JOURNAL),
    case("events, there and back", "", 100_000, model=EVENTS),
    case("events, there, back and there", "RELAYS=1 MOVES=3", 3_400, model=EVENTS),
]

ENDINGS = [
    case("moves", "OLD=2", 98_000),
    case("moves, order broken", "UNORDERED MSGS=1 TWICE=2", 40_000, slow=True),
    case("moves and returns", "LANES=3 MSGS=1", 306_000, slow=True),
    case("moves and returns, order broken", "UNORDERED MSGS=1 LANES=3", 1_262_000, slow=True),
    case("copy", "", 58_000, slow=True, model=COPY),
    case("copy, there and back", "LANES=3 RESTARTS", 2_203_000, slow=True, model=COPY),
    case("copy, there, back and there", "LANES=4 EXECUTORS=1", 1_181_000, slow=True, model=COPY),
]

# A mutant, and the smallest configuration that shows it. Without the mutant that configuration is a part of one above.
MUTANTS_OF_HANDOVER = {
    "abort_at_once": "",
    "abort_in_one_round": "",
    "ack_before_publishing_again": "UNORDERED",
    "ack_while_due": "",
    "activate_before_copy": "",
    "any_barrier": "",
    "barrier_before_due": "",
    "copy_again": "",
    "due_after_abort": "",
    "forged_barrier": "HOSTILE=1",
    "finish_blindly": "LANES=3 MSGS=1",
    "finish_with_backlog": "UNORDERED",
    "inbox_not_copied": "TWICE=2",
    "keep_leftovers": "",
    "lanes_deleted_blindly": "LANES=3 MSGS=1",
    "left_acks_all": "UNORDERED",
    "left_too_soon": "",
    "new_key": "UNORDERED",
    "no_fence": "UNORDERED",
    "no_hold": "",
    "no_token": "HOSTILE=1",
    "no_wait": "UNORDERED MSGS=1 SKEW",
    "stale_map": "",
    "wrong_source": "LANES=3 MSGS=1",
}
MUTANTS_OF_COPY = {
    "activated_before_delta": "",
    "any_log_will_do": "LANES=3",
    "applied_blindly": "LANES=3 DBS=6",
    "base_over_leftovers": "",
    "delta_before_left": "",
    "deletion_missed": "",
    "discarded_blindly": "LANES=3 DBS=6",
    "inbox_not_logged": "",
    "lane_not_held": "",
    "left_behind_discarded": "LANES=4 DBS=2 EXECUTORS=1",
    "log_begins_late": "LANES=3",
    "log_beside_the_write": "",
    "log_by_key": "",
    "log_deleted_first": "",
    "log_deleted_unread": "",
    "log_emptied_late": "",
    "log_kept": "",
    "log_passed_on_late": "LANES=4 EXECUTORS=1 DBS=6",
    "logged_beside_the_fence": "",
    "logged_blindly": "",
    "rows_deleted_while_logged": "LANES=3",
    "snapshot_before_lane": "",
    "snapshot_before_logged": "",
    "stale_base": "RESTARTS",
    "two_snapshots": "",
}
MUTANTS_OF_JOURNAL = {"deleted_before_recorded": "", "finish_not_recorded": "", "refused_half_way": ""}
MUTANTS_OF_EVENTS = {"events_not_waited_for": "RELAYS=1", "view_before_left": "RELAYS=1"}
MUTANTS_OF = {
    HANDOVER: MUTANTS_OF_HANDOVER,
    COPY: MUTANTS_OF_COPY,
    JOURNAL: MUTANTS_OF_JOURNAL,
    EVENTS: MUTANTS_OF_EVENTS,
}
MUTANTS = [
    pytest.param(model, mutant, settings.split(), id=mutant)
    for model, mutants in MUTANTS_OF.items()
    for mutant, settings in mutants.items()
]


@pytest.fixture(scope="session", autouse=True)
def _checker():
    missing = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"{' and '.join(missing)} not installed")  # there a skipped test is a hole that nobody sees
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed; on Debian: apt-get install spin gcc")


def search(folder, model, settings, *, effort="-O1", compile_for="-DSAFETY", options=("-w22",)):
    """What Spin's search of the model prints."""

    def run(*command):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("spin", "-a", *(f"-D{setting}" for setting in settings), str(model))
    # -DNOREDUCE: partial order reduction saves no state here, so what it asks of a model needn't be proved.
    run("gcc", effort, "-DNOREDUCE", *compile_for.split(), "-o", "pan", "pan.c")
    return run("./pan", "-m100000", *options)


def assert_whole(printed, states):
    assert "errors: 0" in printed, printed
    assert "Search not completed" not in printed, printed
    assert "max search depth too small" not in printed, printed
    assert "Full statespace search" in printed, printed
    assert int(re.search(r"(\d+) states, stored", printed)[1]) >= states, printed


@pytest.mark.slow
@pytest.mark.parametrize(("model", "settings", "states"), CONFIGURATIONS)
def test_no_write_is_lost_doubled_or_reordered_and_every_state_leads_to_an_end(tmp_path, model, settings, states):
    assert_whole(search(tmp_path, model, settings), states)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "settings", "states"), ENDINGS)
def test_nothing_goes_on_for_ever_once_faults_cease(tmp_path, model, settings, states):
    # -DNOSTUTTER: a schedule that has ended doesn't count as one that goes on.
    printed = search(tmp_path, model, ["ENDS", *settings], compile_for="-DNOSTUTTER", options=("-a", "-w22"))
    assert_whole(printed, states)


@pytest.mark.proof
@pytest.mark.parametrize(("model", "mutant", "settings"), MUTANTS)
def test_a_mutant_is_found_out(tmp_path, model, mutant, settings):
    printed = search(tmp_path, model, [f"MUTANT_{mutant}", *settings], effort="-O0", options=("-w18",))
    assert "assertion violated" in printed, printed
    assert (tmp_path / f"{model.name}.trail").exists()


@pytest.mark.parametrize(("model", "mutants"), [pytest.param(*entry, id=entry[0].stem) for entry in MUTANTS_OF.items()])
def test_every_mutant_of_the_model_is_tried_and_reported(model, mutants):
    parts = [model, *(FOLDER / name for name in re.findall('#include "(.+)"', model.read_text()))]
    model = "".join(part.read_text() for part in parts)
    assert set(re.findall(r"\bMUTANT_([a-z_]+)", model)) == set(mutants)
    page = (FOLDER.parent / "handover.md").read_text()
    assert {mutant for mutant in mutants if f"`{mutant}`" not in page} == set()
