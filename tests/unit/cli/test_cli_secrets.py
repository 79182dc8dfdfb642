"""No command shows the password of a URL, wherever a user has put it and however the URL is written."""

import json
import logging
import sys
from functools import partial

import pytest
import typer
import yaml
from secrets_kit import CANARY, ODD_URLS

import consumer.process.settings
from shardctl import audit, provision
from shardctl.cli import app, main
from shardctl.errors import ShardctlError, UsageError
from shardctl.fleet import scaffold, yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.supervision import logs

GONE = "127.0.0.1:1"  # nobody listens there, which is found out at once


# Where a driver comes to connect, it must be to nowhere; a name that has to be looked up would take the resolver's time.
def to_nowhere(url):
    for host in ("db.example.com:5432", "h1:5432,h2:5433"):
        url = url.replace(host, GONE)
    return url.replace("@h/", f"@{GONE}/").replace("//h/", f"//{GONE}/").replace("@h:", "@127.0.0.1:")


DATABASES = {name: to_nowhere(url) for name, url in ODD_URLS.items()} | {
    "a MySQL host that isn't one": f"mysql://shop:pa@{CANARY}@{GONE}/orders",
    "a parameter of the driver": f"postgresql://shop@{GONE}/orders?sslpassword={CANARY}&sslmode=no",
    "SQLite": f"sqlite:////nowhere/orders.db?password={CANARY}",
    "an unknown database": f"oracle://shop:{CANARY}@h/orders",
    "no URL": f"password={CANARY}",
}  # fmt: skip


def commands(command=None, names=()):
    command = command or typer.main.get_command(app)
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, (*names, name))
    if not hasattr(command, "commands"):
        yield names, command


COMMANDS = dict(commands())
# `ui` serves until it is stopped, with the looks of `status`; `provision` asks Pub/Sub first: see below.
WITH_DATABASES = [
    names
    for names, command in COMMANDS.items()
    if any("--database" in parameter.opts for parameter in command.params) and names not in {("ui",), ("provision",)}
]


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys, caplog):
    """Runs a command and returns all that it left for a person to read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("SHARDCTL_AUDIT_LOG", str(tmp_path / "audit.jsonl"))
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", GONE)
    monkeypatch.setenv("SHARDCTL_DEBUG", "1")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["shardctl", *arguments])
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert code != 3, err
        log = tmp_path / "audit.jsonl"
        return f"{out}\n{err}\n{caplog.text}\n{log.read_text() if log.exists() else ''}"

    return run


ARGUMENTS = [
    pytest.param(names, parameter, id=" ".join((*names, parameter.opts[-1])))
    for names, command in COMMANDS.items()
    for parameter in command.params
    if not getattr(parameter, "is_flag", False)
]


@pytest.mark.parametrize(("names", "parameter"), ARGUMENTS)
@pytest.mark.parametrize("url", [f"postgresql://shop:pa {CANARY}@h/orders?sslpassword={CANARY}"], ids=[""])
def test_an_argument_in_the_wrong_place_is_not_repeated(shown, names, parameter, url):
    given = [parameter.opts[0], url] if parameter.opts[0].startswith("-") else [url]
    file = [] if {"-f", "--file"} & set(parameter.opts) else ["-f", "missing.yaml"]
    if not any("-f" in parameter.opts for parameter in COMMANDS[names].params):
        file = []
    assert CANARY not in shown(*names, *file, *given)


@pytest.mark.parametrize(
    "words", [["{}"], ["validate", "{}"], ["validate", "--databse={}"], ["deadletter", "{}"], ["--{}"]], ids=str
)
def test_a_wrong_command_line_is_not_repeated(shown, words):
    assert CANARY not in shown(*(word.format(ODD_URLS["plain"]) for word in words))


@pytest.mark.parametrize("url", DATABASES.values(), ids=DATABASES)
def test_a_database_that_cant_be_made_is_shown_without_its_password(url):
    fleet = fleet_from(yamlfile.parse(scaffold.text(1)))
    with pytest.raises(ShardctlError) as caught:
        provision.provision_database(fleet, fleet.shards[0], url)
    assert CANARY not in str(caught.value)


# Each command with one URL and one command with each URL; the long proofs have the rest.
UNREACHED = [
    pytest.param(
        names,
        url,
        id=" ".join((name, *names)),
        marks=() if names == ("status",) or name == "plain" else pytest.mark.proof,
    )
    for name, url in DATABASES.items()
    for names in WITH_DATABASES
]


@pytest.mark.slow
@pytest.mark.parametrize(("names", "url"), UNREACHED)
def test_a_database_that_cant_be_reached_is_shown_without_its_password(shown, monkeypatch, names, url):
    parameters = {option for parameter in COMMANDS[names].params for option in parameter.opts}
    assert main(["init"]) == 0
    more = ["--parked"] if "--parked" in parameters else []
    more += [] if names[-1] != "show" else ["key"]
    more += ["--yes"] if "--yes" in parameters else []
    more += ["--all"] if names[-1] in {"replay", "release"} else []
    more += ["key"] if names[-1] == "drop" else []
    databases = [option for shard in ("s0", "s1", "s2") for option in ("--database", f"{shard}={url}")]
    assert CANARY not in shown(*names, *more, *databases)
    for shard in ("S0", "S1", "S2"):
        monkeypatch.setenv(f"SHARDCTL_DATABASE_URL_{shard}", url)
    assert CANARY not in shown(*names, *more)


@pytest.mark.slow
@pytest.mark.parametrize("url", [url for name, url in ODD_URLS.items() if "blank" not in name])
def test_prometheus_is_shown_without_its_password(shown, url):
    assert main(["init"]) == 0
    url = (
        url.replace("postgresql", "http")
        .replace("@h", f"@{GONE}")
        .replace("//h/", f"//{GONE}/")
        .replace("db.example.com:5432", GONE)
    )
    assert CANARY not in shown("status", "--prometheus", url)


def places(data, path=()):
    """Every value of a file, by its path, and every key."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for name, value in items:
        yield (*path, name)
        yield from places(value, (*path, name))


