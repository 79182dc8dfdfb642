"""Each verb in this process: exit code, what stdout carries, what stderr says."""

import io
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from fleets import text

from shardctl import cli
from shardctl.cli import main
from shardctl.fleet import scaffold

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run a verb in an empty folder; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def ran(*arguments, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return ran


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "shards.yaml"
    path.write_text(scaffold.text(3))
    return path


def test_version(run):
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out.startswith("shardctl ")
    assert run("-V") == (code, out, err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["validate", "--bogus"],
        ["route"],
        ["init", "--shards", "0"],
        ["init", "--shards", "257"],
        ["broker", "--port", "x"],
    ],
    ids=" ".join,
)
def test_usage_faults_end_with_2(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["deadletter", "drop", "", "--yes"], "an argument"),
        (["parked", "release", "--shard", "", "--all"], "--shard"),
        (["apply", "--context", "", "--yes"], "--context"),
        (["apply", "--context=", "--yes"], "--context"),
        (["rebalance", "go", "--split", "", "--yes"], "--split"),
        (["rebalance", "go", "--gitops", "", "--yes"], "--gitops"),
        (["job", "--", "rebalance", "go", "--split", ""], "--split"),
        (["verify", "--database=s0=postgresql://u:sekret@h/d", ""], "--database"),
    ],
)
def test_an_empty_word_is_not_taken_for_what_is_left_out(run, file, arguments, where):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert f"error: {where}: its value is empty." in err
    assert "sekret" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("init -f new.yaml --shards 5 --from-modulo 3", "leave out --shards"),
        ("init -f new.yaml --key id", "belong to --from-modulo"),
        ("init -f new.yaml --table t", "belong to --from-modulo"),
        ("init -f new.yaml --from-database sqlite:///x --tables ,", "names no table"),
        ("verify --database s0=sqlite:///a --database s0=sqlite:///b", "--database is given twice for s0"),
        ("rebalance plan --weights s0=2 --weights s0=3", "--weights is given twice for s0"),
        ("rebalance plan --weights s0=1e308", "Weights are over 0"),
        ("rebalance plan --weights s0=nan", "Weights are over 0"),
        ("rebalance plan --add s9 --window 1h", "give --by-load too"),
        ("rebalance go --add s9 --min-gain 5% --apply none --yes", "give --by-load too"),
        ("simulate --rate 1 --type order=1 --type order=2", "--type is given twice for order"),
        ("simulate --rate 1 --key-format {:>999999999}", "too long"),
        ("provision --no-databases --database s0=sqlite:///a", "exclude each other"),
    ],
)
def test_options_that_contradict_each_other_or_mean_nothing_are_refused(run, file, arguments, says):
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert says in err
    assert not Path("new.yaml").exists()


def test_help_names_every_verb(run):
    code, out, _ = run("--help")
    assert code == 0
    for verb in ("init", "validate", "schema", "route", "render", "provision", "publish", "broker"):
        assert f"  {verb} " in out


def test_help_shows_whole_summaries_by_stage_on_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("--help")
    assert "..." not in out.partition("Describe:")[2]
    assert [line for line in out.splitlines() if line.endswith(":")] == [
        "Options:", "Describe:", "Run:", "Operate:", "Move:"
    ]  # fmt: skip
    assert max(map(len, out.splitlines())) <= 80
    assert "..." not in run("rebalance", "--help")[1].partition("Commands:")[2]


def test_help_starts_fast_since_verbs_import_late():
    code = "import sys, shardctl.cli; print([m for m in ('grpc', 'sqlalchemy', 'rich', 'google') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.slow
