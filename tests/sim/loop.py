"""An event loop whose time is a number, whose processes can die or freeze at any await, and whose schedule is a seed's.

Every callback belongs to a process: the one whose context it runs in, or the world's. Within a process callbacks run in the order
asyncio promises, first come, first served. Which process runs next is drawn. When none can run, time jumps to the next timer.
A process that dies keeps nothing: its callbacks are dropped where they are, so no `finally` of its code ever runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

THREAD = "thread"
_PROCESS: ContextVar[Process] = ContextVar("process")


class Killed(BaseException):
    """Raised at the seams into code of a dead process that is being cleared away: it must not reach the outside again."""


class Process:
    """What is killed and frozen as one. A step is one callback: what a task does from one await to the next."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self.steps = 0
        self.ready: deque[Handle] = deque()
        self.queued = False  # among the loop's runnable processes
        self.tasks: list[asyncio.Task[Any]] = []
        self.traps: dict[int, Callable[[], None]] = {}

    def trap(self, step: int, action: Callable[[], None]) -> None:
        """Call `action` just before the process's step of that number, counted from 1."""
        self.traps[step] = action

    def lost_errors(self) -> list[str]:
        """Errors of tasks that nobody looked at: a part of the process died, and the rest went on without it."""
        ended = [task for task in self.tasks if task.done() and not task.cancelled() and task._log_traceback]
        return [
            f"{task.get_name()} of {self} died of {task.exception()!r}" for task in ended if task.get_name() != THREAD
        ]

    def __repr__(self) -> str:
        return self.name


class Handle:
    """A callback to come. Enough of asyncio's Handle and TimerHandle for tasks, futures and timeouts."""

    __slots__ = ("args", "callback", "context", "off", "process", "when_")

    def __init__(self, callback: Callable[..., Any], args: Any, context: Context | None, process: Process) -> None:
        self.callback, self.args, self.context, self.process = callback, args, context, process
        self.off = False
        self.when_ = 0.0

    def cancel(self) -> None:
        self.off = True
        self.callback = self.args = None  # they may refer to this handle

    def cancelled(self) -> bool:
        return self.off

    def when(self) -> float:
        return self.when_


class SimLoop(asyncio.AbstractEventLoop):
    """`run` until `halt`, until a moment, or until nothing is left to happen."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(f"{seed} schedule").random
        self._now = 0.0
        self._world = Process("world")
        self._runnable: list[Process] = []
        self._timers: list[tuple[float, int, Handle]] = []
        self._timer_count = 0
        self._halted = False
        self._processes = [self._world]
        self.faults: list[str] = []  # what asyncio would have logged as an unhandled error

    # -- processes -------------------------------------------------------------------------------------------------

    def spawn(self, process: Process, main: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin a process's life with its main coroutine."""
        self._processes.append(process)
        context = copy_context()
        context.run(_PROCESS.set, process)
        return self.create_task(main, context=context)

    @staticmethod
    def current() -> Process:
        """The process whose code is running. Raises Killed where that is dead: nothing it does counts any more."""
        process = _PROCESS.get()
        if not process.alive:
            raise Killed
        return process

    def kill(self, process: Process) -> None:
        process.alive = False
        process.ready.clear()

    def freeze(self, process: Process) -> None:
        process.frozen = True

    def thaw(self, process: Process) -> None:
        process.frozen = False
        if process.alive and process.ready and not process.queued:
            process.queued = True
            self._runnable.append(process)

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, until: float) -> None:
        self._halted = False
        asyncio._set_running_loop(self)
        try:
            while not self._halted:
                if self._runnable:
                    self._step()
                elif not self._advance(until):
                    return
        finally:
            asyncio._set_running_loop(None)

    def halt(self) -> None:
        self._halted = True

    def _step(self) -> None:
        runnable = self._runnable
        index = int(self._draw() * len(runnable)) if len(runnable) > 1 else 0
        process = runnable[index]
        ready = process.ready
        if ready and not process.frozen:
            handle = ready[0]
            if handle.off:
                ready.popleft()
            else:
                process.steps += 1
                if process.steps in process.traps:
                    process.traps.pop(process.steps)()  # may kill or freeze it
                if process.alive and not process.frozen:
                    ready.popleft()
                    if handle.context is None:
                        handle.callback(*handle.args)
                    else:
                        handle.context.run(handle.callback, *handle.args)
        if not ready or process.frozen:
            process.queued = False
            last = runnable.pop()
            if last is not process:
                runnable[runnable.index(process)] = last

    def _advance(self, until: float) -> bool:
        """To the next moment at which something happens; False when that lies beyond `until`, or never comes."""
        timers = self._timers
        while timers and timers[0][2].off:
            heapq.heappop(timers)
        if not timers or timers[0][0] > until:
            self._now = max(self._now, until)
            return False
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            handle = heapq.heappop(timers)[2]
            if not handle.off:
                self._push(handle)
        return True

    def _push(self, handle: Handle) -> None:
        process = handle.process
        if not process.alive:
            return
        process.ready.append(handle)
        if not process.queued and not process.frozen:
            process.queued = True
            self._runnable.append(process)

    def clear_away(self) -> None:
        """End every task, so that nothing of this run lives on. What their `finally` does is stopped at the seams."""
        asyncio._set_running_loop(self)
        try:
            for task in itertools.chain.from_iterable(process.tasks for process in self._processes):
                if not task.done():
                    task._log_destroy_pending = False
                    with contextlib.suppress(BaseException):  # whatever it is, its process is dead
                        task.get_coro().close()
        finally:
            asyncio._set_running_loop(None)
        for process in self._processes:
            process.tasks.clear()
            process.ready.clear()
            process.traps.clear()
        self._processes.clear()
        self._timers.clear()

    # -- for the world ---------------------------------------------------------------------------------------------

    def after(self, delay: float, callback: Callable[..., Any], *args: Any) -> Handle:
        """Call from outside every process, `delay` seconds from now."""
        return self.at(self._now + delay, callback, *args)

    def at(self, when: float, callback: Callable[..., Any], *args: Any) -> Handle:
        """The same, at a moment; those of one moment are called in the order in which they were asked for."""
        return self._at(when, Handle(callback, args, None, self._world))

    # -- for asyncio -----------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:
        context = context or copy_context()
        handle = Handle(callback, args, context, context.get(_PROCESS, self._world))
        self._push(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:
        context = context or copy_context()
        return self._at(when, Handle(callback, args, context, context.get(_PROCESS, self._world)))

    def _at(self, when: float, handle: Handle) -> Handle:
        handle.when_ = when
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        context = context or copy_context()
        task = asyncio.Task(coro, loop=self, name=name or coro.__qualname__, context=context)
        context.get(_PROCESS, self._world).tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """A thread of the simulation is a task, so `func` must give a coroutine. A thread can't be cancelled."""
        answer = self.create_future()

        def give(thread: asyncio.Task[Any]) -> None:
            error = thread.exception()
            if answer.done():
                return
            if error:
                answer.set_exception(error)
            else:
                answer.set_result(thread.result())

        self.create_task(func(*args), name=THREAD).add_done_callback(give)
        return answer

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.faults.append(f"{context['message']}: {context.get('exception')!r}")