def put(data, path, value, *, key=False):
    *before, last = path
    data = json.loads(json.dumps(data))
    at = data
    for name in before:
        at = at[name]
    if key and isinstance(at, dict):
        at[value] = at.pop(last)
    else:
        at[last] = value
    return data


FLEET = {
    **yaml.safe_load(scaffold.text(2)),
    "labels": {"team": "a"},
    "schedules": [{"name": "nightly", "cron": "0 1 * * *", "type": "order", "body": {"id": 1}}],
    "gateway": {
        "auth": {"kind": "oidc", "audience": "x", "issuer": "i", "jwks_url": "https://x/y", "clients": {"a": {}}}
    },
    "monitoring": {"stack": "managed-prometheus", "labels": {"a": "b"}},
    "network_policy": {},
    "placement": {"node_selector": {"a": "b"}},
    "subscription": {"retain": "7d"},
    "consumer": {"batch_max_rows": 5},
}


# Each place with one URL and some places with each URL; the long proofs have the rest.
@pytest.mark.parametrize(
    ("url", "every"),
    [
        *(pytest.param(url, 1 if name == "plain" else 15, id=name) for name, url in ODD_URLS.items()),
        *(
            pytest.param(url, 1, id=f"{name} everywhere", marks=pytest.mark.proof)
            for name, url in ODD_URLS.items()
            if name != "plain"
        ),
    ],
)
def test_a_url_in_the_wrong_place_of_the_file_is_not_repeated(url, every):
    refused = []
    for path in [*places(FLEET)][::every]:
        for data in (put(FLEET, path, url), put(FLEET, path, [url]), put(FLEET, path, url, key=True)):
            try:
                fleet_from(yamlfile.parse(json.dumps(data)))
            except UsageError as error:
                refused.append(str(error))
    assert [text for text in refused if CANARY in text] == []
    assert len(refused) > 50 / every


@pytest.mark.parametrize("text", ["{}: 1\n{}: 2\n", "a: [{}", "a: !x {}\n", "a: &b\n  - {}\n  - *b\n", "{}", "- {}: ["])
@pytest.mark.parametrize("url", [f'"{ODD_URLS["plain"]}"', ODD_URLS["plain"], ODD_URLS["no scheme"]])
def test_a_file_that_isnt_yaml_is_not_repeated(text, url):
    with pytest.raises(UsageError) as caught:
        fleet_from(yamlfile.parse(text.replace("{}", url)))
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("url", DATABASES.values(), ids=DATABASES)
def test_a_consumers_settings_are_not_repeated(url, tmp_path, monkeypatch):
    for name in ("DATABASE_URL", "REDIS_URL", "PORT"):
        with pytest.raises(UsageError) as caught:
            {
                "DATABASE_URL": consumer.process.settings._database_url,
                "REDIS_URL": partial(consumer.process.settings._parsed_redis, "server"),
                "PORT": lambda text: consumer.process.settings._port({"PORT": text}, "PORT", "1"),
            }[name](url if name == "PORT" else f"x{url}".replace("://", ":"))
        assert CANARY not in str(caught.value)


@pytest.mark.parametrize("url", ODD_URLS.values(), ids=ODD_URLS)
@pytest.mark.parametrize(
    "formatter",
    [logs.JsonFormatter(), logs.PlainFormatter()],
    ids=["JSON", "at a terminal"],
)
def test_a_log_line_shows_no_password(formatter, url):
    with pytest.raises(OSError, match="reach") as caught:
        raise OSError(f"can't reach {url}")
    record = logging.LogRecord("a", logging.ERROR, "a", 1, "failed: %s", (caught.value,), caught._excinfo)
    text = formatter.format(record)
    assert "failed" in text
    assert CANARY not in text


def test_an_audit_line_shows_no_password():
    action = audit.Action("replay", "orders", {"keys": list(ODD_URLS.values())})
    line = action.line(0, action.began)
    assert CANARY not in line
    assert len(json.loads(line)["plan"]["keys"]) == len(ODD_URLS)
