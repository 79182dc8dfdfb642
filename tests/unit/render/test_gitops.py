"""What Argo CD, Flux and Kustomize are given: sync waves, and a file that lists the manifests."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from manifests import CASES, LOADER, fleet_of, objects

from shardctl.cli import main
from shardctl.errors import UsageError
from shardctl.fleet.load import load_fleet
from shardctl.render.kinds import Stage, stage_of
from shardctl.render.waves import ANNOTATION, annotated

KUBECTL = shutil.which("kubectl")
PAGE = (Path(__file__).parents[3] / "docs" / "gitops.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.parent.name)
def test_a_sync_wave_is_all_that_differs(case: Path) -> None:
    fleet = load_fleet(case)
    before = objects(fleet)
    after = objects(fleet.model_copy(update={"sync_waves": True}))
    for item in after:
        wave = item["metadata"]["annotations"].pop(ANNOTATION)
        assert int(wave) == stage_of(item["kind"])
        if not item["metadata"]["annotations"]:
            del item["metadata"]["annotations"]
    assert after == before


def test_pods_come_after_their_subscriptions_and_before_their_autoscalers() -> None:
    waves = {
        item["kind"]: int(item["metadata"]["annotations"][ANNOTATION]) for item in objects(fleet_of("sync_waves: true"))
    }
    assert waves["PubSubSubscription"] < waves["ConfigMap"] < waves["Deployment"] < waves["HorizontalPodAutoscaler"]


def test_a_template_without_metadata_of_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deployment.yaml.j2").write_text("{kind: Deployment, metadata: {name: x}}\n")
    with pytest.raises(UsageError, match=r"deployment\.yaml\.j2: there is no `metadata:`"):
        objects(fleet_of("sync_waves: true"), "Deployment", templates=tmp_path)


def test_annotations_join_those_that_are_there() -> None:
    text = "kind: A\nmetadata:\n  name: a\n  annotations:\n    b: c\nspec:\n  metadata:\n    name: d\n"
    document = yaml.load(annotated(text, {"x": "1"}), LOADER)
    assert document == {
        "kind": "A", "metadata": {"name": "a", "annotations": {"x": "1", "b": "c"}}, "spec": {"metadata": {"name": "d"}}
    }  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shards.yaml"
    shutil.copy(CASES[0].parents[1] / "minimal" / "shards.yaml", path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(KUBECTL is None, reason="kubectl isn't on the PATH")
@pytest.mark.parametrize("kind", ["kustomization", "component"])
def test_kustomize_builds_what_is_rendered(file: Path, kind: str) -> None:
    folder = file.parent / "deploy" / "orders"
    overlay = file.parent / "overlays" / "production"
    overlay.mkdir(parents=True)
    assert main(["render", "-f", str(file), "-o", str(folder), "--kustomize", kind]) == 0
    (block,) = re.findall(
        r"^```yaml\n# overlays/production/kustomization.yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE
    )
    (overlay / "kustomization.yaml").write_text(block)
    built = folder if kind == "kustomization" else overlay
    ran = subprocess.run([str(KUBECTL), "kustomize", str(built)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    names = sorted((item["kind"], item["metadata"]["name"]) for item in yaml.load_all(ran.stdout, LOADER))
    assert names == sorted((item["kind"], item["metadata"]["name"]) for item in objects(load_fleet(file)))


def test_a_kustomization_of_the_users_is_not_overwritten(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = file.parent / "deploy"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text("resources: []\n")
    assert main(["render", "-f", str(file), "-o", str(folder), "--kustomize", "component"]) == 1
    assert "is yours, and isn't overwritten" in capsys.readouterr().err
    assert (folder / "kustomization.yaml").read_text() == "resources: []\n"
    assert main(["render", "-f", str(file), "--kustomize", "component"]) == 2


def test_the_page_tells_the_waves_of_each_stage() -> None:
    section = PAGE.partition("by the stages of")[2].partition("- **Flux**")[0]
    assert [int(number) for number in re.findall(r"\b(\d)\s+[a-z]", section)] == list(Stage)


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
def test_what_the_page_shows_is_yaml(block: str) -> None:
    assert {"apiVersion", "kind"} <= yaml.load(block, LOADER).keys()
