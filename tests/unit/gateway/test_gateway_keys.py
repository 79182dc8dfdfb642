"""The file of clients' keys: read, refused in words without repeating it, read again; and who may write by it."""

import asyncio
from hashlib import sha256

import pytest
from gateway_kit import fleet

from shardctl.errors import UsageError
from shardctl.gateway import auth, keys
from shardctl.gateway.auth import ApiKeyAuth, authenticator_of
from shardctl.gateway.problems import Problem
from shardctl.gateway.ratelimit import Buckets

CLIENTS = "{shop: {types: [order], rate_limit: 5}, erp: {}}"
GATEWAY = f"{{auth: {{kind: keys, secret: {{name: k}}, grace: 60s, clients: {CLIENTS}}}, rate_limit: 9}}"
ALL = "{auth: {kind: keys, secret: {name: k}}}"


def digest(key):
    return sha256(key.encode()).hexdigest()


@pytest.mark.parametrize(
    "text",
    [f"# clients\n\nshop {digest('a')}\n  erp\t{digest('b').upper()}\n", f'{{"shop": "{digest("a")}", "erp": "{digest("b")}"}}'],
    ids=["lines", "JSON"],
)  # fmt: skip
def test_keys_are_read(text):
    ring = keys.parse(text.encode())
    assert [ring.names[sha256(key).digest()] for key in (b"a", b"b")] == ["shop", "erp"]
    assert not ring.faults


@pytest.mark.parametrize("form", ["shop {}\nshop {}", '{{"shop": "{}", "shop": "{}"}}'], ids=["lines", "JSON"])
def test_a_client_may_have_two_keys_while_one_takes_the_others_place(form):
    assert len(keys.parse(form.format(digest("old"), digest("new")).encode()).names) == 2


@pytest.mark.parametrize(
    "form", ["shop revoked\nshop {}", '{{"shop": "revoked", "shop": "{}"}}'], ids=["lines", "JSON"]
)
def test_a_client_that_is_revoked_has_no_key(form):
    file = keys.parse(form.format(digest("a")).encode())
    assert (dict(file.names), file.revoked, len(file.faults)) == ({}, {"shop"}, 1)


@pytest.mark.parametrize("text", ["shop revoked", '{"shop": "revoked"}'])
def test_a_client_may_have_no_key(text):
    assert keys.parse(text.encode()) == keys.KeysFile({}, frozenset({"shop"}))


@pytest.mark.parametrize(
    "text",
    [b"", b"# nobody", b"{}", b"shop topsecret", b'{"shop": "topsecret"}', b'{"shop": 5}', b'{"shop": null}', b"{", b"\xff",
     b"[]", b'{"shop": ' + b'{"a": ' * 5_000, b'{"shop": ' + b"1" * 5_000 + b"}",
     f"a {digest('x')}\nb {digest('x')}".encode(), f"a {digest('x')}\na revoked".encode()],
)  # fmt: skip
def test_a_file_at_fault_is_refused_without_repeating_it(text, tmp_path):
    path = tmp_path / "keys"
    path.write_bytes(text)
    assert not keys.read(path).names
    with pytest.raises(UsageError, match=r"/keys: ") as caught:
        ApiKeyAuth(path, fleet(ALL).gateway, Buckets(lambda: 0.0))
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    ["shop {}\u00a0x", "shop {} x", '{{"shop": "{}\u00a0", "erp": "{}"}}', '{{"a b": "{}", "erp": "{}"}}'],
    ids=repr,
)  # fmt: skip
def test_a_line_at_fault_leaves_the_others_as_they_are(bad):
    text = bad.format(digest("a"), digest("b")) if "erp" in bad else f"{bad.format(digest('a'))}\nerp {digest('b')}"
    ring = keys.parse(text.encode())
    assert set(ring.names.values()) == {"erp"}
    assert len(ring.faults) == 1


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def made(tmp_path, text, gateway=GATEWAY, clock=None):
    path = tmp_path / "keys"
    path.write_text(text)
    return ApiKeyAuth(path, fleet(gateway).gateway, Buckets(lambda: 0.0), clock or Clock()), path


def named(api_keys, key):
    return asyncio.run(api_keys.caller(f"Bearer {key}".encode(), "")).name


def refusal(api_keys, key):
    with pytest.raises(Problem) as caught:
        named(api_keys, key)
    return caught.value.status


BOTH = f"shop {digest('a')}\nerp {digest('b')}"


def test_a_key_identifies_the_caller(tmp_path):
    api_keys, _ = made(tmp_path, BOTH)
    shop = asyncio.run(api_keys.caller(b"bearer  a", ""))
    assert (shop.name, shop.may_write("order"), shop.may_write("daily")) == ("shop", True, False)
    assert asyncio.run(api_keys.caller(b"Bearer b", "")).may_write("daily")


def test_without_clients_every_key_may_write_everything(tmp_path):
    api_keys, _ = made(tmp_path, BOTH, ALL)
    assert asyncio.run(api_keys.caller(b"Bearer a", "")).may_write("daily")


