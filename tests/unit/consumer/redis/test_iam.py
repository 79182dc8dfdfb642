"""Logins by IAM: a token is asked of Google when there is none that is valid, and what goes wrong is a refused login."""

from __future__ import annotations

import pytest
from google.auth.exceptions import RefreshError
from redis.exceptions import AuthenticationError

from consumer.redis import iam
from shardctl.errors import UsageError


class Source:
    """Each refresh gives another token; `fault` refuses."""

    def __init__(self):
        self.refreshes, self.valid, self.fault = 0, False, None

    @property
    def token(self):
        return f"token-{self.refreshes}"

    def refresh(self, request):
        if self.fault:
            raise self.fault
        self.refreshes, self.valid = self.refreshes + 1, True


def test_a_token_is_used_while_it_is_valid():
    source = Source()
    logins = iam.IamLogins(source)
    assert [logins(), logins()] == [("default", "token-1")] * 2
    source.valid = False
    assert logins() == ("default", "token-2")


def test_without_a_token_the_login_is_refused_and_asked_for_again():
    source = Source()
    logins = iam.IamLogins(source)
    source.fault = RefreshError("the metadata server doesn't answer")
    with pytest.raises(AuthenticationError, match="no access token to log in with: the metadata server"):
        logins()
    source.fault = None
    assert logins() == ("default", "token-1")


def test_a_process_without_an_identity_says_so(monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    with pytest.raises(UsageError, match=r"no Google credentials to log in to Redis with: File /nowhere/key\.json"):
        iam.logins_of_this_process()
