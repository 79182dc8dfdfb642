"""The usual sketch as a program of its own, for comparison: `python -m bench.naive SUBSCRIPTION`.

Message by message: the stock callback subscriber with its default ten threads, SET NX, SELECT, write, INSERT, commit, scripted
release. Acked after the write, one transaction a step. DATABASE_URL, REDIS_URL and PUBSUB_EMULATOR_HOST say where.
"""

from __future__ import annotations

import json
import os
import sys
import threading

import psycopg
from google.cloud import pubsub_v1
from redis import Redis

RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
STATEMENTS = {
    "customer": "INSERT INTO customers (customer_id, name, email, credit, revision, slot) "
    "VALUES (%(customer_id)s, %(name)s, %(email)s, %(credit)s, %(revision)s, 0) ON CONFLICT (customer_id) DO UPDATE SET "
    "name = excluded.name, email = excluded.email, credit = excluded.credit, revision = excluded.revision",
    "order": "INSERT INTO orders (order_id, customer_id, status, amount, placed_at, revision, slot) VALUES "
    "(%(order_id)s, %(customer_id)s, %(status)s, %(amount)s, %(placed_at)s, %(revision)s, 0) ON CONFLICT (order_id) "
    "DO UPDATE SET status = excluded.status, amount = excluded.amount, revision = excluded.revision",
}
TABLE = "CREATE TABLE processed (message_id text PRIMARY KEY)"


def main(subscription):
    url = os.environ["DATABASE_URL"]
    locks = Redis.from_url(os.environ["REDIS_URL"])
    release = locks.register_script(RELEASE)
    local = threading.local()

    def callback(message):
        if not hasattr(local, "connection"):
            local.connection = psycopg.connect(url)
        lock, token = f"msg_lock_{message.message_id}", os.urandom(8).hex()
        if not locks.set(lock, token, nx=True, ex=30):
            message.ack()
            return
        try:
            connection = local.connection
            seen = connection.execute("SELECT 1 FROM processed WHERE message_id = %s", (message.message_id,)).fetchone()
            connection.commit()
            if not seen:
                body = json.loads(message.data)
                connection.execute(STATEMENTS[message.attributes["message_type"]], body)
                connection.commit()
                connection.execute("INSERT INTO processed VALUES (%s)", (message.message_id,))
                connection.commit()
            message.ack()
        finally:
            release(keys=[lock], args=[token])

    pubsub_v1.SubscriberClient().subscribe(subscription, callback).result()


if __name__ == "__main__":
    main(sys.argv[1])
