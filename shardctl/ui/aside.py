"""Parked keys on the page: listed, shown, and released if they are still what the page showed. Blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

from shardctl.shard import parked
from shardctl.shard.membership import Membership
from shardctl.shard.parked import ParkedKey
from shardctl.status.poller import Asker
from shardctl.status.report import Unknown
from shardctl.ui.problems import Problem

MAX_KEYS = 500  # on the page; `shardctl parked list` lists all
MAX_MESSAGES = 50
MAX_BODY_CHARACTERS = 2_000

Urls = Mapping[str, str | Unknown]


def listed(fleet: str, urls: Urls, asker: Asker) -> dict[str, Any]:
    """The keys of every shard that answers; `unknown` has the others."""
    answers = asker.ask(
        {
            name: partial(_keys, Membership(fleet, name), url)
            for name, url in urls.items()
            if not isinstance(url, Unknown)
        }
    )
    answers |= {name: url for name, url in urls.items() if isinstance(url, Unknown)}
    keys = [key for answer in answers.values() if not isinstance(answer, Unknown) for key in answer]
    unknown = {name: answer.why for name, answer in answers.items() if isinstance(answer, Unknown)}
    return {"keys": keys[:MAX_KEYS], "more": max(0, len(keys) - MAX_KEYS), "unknown": unknown}


def _keys(whose: Membership, url: str) -> list[dict[str, Any]]:
    with parked.opened(whose, url, reading=True) as connection:
        return [parked.as_json(key) for key in parked.keys(connection, whose.shard)]


def shown(fleet: str, urls: Urls, shard: str, slot: int, kind: str, key: str) -> dict[str, Any]:
    """A key's messages in order. Raises Problem."""
    with parked.opened(Membership(fleet, shard), _url(urls, shard), reading=True) as connection:
        parked_key = _key_in(parked.keys(connection, shard, key), slot, kind)
        messages = parked.messages(connection, parked_key)
    members = parked.as_json(parked_key, messages[:MAX_MESSAGES])
    for message in members["messages"]:
        for name in ("body", "body_hex"):
            if len(message.get(name, "")) > MAX_BODY_CHARACTERS:
                message[name] = message[name][:MAX_BODY_CHARACTERS] + "…"
    return {**members, "more": max(0, len(messages) - MAX_MESSAGES)}


def replay(
    fleet: str, urls: Urls, shard: str, slot: int, kind: str, key: str, expected_messages: int, expected_since: str
) -> dict[str, Any]:
    """Release the key to its consumer if it still is what the page showed. Raises Problem.

    `expected_since` is the key's `parked_time`: a key that was released and parked again has another.
    """
    with parked.opened(Membership(fleet, shard), _url(urls, shard)) as connection:
        before = _key_in(parked.keys(connection, shard, key), slot, kind)
        released = parked.replay(connection, before)
        current = _key_in(parked.keys(connection, shard, key), slot, kind)  # again: only now can't anybody add to it
        if not released or (current.messages, current.parked_time.isoformat()) != (expected_messages, expected_since):
            # Raised in the transaction, so that nothing of it is done.
            raise Problem(
                HTTPStatus.CONFLICT,
                "the key isn't what the page showed any more, so nothing was changed: look at it again",
                parked.as_json(before),
            )
    return {"released": 1, "messages": current.messages}


def _url(urls: Urls, shard: str) -> str:
    url = urls.get(shard)
    if url is None:
        raise Problem(HTTPStatus.NOT_FOUND, f"there is no shard {shard[:40]!r}")
    if isinstance(url, Unknown):
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"database of {shard}: {url.why}")
    return url


def _key_in(keys: tuple[ParkedKey, ...], slot: int, kind: str) -> ParkedKey:
    for key in keys:
        if (key.slot, key.message_type) == (slot, kind):
            return key
    raise Problem(HTTPStatus.NOT_FOUND, "the key isn't parked any more")
