"""What tests of a consumer as a process ask for: a broker, and a shard on PostgreSQL. Many tests have a `shard` of their own."""

import pytest
from consumer_kit import Shard
from consumerprocess_kit import Pubsub


@pytest.fixture
def broker():
    made = Pubsub()
    yield made
    made.stop()
    made.loop.call_soon_threadsafe(made.loop.stop)


@pytest.fixture
def shard(database_url):
    made = Shard(database_url)
    yield made
    made.close()
