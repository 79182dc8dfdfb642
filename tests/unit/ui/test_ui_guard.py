"""Who gets in: the page with its token, and nobody else."""

import pytest
from fleets import text
from ui_kit import HOST, ORIGIN, TOKEN, client

READS = ("status", "slots", "heat", "parked", "parked/messages", "letters")
ACTS = ("parked/replay", "letters/replay")


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "shards.yaml"
    file.write_text(text(("0-7", "8-15"), slot_bits=4))
    return file


def problem(response, status):
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert (document["status"], document["type"]) == (status, "about:blank")
    assert document["detail"]
    return document


@pytest.mark.parametrize(
    "authorization", ["", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer ", f"Bearer {TOKEN}x", "Bearer \xff"]
)
@pytest.mark.parametrize("name", [*READS, *ACTS])
def test_every_call_wants_the_token(path, name, authorization):
    headers = {"Authorization": authorization.encode("latin-1"), "Origin": ORIGIN}
    method = "POST" if name in ACTS else "GET"
    response = client(path, {}).request(method, f"/api/{name}", headers=headers)
    problem(response, 401)
    assert response.headers["www-authenticate"] == "Bearer"


def test_an_unknown_path_reveals_nothing_without_the_token(path):
    problem(client(path, {}, token="x").get("/api/none"), 401)
    problem(client(path, {}).get("/api/none"), 404)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8642", "localhost.evil.example", "", "[::1", "10.0.0.1"]
)
@pytest.mark.parametrize("place", ["/", "/static/page.js", "/api/status"])
def test_a_name_that_is_not_ours_is_refused(path, host, place):
    problem(client(path, {}).get(place, headers={"Host": host}), 421)


@pytest.mark.parametrize("host", ["127.0.0.1:8642", "localhost:9000", "LOCALHOST", "[::1]:8642"])
def test_names_of_this_machine_are_ours_also_through_a_tunnel(path, host):
    assert client(path, {}).get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("bound", "host", "status"),
    [
        ("10.0.0.7", "10.0.0.7:8642", 200),
        ("10.0.0.7", "10.0.0.8:8642", 421),
        ("0.0.0.0", "10.0.0.7:8642", 200),
        ("0.0.0.0", "evil.example", 421),
        ("::", "[fe80::1]:8642", 200),
        ("box.internal", "box.internal:8642", 200),
    ],
)
def test_an_address_that_was_asked_for_is_ours(path, bound, host, status):
    assert client(path, {}, host=bound).get("/", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "https://127.0.0.1:8642", "http://127.0.0.1:1", f"{ORIGIN}/"]
)
@pytest.mark.parametrize("name", ACTS)
def test_only_the_page_itself_acts(path, name, origin):
    headers = {"Origin": origin} if origin else {}
    problem(client(path, {}).post(f"/api/{name}", json={}, headers=headers), 403)


def test_a_page_may_run_nothing_but_its_own_files(path):
    for place in ("/", "/static/page.css", "/api/status", "/none"):
        headers = client(path, {}).get(place).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert (headers["cache-control"], headers["x-frame-options"]) == ("no-store", "DENY")
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


def test_the_page_has_no_inline_script_or_style_and_asks_nobody_else(path):
    browser = client(path, {}, token="")
    page = browser.get("/").text
    files = {name for name in page.split('"') if name.startswith("/static/")}
    assert files == {"/static/page.js", "/static/page.css", "/static/icon.svg"}
    for name in [*files, *(f"/static/{module}.js" for module in ("api", "aside", "dom", "letters", "shards", "slots"))]:
        response = browser.get(name)
        assert response.status_code == 200
        page += response.text
    assert "<style" not in page
    assert " style=" not in page
    assert "innerHTML" not in page
    assert "https://" not in page
    assert TOKEN not in page


@pytest.mark.parametrize(
    "place", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/", "/static/page.py", "/index.html"]
)
def test_nothing_else_is_served(path, place):
    problem(client(path, {}).get(place), 404)


def test_a_method_that_is_not_there_is_refused(path):
    response = client(path, {}).request("PUT", "/api/status", headers={"Origin": f"http://{HOST}"})
    problem(response, 405)
    assert "GET" in response.headers["allow"]


def test_a_bug_is_reported_without_its_insides(path):
    def broken(_):
        raise ZeroDivisionError("secret")

    document = problem(client(path, {}, metrics=broken).get("/api/status"), 500)
    assert "secret" not in str(document)
