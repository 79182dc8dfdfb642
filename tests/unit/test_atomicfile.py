"""A file is written whole or not at all, by every command that writes one."""

import ast
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
from disk_kit import full, no_more_bytes, small_disk

from shardctl import atomicfile, lockfile
from shardctl.atomicfile import FileError, FileThereError
from shardctl.cli import main
from shardctl.errors import EXIT_REFUSED, EXIT_USAGE
from shardctl.fleet import scaffold
from shardctl.fleet.load import load_fleet
from shardctl.status.localfile import LocalFile

ROOT = Path(__file__).parents[2]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_gets_its_mode_from_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        atomicfile.write(tmp_path / "x", b"new")
    finally:
        os.umask(before)
    assert ((tmp_path / "x").read_bytes(), mode(tmp_path / "x")) == (b"new", 0o640)
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("wanted", [0o600, 0o644, 0o666, 0o755], ids=oct)
def test_an_existing_file_keeps_its_mode(tmp_path, wanted):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(wanted)
    atomicfile.write(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", wanted)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_existing_file_keeps_its_owner(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    os.chown(path, 12345, 54321)
    atomicfile.write(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "x"
    target.write_bytes(b"old")
    target.chmod(0o600)
    (tmp_path / "one").symlink_to("real/x")
    (tmp_path / "two").symlink_to("one")
    atomicfile.write(tmp_path / "two", b"new")
    assert [str((tmp_path / name).readlink()) for name in ("one", "two")] == ["real/x", "one"]
    assert (target.read_bytes(), mode(target)) == (b"new", 0o600)
    assert names(tmp_path / "real") == ["x"]


def test_a_dangling_link_gets_its_target(tmp_path):
    (tmp_path / "link").symlink_to("x")
    atomicfile.write(tmp_path / "link", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


def test_a_link_that_leads_to_itself_is_an_error(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileError, match="can't be written"):
        atomicfile.write(tmp_path / "loop", b"new")


def test_a_reader_that_has_the_old_file_open_reads_it_to_its_end(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        atomicfile.write(path, b"new content")
        assert reader.read() == b"old"


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomicfile.write(pipe, b"new")
        assert os.read(reader, 10) == b"new"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("there", ["file", "link"])
def test_a_new_file_replaces_nothing(tmp_path, there):
    path = tmp_path / "x"
    if there == "file":
        path.write_bytes(b"old")
    else:
        path.symlink_to("elsewhere")
    with pytest.raises(FileThereError):
        atomicfile.write(path, b"new", new=True)
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("path", "code"), [("folder", EXIT_USAGE), ("missing/x", EXIT_REFUSED), ("file/x", EXIT_USAGE)]
)
def test_a_failed_write_is_reported_and_leaves_nothing(tmp_path, path, code):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(
        FileError, match=rf"{path}: can't be written: .*\. What was there before is unchanged"
    ) as caught:
        atomicfile.write(tmp_path / path, b"new")
    assert caught.value.exit_code == code
    assert names(tmp_path) == ["file", "folder"]
    assert names(tmp_path / "folder") == []


# -- a disk that takes no more ---------------------------------------------------------------------------------------


def init(path):
    return main(["init", "--force", "-f", str(path)])


def init_anew(path):
    path.unlink(missing_ok=True)
    return main(["init", "-f", str(path)])


def plan(path):
    file = path.parent / "shards.yaml"
    return main(["rebalance", "plan", "--add", "s3", "-f", str(file), "-o", str(path), "--force"])


def render(path):
    file = path.parent / "shards.yaml"
    folder = path.parent / "out" / "fleet"
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        shutil.move(path, folder / "pubsubtopic-data-writes.yaml")
    path.symlink_to(folder / "pubsubtopic-data-writes.yaml")  # so that all cases look at one path
    return main(["render", "-f", str(file), "-o", str(path.parent / "out")])


def lock(path):
    file = path.parent / "shards.yaml"
    link = lockfile.path_of(file)
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    with pytest.raises(lockfile.GuardError):
        lockfile.write(file, load_fleet(file))
    return 1


def local_file(path):
    with pytest.raises(FileError):
        LocalFile((), {f"s{number}": "x" * 1000 for number in range(10)}).write(path)
    return 1


WRITERS = [init, plan, render, lock, local_file]


@pytest.fixture(params=["a full disk", "a limit on files"])
def failing(request, tmp_path, monkeypatch):
    """A folder, and a context in which files in it can't be written."""
    monkeypatch.setattr("shardctl.render.warnings", lambda _: ())
    if request.param == "a limit on files":
        yield tmp_path, lambda: no_more_bytes(50)
        return
    with small_disk(tmp_path / "disk") as disk:
        yield disk, lambda: full(disk)


@pytest.mark.parametrize("write", WRITERS, ids=lambda writer: writer.__name__)
def test_a_write_that_fails_leaves_the_old_content(failing, write, capsys):
    folder, failure = failing
    (folder / "shards.yaml").write_text(scaffold.text(3))
    path = folder / "target"
    path.write_bytes(b"old\n")
    path.chmod(0o640)
    with failure():
        assert write(path) == 1
    assert (path.read_bytes(), mode(path)) == (b"old\n", 0o640)
    assert [name for _, _, names in os.walk(folder) for name in names if name.endswith((".tmp", ".new"))] == []
    if write in (init, plan, render):
        error = r"^error: .*can't be written: (No space left on device|File too large)"
        assert re.search(error, capsys.readouterr().err, re.MULTILINE)


def test_a_new_file_that_fails_is_not_there(failing, capsys):
    folder, failure = failing
    with failure():
        assert init_anew(folder / "target") == 1
    assert not (folder / "target").exists()
    assert "can't be written" in capsys.readouterr().err


# -- one place for it ------------------------------------------------------------------------------------------------

OTHERS = {
    "shardctl/atomicfile.py",
    "shardctl/audit.py",  # a log that is appended to
    "shardctl/cli/__init__.py",  # a new temporary file: the traceback of a bug
    "shardctl/cluster/kubectl.py",  # what a child process prints
    "shardctl/deadletter/archive.py",  # a file that is appended to
    "shardctl/local/onecommand.py",  # what a child process prints
    "shardctl/local/servers/install.py",  # a setting appended to a new database cluster
    "shardctl/local/servers/process.py",  # a server's log
}
WRITING_CALLS = {"write_text", "write_bytes", "NamedTemporaryFile", "mkstemp"}


def writes(source):
    """The lines on which a file is opened for writing, or written."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in WRITING_CALLS or (name in ("open", "fdopen") and opens_for_writing(node)):
            yield node.lineno


def opens_for_writing(call):
    text = ast.unparse(call)
    if "os.devnull" in text:
        return False
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return (
        "os.O_WRONLY" in text or "os.O_RDWR" in text or any(re.fullmatch("[rb]*[wax+][bt+]*", mode) for mode in modes)
    )


@pytest.mark.parametrize(
    "source",
    [
        "p.write_text(x)",
        "p.write_bytes(x)",
        "open(p, 'w')",
        "open(p, 'r+')",
        "p.open('xb')",
        "p.open(mode='a')",
        "os.open(p, os.O_WRONLY)",
    ],
)
def test_each_way_to_write_is_known(source):
    assert list(writes(source)) == [1]


@pytest.mark.parametrize("source", ["p.open()", "open(p, 'rb')", "p.read_text()", "batch.open()"])
def test_reading_is_not_writing(source):
    assert list(writes(source)) == []


def test_no_other_module_writes_files():
    modules = (ROOT / "shardctl").rglob("*.py")
    writing = {str(path.relative_to(ROOT)) for path in modules if list(writes(path.read_text()))}
    assert writing <= OTHERS
    assert OTHERS - writing == set(), "these no longer write: take them off the list"


def test_a_private_file_is_for_its_owner_alone_also_where_an_earlier_one_was_not(tmp_path):
    path = tmp_path / "env"
    for _ in range(2):
        atomicfile.write(path, b"secret", private=True)
        assert (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (0o600, b"secret")
        path.chmod(0o644)
