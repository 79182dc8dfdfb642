"""A shop whose databases are made once: making them again takes most of a test's time."""

import shutil

import pytest
from fleets import yamlfile
from shop_kit import FILE, Shop

from shardctl.fleet.load import fleet_from


@pytest.fixture(scope="session")
def provisioned(tmp_path_factory):
    fleet, folder = fleet_from(yamlfile.parse(FILE)), tmp_path_factory.mktemp("shop")
    shop = Shop(fleet, folder)
    shop.provision()
    shop.close()
    return fleet, folder


@pytest.fixture
def shop(provisioned, tmp_path):
    fleet, folder = provisioned
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    made = Shop(fleet, tmp_path)
    yield made
    made.close()
