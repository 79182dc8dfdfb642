"""Every way to name hosts ends in what libpq understands; and no error shows a password."""

import sys

import pytest

from shardctl.shard.databaseurl import DatabaseUrlError, parse, prepare_threshold


def arguments(text):
    """What the driver receives."""
    url = parse(text)
    return url.get_dialect()().create_connect_args(url)[1]


@pytest.mark.parametrize(
    ("text", "hosts", "ports"),
    [
        pytest.param("postgresql://u:p@h:5433/db", "h", "5433", id="one"),
        pytest.param("postgres://u:p@h/db", "h", "None", id="one, the port understood"),
        pytest.param("postgresql://u:p@[::1]:5433/db", "::1", "5433", id="one IPv6"),
        pytest.param("postgresql://u:p@h1:5432,h2:5433/db", "h1,h2", "5432,5433", id="listed"),
        pytest.param("postgresql+psycopg://u:p@h1,h2:5433/db", "h1,h2", "5432,5433", id="listed, a port understood"),
        pytest.param("postgresql://h1,h2/db", "h1,h2", "5432,5432", id="listed, no user"),
        pytest.param("postgresql://u:p@[::1]:1,[fe80::1%eth0],h:3/db", "::1,fe80::1%eth0,h", "1,5432,3", id="IPv6 listed"),
        pytest.param("postgresql://u:p@/db?host=h1:5432&host=h2:5433", "h1,h2", "5432,5433", id="SQLAlchemy's"),
        pytest.param("postgresql://u:p@/db?host=[::1]:1&host=[::2]", "::1,::2", "1,5432", id="SQLAlchemy's, IPv6"),
        pytest.param("postgresql://u:p@/db?host=h1,h2&port=1,2", "h1,h2", "1,2", id="libpq's"),
        pytest.param("postgresql://u:p@/db?host=::1,h2&port=7", "::1,h2", "7,7", id="libpq's, one port"),
        pytest.param("postgresql://u:p@/db?host=/cloudsql/a:b:c", "/cloudsql/a:b:c", "None", id="socket"),
    ],
)  # fmt: skip
def test_hosts_and_ports(text, hosts, ports):
    connect_arguments = arguments(text)
    assert (connect_arguments["host"], str(connect_arguments.get("port"))) == (hosts, ports)
    assert connect_arguments["target_session_attrs"] == "read-write"
    assert connect_arguments["dbname"] == "db"


@pytest.mark.parametrize("text", ["postgresql://u:p@h/db\n", " postgresql://u:p@h/db\r\n"])
def test_blanks_and_line_breaks_around_a_url_are_no_part_of_it(text):
    """As a Secret has them that was made from a file."""
    assert (arguments(text)["host"], arguments(text)["dbname"]) == ("h", "db")


def test_a_session_that_only_reads_can_t_be_asked_for():
    assert arguments("postgresql://h/db?target_session_attrs=any")["target_session_attrs"] == "read-write"


