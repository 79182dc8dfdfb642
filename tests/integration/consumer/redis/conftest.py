"""What these tests share: a Redis of each kind, where consumers have the rights that docs/redis.md gives them."""

import pytest
import redis_kit


@pytest.fixture(scope="session", params=redis_kit.KINDS)
def made_place(request, tmp_path_factory):
    with redis_kit.KINDS[request.param](tmp_path_factory.mktemp(request.param), "f:s") as place:
        yield place


@pytest.fixture
def place(made_place):
    """Empty when the test begins; nothing that a consumer does may need another right."""
    made_place.empty()
    yield made_place
    assert made_place.refusals() == []
