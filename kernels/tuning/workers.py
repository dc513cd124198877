"""Worker processes of the search, each with a time limit for every task.

A task whose process ends or hangs is at fault itself. One whose server is lost goes to another
server; where that is lost as well, the task is at fault.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from leakyforge.errors import MissingDependencyError, TuningError
from leakyforge.kernels.tuning import worker
from leakyforge.kernels.tuning.machine import NoServerError, ServerLostError, Tracker, check_tracker
from leakyforge.kernels.tuning.records import CRASHED, FAILED, TIMED_OUT
from leakyforge.kernels.tuning.worker import Model, Result, Task
from leakyforge.runtime.reference import one_line

Measure = Callable[[Tracker | None, Task], list[Result]]

# Of a task on this machine, and on a server, which is to be waited for.
_LOCAL_SECONDS, _REMOTE_SECONDS = 30.0, 120.0
# Servers to which a task is sent, and how often a tracker is asked for one.
_SERVERS, _REQUESTS = 2, 3


class Workers:
    """A pool of processes.

    Args:
        model: where the layers come from.
        tracker: of the servers on which candidates run; None for this machine.
        count: processes, each with a server of its own; one for this machine, where two would
            disturb each other.
        measure: what a process does with a task, once it has loaded the model.
        seconds: limit of a task; 30 on this machine, 120 on a server by default.

    Raises:
        MissingDependencyError: the packages of the extra `tune` are absent.
        TuningError: no tracker answers.
    """

    def __init__(
        self,
        model: Model,
        tracker: Tracker | None = None,
        *,
        count: int = 1,
        measure: Measure = worker.measure,
        seconds: float | None = None,
    ) -> None:
        try:
            import pebble

            if tracker is not None:
                import tornado  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                f"tuning needs the package {error.name}; run: pip install leakyforge[tune]"
            ) from error
        if tracker is not None:
            try:
                check_tracker(tracker)
            except OSError as error:
                raise TuningError(
                    f"no RPC tracker answers at {tracker.host}:{tracker.port}: {error}; start one "
                    "with `python -m tvm.exec.rpc_tracker`"
                ) from error
        self._tracker, self._measure = tracker, measure
        self._seconds = seconds or (_LOCAL_SECONDS if tracker is None else _REMOTE_SECONDS)
        self.count = count
        self._ended: type[Exception] = pebble.ProcessExpired
        self._pool = pebble.ProcessPool(
            max_workers=count,
            initializer=worker.start,
            initargs=(model,),
            context=multiprocessing.get_context("spawn"),
        )
        self._running: dict[Any, tuple[Task, int, int]] = {}

    def submit(self, task: Task) -> None:
        """Start a task, or have it wait for a free process."""
        self._start(task, 0, 0)

    def _start(self, task: Task, lost: int, requests: int) -> None:
        future = self._pool.schedule(
            self._measure, args=(self._tracker, task), timeout=self._seconds
        )
        self._running[future] = task, lost, requests

    @property
    def pending(self) -> int:
        """Tasks that were not given back yet."""
        return len(self._running)

    def finished(self) -> Iterator[tuple[Task, list[Result]]]:
        """Tasks that have ended, at least one; waits for it.

        Raises:
            TuningError: no server is left.
        """
        ended, _ = wait(self._running, return_when=FIRST_COMPLETED)
        for future in ended:
            task, lost, requests = self._running.pop(future)
            try:
                yield task, future.result()
            except NoServerError as error:
                if requests + 1 == _REQUESTS:
                    raise TuningError(
                        f"no server is left to measure on: {error}; `python -m "
                        "tvm.exec.query_rpc_tracker` shows those that the tracker knows"
                    ) from error
                self._start(task, lost, requests + 1)
            except ServerLostError as error:
                if lost + 1 == _SERVERS:
                    yield task, _all(task, CRASHED, f"{_SERVERS} servers were lost: {error}")
                else:
                    self._start(task, lost + 1, requests)
            except FutureTimeoutError:
                yield task, _all(task, TIMED_OUT, f"took more than {self._seconds:g} s")
            except self._ended as error:
                yield task, _all(task, CRASHED, f"the process ended: {error}")
            except Exception as error:  # noqa: BLE001 - whatever a candidate raises is its own fault
                yield task, _all(task, FAILED, one_line(error))

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.stop()
        self._pool.join()


def _all(task: Task, status: str, error: str) -> list[Result]:
    """The same result for all candidates of a task."""
    return [Result(status, error) for _ in task.configs]
