"""Asks many servers at once, and waits for none longer than a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from shardctl.errors import ShardctlError
from shardctl.rebalance.backlog import UnknownError
from shardctl.status.report import Unknown

AT_ONCE = 32


class Asker:
    """A server isn't asked again until it has answered: one that hangs costs one thread, however many looks there are.

    Threads may share it: those who ask the same at once get one answer. Its own threads are daemons, so that none delays the end
    of the process.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()  # guards the one below
        self._under_way: dict[str, Future[Any]] = {}
        self._room = threading.Semaphore(AT_ONCE)

    def ask(self, questions: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """The answer to each question, or Unknown: an error that the user can fix, or no answer in time. A bug is raised."""
        deadline = time.monotonic() + self._patience_seconds
        with self._lock:
            for name, question in questions.items():
                if name not in self._under_way:
                    self._under_way[name] = self._begin(name, question)
            asked = {name: self._under_way[name] for name in questions}
        return {name: self._answer(name, under_way, deadline) for name, under_way in asked.items()}

    def _begin(self, name: str, question: Callable[[], Any]) -> Future[Any]:
        answer: Future[Any] = Future()

        def run() -> None:
            try:
                with self._room:
                    answer.set_result(question())
            except BaseException as error:  # noqa: BLE001 - raised or reported where the answer is read
                answer.set_exception(error)

        threading.Thread(target=run, name=f"ask {name}", daemon=True).start()
        return answer

    def _answer(self, name: str, under_way: Future[Any], deadline: float) -> Any:
        try:
            answer = under_way.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            if not under_way.done():
                return Unknown(f"no answer within {self._patience_seconds:g} s")
            answer = Unknown("timed out")
        except (ShardctlError, UnknownError, OSError) as error:
            answer = Unknown(str(error))
        except BaseException:
            self._forget(name, under_way)
            raise
        self._forget(name, under_way)
        return answer

    def _forget(self, name: str, under_way: Future[Any]) -> None:
        with self._lock:
            if self._under_way.get(name) is under_way:
                del self._under_way[name]
