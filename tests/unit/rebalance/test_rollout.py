"""How a command waits for what others have to do. Time is a number that sleeping adds to."""

from itertools import pairwise
from pathlib import Path

import pytest

from shardctl.cli.rebalance.rollout import ApplyError, Patience, Rollout, command_by_hand, next_step, rollout_of
from shardctl.status.localfile import LocalFile


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def waited(*reasons, at_most=None):
    """How a wait ends whose looks find these reasons one after the other, and what was said: seconds and reasons."""
    time, looks, reports = Time(), iter(reasons), []
    ended = Patience(at_most, time, time.sleep).until(
        lambda: next(looks), lambda why, seconds: reports.append((seconds, *why))
    )
    return ended, reports


def test_nothing_to_wait_for_is_not_talked_of():
    assert waited([]) == (True, [])


def test_a_wait_is_reported_at_once_and_when_its_reasons_change():
    assert waited(["a", "b"], ["a", "b"], ["b"], []) == (True, [(0.0, "a", "b"), (2.0, "b")])


def test_a_wait_reports_often_at_first_and_rarely_later():
    ended, reports = waited(*[["a"]] * 7200, [])
    assert ended
    moments = [seconds for seconds, _ in reports]
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    assert max(pauses) <= 60
    assert pauses[0] == 5
    assert len(reports) < 160


@pytest.mark.parametrize("at_most", [0.0, 3.0])
def test_a_wait_ends_in_time_and_reports_the_last_unmet_condition(at_most):
    ended, reports = waited(*[["a"]] * 100, at_most=at_most)
    assert not ended
    assert reports[-1] == (at_most, "a")


def test_what_has_come_at_the_last_look_has_come():
    assert waited(["a"], ["a"], [], at_most=2.0)[0]


@pytest.mark.parametrize(
    ("apply", "by_hand"),
    [("", True), ("none", False), ("kubectl apply -f x", False)],
    ids=["nobody", "none", "command"],
)
def test_who_applies(monkeypatch, apply, by_hand):
    monkeypatch.delenv("SHARDCTL_LOCAL_FLEET", raising=False)
    assert rollout_of(Path("shards.yaml"), apply).by_hand == by_hand


def test_the_next_step_is_nobodys_where_a_local_fleet_follows_the_file(monkeypatch, tmp_path):
    file, fleet_file = tmp_path / "shards.yaml", tmp_path / "fleet.json"
    LocalFile((), {}, str(file.resolve())).write(fleet_file)
    monkeypatch.delenv("SHARDCTL_LOCAL_FLEET", raising=False)
    assert f"`shardctl apply -f {file} --yes`" in next_step(file)
    monkeypatch.setenv("SHARDCTL_LOCAL_FLEET", str(fleet_file))
    assert next_step(file) == f"`shardctl up` follows {file}, and needs some seconds."
    assert "shardctl apply" in next_step(tmp_path / "other.yaml")


def test_the_command_by_hand_can_be_pasted():
    assert command_by_hand(Path("my shards.yaml")) == "shardctl apply -f 'my shards.yaml' --yes"


def test_a_command_that_fails_is_an_error_that_names_the_next_step():
    with pytest.raises(ApplyError, match=r"exit code 3.*`shardctl rebalance go` continues"):
        Rollout("exit 3").apply()
