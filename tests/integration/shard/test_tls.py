"""Databases, Redis and a Redis Cluster over TLS, with an authority of the test's own: whom both planes trust and refuse."""

import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import redis_kit
from patience import PATIENCE_SECONDS
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import OperationalError
from tls_kit import CLIENT, NAMED, Certificates, Front

from consumer.redis.client import connect
from consumer.redis.discovery import Directory, OwnerOf
from consumer.redis.url import parse
from shardctl.local.servers import MariaDBServer, PostgresServer, RedisServer
from shardctl.local.servers.account import temporary_folder, unprivileged
from shardctl.local.servers.install import BIN_VARIABLE, find_bin_dir
from shardctl.local.servers.process import HOST, free_port, wait_until
from shardctl.shard import database, databaseurl
from shardctl.shard.engine import Limits, open_engine

pytestmark = pytest.mark.slow

USER, PASSWORD = CLIENT, "opensesame"  # whom the databases ask for a certificate


class Mounted:
    """A client's files where a pod has them, which are replaced as Kubernetes does it: all at once, behind a link."""

    def __init__(self, certificates: Certificates, folder: Path, client: str = "client") -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.ca, self.client, self.client_key = (folder / name for name in ("ca.crt", "tls.crt", "tls.key"))
        for path in (self.ca, self.client, self.client_key):
            path.symlink_to(f"..data/{path.name}")
        self._versions = itertools.count()
        self.renew(certificates, client)

    def renew(self, certificates: Certificates, client: str = "client") -> None:
        version = self.folder / f"..version-{next(self._versions)}"
        version.mkdir()
        sources = (certificates.ca, getattr(certificates, client), getattr(certificates, f"{client}_key"))
        for path, source in zip((self.ca, self.client, self.client_key), sources, strict=True):
            shutil.copy(source, version / path.name)
        (self.folder / "..next").symlink_to(version.name)
        (self.folder / "..next").rename(self.folder / "..data")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


def for_server(certificates):
    """Copies of what a server needs, where its account can read them."""
    account = unprivileged()
    folder = temporary_folder(account, "shardctl-tls-")
    for path in (certificates.ca, certificates.server, certificates.server_key):
        shutil.copy(path, folder)
        if account is not None:
            os.chown(folder / path.name, account.uid, account.gid)
    return folder


