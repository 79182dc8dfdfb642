"""What another user of this machine can do with a local fleet that root or a developer runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from redis import Redis
from sqlalchemy.engine import make_url

from shardctl.local.fleet import LocalFleet, new_folder
from shardctl.local.servers import BinaryMissingError
from shardctl.local.servers.family import children

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user"),
]

NOBODY = 65_534

# Becomes the other user once its libraries are loaded: the user can't reach where they lie.
INTRUDER = """
import json, os, sys
from pathlib import Path
import psycopg
from redis import Redis, RedisError

postgres, redis, folder, uid = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
for connect in (lambda: psycopg.connect("host=127.0.0.1 port=1 user=a"), Redis(port=1).ping):
    try:
        connect()  # so that what is imported at the first connection is here, too
    except (psycopg.Error, RedisError):
        pass
os.setgroups([]); os.setgid(uid); os.setuid(uid)
done = {}

def attempt(name, act):
    try:
        done[name] = str(act())
    except (psycopg.Error, RedisError, OSError) as refusal:
        print(name, "refused:", refusal, file=sys.stderr)

def query(text):
    with psycopg.connect(host="127.0.0.1", port=postgres, user="postgres", dbname="postgres") as connection:
        connection.execute("CREATE TEMPORARY TABLE out (line text)")
        connection.execute(text)
        return connection.execute("SELECT line FROM out").fetchall()

client = Redis(port=redis)
attempt("PostgreSQL runs a program", lambda: query("COPY out FROM PROGRAM 'id'"))
attempt("PostgreSQL reads a file", lambda: query("COPY out FROM '/etc/hostname'"))
attempt("Redis answers", client.ping)
attempt("Redis writes to any directory", lambda: client.config_set("dir", "/tmp"))
attempt("Redis runs a script", lambda: client.eval("return 1", 0))

def readable():
    found = []
    for at, _, names in os.walk(folder):
        found += [str(Path(at, name)) for name in names if os.access(Path(at, name), os.R_OK)]
    return found

# The ones it would look for, though it may not be able to list the folder.
known = [Path(folder, name) for name in ("env", "fleet.json", "pgpass", "postgres/password", "postgres/server.log")]
done["files"] = sorted({*readable(), *(str(path) for path in known if os.access(path, os.R_OK))})
done["command lines"] = [
    path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()
]
print(json.dumps(done))
"""


@pytest.fixture
def local(fleet, tmp_path):
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(folder.stat().st_mode | 0o011)  # as a developer's home often is
    try:
        with LocalFleet(fleet, new_folder(tmp_path), replicas=1) as running:
            running.write_environment()
            yield running
    except BinaryMissingError as missing:
        pytest.skip(str(missing))


def intrude(local: LocalFleet) -> dict:
    arguments = (str(local.postgres.port), str(local.redis.port), str(local.directory), str(NOBODY))
    run = subprocess.run(
        [sys.executable, "-c", INTRUDER, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    sys.stderr.write(run.stderr)
    assert run.returncode == 0
    return json.loads(run.stdout)


def secrets_of(local: LocalFleet) -> set[str]:
    return {make_url(url).password or "none" for url in (*local.databases.values(), local.redis.url)}


def test_another_user_gets_nothing_out_of_a_running_fleet(local):
    readable = intrude(local)
    lines = readable.pop("command lines")
    assert [line for line in lines for secret in secrets_of(local) if secret in line] == []
    assert readable == {"files": []}


def test_the_user_who_started_the_fleet_gets_in(local):
    for url in local.databases.values():
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            assert connection.execute("SELECT count(*) FROM shardctl_inbox").fetchone() == (0,)
    with Redis.from_url(local.redis.url) as client:
        assert client.ping()


def test_no_server_of_the_fleet_runs_as_root(local):
    for server in (local.redis, local.postgres):
        pids = [server.pid, *children(server.pid)]
        assert 0 not in {Path(f"/proc/{pid}").stat().st_uid for pid in pids}, server.program
