"""The embedded broker, which also notes when it sends each message and when each ack arrives: `python -m bench.observedbroker`.

So a benchmark sees both ends of a consumer from outside. The notes are in memory until the process ends; then they go, as lines
of JSON, to the file that NOTES names: `[message id, published, sent, acked]`, in seconds since 1970.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from shardctl.broker import __main__ as program
from shardctl.broker import server
from shardctl.broker.protos import of
from shardctl.broker.service import Service
from shardctl.local.processes import BrokerProcess

VARIABLE = "NOTES"


class ObservedBroker(BrokerProcess):
    """In the place of a fleet's broker. `notes` can be read once it has stopped."""

    @property
    def notes_file(self):
        return self.data_dir / "notes.jsonl"

    def notes(self):
        """When each message was published, first sent, and acked, by message id."""
        lines = (json.loads(line) for line in self.notes_file.read_text().splitlines())
        return {message_id: times for message_id, *times in lines}

    def _command(self):
        return [part.replace("shardctl.broker", __name__) for part in super()._command()]

    def _spawn_options(self):
        return {"env": {**os.environ, VARIABLE: str(self.notes_file)}}


class Notes:
    def __init__(self):
        self._sent = []  # the time, and a response as serialised: it is read at the end
        self._acked = {}

    def sent(self, response):
        self._sent.append((time.time(), response))

    def acked(self, ack_ids):
        now = time.time()
        for ack_id in ack_ids:
            self._acked.setdefault(ack_id, now)

    def write(self, path):
        lines = {}
        for at, text in self._sent:
            for received in of("StreamingPullResponse").FromString(text).received_messages:
                message = received.message
                published = message.publish_time.seconds + message.publish_time.nanos / 1e9
                line = [message.message_id, published, at, self._acked.get(received.ack_id)]
                lines.setdefault(message.message_id, json.dumps(line) + "\n")
        path.write_text("".join(lines.values()))


class Observed:
    """A stream's context."""

    def __init__(self, context, notes):
        self._context, self._notes = context, notes

    def __getattr__(self, name):
        return getattr(self._context, name)

    async def read(self):
        request = await self._context.read()
        if hasattr(request, "ack_ids"):  # not the stream's end
            self._notes.acked(request.ack_ids)
        return request

    async def write(self, response):
        self._notes.sent(response)
        await self._context.write(response)


class ObservedService(Service):
    notes = Notes()

    def _acknowledge(self, request):
        self.notes.acked(request.ack_ids)
        return super()._acknowledge(request)

    async def pull(self, request, seconds_left):
        response = await super().pull(request, seconds_left)
        self.notes.sent(response)  # its messages have the same number as a stream's
        return response

    async def stream(self, context):
        await super().stream(Observed(context, self.notes))


if __name__ == "__main__":
    server.Service = ObservedService
    code = program.main()
    ObservedService.notes.write(Path(os.environ[VARIABLE]))
    sys.exit(code)