class Postgres:
    tls = "sslmode=verify-full&sslrootcert={ca}"
    client = "&sslcert={cert}&sslkey={key}"
    encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"

    def __init__(self, folder, files):
        hba = files / "pg_hba.conf"
        hba.write_text(
            f"hostssl all {USER} {HOST}/32 scram-sha-256 clientcert=verify-ca\nhost all postgres {HOST}/32 scram-sha-256\n"
        )
        hba.chmod(0o644)
        options = {"ssl": "on", "hba_file": str(hba)}
        names = {"ssl_ca_file": "ca.crt", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"}
        options |= {option: str(files / name) for option, name in names.items()}
        self.server = PostgresServer(folder, durable=False, settings=options)
        self.server.start()
        with database.writing(database.connect(self.server.url())) as connection:
            connection.exec_driver_sql(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")


class MariaDB:
    tls = "ssl_ca={ca}"
    client = "&ssl_cert={cert}&ssl_key={key}"
    encrypted = "SELECT variable_value <> '' FROM information_schema.session_status WHERE variable_name = 'Ssl_cipher'"

    def __init__(self, folder, files):
        names = {"ssl-ca": "ca.crt", "ssl-cert": "server.crt", "ssl-key": "server.key"}
        options = {option: str(files / name) for option, name in names.items()}
        self.server = MariaDBServer(folder, durable=False, settings=options)
        self.server.start()
        self.server._execute(f"CREATE USER {USER}@'{HOST}' IDENTIFIED BY '{PASSWORD}' REQUIRE X509")
        self.server._execute(f"GRANT ALL ON *.* TO {USER}@'{HOST}'")


@contextlib.contextmanager
def postgres_with_tls():
    """The wheel's PostgreSQL is built without TLS: a system's is taken."""
    folders = [find_bin_dir(), *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    for folder in folders:
        configured = subprocess.run([folder / "pg_config", "--configure"], capture_output=True, text=True, check=False)
        if "openssl" in configured.stdout:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(BIN_VARIABLE, str(folder))
                yield
            return
    if os.environ.get("CI"):
        raise FileNotFoundError("no PostgreSQL with TLS")
    pytest.skip("no PostgreSQL with TLS is installed: Debian's package postgresql has it")


@pytest.fixture(scope="module", params=[Postgres, MariaDB], ids=["postgresql", "mariadb"])
def place(request, tmp_path_factory, certificates):
    """A server that speaks TLS, also to clients that don't ask for it."""
    if request.param is MariaDB:
        request.getfixturevalue("mariadb_server")  # skips where there is none
    files = for_server(certificates)
    with postgres_with_tls() if request.param is Postgres else contextlib.nullcontext():
        made = request.param(tmp_path_factory.mktemp("server"), files)
        yield made
        made.server.delete()
    shutil.rmtree(files)


def asked(url, query):
    """What both planes get; an error where one of them is refused."""
    engines = [
        database.connect(url),
        open_engine(databaseurl.parse(url), Limits("consumer", *[timedelta(seconds=20)] * 4)),
    ]
    try:
        with database.snapshot(engines[0]) as connection:
            answer = bool(connection.exec_driver_sql(query).scalar())
        with engines[1].begin() as connection:
            assert bool(connection.exec_driver_sql(query).scalar()) == answer
        return answer
    finally:
        for engine in engines:
            engine.dispose()


def url_of(place, certificates, *, host=NAMED, ca="ca", more="", user=None):
    plain = databaseurl.parse(place.server.url("mysql" if isinstance(place, MariaDB) else "postgres"))
    if user:
        plain = plain.set(username=user, password=PASSWORD)
    plain = plain.set(host=host).difference_update_query(["charset", "target_session_attrs"])
    return f"{plain.render_as_string(False)}?{place.tls.format(ca=getattr(certificates, ca))}{more}"


def client_of(place, certificates, name):
    return place.client.format(cert=getattr(certificates, name), key=getattr(certificates, f"{name}_key"))


def test_the_right_authority_and_name_are_trusted(place, certificates):
    assert asked(url_of(place, certificates), place.encrypted)


def test_another_authority_is_refused(place, certificates):
    with pytest.raises(database.DatabaseError, match="certificate verify failed"):
        asked(url_of(place, certificates, ca="other"), place.encrypted)


def test_another_name_is_refused(place, certificates):
    with pytest.raises(database.DatabaseError, match=r"does not match host name|mismatch"):
        asked(url_of(place, certificates, host=HOST), place.encrypted)


@pytest.mark.parametrize("product", [Postgres, MariaDB])
def test_a_server_without_tls_is_refused(product, certificates, request):
    place = type("Plain", (product,), {"__init__": lambda self, server: setattr(self, "server", server)})(
        request.getfixturevalue("postgres_server" if product is Postgres else "mariadb_server")
    )
    with pytest.raises(database.DatabaseError, match=r"does not support SSL|doesn't support it"):
        asked(url_of(place, certificates), place.encrypted)


def test_a_client_shows_the_certificate_that_is_asked_for(place, certificates):
    more = client_of(place, certificates, "client")
    assert asked(url_of(place, certificates, user=USER, more=more), place.encrypted)


@pytest.mark.parametrize("name", [None, "stranger"])
def test_a_client_without_the_right_certificate_is_refused(place, certificates, name):
    more = client_of(place, certificates, name) if name else ""
    with pytest.raises(database.DatabaseError):
        asked(url_of(place, certificates, user=USER, more=more), place.encrypted)


@pytest.mark.parametrize("place", [MariaDB], indirect=True, ids=["mariadb"])
@pytest.mark.parametrize("ca", ["ca", "other"])
def test_mysqls_own_word_for_it_means_what_it_says(place, certificates, ca):
    """PyMySQL alone would forget the authority."""
    url = url_of(place, certificates, ca=ca, more="&ssl_verify_identity=true&ssl_verify_cert=true")
    if ca == "ca":
        assert asked(url, place.encrypted)
    with pytest.raises(database.DatabaseError, match=r"mismatch|certificate verify failed"):
        asked(url.replace(NAMED, HOST) if ca == "ca" else url, place.encrypted)


@pytest.mark.parametrize("place", [Postgres], indirect=True, ids=["postgresql"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as a pod's user")
def test_libpq_takes_a_key_as_kubernetes_mounts_it(place, certificates):
    """Root's, and readable by the pod's group: a key that its user owned would have to be closed to the group."""
    folder = temporary_folder(None, "shardctl-mounted-")
    folder.chmod(0o711)
    for path in (certificates.ca, certificates.client, certificates.client_key):
        shutil.copy(path, folder)
        os.chown(folder / path.name, 0, 65_532)
        (folder / path.name).chmod(0o440)
    url = url_of(place, certificates, user=USER, more=client_of(place, certificates, "client"))
    url = url.replace("+psycopg", "").replace(str(certificates.folder), str(folder))
    pod = (
        "import os, sys, psycopg\n"
        "try: psycopg.connect('host=localhost port=1 user=a')\n"  # loads all that it needs
        "except psycopg.Error: pass\n"
        "os.setgroups([]); os.setgid(65532); os.setuid(65532)\n"
        "print(psycopg.connect(sys.argv[1]).pgconn.ssl_in_use)"
    )
    run = subprocess.run([sys.executable, "-c", pod, url], capture_output=True, text=True, check=False)
    shutil.rmtree(folder)
    assert (run.stdout, run.returncode) == ("True\n", 0), run.stderr


def test_renewed_certificates_are_used_by_new_connections(place, certificates, tmp_path):
    """Of an engine that is there: first its files are of an authority that the server doesn't know."""
    mounted = Mounted(certificates, tmp_path, client="stranger")
    url = url_of(place, mounted, user=USER, more=client_of(place, mounted, "client"))
    engines = [
        database.connect(url),
        open_engine(databaseurl.parse(url), Limits("consumer", *[timedelta(seconds=20)] * 4)),
    ]

    def refused(engine):
        with pytest.raises(OperationalError), engine.connect():
            pass

    for engine in engines:
        refused(engine)
    mounted.renew(certificates)
    for engine in engines:
        with engine.connect() as connection:
            assert connection.exec_driver_sql(place.encrypted).scalar()
        engine.dispose()


# --- Redis: the wheel's is built without TLS, so that something that ends it stands before ----------------------------


def words(certificates, *, ca="ca", client="client") -> str:
    """The parameters of a URL."""
    text = f"?ssl_ca_certs={getattr(certificates, ca)}"
    if client:
        text += "&ssl_certfile={}&ssl_keyfile={}".format(
            *(getattr(certificates, name) for name in (client, f"{client}_key"))
        )
    return text


def ping(server, certificates, *, host=NAMED, plain=False, **files):
    """Through the client that consumers have."""

    async def run():
        with Front(server.port, certificates) as front:
            url = f"rediss://:{server.password}@{host}:{server.port if plain else front.port}/0{words(certificates, **files)}"
            # Who doesn't speak TLS says nothing to a greeting: that much time passes.
            async with connect(parse(url), 2.0 if plain else 20.0) as redis:
                return await redis.ping()

    return asyncio.run(run())


def test_redis_is_trusted_by_the_right_authority_and_name(redis_server, certificates):
    assert ping(redis_server, certificates)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"ca": "other"}, id="another authority"),
        pytest.param({"host": HOST}, id="another name"),
        pytest.param({"plain": True}, id="no TLS"),
        pytest.param({"client": None}, id="no certificate of the client"),
        pytest.param({"client": "stranger"}, id="a stranger's certificate"),
    ],
)
def test_redis_is_refused(redis_server, certificates, given):
    with pytest.raises(RedisError):
        ping(redis_server, certificates, **given)


def test_renewed_certificates_are_used_by_new_connections_to_redis(redis_server, certificates, tmp_path, caplog):
    """Authority, certificate and key change on both sides, and a client that has been connected goes on."""
    renewed = Certificates(tmp_path)
    mounted = Mounted(certificates, tmp_path / "mounted")

    async def run():
        with Front(redis_server.port, certificates) as front:
            url = f"rediss://:{redis_server.password}@{NAMED}:{front.port}/0{words(mounted)}"
            redis = connect(parse(url), PATIENCE_SECONDS)
            assert await redis.ping()
        with Front(redis_server.port, renewed, front.port):
            with pytest.raises(RedisError):  # of the connection that was ended, or of a new one
                await redis.ping()
            with pytest.raises(RedisError, match="certificate verify failed"):
                await redis.ping()
            mounted.client_key.write_bytes(b"")
            with pytest.raises(RedisError, match="certificate verify failed"):
                await redis.ping()
            mounted.renew(renewed)
            assert await redis.ping()
        await redis.aclose()

    caplog.set_level("INFO")
    asyncio.run(run())
    assert [record.action for record in caplog.records if record.name.endswith("certificates")] == [
        "certificates_unusable", "certificates_renewed", "recovered",
    ]  # fmt: skip


# --- a Redis Cluster --------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path):
    """A cluster of one node."""
    with redis_kit.own_folder() as own:
        settings = ("cluster-enabled yes", f"cluster-port {free_port()}", f"dir {own}")
        with RedisServer(tmp_path / "node", settings=settings) as server:
            with Redis.from_url(server.admin_url, decode_responses=True) as administrator:
                administrator.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
                complete = lambda: administrator.execute_command("CLUSTER INFO")["cluster_state"] == "ok"  # noqa: E731
                assert wait_until(complete, timeout_seconds=PATIENCE_SECONDS)
            yield server


def ask_cluster(server, certificates, *, announced, more="", **files):
    """A call to the server that the node names, both over TLS; the node says where it is by name or by address."""

    async def run():
        with Front(server.port, certificates) as front:
            with Redis.from_url(server.admin_url) as administrator:
                administrator.config_set("cluster-announce-port", front.port)
                administrator.config_set("cluster-announce-ip", HOST)
                administrator.config_set("cluster-announce-hostname", NAMED)
                administrator.config_set("cluster-preferred-endpoint-type", announced)
            url = f"rediss://:{server.password}@/{words(certificates, **files)}{more}"
            directory = Directory(((NAMED, front.port),), OwnerOf("f:s"), beside=False)
            async with connect(parse(url, "cluster"), PATIENCE_SECONDS, directory) as redis:
                return await redis.set("{f:s}:x", "1")

    return asyncio.run(run())


def test_a_cluster_is_trusted_by_the_names_that_its_nodes_announce(node, certificates):
    assert ask_cluster(node, certificates, announced="hostname")
    with pytest.raises(RedisError, match=r"certificate is not valid for '127\.0\.0\.1'"):
        ask_cluster(node, certificates, announced="ip")
    assert ask_cluster(node, certificates, announced="ip", more="&ssl_check_hostname=false")


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"ca": "other"}, id="another authority"),
        pytest.param({"client": None}, id="no certificate of the client"),
        pytest.param({"client": "stranger"}, id="a stranger's certificate"),
    ],
)
def test_a_cluster_is_refused(node, certificates, given):
    with pytest.raises(RedisError):
        ask_cluster(node, certificates, announced="hostname", **given)