def test_python_m_shardctl():
    ended = subprocess.run([sys.executable, "-m", "shardctl", "bogus"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "No such command" in ended.stderr


# --- main ---------------------------------------------------------------------------------------------------------------


def failing(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr("shardctl.fleet.spec.json_schema", fail)


def test_a_bug_ends_with_3_and_a_file(run, monkeypatch):
    monkeypatch.delenv("SHARDCTL_DEBUG", raising=False)
    failing(monkeypatch, RuntimeError("boom"))
    code, out, err = run("schema")
    assert (code, out) == (3, "")
    assert "bug: RuntimeError: boom" in err
    path = Path(err.partition("the command you ran and ")[2].partition(";")[0])
    assert "Traceback" in path.read_text()
    path.unlink()


def test_a_bug_shows_its_traceback_when_asked(monkeypatch, capsys):
    monkeypatch.setenv("SHARDCTL_DEBUG", "1")
    failing(monkeypatch, RuntimeError("boom"))
    assert main(["schema"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_with_130(run, monkeypatch):
    failing(monkeypatch, KeyboardInterrupt())
    assert run("schema") == (130, "", "interrupted\n")


@pytest.mark.slow
def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -m shardctl schema; echo $? >&2"
    ended = subprocess.run(
        ["bash", "-c", f"({command}) | head -c 1"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert ended.stdout == "{"
    assert ended.stderr == "0\n"


# --- init ---------------------------------------------------------------------------------------------------------------


def test_the_shipped_file_is_what_init_writes():
    assert (ROOT / "shards.yaml").read_text() == scaffold.text(3)


def test_init_writes_and_never_overwrites(run, tmp_path):
    code, out, err = run("init", "--shards", "4")
    assert (code, out) == (0, "")
    assert "4 shards" in err
    (tmp_path / "shards.yaml").write_text("mine")
    code, _, err = run("init")
    assert code == 1
    assert "--force" in err
    assert (tmp_path / "shards.yaml").read_text() == "mine"
    assert run("init", "--force")[0] == 0
    assert run("validate")[0] == 0


def test_init_names_what_it_is_given_and_its_secrets_after_the_fleet(run, tmp_path):
    names = ("--fleet", "shop", "--project", "shop-prod", "--image", "registry.example/consumer:1")
    code, _, err = run("init", *names)
    assert code == 0
    assert "Next: `shardctl validate`." in err
    written = yaml.safe_load((tmp_path / "shards.yaml").read_text())
    assert [written[name] for name in ("fleet", "project", "namespace", "image")] == [
        "shop", "shop-prod", "shop", "registry.example/consumer:1"
    ]  # fmt: skip
    assert written["redis"]["secret"]["name"] == "shop-redis"
    assert [shard["database"]["name"] for shard in written["shards"]] == ["shop-s0-db", "shop-s1-db", "shop-s2-db"]
    assert run("validate")[0] == 0
    assert run("init", "--namespace", "elsewhere", "--from-modulo", "2", "--force")[0] == 0
    assert yaml.safe_load((tmp_path / "shards.yaml").read_text())["namespace"] == "elsewhere"


@pytest.mark.parametrize(
    ("option", "value"), [("--fleet", "Shop"), ("--project", "x"), ("--namespace", "a_b"), ("--image", "image:latest")]
)
def test_init_refuses_names_that_the_file_could_not_have(run, tmp_path, option, value):
    code, _, err = run("init", option, value)
    assert code == 2
    assert f"{option}: {value!r} " in err
    assert not (tmp_path / "shards.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        ("render --kind deploymant", "Deployment"),
        ("render --shard s00", "s0"),
        ("route k --type custmer", "customer"),
        ("simulate --rate 1 --type ordr=1", "order"),
    ],
)
def test_a_name_that_is_nearly_right_is_suggested(run, file, arguments, near):
    code, _, err = run(*arguments.split())
    assert code == 2
    assert f"Did you mean {near}?" in err


def test_init_into_a_folder_that_isnt_there(run):
    code, _, err = run("init", "-f", "none/shards.yaml")
    assert code == 1
    assert err.startswith("error: none/shards.yaml: can't be written")


# --- validate -----------------------------------------------------------------------------------------------------------


def test_validate_prints_the_proof(run, file):
    code, out, err = run("validate")
    assert code == 0
    assert "each of 3,072 (slot, type) pairs goes to exactly one shard" in out
    assert "$160 for each TiB" in out
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [
        ["s0", "0-351"],
        ["s1", "352-671"],
        ["s2", "672-1023"],
    ]
    assert err == "shards.yaml: valid\n"


def test_validate_as_json(run, file):
    code, out, _ = run("validate", "--json", "-f", file)
    report = json.loads(out)
    assert code == 0
    assert report["pairs_proved"] == 3072
    assert sum(shard["slot_count"] for shard in report["shards"]) == 1024
    assert all(sub["filter_bytes"] <= 256 for shard in report["shards"] for sub in shard["subscriptions"])
    assert report["advice"] == []


@pytest.mark.parametrize(("rate", "shown"), [((), "1,000"), (("--rate", "250.5"), "250.5")], ids=["assumed", "given"])
def test_validate_predicts_each_shards_inbox(run, file, rate, shown):
    _, out, _ = run("validate", *rate)
    _, as_json, _ = run("validate", *rate, "--json")
    report = json.loads(as_json)
    assert f"Inbox: at {shown} writes/s" in out
    retention_seconds = 8 * 86_400
    for line, shard in zip(out.splitlines()[1:], report["shards"], strict=False):
        share = shard["slot_count"] / 1024
        assert shard["inbox_rows"] == round(report["inbox_writes_per_second"] * share * retention_seconds)
        assert shard["inbox_bytes"] > 90 * shard["inbox_rows"]
        assert f"{shard['inbox_rows']:,}" in line


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(text(["0-1022", "1023"]), "more replicas would idle: s1", id="replicas"),
        pytest.param(text(["0-335", "336-687", "688-1023"]), "no room for every malformed slot", id="blind"),
        pytest.param(
            text(["0-1023"], more="consumer: {statement_timeout: 61s}\n"), "statement_timeout is over", id="statement"
        ),
        pytest.param(text(["0-1023"], more="consumer: {lock_ttl: 21s}\n"), "lock_ttl is over", id="lock"),
        pytest.param(
            text([f"{n * 128}-{n * 128 + 127}" for n in range(8)]), "routing.topic_bits spreads", id="deliveries"
        ),
    ],
)
def test_validate_advises(run, file, body, says):
    file.write_text(body)
    code, _, err = run("validate")
    assert code == 0
    assert says in err


def test_types_that_go_to_strays_are_reported(run, file):
    file.write_text(text([["slots: 0-1023", "types: [a, b]"]]))
    assert "any other type goes to strays" in run("validate")[1]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "where", "says"),
    [
        pytest.param(b"", "(the whole file)", "`shardctl init`", id="empty"),
        pytest.param(b"- a", "(the whole file)", "holds no settings", id="list"),
        pytest.param(b"\xff\xfe\x00", "shards.yaml: ", "UTF-8", id="binary"),
        pytest.param("fleet: x".encode("utf-16"), "shards.yaml: ", "UTF-8", id="utf-16"),
        pytest.param(b"a: 1\n" * 2_100_000, "shards.yaml: ", "larger than 8 MiB", id="10-mb"),
        pytest.param(b"[" * 300_000, "shards.yaml:1", "nested deeper", id="deep"),
        pytest.param(BOMB.encode(), "shards.yaml:", "aliases unfold", id="bomb"),
        pytest.param(b"a: &a [*a]", "shards.yaml:1", "contains it", id="loop"),
        pytest.param(b"a: !!python/object/apply:os.getcwd []", "shards.yaml:1", "isn't plain YAML", id="python"),
        pytest.param(b"a: 1\na: 2", "shards.yaml:2", "Keep one", id="duplicate"),
        pytest.param(b"fleet: 00", "shards.yaml:1", "in quotes", id="zeros"),
        pytest.param(b"a: 1\n---\nb: 1", "shards.yaml:2", "one document", id="documents"),
        pytest.param(b"a:\n\tb: 1", "shards.yaml:2", "never tabs", id="tab"),
        pytest.param(
            text(["0-1023"]).replace("slots", "slot").encode(), "shards[0].slot: ", "Did you mean slots?", id="unknown"
        ),
        pytest.param(text(["5-3"]).encode(), "shards[0].slots: ", "runs backwards", id="backwards"),
        pytest.param(text(["0-511"]).encode(), "shards: ", "no shard owns slots 512-1023", id="gap"),
    ],
)
def test_invalid_files_end_with_2(run, file, content, where, says):
    file.write_bytes(content)
    code, out, err = run("validate")
    assert (code, out) == (2, "")
    assert err.startswith("error: shards.yaml")
    assert where in err
    assert says in err


def test_files_that_cant_be_read(run, tmp_path):
    assert run("validate", "-f", "none.yaml")[0] == 2
    code, _, err = run("validate", "-f", tmp_path)
    assert code == 2
    assert "Is a directory" in err


# --- schema and route ---------------------------------------------------------------------------------------------------


def test_schema_accepts_the_shipped_file(run):
    code, out, err = run("schema")
    assert (code, err) == (0, "")
    jsonschema.validate(yaml.safe_load((ROOT / "shards.yaml").read_text()), json.loads(out))


def test_route(run, file):
    code, out, err = run("route", "k1")
    assert (code, err) == (0, "")
    assert "426 (0110101010)" in out
    assert "orders-s1-g1" in out


def test_route_as_json(run, file):
    code, out, _ = run("route", "k1", "--type", "order", "--json")
    route = json.loads(out)
    assert code == 0
    assert (route["slot"], route["digits"], route["topic"]) == (426, "0110101010", "data-writes")
    assert route["shards"] == [
        {
            "name": "s1",
            "types": ["customer", "order"],
            "subscription": "orders-s1-g1",
            "database_secret": {"name": "orders-s1-db", "key": "url"},
            "cloud_sql": None,
        }
    ]


@pytest.mark.parametrize("message_type", [None, "a", "b"])
def test_route_by_type(run, file, message_type):
    file.write_text(text([["slots: 0-1023", "types: [a]"], ["slots: 0-1023", "except_types: [a]"]]))
    _, out, _ = run("route", "k", "--json", *(["--type", message_type] if message_type else []))
    names = [shard["name"] for shard in json.loads(out)["shards"]]
    assert names == {None: ["s0", "s1"], "a": ["s0"], "b": ["s1"]}[message_type]


def test_route_of_unknown_types(run, file):
    code, out, err = run("route", "k", "--type", "zz")
    assert (code, out) == (2, "")
    assert "customer, order" in err
    file.write_text(text([["slots: 0-1023", "types: [a, b]"]]))
    code, out, err = run("route", "k", "--type", "zz")
    assert (code, out) == (1, "")
    assert "orders-strays" in err


def test_route_by_time(run, file):
    file.write_text(
        text(["0-1023"]).replace("    key: id\n", "    key: id\n    time_bucket: {field: at, unit: day}\n", 1)
    )
    code, _, err = run("route", "k", "--type", "a")
    assert code == 2
    assert "--at 2026-" in err
    code, out, _ = run("route", "k", "--type", "a", "--at", "1970-01-06T00:00:00Z", "--json")
    assert (code, json.loads(out)["slot"]) == (0, 5)
    assert run("route", "k", "--type", "a", "--at", "soon")[0] == 2
    assert run("route", "k", "--type", "b", "--at", "1970-01-06")[0] == 2


@pytest.mark.parametrize("key", ["x" * 256, "a\nb"], ids=["long", "newline"])
def test_route_refuses_keys_that_are_none(run, file, key):
    code, out, err = run("route", key)
    assert (code, out) == (2, "")
    assert err.startswith("error: KEY ")


# --- publish ------------------------------------------------------------------------------------------------------------

GOOD = b'{"type": "order", "body": {"order_id": "o1"}}\n'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"nonsense", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[1]", "not an object"),
        (b"[" * 5000, "not JSON"),
        (b'{"type": 1, "body": {}}', '"type" must be text'),
        (b'{"type": "order"}', '"body" must be an object'),
        (b'{"type": "order", "body": [1]}', '"body" must be an object'),
        (b'{"type": "order", "body": {}, "kee": 1}', "unknown field 'kee'"),
        (b'{"type": "zz", "body": {}}', "message_types: customer, order"),
        (b'{"type": "order", "body": {}}', "gives no routing key"),
        (b'{"type": "order", "body": {"order_id": "o"}, "key": 5}', '"key" must be text'),
        (b'{"type": "order", "body": {"order_id": "o"}, "operation": "merge"}', "insert, upsert"),
        (b'{"type": "order", "body": {"order_id": "o"}, "timestamp": "soon"}', "RFC 3339"),
        (b'{"type": "order", "body": {"order_id": "o"}, "timestamp": "2026-01-01T00:00:00"}', "no time zone"),
        (b'{"type": "order", "body": {"order_id": "o"}, "timestamp": "0001-01-01T00:00:00+14:00"}', "years 1 to 9999"),
        (b"x" * (11 * 1024**2), "over 10 MiB"),
    ],
    ids=lambda value: value[:30].decode(errors="replace") if isinstance(value, bytes) else "",
)
def test_publish_names_lines_it_refuses(run, file, line, says):
    code, out, err = run("publish", "--dry-run", "--json", stdin=GOOD + b"\n" + line + b"\n" + GOOD)
    report = json.loads(out)
    assert code == 1
    assert (report["published"], report["valid"], report["refused"]) == (0, 2, 1)
    assert report["refused_lines"][0]["line"] == 3
    assert says in report["refused_lines"][0]["reason"]
    assert "line 3: " in err


