"""Where a server listens."""

import pytest

from shardctl.errors import UsageError
from shardctl.serving.sockets import bind


def test_an_empty_address_isnt_every_address():
    """As from `--host "$ADDRESS"` with a variable that isn't set."""
    with pytest.raises(UsageError, match="the address to listen on for metrics is empty"):
        bind("", 0, "metrics", "Free the port.")
