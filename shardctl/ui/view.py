"""The page's data, collected once for all of its readers, and only while there are readers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from shardctl.errors import ShardctlError
from shardctl.fleet.keyspace import SlotSet
from shardctl.shard.membership import Membership
from shardctl.status import databases, drawing
from shardctl.status.collector import Collector, FleetFile, Look
from shardctl.status.moving import SlotMap
from shardctl.status.poller import Asker
from shardctl.status.report import Unknown
from shardctl.ui.seen import Seen

HEAT_SECONDS = 20.0  # between two counts of the inboxes
HISTORY_SECONDS = 10.0
HEAT_PATIENCE_SECONDS = 15.0
KEPT_TIMES = 3

T = TypeVar("T")


class Shared(Generic[T]):
    """A value made in a thread on demand, for one reader at a time, and shared by all until it is `seconds` old.

    A value that takes long to make is kept longer, so that making it never takes more than a part of a core.
    """

    def __init__(self, make: Callable[[], T], seconds: float) -> None:
        self._make, self._seconds = make, seconds
        self._made: tuple[float, T] | None = None  # until when it is given
        self._lock = asyncio.Lock()

    async def get(self) -> T:
        async with self._lock:
            began = time.monotonic()
            if self._made is None or began >= self._made[0]:
                made = await run_in_threadpool(self._make)
                took = time.monotonic() - began
                self._made = began + max(self._seconds, KEPT_TIMES * took), made
            return self._made[1]


class View:
    """The fleet of one file."""

    def __init__(self, looker: Collector, of_file: FleetFile) -> None:
        self._looker, self._file = looker, of_file
        self._asker = Asker(HEAT_PATIENCE_SECONDS)
        # A little less than the page's pace, or every second call would get the previous one.
        self._look = Shared(self._looked, looker.sources.pace_seconds * 0.8)
        self._seen = Seen()
        self._heat = Shared(self._count, HEAT_SECONDS)
        self._history = Shared(self._past, HISTORY_SECONDS)
        self._mapped: tuple[Look | None, tuple[SlotMap, ...]] = None, ()

    async def look(self) -> Look:
        return await self._look.get()

    async def status(self) -> dict[str, Any]:
        """As `shardctl status --json`, with what else the page needs to know.

        That is its pace, why the newest file isn't followed, whether no source answered, and the message types.
        """
        look = await self.look()
        types = look.fleet.message_types.items()
        return {
            **drawing.as_json(look.report),
            "pace_seconds": self._looker.sources.pace_seconds,
            "file_fault": self._file.fault or None,
            "nothing": look.report.nothing,
            "types": [{"name": name, "by_time": kind.time_bucket is not None} for name, kind in types],
        }

    async def history(self) -> dict[str, Any]:
        """The last hour from Prometheus, where there is one and it answers; else what this server has seen itself."""
        return await self._history.get()

    async def slots(self) -> dict[str, Any]:
        look = await self.look()
        if self._mapped[0] is not look:
            self._mapped = look, await run_in_threadpool(look.slot_maps)
        return {
            "slots": 1 << look.fleet.routing.slot_bits,
            "maps": [_map_json(slot_map) for slot_map in self._mapped[1]],
        }

    async def heat(self) -> dict[str, Any]:
        """Writes a second by shard and slot; `unknown` has the shards whose database doesn't answer."""
        return await self._heat.get()

    def urls(self) -> Mapping[str, str | Unknown]:
        return self._looker.sources.urls(self._file.fleet())

    def fleet(self) -> Any:
        return self._file.fleet()

    def _looked(self) -> Look:
        look = self._looker.look(self._file.fleet())
        self._seen.add(look.report)
        return look

    def _past(self) -> dict[str, Any]:
        source, why = self._looker.sources.history, ""
        if source is not None:
            try:
                return {"source": "prometheus", "why": "", **source(self._file.fleet()).as_json()}
            except ShardctlError as error:
                why = str(error)
        return {"source": "page", "why": why, **self._seen.history().as_json()}

    def _count(self) -> dict[str, Any]:
        fleet, urls = self.fleet().fleet, self.urls()
        answers = self._asker.ask(
            {
                name: partial(databases.heat, Membership(fleet, name), url)
                for name, url in urls.items()
                if not isinstance(url, Unknown)
            }
        )
        answers |= {name: url for name, url in urls.items() if isinstance(url, Unknown)}
        return {
            "window_seconds": databases.HEAT_WINDOW.total_seconds(),
            "shards": {
                name: {"slots": list(rates), "rates": [round(rate, 3) for rate in rates.values()]}
                for name, rates in answers.items()
                if not isinstance(rates, Unknown)
            },
            "unknown": {name: answer.why for name, answer in answers.items() if isinstance(answer, Unknown)},
        }


def _map_json(slot_map: SlotMap) -> dict[str, Any]:
    return {
        "types": slot_map.types,
        "holders": {name: _ranges(slots) for name, slots in slot_map.holders.items()},
        "from_file": list(slot_map.from_file),
        "stages": {stage: _ranges(slots) for stage, slots in slot_map.stages.items()},
    }


def _ranges(slots: SlotSet) -> list[list[int]]:
    return [[first, last] for first, last in slots.ranges]
