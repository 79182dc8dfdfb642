"""Resource names: `projects/PROJECT/{topics,subscriptions,snapshots,schemas}/ID`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from shardctl.broker.errors import InvalidArgumentError

DELETED_TOPIC = "_deleted-topic_"
_PROJECT = re.compile(r"projects/([^/\s]+)")
_ID = re.compile(r"[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}")


def check(kind: str, name: str) -> str:
    """The name itself, if it is a well-formed `projects/P/{kind}/ID`.

    An id has 3 to 255 characters, starts with a letter, holds letters, digits and `-_.~+%`, and doesn't start with
    "goog", which the service keeps for itself.
    """
    head, _, identifier = name.rpartition("/")
    project, _, collection = head.rpartition("/")
    well_formed = collection == kind and _PROJECT.fullmatch(project) and _ID.fullmatch(identifier)
    if not well_formed or identifier.startswith("goog"):
        raise InvalidArgumentError(
            f"Invalid [{kind}] name: (name={name}). It has the form projects/PROJECT/{kind}/ID; an ID has 3 to 255 letters, "
            "digits and -_.~+%, and starts with a letter and not with goog."
        )
    return name


def check_project(name: str) -> str:
    if not _PROJECT.fullmatch(name):
        raise InvalidArgumentError(f"Invalid [projects] name: (name={name})")
    return name


def in_project(resources: Iterable[str], project: str) -> Sequence[str]:
    """The names of resources that belong to `projects/P`."""
    prefix = check_project(project) + "/"
    return [name for name in resources if name.startswith(prefix)]


def project_of(name: str) -> str:
    """`projects/P/…` → `P`."""
    return name.split("/", 2)[1]


def id_of(name: str) -> str:
    """`projects/P/topics/T` → `T`."""
    return name.rpartition("/")[2]
