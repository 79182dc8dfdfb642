"""`shardctl init --from-database` on each database: docs/existing-tables.md's commands, and what they promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from consumerprocess_kit import Pubsub
from existing_kit import KINDS, Existing
from products_kit import PRODUCTS, empty_database
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from shardctl.cli import main
from shardctl.fleet.load import load_fleet
from shardctl.local.servers.install import find_bin_dir

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[3] / "docs/existing-tables.md"
PASSWORD = "s3cr3t-w0rd"
SHOP_URL = "SHOP_URL"


@pytest.fixture(params=PRODUCTS)
def existing(request):
    with empty_database(request, request.param) as url:
        table = Existing(request.param, url)
        table.create()
        yield table, url
        table.engine.dispose()


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def run(url, *arguments):
        for variable in (SHOP_URL, "SHARDCTL_DATABASE_URL_S0"):
            monkeypatch.setenv(variable, url)
        capsys.readouterr()
        code = main([*arguments])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def broker(monkeypatch):
    broker = Pubsub()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.broker.host)
    yield
    broker.stop()
    broker.loop.call_soon_threadsafe(broker.loop.stop)


NEW_SHARD = "## 3."
# `pg_dump` refuses a server that is newer than itself: the server's own comes first.
PATH = os.pathsep.join((str(find_bin_dir()), os.environ["PATH"]))


def blocks_of(text):
    return re.findall(r"```bash\n(.*?)```", text, re.DOTALL)


def commands_of_the_page():
    """Those of one shard."""
    blocks = blocks_of(PAGE.read_text().partition(NEW_SHARD)[0])
    return [line.split()[1:] for block in blocks for line in block.splitlines() if line.startswith("shardctl ")]


@pytest.mark.usefixtures("broker")
def test_the_page_takes_tables_over(existing, run, tmp_path):
    table, url = existing
    drafting, *others = commands_of_the_page()
    table.run("ALTER TABLE sales DROP COLUMN slot")
    done = run(url, *drafting)
    assert done.code == 0, done.stderr
    fleet = load_fleet(tmp_path / "shards.yaml")
    kind = fleet.message_types["sales"]
    assert (kind.key, kind.version_column) == (("id", "day"), "revision")
    text = (tmp_path / "shards.yaml").read_text()
    assert url not in text + done.stdout + done.stderr
    expected_codes = {"validate": 0, "adopt": 1, "adopt --yes": 0, "provision": 0}
    for arguments in others:
        words = " ".join(arguments)
        done = run(url, *arguments)
        assert done.code == expected_codes[words], done.stderr
    table.run("SELECT slot FROM sales")
    again = run(url, *drafting)
    assert (again.code, (tmp_path / "shards.yaml").read_text()) == (1, text)


class NewShard:
    """The database `shop_s1` of the page, beside the test's own, which the page calls `shop`."""

    def __init__(self, folder, url):
        self.folder, self.shop = folder, make_url(url)
        self.url = self.shop.set(database=f"{self.shop.database}_s1")
        options = {
            "host": self.shop.host,
            "port": self.shop.port,
            "user": self.shop.username,
            "password": self.shop.password,
        }
        lines = [f"{name}={value}" for name, value in options.items()]
        (folder / "shop.cnf").write_text("\n".join(["[client]", *lines]))

    def drop(self):
        engine = create_engine(self.shop, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {self.url.database}")
        engine.dispose()

    def make(self, *commands):
        """Run the page's commands."""
        urls = {
            variable: url.set(drivername="postgresql", query={}).render_as_string(hide_password=False)
            for variable, url in (("SHOP_URL", self.shop), ("SHOP_URL_S1", self.url))
        }
        for command in commands:
            text = re.sub(r"\bshop_s1\b", self.url.database, command)
            text = text.replace(" shop orders customers ", f" {self.shop.database} sales ")
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", text],
                cwd=self.folder, env={**os.environ, **urls, "PATH": PATH}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize(("product", "place"), [("postgresql", 0), ("mariadb", 1)])
def test_the_page_adds_the_first_new_shard(request, run, tmp_path, monkeypatch, product, place):
    """Without its commands the new tables lack what the file doesn't have, and nothing is moved."""
    commands = blocks_of(PAGE.read_text().partition(NEW_SHARD)[2])[place].splitlines()
    creating, copying = commands
    if product == "mariadb" and not shutil.which("mariadb-dump"):
        pytest.skip("needs Debian's mariadb-client")
    with empty_database(request, product) as url:
        table, new = Existing(product, url), NewShard(tmp_path, url)
        table.create()
        table.run("ALTER TABLE sales DROP COLUMN slot", "ALTER TABLE sales ADD opened time DEFAULT '08:30'")
        for arguments in commands_of_the_page():
            run(url, *arguments)
        monkeypatch.setenv("SHARDCTL_DATABASE_URL_S1", new.url.render_as_string(hide_password=False))
        adding = ("rebalance", "go", "--add", "s1", "--yes", "--no-wait", "--apply", "none")
        new.make(creating)
        refused = run(url, *adding)
        assert (refused.code, "column opened is missing at the destination" in refused.stderr) == (1, True), (
            refused.stderr
        )
        new.drop()
        new.make(creating, copying)
        done = run(url, *adding)
        assert (done.code, "rollout" in done.stderr) == (4, True), done.stderr
        table.engine.dispose()
        new.drop()


def test_each_column_has_the_type_that_takes_its_values(existing, run, tmp_path):
    table, url = existing
    run(url, "init", "--from-database", url)
    kind = load_fleet(tmp_path / "shards.yaml").message_types["sales"]
    own = {"price": "numeric(8,1)", "name": "varchar(5)", "at": "date"}  # narrower than the file of the other tests
    if table.product != "mariadb":
        own["other"] = "varchar(36)"
    if table.product == "postgresql":
        own |= {"old": "varchar(255)", "name": "text"}  # reflection doesn't say how long a domain's texts may be
    if table.product == "sqlite":
        own["id"] = "varchar(36)"
    assert dict(kind.columns) == {**KINDS["sale"].columns, **own, "slot": "integer"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([f"postgresql://u:{PASSWORD}@127.0.0.1:1/x"], 1, "connection"),
        ([f"mysql://u:{PASSWORD}@127.0.0.1:1/x"], 1, "database mysql"),
        ([f"oracle://u:{PASSWORD}@h/x"], 2, "--from-database: no such driver"),
        (["NO_SUCH_VARIABLE"], 2, "environment variable"),
        (["sqlite:////nowhere/x.db"], 1, "/nowhere/x.db: there is no such file"),
        (["sqlite://"], 1, "no tables"),
        (["sqlite://", "--tables", " ,"], 2, "--tables names no table"),
        (["sqlite://", "--from-modulo", "3"], 2, "exclude each other"),
    ],
    ids=repr,
)
def test_what_cannot_be_drafted_is_said_without_a_secret(run, tmp_path, arguments, code, says):
    done = run("", "init", "--from-database", *arguments)
    assert (done.code, list(tmp_path.iterdir())) == (code, []), done.stderr
    assert says in done.stderr
    assert PASSWORD not in done.stderr
    assert "Traceback" not in done.stderr
