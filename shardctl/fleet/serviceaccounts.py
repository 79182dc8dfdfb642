"""The Google service accounts of what runs in a fleet: their ids and addresses. Pure."""

from __future__ import annotations

from hashlib import sha256

from shardctl.fleet.spec import Fleet

DOMAIN = ".gserviceaccount.com"
SHORTEST_ID, LONGEST_ID = 6, 30


def account_id(name: str) -> str:
    """The id of the account of a shard, of the gateway or of the operator: its own name wherever that has 6 to 30 characters."""
    if len(name) < SHORTEST_ID:
        return f"{name}-writer"
    if len(name) > LONGEST_ID:
        return f"{name[:21].rstrip('-')}-{sha256(name.encode()).hexdigest()[:8]}"
    return name


def email(fleet: Fleet, name: str) -> str:
    # A project of an organisation's domain, `example.com:shop`, is written the other way round in addresses.
    domain, _, project = fleet.project.rpartition(":")
    host = f"{project}.{domain}" if domain else project
    return f"{account_id(name)}@{host}.iam{DOMAIN}"
