"""A shard's database URL: one host, or several of which one is the primary.

    postgresql://user:password@h1:5432,h2:5433/name
    postgresql://user:password@/name?host=h1:5432&host=h2:5433
    postgresql://user:password@/name?host=h1,h2&port=5432,5433
    postgresql://user:password@h1/name?prepare_threshold=5
    postgresql://user:password@h1/name?sslmode=verify-full&sslrootcert=/path/ca.crt
    mysql://user:password@h1/name?ssl_ca=/path/ca.crt

A password stands in it, so no error repeats any of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from shardctl.errors import EXIT_REFUSED, UsageError
from shardctl.redaction import redacted_value

POSTGRES_PORT = 5432
_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
}
# The extra of this package that installs a driver.
_EXTRAS = {"postgresql+psycopg": "postgres", "mysql+pymysql": "mysql"}

# What SQLAlchemy makes PyMySQL's argument `ssl` of; with an authority, the certificate and the name in it are verified.
_MYSQL_TLS = frozenset({"ssl_ca", "ssl_capath", "ssl_cert", "ssl_key", "ssl_cipher", "ssl_check_hostname"})
_MYSQL_VERIFIES = frozenset({"ssl_verify_cert", "ssl_verify_identity"})

# As SQLAlchemy reads a URL, but for the comma.
_SEVERAL_HOSTS = re.compile(
    r"(?P<before>[\w+]+://(?:[^:/]*(?::[^@]*)?@)?)(?P<hosts>[^/?]*,[^/?]*)(?P<after>.*)", re.DOTALL
)
_HOST = re.compile(
    r"\[(?P<address>[0-9A-Fa-f:.]+(?:%\w+)?)\](?::(?P<port>.*))?|(?P<name>[\w.-]+)(?::(?P<own_port>.*))?"
)
_BARE_ADDRESS = re.compile(r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]+(?:%\w+)?")


class DatabaseUrlError(UsageError):
    """The text doesn't lead to a database."""


class MissingDriverError(DatabaseUrlError):
    """The URL is right, and its driver isn't installed."""

    exit_code = EXIT_REFUSED


def parse(text: str) -> URL:
    """The URL with the driver this project ships. Raises DatabaseUrlError.

    Each new PostgreSQL connection asks the hosts in turn for a session that can write. So after a fail-over the promoted replica
    is found without anyone's help, and a standby is refused, also where it is the only host.
    """
    text = text.strip()  # a Secret's text often ends in a line break
    try:
        several = _SEVERAL_HOSTS.fullmatch(text)
        url = make_url(several["before"] + several["after"] if several else text)
        url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
        url.get_dialect().import_dbapi()
    except (NoSuchModuleError, ImportError):
        raise _without_driver(url) from None
    except (ArgumentError, ValueError):
        raise DatabaseUrlError("not a database URL such as postgresql://user:password@host:5432/name") from None
    if url.get_backend_name() != "sqlite" and (re.search("[@:]", url.database or "") or "password" in url.query):
        raise DatabaseUrlError("write user:password before the @ of the URL, in the password %2F for / and %40 for @")
    if (
        "\x00" in f"{url.username}{url.password}{url.database}"
    ):  # libpq would read no further, and connect to another place
        raise DatabaseUrlError("it holds a NUL, %00")
    listed = several["hosts"].split(",") if several else []
    if url.get_backend_name() == "postgresql":
        prepare_threshold(url)
        return _to_the_primary(url, listed)
    if listed:
        raise DatabaseUrlError("several hosts in one URL are for PostgreSQL alone")
    if url.host:
        _checked(url.host, url.port, 1)
    if url.get_backend_name() == "sqlite":
        return url
    if not url.database:
        raise DatabaseUrlError("it names no database: end it with /name")
    return _verifying(url)


def shown(url: URL) -> str:
    """The database's URL for people, without secrets."""
    hosts = {name: value for name, value in url.query.items() if name in {"host", "port"}}
    return redacted_value(url.set(query=hosts).render_as_string(hide_password=True))


def _without_driver(url: URL) -> DatabaseUrlError:
    extra = _EXTRAS.get(url.drivername)
    if extra is None:
        # Without its name, which may hold a part of the password.
        return DatabaseUrlError(
            "no such driver; a database URL begins with postgresql://, mysql://, mariadb:// or sqlite://"
        )
    return MissingDriverError(
        f"its driver {url.get_driver_name()} isn't installed. Run: pip install 'shardctl[{extra}]'"
    )


