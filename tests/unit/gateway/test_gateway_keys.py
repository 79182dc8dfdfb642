"""The file of clients' keys: read, refused in words without repeating it, read anew."""

import asyncio
from hashlib import sha256

import pytest
from gateway_kit import fleet

from shardctl.errors import UsageError
from shardctl.gateway import auth
from shardctl.gateway.auth import ByKey, door, keys_of
from shardctl.gateway.problems import Problem
from shardctl.gateway.ratelimit import Buckets

GATEWAY = "{auth: {kind: keys, secret: {name: k}, clients: {shop: {types: [order], rate_limit: 5}}}, rate_limit: 9}"


def digest(key):
    return sha256(key.encode()).hexdigest()


@pytest.mark.parametrize(
    "text",
    [f"# clients\n\nshop {digest('a')}\n  erp\t{digest('b').upper()}\n", f'{{"shop": "{digest("a")}", "erp": "{digest("b")}"}}'],
    ids=["lines", "JSON"],
)  # fmt: skip
def test_keys_are_read(text):
    found = keys_of(text.encode(), "keys")
    assert [found[sha256(key).digest()][0] for key in (b"a", b"b")] == ["shop", "erp"]


def test_a_client_may_have_two_keys_while_one_takes_the_others_place():
    assert len(keys_of(f"shop {digest('old')}\nshop {digest('new')}".encode(), "keys")) == 2


@pytest.mark.parametrize(
    "text",
    [b"", b"shop topsecret", b'{"shop": "topsecret"}', b'{"shop": 5}', b"{", b"\xff", b"[]",
     f"a {digest('x')}\nb {digest('x')}".encode()],
)  # fmt: skip
def test_a_file_at_fault_is_refused_without_repeating_it(text):
    with pytest.raises(UsageError, match=r"^keys: ") as caught:
        keys_of(text, "keys")
    assert "topsecret" not in str(caught.value)


def made(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    settings = fleet(GATEWAY).gateway
    return ByKey(path, settings, Buckets(lambda: 0.0)), path


def named(found, key):
    return asyncio.run(found.caller(f"Bearer {key}".encode(), "")).name


def test_a_key_tells_who_calls(tmp_path):
    found, _ = made(tmp_path, f"shop {digest('a')}\nerp {digest('b')}")
    shop = asyncio.run(found.caller(b"bearer  a", ""))
    assert (shop.name, shop.may_write("order"), shop.may_write("daily")) == ("shop", True, False)
    assert asyncio.run(found.caller(b"Bearer b", "")).may_write("daily")


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Basic YQ==", b"Bearer c", b"Bearer a b", b"Bearer \xff"])
def test_who_has_no_key_is_not_let_in(tmp_path, header):
    found, _ = made(tmp_path, f"shop {digest('a')}")
    with pytest.raises(Problem) as caught:
        asyncio.run(found.caller(header, ""))
    assert caught.value.status == 401
    assert caught.value.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "bad", ["shop {}\u00a0", '{{"shop": "{}\u00a0"}}', '{{"shop {}": ""}}', '{{"a b": "{}"}}'], ids=repr
)
def test_a_line_at_fault_doesnt_end_the_reading_of_later_versions(tmp_path, monkeypatch, caplog, bad):
    monkeypatch.setattr(auth, "RELOAD_SECONDS", 0.01)

    async def run():
        found, path = made(tmp_path, f"shop {digest('a')}")
        watching = asyncio.create_task(found.watch())
        path.write_text(bad.format(digest("b")), encoding="utf-8")
        await _until(lambda: watching.done() or sha256(b"b").digest() in found._names or caplog.records)
        path.write_text(f"shop {digest('c')}")
        await _until(lambda: watching.done() or sha256(b"c").digest() in found._names)
        assert not watching.done()
        watching.cancel()

    with caplog.at_level("INFO"):
        asyncio.run(run())


def test_a_new_version_is_read_and_one_at_fault_changes_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(auth, "RELOAD_SECONDS", 0.01)

    async def run():
        found, path = made(tmp_path, f"shop {digest('a')}")
        watching = asyncio.create_task(found.watch())
        path.write_text("shop topsecret")
        await _until(lambda: "keys_refused" in [getattr(r, "action", "") for r in caplog.records])
        assert (await found.caller(b"Bearer a", "")).name == "shop"
        path.write_text(f"shop {digest('b')}")
        await _until(lambda: sha256(b"b").digest() in found._names)
        with pytest.raises(Problem):
            await found.caller(b"Bearer a", "")
        watching.cancel()

    with caplog.at_level("INFO"):
        asyncio.run(run())
    assert "topsecret" not in caplog.text


async def _until(true):
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to be")


def test_keys_need_a_file(tmp_path):
    settings = fleet(GATEWAY).gateway
    with pytest.raises(UsageError, match="--keys FILE"):
        door(settings, None, Buckets(lambda: 0.0))
    with pytest.raises(UsageError, match="can't be read"):
        door(settings, tmp_path / "nobody", Buckets(lambda: 0.0))
