"""A sink that some messages kill: it sends its own process SIGKILL, as the kernel's OOM killer does."""

from __future__ import annotations

import os
import signal

import orjson
from sqlalchemy import text


class Crashing:
    def check(self, delivery):
        delivery.body = orjson.loads(delivery.message.data)

    def apply(self, connection, writes):
        for write in writes:
            if write.body["kills"]:
                os.kill(os.getpid(), signal.SIGKILL)
        rows = [{"key": write.partition_key, "number": write.body["number"]} for write in writes]
        connection.execute(text("INSERT INTO applied (key, number) VALUES (:key, :number)"), rows)
        return 0