def prepare_threshold(url: URL) -> tuple[URL, int | None]:
    """The URL without its `prepare_threshold`, and after how many uses a statement is prepared on the server; None is never.

    Never is the default: behind a pooler that shares server sessions, one client's prepared statement can be another's.
    """
    text = url.query.get("prepare_threshold")
    if text is None:
        return url, None
    if not isinstance(text, str) or not text.isdecimal() or not int(text):
        raise DatabaseUrlError("prepare_threshold in the URL isn't a whole number from 1. Leave it out behind a pooler")
    return url.difference_update_query(["prepare_threshold"]), int(text)


def _verifying(url: URL) -> URL:
    """The URL of MySQL or MariaDB, where it asks for TLS, so that the server is verified by what the URL says.

    Left alone, PyMySQL connects without TLS for `ssl_disabled=false`, a text like any other, trusts every server where a client's
    certificate is named and no authority, and forgets the authority that SQLAlchemy passes on where it reads
    `ssl_verify_identity`.
    """
    asked = {name for name in url.query if name.startswith(("ssl", "tls"))}
    if not asked:
        return url
    if asked - _MYSQL_TLS - _MYSQL_VERIFIES or not all(isinstance(url.query[name], str) for name in asked):
        listed = ", ".join(sorted(_MYSQL_TLS))
        raise DatabaseUrlError(
            f"of TLS, a URL of MySQL or MariaDB takes {listed} and no other, each once: see docs/tls.md"
        )
    if not asked & {"ssl_ca", "ssl_capath"}:
        raise DatabaseUrlError(
            "TLS without ssl_ca trusts any server: name the authority's certificate: see docs/tls.md"
        )
    if any(url.query[name] not in {"true", "1"} for name in asked & _MYSQL_VERIFIES):
        raise DatabaseUrlError(
            "ssl_verify_cert and ssl_verify_identity are true wherever ssl_ca is given: leave them out"
        )
    identity = {"ssl_check_hostname": "true"} if "ssl_verify_identity" in asked else {}
    return url.difference_update_query(_MYSQL_VERIFIES).update_query_dict(identity)


def _to_the_primary(url: URL, listed: Sequence[str]) -> URL:
    hosts, ports = _texts(url, "host"), _texts(url, "port")
    if sum(map(bool, (url.host, listed, hosts))) > 1:
        raise DatabaseUrlError("hosts are given in two places: leave one")
    if url.host:
        _checked(url.host, POSTGRES_PORT if url.port is None else url.port, 1)
    elif listed or len(hosts) > 1 or ports:
        url = _listing(url, _places(listed or hosts, ports))
    elif hosts and not hosts[0].startswith("/"):  # a socket's folder may hold anything
        url = _listing(url, _places(hosts, ()))
    return url.update_query_dict({"target_session_attrs": "read-write"})


def _listing(url: URL, places: Sequence[tuple[str, int]]) -> URL:
    """Libpq's form: hosts and ports in two lists, IPv6 addresses without brackets."""
    hosts, ports = (",".join(map(str, column)) for column in zip(*places, strict=True))
    return url.update_query_dict({"host": hosts, "port": ports})


def _places(hosts: Sequence[str], ports: Sequence[str]) -> list[tuple[str, int]]:
    """Host and port of each. A port given once is everyone's."""
    given: list[str | None] = list(ports) or [None]
    if len(given) == 1:
        given *= len(hosts)
    if len(given) != len(hosts):
        raise DatabaseUrlError(f"{len(hosts)} hosts and {len(ports)} ports: give as many ports as hosts, or one")
    return [_checked(host, port, number) for number, (host, port) in enumerate(zip(hosts, given, strict=True), 1)]


def _checked(host: str, port: str | int | None, number: int) -> tuple[str, int]:
    match = _HOST.fullmatch(_bracketed(host))
    if match is None:
        raise DatabaseUrlError(f"host {number} of the URL is no host name or address. Write @ in a password as %40")
    own = match["port"] or match["own_port"]
    if own is not None and port is not None:
        raise DatabaseUrlError(f"host {number} of the URL has two ports: leave one")
    text = str(own or port or POSTGRES_PORT)
    if not text.isdecimal() or not 0 < int(text) < 65_536:
        raise DatabaseUrlError(f"the port of host {number} of the URL isn't a number from 1 to 65535")
    return match["address"] or match["name"], int(text)


def _bracketed(host: str) -> str:
    return f"[{host}]" if _BARE_ADDRESS.fullmatch(host) else host


def _texts(url: URL, name: str) -> list[str]:
    value = url.query.get(name, ())
    return [part for text in ([value] if isinstance(value, str) else value) for part in text.split(",") if part]
