"""Databases, Redis and a Redis Cluster over TLS, with an authority of the test's own: whom both planes trust and refuse."""

import asyncio
import contextlib
import os
import shutil
import ssl
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import redis_kit
import trustme
from patience import PATIENCE_SECONDS
from redis import Redis
from redis.exceptions import RedisError

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

NAMED = "localhost"  # what the servers' certificates are for; the address HOST isn't in them
USER, PASSWORD = "careful", "opensesame"  # whom the databases ask for a certificate


class Certificates:
    """Files: `ca` signs the server's and the client's, `other` is an authority that nobody asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ours, other = trustme.CA(), trustme.CA()
        self.ca, self.other = self._write("ca.crt", ours.cert_pem), self._write("other.crt", other.cert_pem)
        self.server, self.server_key = self._pair("server", ours.issue_cert(NAMED))
        self.client, self.client_key = self._pair("client", ours.issue_cert(common_name=USER))
        self.stranger, self.stranger_key = self._pair("stranger", other.issue_cert(common_name=USER))

    def _pair(self, name, made):
        return self._write(f"{name}.crt", made.cert_chain_pems[0]), self._write(f"{name}.key", made.private_key_pem)

    def _write(self, name, pem):
        path = self.folder / name
        path.write_bytes(pem.bytes())
        path.chmod(0o600)
        return path


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


# --- Redis ------------------------------------------------------------------------------------------------------------


async def _pipe(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def tls_before(port, certificates):
    """The wheel's Valkey is built without TLS: something that ends it stands before. It wants a certificate of its clients."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    context.load_cert_chain(certificates.server, certificates.server_key)
    context.verify_mode = ssl.CERT_REQUIRED

    async def serve(reader, writer):
        there, to = await asyncio.open_connection(HOST, port)
        await asyncio.gather(_pipe(reader, to), _pipe(there, writer))

    server = await asyncio.start_server(serve, HOST, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def ping(server, certificates, *, host=NAMED, ca="ca", client="client", plain=False):
    """Through the client that consumers have."""

    async def run():
        async with tls_before(server.port, certificates) as port:
            url = f"rediss://:{server.password}@{host}:{server.port if plain else port}/0"
            url += f"?ssl_ca_certs={getattr(certificates, ca)}"
            if client:
                files = [getattr(certificates, name) for name in (client, f"{client}_key")]
                url += f"&ssl_certfile={files[0]}&ssl_keyfile={files[1]}"
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


def ask_cluster(server, certificates, *, announced, ca="ca", client="client", more=""):
    """A call to the server that the node names, both over TLS; the node says where it is by name or by address."""

    async def run():
        async with tls_before(server.port, certificates) as port:
            with Redis.from_url(server.admin_url) as administrator:
                administrator.config_set("cluster-announce-port", port)
                administrator.config_set("cluster-announce-ip", HOST)
                administrator.config_set("cluster-announce-hostname", NAMED)
                administrator.config_set("cluster-preferred-endpoint-type", announced)
            url = f"rediss://:{server.password}@/?ssl_ca_certs={getattr(certificates, ca)}{more}"
            if client:
                files = [getattr(certificates, name) for name in (client, f"{client}_key")]
                url += f"&ssl_certfile={files[0]}&ssl_keyfile={files[1]}"
            directory = Directory(((NAMED, port),), OwnerOf("f:s"), beside=False)
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
