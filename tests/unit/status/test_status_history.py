"""The last hour from a Prometheus, over real HTTP."""

import json

import pytest
from status_kit import http_server, settled

from shardctl.status.history import DEAD, LAG, SPAN_SECONDS, STEP_SECONDS, WRITES, ask, queries
from shardctl.status.prometheus import Prometheus, PrometheusError

POINTS = SPAN_SECONDS // STEP_SECONDS


def answering(forms, **figures):
    """A server that has values of s0 at the last moments, by the name of the query."""
    names = {query: name for name, query in queries(settled()).items()}

    def answer(method, path, headers, form):
        forms.append((path, form))
        values, end = figures.get(names[form["query"]], []), float(form["end"])
        pairs = [[end - STEP_SECONDS * (len(values) - 1 - at), str(value)] for at, value in enumerate(values)]
        result = [{"metric": {"shard": "s0"}, "values": pairs}] if values else []
        return 200, json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})

    return answer


def asked(**figures):
    forms = []
    with http_server(answering(forms, **figures)) as url, Prometheus(url) as prometheus:
        past = ask(prometheus, settled())
    assert {path for path, _ in forms} == {"/api/v1/query_range"}
    assert {float(form["end"]) - float(form["start"]) for _, form in forms} == {SPAN_SECONDS - STEP_SECONDS}
    return {figure.name: figure for figure in past.figures}


def test_what_is_unknown_is_no_zero_and_dead_letters_begin_at_one():
    """The counter of dead letters is there from the first one on."""
    figures = asked(applied=[5, 6, 7], writes=["NaN", 2.5, 3], commit_age=[0.2], dead_lettered=[2])
    assert figures[WRITES].values["s0"] == (None,) * (POINTS - 2) + (2.5, 3.0)
    assert figures[DEAD].values["s0"] == (None,) * (POINTS - 3) + (0.0, 0.0, 2.0)
    assert figures[LAG].values["s0"][-2:] == (None, 0.2)
    assert "99th percentile" in figures[LAG].title


def test_pubsub_s_own_age_is_the_lag_where_something_exports_it():
    figures = asked(applied=[5], commit_age=[0.2], oldest_age=[7])
    assert figures[LAG].values["s0"][-1] == 7.0
    assert "oldest" in figures[LAG].title


def test_a_server_without_figures_is_no_source():
    with pytest.raises(PrometheusError, match="no figures"):
        asked()