def test_publish_reads_a_file(run, file, tmp_path):
    (tmp_path / "writes.jsonl").write_bytes(GOOD * 3 + GOOD.rstrip())
    code, out, err = run("publish", "--dry-run", "writes.jsonl")
    assert (code, out) == (0, "")
    assert err == "4 would be published, 0 refused.\n"


def test_publish_of_a_file_that_isnt_there(run, file):
    code, _, err = run("publish", "--dry-run", "none.jsonl")
    assert code == 2
    assert "none.jsonl: can't be read" in err


def test_publish_shows_a_bounded_number_of_faults(run, file):
    code, out, err = run("publish", "--dry-run", "--json", stdin=b"x\n" * 500)
    assert code == 1
    assert json.loads(out)["refused"] == 500
    assert len(err.splitlines()) == 102


# --- provision ----------------------------------------------------------------------------------------------------------


def test_provision_wants_a_database_for_each_shard(run, file, monkeypatch):
    for name in ("S0", "S1", "S2"):
        monkeypatch.delenv(f"SHARDCTL_DATABASE_URL_{name}", raising=False)
    monkeypatch.setenv("SHARDCTL_DATABASE_URL_S1", "sqlite://")
    code, out, err = run("provision")
    assert (code, out) == (1, "")
    assert "no database URL for s0, s2" in err
    assert "SHARDCTL_DATABASE_URL_S0" in err
    assert run("provision", "--database", "s0")[0] == 2
    assert run("provision", "--database", "zz=sqlite://")[0] == 2


def test_verbs_are_plain_functions(file, capsys):
    from shardctl.cli.validate import validate

    assert validate(file) == 0
    assert capsys.readouterr().out
    assert cli.EXIT_BUG == 3
