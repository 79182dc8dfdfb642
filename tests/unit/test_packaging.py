"""What a wheel carries, and what its commands need."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = ("shardctl", "consumer", "examples", "bench", "docs", "tests")


def test_every_version_of_python_that_is_named_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    named = [name.removeprefix(prefix) for name in project["classifiers"] if name.startswith(prefix)]
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    assert project["requires-python"] == f">={named[0]}"


@pytest.mark.proof
@pytest.mark.slow
def test_python_314_compiles_every_file_without_a_warning(tmp_path):
    if shutil.which("npm") is None and not os.environ.get("CI"):
        pytest.skip("npm, which installs a Python 3.14, isn't on the PATH")
    place = tmp_path / "python314"
    shutil.copytree(ROOT / "tests" / "python314", place, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(["npm", "ci"], cwd=place, check=True, capture_output=True)
    command = ["node", "compile.mjs", *(ROOT / folder for folder in FOLDERS)]
    done = subprocess.run(command, cwd=place, check=True, capture_output=True, text=True)
    version, count, *faults = done.stdout.splitlines()
    assert version.startswith("3.14.")
    assert int(count) > 800
    assert faults == []


@pytest.mark.proof
@pytest.mark.slow
def test_wheel_and_source_carry_everything(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--directory", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {"shardctl/py.typed", "consumer/py.typed"} <= inside
    assert {f"shardctl/_templates/{path.name}" for path in (ROOT / "templates").iterdir()} <= inside
    for package in ("shardctl", "consumer"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*") if path.is_file()}
        assert {name for name in files if "__pycache__" not in name} <= inside
    assert not {name for name in inside if name.startswith(("tests/", "bench/"))}
    with tarfile.open(source) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {
        "README.md",
        "LICENSE",
        "Makefile",
        "shards.yaml",
        "templates/deployment.yaml.j2",
        "tests/conftest.py",
    } <= names


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["init", "-f", "new.yaml"], ["validate"], ["render"], ["route", "k"], ["schema"], ["--help"]]
)
def test_what_only_reads_a_file_needs_no_driver_and_no_cloud_library(tmp_path, arguments):
    (tmp_path / "shards.yaml").write_text((ROOT / "shards.yaml").read_text())
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('psycopg', 'pymysql', 'google', 'grpc', 'redis', 'uvicorn'))); "
        "from shardctl.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_command_names_the_extra_that_it_lacks(tmp_path):
    (tmp_path / "shards.yaml").write_text((ROOT / "shards.yaml").read_text())
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('psycopg', 'pymysql'))); from shardctl.cli import main; "
        "import shardctl.status.collector, shardctl.ui.server, shardctl.ui.view; "
        "assert not [name for name in sys.modules if name.startswith('shardctl.local')]; "
        "print([main(['up']), main(['parked', 'list', '--shard', 's0', '--database', 's0=mysql://u@127.0.0.1:1/d'])])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "[1, 1]\n", done.stderr
    assert "psycopg not found: pip install 'shardctl[local]'" in done.stderr
    assert "pip install 'shardctl[mysql]'" in done.stderr
    assert "bug" not in done.stderr
