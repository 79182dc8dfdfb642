"""Databases of a rebalance, made once: making them again takes most of a test's time."""

import shutil

import pytest
from rebalance_kit import World, running_broker
from site_kit import Site


def _made(folder, *steps):
    world = World(folder)
    for step in steps:
        step(world)
    world.close()
    return folder


@pytest.fixture(scope="session")
def fresh_folder(tmp_path_factory):
    """As they are before `shardctl rebalance start`."""
    return _made(tmp_path_factory.mktemp("fresh"), World.provision)


@pytest.fixture(scope="session")
def announced_folder(fresh_folder, tmp_path_factory):
    """As `start` leaves them."""
    folder = tmp_path_factory.mktemp("announced")
    shutil.copytree(fresh_folder, folder, dirs_exist_ok=True)
    return _made(folder, World.announce)


@pytest.fixture(scope="session")
def done_folder(announced_folder, tmp_path_factory):
    """As `run` leaves them."""
    folder = tmp_path_factory.mktemp("done")
    shutil.copytree(announced_folder, folder, dirs_exist_ok=True)
    return _made(folder, lambda world: world.to_its_end(world.run()))


def _copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def fresh(fresh_folder, tmp_path):
    yield from _copy(fresh_folder, tmp_path)


@pytest.fixture
def announced(announced_folder, tmp_path):
    yield from _copy(announced_folder, tmp_path)


@pytest.fixture
def done(done_folder, tmp_path):
    yield from _copy(done_folder, tmp_path)


@pytest.fixture(scope="module")
def host():
    with running_broker() as host:
        yield host


_projects = iter(range(1_000))


@pytest.fixture
def site(fresh, host, tmp_path, monkeypatch, capsys):
    world = fresh
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", host)
    for name in ("s0", "s1", "s2"):
        monkeypatch.setenv(f"SHARDCTL_DATABASE_URL_{name.upper()}", world.url(name))
    site = Site(world, f"project-{next(_projects):03}", capsys)
    yield site
    site.close()
