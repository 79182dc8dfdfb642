"""The generated protobuf classes of google.pubsub.v1, without the proto-plus wrappers, which cost ten times the CPU."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types as _types
from google.pubsub_v1.types import Encoding, SchemaView

__all__ = ["Empty", "Encoding", "Proto", "SchemaView", "of", "to_seconds"]

Proto = Any
"""A generated message; the generated classes carry no types that a checker could use."""


def of(name: str) -> Proto:
    """`"Topic"` → the class google.pubsub.v1.Topic."""
    return getattr(_types, name).pb()


def to_seconds(moment: Proto) -> float:
    """A Timestamp or a Duration in seconds."""
    return float(moment.seconds + moment.nanos / 1e9)
