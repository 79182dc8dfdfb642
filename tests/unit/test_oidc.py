"""Tokens are taken when their issuer signed them for us, now, and at no other time."""

import asyncio
import base64
import json
import time

import jwt
import pytest
from oidc_kit import Issuer, key, token

from shardctl import oidc
from shardctl.oidc import KeysUnavailableError, TokenError, Verifier

ISSUERS = ("https://issuer.test",)


class Clock:
    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


@pytest.fixture
def issuer():
    with Issuer("k1", "ec1") as made:
        yield made


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def claims(issuer, clock):
    verifier = Verifier(ISSUERS, "aud", issuer.url, clock=clock)
    return lambda text: asyncio.run(verifier.claims(text))


@pytest.mark.slow
@pytest.mark.parametrize("signer", ["k1", "ec1"])
def test_a_good_token_is_taken(claims, signer):
    assert claims(token(signer))["sub"] == "me"


def test_one_of_several_audiences_is_ours(claims):
    assert claims(token(aud=["other", "aud"]))["sub"] == "me"


def _unsigned(algorithm):
    header = {"alg": algorithm, "kid": "k1", "typ": "JWT"}
    parts = (header, {"iss": ISSUERS[0], "aud": "aud", "exp": time.time() + 60})
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


def _signed_with_the_public_key():
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = key("k1").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header, payload, _ = _unsigned("HS256").split(".")
    import hmac

    mac = hmac.digest(public, f"{header}.{payload}".encode(), "sha256")
    return f"{header}.{payload}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def _changed(part):
    parts = token().split(".")
    parts[part] = ("A" if parts[part][10] != "A" else "B").join((parts[part][:10], parts[part][11:]))
    return ".".join(parts)


