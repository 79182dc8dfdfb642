"""No secret of a URL is shown, wherever it stands and however it is written; what isn't secret is."""

import time

import pytest
from secrets_kit import CANARY, ODD_URLS
from sqlalchemy.engine import make_url

from shardctl.redaction import redacted, redacted_value

OTHERS = {
    "connection string": f"host=h user=shop password={CANARY} dbname=orders",
    "quoted": f"host=h password='a {CANARY}' dbname=orders",
    "JSON": f'{{"password": "{CANARY}", "token":"{CANARY}"}}',
    "header": f"Authorization: Bearer {CANARY}.{CANARY}",
}


@pytest.mark.parametrize("text", [*ODD_URLS.values(), *OTHERS.values()], ids=[*ODD_URLS, *OTHERS])
def test_a_secret_is_hidden(text):
    for shown in (redacted(text), redacted(f"can't reach '{text}': (again {text})"), redacted_value(text)):
        assert CANARY not in shown
        assert "***" in shown


@pytest.mark.parametrize("text", ODD_URLS.values(), ids=ODD_URLS)
def test_what_is_redacted_stays_so(text):
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (ODD_URLS["plain"], "postgresql://shop:***@db.example.com:5432/orders"),
        (ODD_URLS["in the query"], "postgresql://shop@h/orders?sslmode=require&sslpassword=***"),
        (
            f"{ODD_URLS['plain']}: refused, see a@b.c",
            "postgresql://shop:***@db.example.com:5432/orders: refused, see a@b.c",
        ),
    ],
)
def test_the_rest_is_shown(text, shown):
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "no URL at all: a=b, key=5, x@y.z",
        "https://prometheus.example.com:9090/api/v1/query",
        "see https://example.com:8080/a/b and write to ops@example.com",
        "write redis://:password@host:6379/0",
        "serviceAccount:shop@my-project.iam.gserviceaccount.com",
        "eu.gcr.io/a/b:1.0@sha256:0123",
        "postgresql://shop@h:5432/orders?host=a&port=1,2&sslmode=verify-full",
        "relaying postgresql://shop@h:5432/orders?target_session_attrs=any; probes on http://127.0.0.1:9090",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text):
    assert redacted(text) == text


def test_urls_of_sqlalchemy_are_shown_without_their_secrets():
    url = make_url(f"mysql+pymysql://shop:x@h/orders?ssl_ca=ca.pem&passwd={CANARY}")
    assert redacted_value(url.render_as_string()) == "mysql+pymysql://shop:***@h/orders?passwd=***&ssl_ca=ca.pem"


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    ["a", "a:", "://", "a://b:c ", "password=", "@", ":@", "x:y@", "'password':", "bearer ", 'password="', "a://b:c@"],
)
def test_time_grows_with_the_text_alone(part):
    def cost(size):
        text = part * (size // len(part))
        begun = time.process_time()
        redacted(text)
        return time.process_time() - begun

    few = min(cost(20_000) for _ in range(3))
    many = min(cost(320_000) for _ in range(2))
    assert many < 16 * 8 * max(few, 0.001), "16 times the text; its square would be 256 times the time"