@pytest.mark.parametrize(
    ("written", "password"),
    [
        pytest.param("p%40%2F%3Aw", "p@/:w", id="encoded"),
        pytest.param("p:w/x?y#z,1", "p:w/x?y#z,1", id="as they are"),
        pytest.param("%C3%BC%25", "ü%", id="beyond ASCII"),
    ],
)
@pytest.mark.parametrize("hosts", ["h", "h1:1,h2:2"])
def test_a_password_may_hold_anything(written, password, hosts):
    connect_arguments = arguments(f"postgresql://u:{written}@{hosts}/db?sslmode=require")
    assert (connect_arguments["user"], connect_arguments["password"], connect_arguments["sslmode"]) == (
        "u",
        password,
        "require",
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("", "not a database URL", id="empty"),
        pytest.param("hunter2", "not a database URL", id="no URL"),
        pytest.param("mongodb://u:hunter2@h/db", "driver", id="another database"),
        pytest.param("postgresql://u:hunter2@h:x/db", "not a database URL", id="port of one"),
        pytest.param("postgresql://u:hunter2@h:99999/db", "port of host 1", id="port too large"),
        pytest.param("postgresql://u:hunter2@h1:1,h2:x/db", "port of host 2", id="port of the second"),
        pytest.param("postgresql://u:hunter2@h1:1,h2:0/db", "port of host 2", id="port 0"),
        pytest.param("postgresql://u:hunter2@/db?host=h1:1&host=h2:hunter2", "port of host 2", id="port in the query"),
        pytest.param("postgresql://u:hunter2@/db?host=h1,h2,h3&port=1,2", "3 hosts and 2 ports", id="ports missing"),
        pytest.param("postgresql://u:hunter2@/db?host=h1:1&host=h2&port=3", "two ports", id="two ports"),
        pytest.param("postgresql://u:hunter2@h1,,h2/db", "host 2", id="empty host"),
        pytest.param("postgresql://u:hunter2@h1,h2/db?host=h3", "two places", id="hosts twice"),
        pytest.param("postgresql://u:x@hunter2@h/db", "host 1", id="@ in the password"),
        pytest.param("postgresql://u:x@hunter2@h1,h2/db", "host 1", id="@ in the password, several hosts"),
        pytest.param("postgresql://u/x:hunter2@h/db", "%2F", id="/ in the user"),
        pytest.param("mysql://u/x:hunter2@h/db", "%2F", id="/ in MySQL's user"),
        pytest.param("postgresql://u@h/db?password=hunter2", "before the @", id="password in the query"),
        pytest.param("mysql://u:hunter2@h1,h2/db", "PostgreSQL alone", id="several hosts of MySQL"),
        pytest.param("mysql://u:hunter2@h/", "no database", id="MySQL, no database"),
        pytest.param("mariadb://u:hunter2@h", "no database", id="MariaDB, no path"),
        pytest.param("postgresql://u:hunter2@h:5433/db%00x", "NUL", id="NUL in the database"),
        pytest.param("postgresql://u:hunter2%00x@h:5433/db", "NUL", id="NUL in the password"),
        pytest.param("mysql://u:hunter2@h/db?ssl_cert=c&ssl_key=k", "without ssl_ca", id="TLS of MySQL, no authority"),
        pytest.param(
            "mysql://u:hunter2@h/db?ssl_verify_identity=true", "without ssl_ca", id="identity by no authority"
        ),
        pytest.param("mysql://u:hunter2@h/db?ssl_ca=c&ssl_verify_cert=false", "leave them out", id="not verified"),
        pytest.param("mysql://u:hunter2@h/db?ssl_ca=c&ssl_ca=d", "each once", id="two authorities"),
        pytest.param("mysql://u:hunter2@h/db?ssl_ca=c&ssl_disabled=false", "no other", id="TLS disabled by any text"),
        pytest.param("mysql://u:hunter2@h/db?ssl_mode=VERIFY_CA", "no other", id="a word of MySQL's own client"),
        pytest.param("mysql://u:hunter2@h/db?ssl=true", "no other", id="TLS by whatever means"),
        pytest.param(
            "mysql://u:x@h/db?ssl_ca=c&ssl_key=k&ssl_key_password=hunter2", "no other", id="password of a key"
        ),
    ],
)
def test_what_is_wrong_is_reported_without_the_password(text, named):
    with pytest.raises(DatabaseUrlError, match=named) as caught:
        parse(text)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("kind", "driver", "extra"),
    [("postgresql", "psycopg", "postgres"), ("mysql", "pymysql", "mysql"), ("mariadb", "pymysql", "mysql")],
)
def test_a_driver_that_is_not_installed_is_named_with_its_extra(monkeypatch, kind, driver, extra):
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(DatabaseUrlError) as caught:
        parse(f"{kind}://u:hunter2@h/db")
    assert str(caught.value) == f"its driver {driver} isn't installed. Run: pip install 'shardctl[{extra}]'"


@pytest.mark.parametrize(
    ("query", "ssl"),
    [
        ("", None),
        ("?ssl_ca=/ca", {"ca": "/ca"}),
        ("?ssl_ca=/ca&ssl_cert=/c&ssl_key=/k", {"ca": "/ca", "cert": "/c", "key": "/k"}),
        ("?ssl_ca=/ca&ssl_check_hostname=false", {"ca": "/ca", "check_hostname": False}),
        ("?ssl_ca=/ca&ssl_verify_identity=true&ssl_verify_cert=1", {"ca": "/ca", "check_hostname": True}),
    ],
)
def test_mysql_verifies_by_the_authority_that_the_url_names(query, ssl):
    connect_arguments = arguments(f"mysql://u:p@h/db{query}")
    assert connect_arguments.get("ssl") == ssl
    assert not any(name.startswith("ssl_") for name in connect_arguments)


@pytest.mark.parametrize(("query", "threshold"), [("", None), ("?prepare_threshold=5", 5), ("?prepare_threshold=1", 1)])
def test_statements_are_prepared_on_the_server_only_where_the_url_asks_for_it(query, threshold):
    without, prepared = prepare_threshold(parse(f"postgresql://u:p@h/db{query}"))
    assert prepared == threshold
    assert "prepare_threshold" not in without.query


@pytest.mark.parametrize("value", ["never", "-1", "1.5", "0", "5&prepare_threshold=6"])
def test_a_prepare_threshold_that_is_no_number_is_refused(value):
    with pytest.raises(DatabaseUrlError, match="prepare_threshold"):
        parse(f"postgresql://u:secret@h/db?prepare_threshold={value}")
