"""The event loop of a simulation: virtual time, several processes, one seed.

Every callback belongs to a process. Within a process callbacks keep asyncio's order; which
process goes next is drawn. Between any two of them a process may stall, and at any of them it may
die: then none of its callbacks runs any more, and nothing that it sends is heard.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from penstock.contracts.errors import PenstockError

_GATHERED_SECONDS: Final = 30.0
"""Longer than any call to the server may take, its repetitions included."""
_T = TypeVar("_T")

PROCESS: ContextVar[Process] = ContextVar("process")
"""Whose code is running; tasks and callbacks inherit it."""


class Process:
    """One simulated operating system process: its callbacks, its tasks, its clock's error."""

    def __init__(self, name: str, *, skew_seconds: float = 0.0, mortal: bool = True) -> None:
        self.name = name
        self.skew_seconds = skew_seconds
        self.corrected_by = 0.0
        """What the process itself believes its clock's error to be, with the sign turned."""
        self.mortal = mortal
        self.dead = False
        self.paused = False
        self.ready: deque[Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        self.steps_left = -1
        """Callbacks until it dies; -1: it does not."""
        self.sends_left = -1
        """Messages until it dies, the last of which is not heard; -1: it does not."""
        self.stall_in = -1
        """Callbacks until it stalls; -1: it does not."""
        self.context = copy_context()
        self.context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Handle:
    """A callback that may be cancelled; as much of ``asyncio.TimerHandle`` as asyncio uses."""

    __slots__ = ("_when", "args", "callback", "context", "process")

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: Context
    ) -> None:
        self._when = when
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = context
        self.process = context[PROCESS]

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self._when


