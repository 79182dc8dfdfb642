"""A Prometheus server's answers, over real HTTP."""

import json

import pytest
from status_kit import http_server, settled

from shardctl.errors import UsageError
from shardctl.status.prometheus import Prometheus, PrometheusError, _google_token, queries

VALUES = {
    "applied": 100, "duplicates": 3, "writes_per_second": 2.5, "duplicates_per_second": 0, "locks_contended_per_second": 0.1,
    "rows_a_batch": "NaN", "replicas": 3, "ready": 2, "without_redis": 1,
    "inbox_rows": 9.0, "inbox_bytes": "NaN",
}  # fmt: skip


def vector(*values):
    result = [{"metric": {"shard": shard}, "value": [1, str(value)]} for shard, value in values]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}})


def answering(seen=None):
    names = {query: name for name, query in queries(settled()).items()}

    def answer(method, path, headers, form):
        if seen is not None:
            seen.append((method, path, headers.get("Authorization")))
        name = names[form["query"]]
        return 200, vector(("s0", VALUES[name])) if name in VALUES else vector()

    return answer


def test_each_figure_is_asked_for_by_shard():
    seen = []
    with http_server(answering(seen)) as url, Prometheus(f"{url}/some/prefix/") as prometheus:
        work_of = prometheus.work(settled())
    work = work_of.pop("s0")
    assert not work_of
    assert (work.applied, work.duplicates, work.dead_lettered, work.writes_per_second) == (100, 3, 0, 2.5)
    assert (work.rows_a_batch, work.locks_contended_per_second) == (None, 0.1)
    assert (work.replicas, work.ready, work.names) == (3, 2, None)
    assert (work.inbox_rows, work.inbox_bytes, work.inbox_overdue_seconds) == (9, None, None)
    assert work.troubles == (
        "1 of 3 replicas aren't ready",
        "1 of 3 replicas work without Redis: they may repeat each other's work",
    )
    assert set(seen) == {("POST", "/some/prefix/api/v1/query", None)}


def test_queries_name_the_fleet_s_own_consumers():
    assert queries(settled())["writes_per_second"] == (
        'sum by (shard) (rate(shardctl_messages_applied_total{namespace="default",app="orders-consumer"}[5m]))'
    )


def test_a_token_is_sent_and_a_password_too():
    seen = []
    with http_server(answering(seen)) as url:
        with Prometheus(url, lambda: "Bearer t0") as prometheus:
            prometheus.work(settled())
        with Prometheus(url.replace("//", "//me:secret@")) as prometheus:
            prometheus.work(settled())
    assert {authorization for _, _, authorization in seen} == {"Bearer t0", "Basic bWU6c2VjcmV0"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((403, "no right"), r"refused the query \(403\): no right"),
        ((302, ""), r"refused the query \(302\)"),
        ((200, "<html>"), "doesn't answer as Prometheus does"),
        ((200, '{"status": "success"}'), "doesn't answer as Prometheus does"),
        ((200, vector()), r"has no metrics of consumers \(namespace default, app orders-consumer\)"),
    ],
)
def test_what_it_refuses_is_reported_without_the_password(answer, message):
    with (
        http_server(lambda *_: answer) as url,
        Prometheus(url.replace("//", "//me:secret@")) as prometheus,
        pytest.raises(PrometheusError, match=message) as refused,
    ):
        prometheus.work(settled())
    assert "secret" not in str(refused.value)


def test_an_absent_server_is_reported():
    with (
        Prometheus("http://me:secret@127.0.0.1:1") as prometheus,
        pytest.raises(PrometheusError, match="can't be asked") as refused,
    ):
        prometheus.work(settled())
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["", "prometheus:9090", "ftp://x", "http://", "http://monitoring.googleapis.com/v1/projects/p"]
)
def test_another_url_is_refused(url):
    with pytest.raises(UsageError, match="--prometheus"):
        Prometheus(url)


def test_google_is_asked_with_a_token_of_the_credentials_that_are_here(tmp_path, monkeypatch):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    asked = []

    def answer(method, path, headers, form):
        asked.append(form["grant_type"])
        return 200, json.dumps({"access_token": "t0", "expires_in": 3600, "token_type": "Bearer"})

    with http_server(answer) as url:
        account = {
            "type": "service_account",
            "project_id": "p",
            "client_email": "a@p.example",
            "private_key": pem.decode(),
        }
        (tmp_path / "key.json").write_text(json.dumps(account | {"token_uri": f"{url}/token"}))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        authorization = _google_token()
        assert [authorization(), authorization()] == ["Bearer t0"] * 2
    assert len(asked) == 1


def test_without_credentials_google_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    url = "https://monitoring.googleapis.com/v1/projects/p/location/global/prometheus"
    with Prometheus(url) as prometheus, pytest.raises(PrometheusError, match="there are no Google Cloud credentials"):
        prometheus.work(settled())