def test_a_client_that_isnt_named_may_not_write(tmp_path, caplog):
    api_keys, _ = made(tmp_path, f"{BOTH}\nother {digest('c')}")
    assert refusal(api_keys, "c") == 403
    assert "doesn't name other" in caplog.text


def test_every_other_client_can_be_named(tmp_path):
    some = "{auth: {kind: keys, secret: {name: k}, clients: {shop: {}, '*': {types: [daily]}}}}"
    api_keys, _ = made(tmp_path, BOTH, some)
    erp = asyncio.run(api_keys.caller(b"Bearer b", ""))
    assert (erp.name, erp.may_write("daily"), erp.may_write("order")) == ("erp", True, False)
    assert asyncio.run(api_keys.caller(b"Bearer a", "")).may_write("order")


def test_a_misspelt_client_is_refused_at_the_start_with_the_names_there_are(tmp_path):
    with pytest.raises(UsageError, match=r"no key of erp\. It has keys of epr, shop"):
        made(tmp_path, f"shop {digest('a')}\nepr {digest('b')}")


def test_a_named_client_may_have_been_revoked(tmp_path):
    api_keys, _ = made(tmp_path, f"shop {digest('a')}\nerp revoked")
    assert (named(api_keys, "a"), refusal(api_keys, "b")) == ("shop", 401)


FAULTS = {
    "emptied": "",
    "a bad line": f"shop {digest('a')}\nnew zzz",
    "bad JSON": "{",
    "two names for one key": f"shop {digest('b')}\nerp {digest('b')}",
    "gone": None,
}


@pytest.mark.parametrize("text", FAULTS.values(), ids=FAULTS)
def test_a_key_that_cant_be_confirmed_is_refused_after_the_grace_period(tmp_path, monkeypatch, caplog, text):
    clock = Clock()
    api_keys, path = made(tmp_path, BOTH, clock=clock)
    path.unlink()
    if text is not None:
        path.write_text(text)
    read_again(api_keys, monkeypatch)
    assert api_keys.failing
    assert [record.action for record in caplog.records].count("keys_refused") == 1
    clock.now = 59.9
    assert named(api_keys, "b") == "erp"
    read_again(api_keys, monkeypatch)  # which doesn't begin the grace again
    clock.now = 60.0
    assert refusal(api_keys, "b") == 503
    assert refusal(api_keys, "never there") == 401
    if text == FAULTS["a bad line"]:
        assert named(api_keys, "a") == "shop"
    path.write_text(BOTH)
    read_again(api_keys, monkeypatch)
    assert named(api_keys, "b") == "erp"
    assert not api_keys.failing


def test_a_file_that_is_whole_revokes_at_once(tmp_path, monkeypatch):
    api_keys, path = made(tmp_path, BOTH)
    path.write_text("zzz")
    read_again(api_keys, monkeypatch)
    assert named(api_keys, "b") == "erp"
    path.write_text(f"shop {digest('a')}")
    read_again(api_keys, monkeypatch)
    assert refusal(api_keys, "b") == 401


def test_a_client_that_is_revoked_by_name_has_no_grace(tmp_path, monkeypatch):
    api_keys, path = made(tmp_path, BOTH)
    path.write_text("erp revoked\nzzz")
    read_again(api_keys, monkeypatch)
    assert (named(api_keys, "a"), refusal(api_keys, "b")) == ("shop", 401)


def read_again(api_keys, monkeypatch):
    """One look of the watch at the file."""
    monkeypatch.setattr(auth, "RELOAD_SECONDS", 0)

    async def run():
        looked = asyncio.Event()
        take = api_keys._ring.take

        def taking(file):
            take(file)
            looked.set()

        monkeypatch.setattr(api_keys._ring, "take", taking)
        watching = asyncio.create_task(api_keys.watch())
        await looked.wait()
        await asyncio.sleep(0)
        watching.cancel()
        monkeypatch.setattr(api_keys._ring, "take", take)

    asyncio.run(run())


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Basic YQ==", b"Bearer c", b"Bearer a b", b"Bearer \xff"])
def test_a_caller_without_a_key_is_refused(tmp_path, header):
    api_keys, _ = made(tmp_path, BOTH)
    with pytest.raises(Problem) as caught:
        asyncio.run(api_keys.caller(header, ""))
    assert caught.value.status == 401
    assert caught.value.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_new_version_is_read_also_after_one_at_fault(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(auth, "RELOAD_SECONDS", 0.01)

    async def run():
        api_keys, path = made(tmp_path, BOTH)
        watching = asyncio.create_task(api_keys.watch())
        path.write_text("shop topsecret")
        await _until(lambda: "keys_refused" in [getattr(r, "action", "") for r in caplog.records])
        assert (await api_keys.caller(b"Bearer a", "")).name == "shop"
        path.write_text(f"shop {digest('c')}\nerp revoked")
        await _until(lambda: "keys_accepted" in [getattr(r, "action", "") for r in caplog.records])
        with pytest.raises(Problem):
            await api_keys.caller(b"Bearer a", "")
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
        authenticator_of(settings, None, Buckets(lambda: 0.0))
    with pytest.raises(UsageError, match="can't be read"):
        authenticator_of(settings, tmp_path / "nobody", Buckets(lambda: 0.0))
