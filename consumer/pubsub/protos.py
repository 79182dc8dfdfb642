"""Pub/Sub's messages as the plain protobuf classes of Google's package, since its wrappers cost more than all else here.

Importing that package loads the clients of all its services, their retries and their credentials: some 20 MiB, and a fifth of a
consumer's start. Its types need none of that, and are loaded without it. A later import of the package gets all of it, with these
same types: a sink of the user's may do so, and `consumer.pubsub.calls`, which opens the channel to the service with its client.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

PACKAGE = "google.pubsub_v1"


def _types() -> Any:
    """The package's `types`, without running the package if it hasn't been imported yet."""
    name = f"{PACKAGE}.types"
    spec = find_spec(PACKAGE)
    if PACKAGE in sys.modules or spec is None:
        return import_module(name)
    sys.modules[PACKAGE] = module_from_spec(spec)  # only the place of its submodules
    try:
        return import_module(name)
    finally:
        del sys.modules[PACKAGE]


_TYPES = _types()
# Any, since generated classes have no types.
AcknowledgeRequest: Any = _TYPES.AcknowledgeRequest.pb()
ModifyAckDeadlineRequest: Any = _TYPES.ModifyAckDeadlineRequest.pb()
PublishRequest: Any = _TYPES.PublishRequest.pb()
PublishResponse: Any = _TYPES.PublishResponse.pb()
PubsubMessage: Any = _TYPES.PubsubMessage.pb()
PullRequest: Any = _TYPES.PullRequest.pb()
PullResponse: Any = _TYPES.PullResponse.pb()
ReceivedMessage: Any = _TYPES.ReceivedMessage.pb()
StreamingPullRequest: Any = _TYPES.StreamingPullRequest.pb()
StreamingPullResponse: Any = _TYPES.StreamingPullResponse.pb()