BAD = {
    "nothing": lambda: "",
    "no token": lambda: "abc",
    "too long": lambda: "a" * 20_000,
    "not ASCII": lambda: "é",
    "unsigned": lambda: _unsigned("none"),
    "HS256 with the public key": _signed_with_the_public_key,
    "RS384": lambda: token(algorithm="RS384"),
    "another's key": lambda: token("k2", kid="k1"),
    "unknown key": lambda: token("k2"),
    "algorithm of another key": lambda: token("ec1", kid="k1"),
    "claims changed": lambda: _changed(1),
    "signature changed": lambda: _changed(2),
    "critical header": lambda: jwt.encode({"exp": 1}, key("k1"), "RS256", {"kid": "k1", "crit": ["x"], "x": 1}),
    "other issuer": lambda: token(iss="https://evil.test"),
    "no issuer": lambda: token(iss=None),
    "other audience": lambda: token(aud="other"),
    "no audience": lambda: token(aud=None),
    "expired": lambda: token(exp=time.time() - 31),
    "no expiry": lambda: token(exp=None),
    "expiry of another kind": lambda: token(exp="2099-01-01"),
    "expiry as text": lambda: token(exp=str(int(time.time()) + 60)),
    "expiry true": lambda: token(exp=True),
    "issued at no time": lambda: token(iat="now"),
    "issued at infinity": lambda: token(iat=float("inf")),
    "valid from no time": lambda: token(nbf=[]),
    "expiry not finite": lambda: token(exp=float("inf")),
    "issued in the future": lambda: token(iat=time.time() + 40),
    "not valid yet": lambda: token(nbf=time.time() + 40),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
def test_a_bad_token_is_refused_and_never_repeated(claims, make):
    text = make()
    with pytest.raises(TokenError) as caught:
        claims(text)
    assert len(text) < 10 or text not in str(caught.value)


@pytest.mark.parametrize("times", [{"exp": -20}, {"iat": 20}, {"nbf": 20}], ids=str)
def test_clocks_may_differ_by_half_a_minute(claims, times):
    assert claims(token(**{name: time.time() + ahead for name, ahead in times.items()}))


def test_a_remembered_token_expires(claims, clock, issuer):
    text = token()
    claims(text)
    claims(text)
    assert issuer.fetches == 1
    clock.ahead = 3_600 + 31
    with pytest.raises(TokenError, match="expired"):
        claims(text)


def test_a_new_key_is_fetched_once(claims, clock, issuer):
    claims(token())
    issuer.published.append("k2")
    clock.ahead = oidc.REFETCH_PAUSE_SECONDS
    assert claims(token("k2"))
    assert issuer.fetches == 2
    for _ in range(5):  # a client that invents keys can't make us ask for each
        with pytest.raises(TokenError):
            claims(token("k3", kid="invented"))
    assert issuer.fetches == 2


def test_a_withdrawn_key_takes_its_tokens_along(claims, clock, issuer):
    text = token()
    claims(text)
    issuer.published = ["ec1"]
    clock.ahead = oidc.REFETCH_PAUSE_SECONDS
    claims(token("ec1"))
    with pytest.raises(TokenError):
        claims(token("k2"))  # makes it look again
    with pytest.raises(TokenError):
        claims(text)


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_short_keys_are_not_trusted(clock):
    with Issuer("small1", "k1") as issuer:
        verifier = Verifier(ISSUERS, "aud", issuer.url, clock=clock)
        with pytest.raises(TokenError):
            asyncio.run(verifier.claims(token("small1")))


def test_without_the_issuers_keys_nothing_is_said_of_the_token(claims, clock, issuer):
    issuer.status = 500
    with pytest.raises(KeysUnavailableError, match="status 500"):
        claims(token())
    with pytest.raises(KeysUnavailableError):
        claims(token())
    assert issuer.fetches == 1, "a failed fetch isn't repeated at once"
    issuer.status = 200
    clock.ahead = oidc.FAILURE_PAUSE_SECONDS
    assert claims(token())


def test_keys_at_hand_do_while_the_issuer_is_away(claims, clock, issuer):
    claims(token())
    issuer.status = 503
    clock.ahead = oidc.KEYS_FRESH_SECONDS + 1
    assert claims(token(iat=None, exp=clock() + 60))
    with pytest.raises(KeysUnavailableError):  # this one may be newer than the keys at hand
        claims(token("k2", iat=None, exp=clock() + 60))
    clock.ahead = oidc.KEYS_FRESH_SECONDS + oidc.GRACE_SECONDS + 1
    with pytest.raises(KeysUnavailableError):
        claims(token(iat=None, exp=clock() + 60))


def test_how_long_old_keys_do_can_be_chosen(clock, issuer):
    verifier = Verifier(ISSUERS, "aud", issuer.url, grace_seconds=60, clock=clock)
    assert asyncio.run(verifier.claims(token()))
    issuer.status = 503
    assert verifier.keys_failing is None
    clock.ahead = oidc.KEYS_FRESH_SECONDS + 50
    assert asyncio.run(verifier.claims(token(iat=None, exp=clock() + 60)))
    assert "503" in verifier.keys_failing
    clock.ahead = oidc.KEYS_FRESH_SECONDS + 61
    with pytest.raises(KeysUnavailableError):
        asyncio.run(verifier.claims(token(iat=None, exp=clock() + 60)))


def test_many_at_once_fetch_once(issuer):
    verifier = Verifier(ISSUERS, "aud", issuer.url)

    async def run():
        await asyncio.gather(*(verifier.claims(token()) for _ in range(20)))

    asyncio.run(run())
    assert issuer.fetches == 1


def test_one_who_goes_away_takes_no_other_along(issuer):
    issuer.stalls = True
    verifier = Verifier(ISSUERS, "aud", issuer.url)

    async def run():
        first, second = (asyncio.create_task(verifier.claims(token())) for _ in range(2))
        while not issuer.fetches:  # noqa: ASYNC110 - it counts in a thread of its own
            await asyncio.sleep(0.01)
        first.cancel()
        issuer.stalls = False
        assert await second

    asyncio.run(run())


def test_what_is_remembered_is_bounded(claims, issuer, monkeypatch):
    monkeypatch.setattr(oidc, "MAX_REMEMBERED", 2)
    verifier = Verifier(ISSUERS, "aud", issuer.url)

    async def run():
        for number in range(5):
            await verifier.claims(token(sub=str(number)))
        return len(verifier._remembered)

    assert asyncio.run(run()) == 2
