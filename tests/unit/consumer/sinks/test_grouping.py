"""Few groups where order allows; what grouping brings about is test_sql_sink's."""

from __future__ import annotations

import pytest
from consumer_kit import CONFIG, write

from consumer.sinks.grouping import group

KINDS = CONFIG.message_types


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writes", "statements"),
    [
        pytest.param(
            [
                ("line", {"order_id": "1", "line": 1, "sku": "x"}, "insert"),
                ("line", {"order_id": "1", "line": 1}, "delete"),
                ("line", {"order_id": "1", "line": 2, "sku": "x"}, "insert"),
            ],
            3,
            id="another row of the routing key, that may need what went before",
        ),
        pytest.param(
            [("customer", {"customer_id": str(n), "name": "x"}, "upsert") for n in range(500)], 1, id="one shape"
        ),
        pytest.param(
            [("customer", {"customer_id": "1", "name": str(n)}, "upsert") for n in range(500)], 1, id="one hot row"
        ),
        pytest.param(
            [("document", {"id": "1", "revision": n}, "upsert") for n in range(500)], 1, id="one hot row with versions"
        ),
        pytest.param(
            [
                ("customer" if n % 2 else "profile", {"customer_id": str(n), "name" if n % 2 else "bio": "x"}, "upsert")
                for n in range(500)
            ],
            2,
            id="two tables, different keys",
        ),
        pytest.param(
            [("customer", {"customer_id": "1"}, "insert") for _ in range(5)], 5, id="an insert again and again"
        ),
        pytest.param(
            [("customer", {"customer_id": "1"}, ("upsert", "delete")[n % 2]) for n in range(6)], 6, id="to and fro"
        ),
        pytest.param(
            [("labelled", {"id": "1", "label": str(n)}, "upsert") for n in range(3)], 3, id="versions of text"
        ),
    ],
)
def test_few_statements_where_order_allows(writes, statements):
    assert len(group([write(kind, body, operation) for kind, body, operation in writes], KINDS)) == statements


def test_ten_thousand_repeated_inserts_are_grouped_in_time():
    writes = [write("customer", {"customer_id": "1"}, "insert")] * 3_000
    assert len(group(writes, KINDS)) == 3_000
