from __future__ import annotations

from pathlib import Path

import pytest

from shardctl.cli import main
from shardctl.cli.render import Format, render
from shardctl.cli.terminal import print_diff
from shardctl.errors import EXIT_DONE, EXIT_REFUSED, EXIT_USAGE, ShardctlError, UsageError
from shardctl.render import BadTemplateError
from tests.unit.render.cloud_kit import FLEET


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shards.yaml"
    path.write_text(FLEET)
    return path


@pytest.fixture
def rendered(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "out"
    render(file, folder)
    capsys.readouterr()
    return folder


def test_what_is_as_rendered_passes_and_nothing_is_written(file: Path, rendered: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in rendered.rglob("*")}
    assert render(file, check=rendered) == EXIT_DONE
    assert {path: path.stat().st_mtime_ns for path in rendered.rglob("*")} == before


def test_differing_missing_and_unknown_files_are_named(
    file: Path, rendered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = rendered / "shards/s0/deployment.yaml"
    deployment.write_text(deployment.read_text().replace("1.0.0", "0.9.0"))
    (rendered / "shards/s1/configmap.yaml").unlink()
    (rendered / "shards/s1/old.yaml").write_text("old\n")
    (rendered / "kustomization.yaml").write_text("resources: []\n")
    assert render(file, check=rendered) == EXIT_REFUSED
    out, err = capsys.readouterr()
    files = [line.split(":")[0].split()[:2] for line in err.splitlines()[:3]]
    assert sorted(files) == [
        ["differs", str(deployment)],
        ["missing", str(rendered / "shards/s1/configmap.yaml")],
        ["unknown", str(rendered / "shards/s1/old.yaml")],
    ]
    changed = [line.strip() for line in out.splitlines() if line[0] in "+-" and line[1] not in "+-"]
    assert [line.split()[-1] for line in changed] == ["example.com/consumer:0.9.0", "example.com/consumer:1.0.0"] or [
        line.split()[-1] for line in changed
    ] == ['"example.com/consumer:0.9.0"', '"example.com/consumer:1.0.0"']


def test_a_part_is_compared_with_its_part_alone(file: Path, rendered: Path) -> None:
    (rendered / "shards/s1/configmap.yaml").unlink()
    assert render(file, shard=["s0"], check=rendered) == EXIT_DONE
    assert render(file, shard=["s1"], check=rendered) == EXIT_REFUSED


@pytest.mark.parametrize("form", [Format.terraform, Format.gcloud])
def test_other_formats_are_compared_too(form: Format, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / form
    assert render(file, folder, form=form) == EXIT_DONE
    assert render(file, form=form, check=folder) == EXIT_DONE
    (written,) = folder.iterdir()
    written.write_text(written.read_text().replace("roles/pubsub.subscriber", "roles/editor"))
    assert render(file, form=form, check=folder) == EXIT_REFUSED


def test_line_endings_alone_are_a_difference(file: Path, rendered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rendered / "shards/s0/serviceaccount.yaml"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert render(file, check=rendered) == EXIT_REFUSED
    assert "line endings" in capsys.readouterr().out


def test_a_folder_that_isnt_there_is_reported(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardctlError, match="no such folder"):
        render(file, check=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "options",
    [
        {"output": Path("x"), "check": Path("x")},
        {"form": Format.terraform, "shard": ["s0"]},
        {"form": Format.gcloud, "kind": ["Deployment"]},
        {"form": Format.gcloud, "templates": Path("x")},
    ],
    ids=["write and compare", "part of a module", "part of a script", "templates of a script"],
)
def test_options_that_exclude_each_other(options, file: Path) -> None:
    with pytest.raises(UsageError):
        render(file, **options)


def test_a_diff_is_coloured_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["--- a", "+++ b", "@@ -1 +1 @@", "-old", "+new", " same"]
    print_diff(lines)
    assert capsys.readouterr().out.splitlines() == lines
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_diff(lines)
    assert "\x1b[31m-old\x1b[0m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    print_diff(lines)
    assert capsys.readouterr().out.splitlines() == lines


def test_the_command_line_takes_the_options(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "tf")
    assert main(["render", "-f", str(file), "--format", "terraform", "-o", out]) == EXIT_DONE
    assert main(["render", "-f", str(file), "--format", "terraform", "--check", out]) == EXIT_DONE
    assert main(["render", "-f", str(file), "--format", "pulumi"]) == EXIT_USAGE
    assert main(["render", "-f", str(file), "--kind", "PubSubTopic"]) == EXIT_USAGE
    assert "provisioner is terraform" in capsys.readouterr().err


# --- custom templates -------------------------------------------------------------------------------------------


def test_a_custom_template_is_rendered_and_compared(file: Path, tmp_path: Path) -> None:
    own, out = tmp_path / "templates", tmp_path / "own"
    own.mkdir()
    (own / "serviceaccount.yaml.j2").write_text("kind: ServiceAccount\nmetadata:\n  name: {{ name }}\n")
    assert render(file, out, templates=own) == EXIT_DONE
    assert (out / "shards/s0/serviceaccount.yaml").read_text().startswith("kind: ServiceAccount")
    assert render(file, templates=own, check=out) == EXIT_DONE
    assert render(file, check=out) == EXIT_REFUSED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: X\nname: {{ nmae }}\n", r"serviceaccount\.yaml\.j2:2: 'nmae' is undefined"),
        ("kind: X\n{% for a in %}\n", r"serviceaccount\.yaml\.j2:2: "),
        ("kind: X\n{% include '_part.j2' %}\n", r"_part\.j2:3: 'lost' is undefined"),
    ],
    ids=["a name", "syntax", "a name in what it includes"],
)
def test_a_template_at_fault_is_reported_by_file_line_and_name(
    text: str, message: str, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "serviceaccount.yaml.j2").write_text(text)
    (tmp_path / "_part.j2").write_text("a: 1\nb: 2\nc: {{ lost }}\n")
    with pytest.raises(BadTemplateError, match=message):
        render(file, kind=["ServiceAccount"], templates=tmp_path)


def test_a_template_that_overrides_nothing_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "deploymnet.yaml.j2").write_text("")
    with pytest.raises(UsageError, match=r"overrides no template\. Did you mean deployment\.yaml\.j2"):
        render(file, templates=tmp_path)
