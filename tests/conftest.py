"""Real servers for tests that ask for them: one of each a test process, an empty database each test."""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import settings
from properties import ALL

from shardctl.local.servers import BinaryMissingError, MariaDBServer, PostgresServer, RedisServer

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As whatever runs behind a shell's `&` has it, its children too: and then nobody could test what Ctrl-C does.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.load_profile(ALL)  # unless the command line names another

_numbers = itertools.count()

JUDGED = ("chaos", "model", "sim")  # folders whose tests judge whether writes are exact: what they find once is found

# Files of few tests that take minutes. Begun last, such a file would keep one process busy long after the others have ended.
LONG = (
    "tests/e2e/test_migrating.py",
    "tests/e2e/test_production.py",
    "tests/e2e/test_quickstart.py",
    "tests/integration/consumer/sinks/test_emitting.py",
    "tests/integration/gateway/test_gateway_described.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What several processes share begins with the long files, then with those of many tests.

    With `--reruns`, as in CI, a failed test is run again; one that judges, only where its time ended before its verdict.
    """
    assert all((config.rootpath / name).exists() for name in LONG)
    if hasattr(config, "workerinput"):
        tests = Counter(map(_file, items))
        items.sort(key=lambda item: (_file(item) not in LONG, -tests[_file(item)]))
    if not config.getoption("reruns"):
        return
    for item in items:
        if not set(JUDGED).isdisjoint(_file(item).split("/")):
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun="pytest-timeout"))


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was run again, and what was skipped, one line a reason: where a server is missing, hundreds of tests have the same."""
    reruns = terminalreporter.stats.get("rerun", ())
    if reruns:
        terminalreporter.section("failed and was run again: a fault to be fixed all the same", yellow=True)
    for report in reruns:
        terminalreporter.line(report.nodeid)
        terminalreporter.line(report.longreprtext)
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", ()))
    if reasons:
        terminalreporter.section("skipped", cyan=True)
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        terminalreporter.line(f"{count} skipped: {reason}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return " ".join(text.removeprefix("Skipped: ").split())


@pytest.fixture(autouse=True)
def root_logger_as_it_was() -> Iterator[None]:
    """What a command sets for its own process, its stream that ends with a test among it, isn't the next test's."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def _start(server):
    try:
        return server.start()
    except BinaryMissingError as missing:
        if os.environ.get("CI"):
            raise  # there a skipped test is a hole that nobody sees
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Shared by this process's tests: make databases in it, don't stop it."""
    server = PostgresServer(tmp_path_factory.mktemp("postgres"), durable=False)
    yield _start(server)
    server.delete()


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """SQLAlchemy URL of an empty database that is this test's alone."""
    name = f"test_{next(_numbers)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def mariadb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDBServer]:
    """Shared by this process's tests: make databases in it, don't stop it."""
    server = MariaDBServer(tmp_path_factory.mktemp("mariadb"), durable=False)
    yield _start(server)
    server.delete()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Shared by this process's tests: use `redis_url`, don't stop it."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield _start(server)
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of a Redis that is empty when the test begins."""
    from redis import Redis

    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url