# --- Sentinels --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(tmp_path_factory, certificates):
    """A primary, its replica and three Sentinels, each over TLS and by name."""

    @contextlib.contextmanager
    def front(port):
        with Front(port, certificates) as place:
            yield NAMED, place.port

    with redis_kit.sentinels(tmp_path_factory.mktemp("sentinels"), "f:s", front=front) as place:
        yield place


def through_sentinels(watched, certificates, **files):
    login = f"&sentinel_username={redis_kit.USER}&sentinel_password={watched.logins.consumer}"
    url = f"rediss://{redis_kit.USER}:{watched.logins.consumer}@/{words(certificates, **files)}{login}"
    return connect(parse(url, "sentinel"), PATIENCE_SECONDS, watched.directory)


def test_the_primary_behind_sentinels_is_trusted_by_its_name_and_so_is_the_next_one(watched, certificates):
    old, password = watched.primary(), watched.logins.administrator
    (new,) = (server for server in watched.servers if server is not old)

    async def run(at_old, at_new):
        async with through_sentinels(watched, certificates) as redis:
            assert await redis.set("{f:s}:x", "1")
            with redis_kit.administer(watched.sentinels[0], password) as sentinel:
                sentinel.execute_command("SENTINEL FAILOVER", redis_kit.MASTER)
            assert wait_until(lambda: at_new.execute_command("ROLE")[0] == "master", timeout_seconds=PATIENCE_SECONDS)
            at_old.replicaof(NAMED, at_new.config_get("replica-announce-port")["replica-announce-port"])
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not at_new.exists("{f:s}:y"):
                    with contextlib.suppress(RedisError):  # of the old connection, or a Sentinel is behind
                        await redis.set("{f:s}:y", "1")
                    await asyncio.sleep(0.01)

    with redis_kit.administer(old, password) as at_old, redis_kit.administer(new, password) as at_new:
        asyncio.run(run(at_old, at_new))


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"ca": "other"}, id="another authority"),
        pytest.param({"client": None}, id="no certificate of the client"),
        pytest.param({"client": "stranger"}, id="a stranger's certificate"),
    ],
)
def test_sentinels_are_refused(watched, certificates, given):
    async def run():
        async with through_sentinels(watched, certificates, **given) as redis:
            await redis.set("{f:s}:x", "1")

    with pytest.raises(RedisError):
        asyncio.run(run())
