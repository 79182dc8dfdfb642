"""Sinks of which one emits an event for each write, under the same key, and the other records the events as they come."""

from __future__ import annotations

import orjson
from sqlalchemy import text

from shardctl import Write, emit


class Emitting:
    def check(self, delivery):
        delivery.body = orjson.loads(delivery.message.data)

    def apply(self, connection, writes):
        emit(
            connection,
            *(Write("event", {"id": write.partition_key, "number": write.body["number"]}) for write in writes),
        )
        rows = [{"key": write.partition_key, "number": write.body["number"]} for write in writes]
        connection.execute(text("INSERT INTO applied (id, number) VALUES (:key, :number)"), rows)
        return 0


class Recording:
    def check(self, delivery):
        delivery.body = orjson.loads(delivery.message.data)

    def apply(self, connection, writes):
        rows = [{"key": write.partition_key, "number": write.body["number"]} for write in writes]
        connection.execute(text("INSERT INTO recorded (id, number) VALUES (:key, :number)"), rows)
        return 0
