"""The monitor in the same process, without an actor: for a job whose one member is there, too, and for tests."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.client import MonitorCalls, MonitorLostError

_Params = ParamSpec("_Params")
_Answer = TypeVar("_Answer")


class InProcessMonitor(MonitorCalls):
    """The monitor in this process, on an event loop of its own in a thread; while it is open it may be asked.

    Args:
        make: makes the monitor, called on that loop.
    """

    def __init__(self, make: Callable[[], Monitor]) -> None:
        self._make_monitor = make
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="monitor", daemon=True)
        self._monitor: Monitor | None = None
        self._ending = threading.Lock()
        self._is_closed = False

    def __enter__(self) -> InProcessMonitor:
        self._thread.start()
        try:
            self._monitor = asyncio.run_coroutine_threadsafe(self._make(), self._loop).result()
        except BaseException:
            self._end_loop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._is_closed:
                self.close()
        finally:
            self._end_loop()

    def end(self) -> None:
        """End it, as it is."""
        self._end_loop()

    @property
    def monitor(self) -> Monitor:
        """The monitor itself; its methods belong to its own thread."""
        if self._monitor is None:
            raise MonitorLostError("the job's monitor has ended")
        return self._monitor

    def run(self, use: Callable[[Monitor], Coroutine[object, object, _Answer]]) -> _Answer:
        """Await on the monitor's own loop what ``use`` does with it."""

        async def call() -> _Answer:
            return await use(self.monitor)

        return self._await(call)

    def close(self) -> None:
        self._is_closed = True
        super().close()

    async def _make(self) -> Monitor:
        return self._make_monitor()

    def _end_loop(self) -> None:
        if self._loop.is_closed():
            return
        with self._ending:
            self._monitor = None
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _ask(
        self,
        method: Callable[Concatenate[Monitor, _Params], Awaitable[_Answer]],
        *args: _Params.args,
        **kwargs: _Params.kwargs,
    ) -> _Answer:
        async def call() -> _Answer:
            answer: _Answer = await getattr(self.monitor, method.__name__)(*args, **kwargs)
            return answer

        return self._await(call)

    def _tell(
        self,
        method: Callable[Concatenate[Monitor, _Params], Awaitable[None]],
        *args: _Params.args,
        **kwargs: _Params.kwargs,
    ) -> None:
        async def call() -> None:
            await getattr(self.monitor, method.__name__)(*args, **kwargs)

        self._begin(call)

    def _await(self, call: Callable[[], Coroutine[object, object, _Answer]]) -> _Answer:
        future = self._begin(call)
        try:
            return future.result()
        except concurrent.futures.CancelledError as err:
            raise MonitorLostError("the job's monitor has ended") from err

    def _begin(self, call: Callable[[], Coroutine[object, object, _Answer]]) -> concurrent.futures.Future[_Answer]:
        with self._ending:
            # Asked for while nothing ends it: a loop that stands still would never answer.
            if self._monitor is None:
                raise MonitorLostError("the job's monitor has ended")
            return asyncio.run_coroutine_threadsafe(call(), self._loop)


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)
