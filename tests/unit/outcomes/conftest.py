import shutil

import pytest
from outcomes_kit import Inboxes


@pytest.fixture(scope="session")
def made_inboxes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inboxes")
    inboxes = Inboxes(folder)
    inboxes.provision()
    inboxes.close()
    return folder


@pytest.fixture
def inboxes(made_inboxes, tmp_path):
    shutil.copytree(made_inboxes, tmp_path, dirs_exist_ok=True)
    made = Inboxes(tmp_path)
    yield made
    made.close()