class SimLoop(asyncio.AbstractEventLoop):
    """Runs what is ready; when nothing is, time goes on to the next timer."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.system = Process("simulation", mortal=False)
        self.now = 0.0
        self.steps = 0
        self.errors: list[str] = []
        """What no code caught."""
        self.stall_seconds: Callable[[], float] = lambda: 0.0
        self.stall_gap: Callable[[], int] = lambda: -1
        self.on_death: Callable[[Process, str], None] = lambda _process, _how: None
        self._heap: list[tuple[float, int, Handle]] = []
        self._count = 0
        self._runnable: list[Process] = []
        self._current: Process | None = None
        self._doomed: list[Process] = []
        self._dead_tasks: list[asyncio.Task[Any]] = []
        self._ended_at: WeakKeyDictionary[asyncio.Task[Any], float] = WeakKeyDictionary()

    # -- what asyncio asks of a loop -----------------------------------------------------------

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        handle = Handle(self.now, callback, args, copy_context() if context is None else context)
        process = handle.process
        if not process.dead:
            process.ready.append(handle)
            if len(process.ready) == 1 and not process.paused:
                self._runnable.append(process)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Handle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Handle:
        handle = Handle(when, callback, args, copy_context() if context is None else context)
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, handle))
        return handle

    def _timer_handle_cancelled(self, handle: Handle) -> None:
        """Asyncio's own handles tell their loop; ours are skipped when their time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, _T] | Generator[Any, None, _T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[_T]:
        context = copy_context() if context is None else context
        task: asyncio.Task[_T] = asyncio.Task(coro, loop=self, name=name, context=context)
        tasks = context[PROCESS].tasks
        tasks.append(task)
        task.add_done_callback(self._note_end, context=self.system.context)
        if len(tasks) > 200:
            tasks[:] = [known for known in tasks if not _over(known)]
        return task

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        self._ended_at[task] = self.now

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, PenstockError) and isinstance(context.get("future"), asyncio.Future):
            return  # an answer that came after whoever wanted it was cancelled
        self.errors.append(f"{context.get('message')}: {error!r}")

    # -- processes -----------------------------------------------------------------------------

    def spawn(self, process: Process, coro: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Start a task of a process from outside."""
        return process.context.run(self.create_task, coro, name=name)

    def call_in(
        self, process: Process, delay: float, callback: Callable[..., object], *args: Any
    ) -> Handle:
        """Call something as a process, after a delay."""
        return self.call_at(self.now + delay, callback, *args, context=process.context)

    def pause(self, process: Process, seconds: float) -> None:
        """Let none of a process' callbacks run for a while (SIGSTOP, a long garbage collection)."""
        if process.dead or process.paused:
            return
        process.paused = True
        if process in self._runnable:
            self._runnable.remove(process)
        self.call_in(self.system, seconds, self.resume, process)

    def resume(self, process: Process) -> None:
        """Let a paused process go on."""
        if process.paused:
            process.paused = False
            if process.ready and not process.dead:
                self._runnable.append(process)

    def kill(self, process: Process, how: str) -> None:
        """End a process at once; tasks vanish where they are."""
        if process.dead:
            return
        process.dead = True
        process.ready.clear()
        if process in self._runnable:
            self._runnable.remove(process)
        self._doomed.append(process)
        self.on_death(process, how)
        if process is not self._current:
            self._bury()

    def _bury(self) -> None:
        """Close the coroutines of dead processes now, so that garbage collection does not."""
        while self._doomed:
            process = self._doomed.pop()
            tasks, process.tasks = process.tasks, []
            for task in tasks:
                self._close(task, process)

    def _close(self, task: asyncio.Task[Any], process: Process) -> None:
        if task.done():
            # Whoever gathers many waits for all of them before looking at how each has ended.
            if self.now - self._ended_at.get(task, self.now) > _GATHERED_SECONDS:
                self._note_error(task)
            return
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._dead_tasks.append(task)
        coro: Any = task.get_coro()
        for _ in range(20):
            try:
                process.context.run(coro.close)
            except RuntimeError:
                continue  # awaits in its `finally`: nothing of this is heard any more
            except Exception:  # noqa: BLE001 - the dead process' own business
                continue
            return

    def _note_error(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or not task._log_traceback:
            return
        error = task.exception()
        if error is not None:
            self.errors.append(f"task {task.get_name()} ended with {error!r}")

    def finish(self, processes: list[Process]) -> None:
        """Kill all processes, the last thing to do; ``errors`` is complete then."""
        self.on_death = lambda _process, _how: None
        for process in processes:
            self.kill(process, "end")
        self._heap.clear()
        self._dead_tasks.clear()

    # -- running -------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool], *, deadline: float) -> bool:
        """Run until a condition holds; tell whether it did before the virtual deadline."""
        asyncio._set_running_loop(self)
        try:
            while not until():
                if not self._step(deadline):
                    return False
        finally:
            asyncio._set_running_loop(None)
        return True

    def _step(self, deadline: float) -> bool:
        """Run callbacks until nothing is ready, then let the next timers be due."""
        runnable = self._runnable
        while runnable:
            count = len(runnable)
            process = runnable[0 if count == 1 else int(self.random.random() * count)]
            self._run_one(process)
        heap = self._heap
        if not heap or heap[0][0] > deadline:
            self.now = deadline
            return False
        self.now = max(self.now, heap[0][0])
        while heap and heap[0][0] <= self.now:
            handle = heapq.heappop(heap)[2]
            process = handle.process
            if handle.callback is None or process.dead:
                continue
            process.ready.append(handle)
            if len(process.ready) == 1 and not process.paused:
                runnable.append(process)
        return True

    def _run_one(self, process: Process) -> None:
        ready = process.ready
        handle = ready.popleft()
        if not ready:
            self._runnable.remove(process)
        if handle.callback is None:
            return
        self.steps += 1
        if process.mortal and self._trouble(process, handle):
            return
        self._current = process
        try:
            handle.context.run(handle.callback, *handle.args)
        except Exception as error:  # noqa: BLE001 - a callback's error is the simulation's finding
            self.errors.append(f"callback {handle.callback!r} of {process.name}: {error!r}")
        finally:
            self._current = None
        if self._doomed:
            self._bury()

    def _trouble(self, process: Process, handle: Handle) -> bool:
        """Let a process die or stall before a callback; tell whether it did."""
        if process.steps_left >= 0:
            process.steps_left -= 1
            if process.steps_left < 0:
                self.kill(process, "between two callbacks")
                return True
        if process.stall_in >= 0:
            process.stall_in -= 1
            if process.stall_in < 0:
                process.stall_in = self.stall_gap()
                process.ready.appendleft(handle)
                if len(process.ready) == 1:
                    self._runnable.append(process)
                self.pause(process, self.stall_seconds())
                return True
        return False


def _over(task: asyncio.Task[Any]) -> bool:
    """Tell whether a task has ended with nothing left to look at."""
    return task.done() and (task.cancelled() or not task._log_traceback)


def current() -> Process:
    """Return whose code is running."""
    return PROCESS.get()
