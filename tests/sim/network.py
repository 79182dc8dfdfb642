"""What lies between a process and the services: requests that take time, get lost, or whose answers get lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.sim.loop import Process, SimLoop

QUICK_SECONDS, SLOW_SECONDS = 0.004, 3.0


@dataclass(slots=True)
class Weather:
    """How likely a request to one service fares badly. `down` refuses everything."""

    lose_request: float = 0.0
    lose_answer: float = 0.0
    slow: float = 0.0
    down: bool = False

    def clear_up(self) -> None:
        self.lose_request = self.lose_answer = self.slow = 0.0
        self.down = False


Answer = Callable[[Any], None]
"""Gives a request's result, or its error, once; called by a service whenever it likes."""


class Network:
    """`trouble` is called when a request of a live process fails: what that may excuse is the oracle's business."""

    def __init__(self, loop: SimLoop, seed: int, trouble: Callable[[Process, str], None]) -> None:
        self._loop, self._draw, self._trouble = loop, random.Random(f"{seed} network").random, trouble
        self.weather: dict[str, Weather] = {}
        self.in_flight_dies_with_sender = True

    def delay(self, service: str, sender: Process | None = None) -> float:
        """Of one way. Mostly quick; in bad weather sometimes longer than anyone waits."""
        draw = self._draw()
        if draw < self.weather[service].slow:
            if sender:
                self._trouble(sender, f"{service} slow")
            return self._draw() * SLOW_SECONDS
        return draw * QUICK_SECONDS

    async def request(
        self, service: str, serve: Callable[[Answer], None], timeout_seconds: float, failure: Callable[[str], Exception]
    ) -> Any:
        """The service's answer, or `failure` with why there is none; then the request may have been served all the same."""
        loop, weather = self._loop, self.weather[service]
        sender = loop.current()
        waiting = loop.create_future()

        def give(answer: Any) -> None:
            if waiting.done():
                return
            deadline.cancel()
            if isinstance(answer, Exception):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)

        def answer(result: Any) -> None:
            if self._draw() < weather.lose_answer:
                self._trouble(sender, f"{service} answer lost")
            else:
                loop.after(self.delay(service, sender), give, result)

        def arrive() -> None:
            if sender.alive or not self.in_flight_dies_with_sender:
                serve(answer)

        def give_up() -> None:
            self._trouble(sender, f"{service} timeout")
            give(failure("timeout"))

        deadline = loop.after(timeout_seconds, give_up)
        if weather.down:
            self._trouble(sender, f"{service} down")
            loop.after(self.delay(service, sender), give, failure("connection refused"))
        elif self._draw() < weather.lose_request:
            self._trouble(sender, f"{service} request lost")
        else:
            loop.after(self.delay(service, sender), arrive)
        return await waiting
