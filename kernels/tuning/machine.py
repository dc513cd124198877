"""Where candidates run: on this machine, or on an RPC server that a tracker knows.

A server runs `python -m tvm.exec.rpc_server --tracker=HOST:PORT --key=NAME`: TVM's runtime is all
that it needs. Code is compiled here, for the server's processor.
"""

import socket
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import tvm

from leakyforge.kernels.link import export_library
from leakyforge.kernels.measure import Run, Spec, other_layers, random_tensor, turn, written_inputs
from leakyforge.kernels.target import CpuTarget
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tvm_runtime import set_threads

Array = npt.NDArray[np.generic]
_T = TypeVar("_T")

# Runs of a candidate in a turn on a server.
_REPEATS = 3
# Seconds after which a server ends a session, and after which a tracker without a free server is
# given up.
_SESSION_SECONDS, _TRACKER_SECONDS = 600, 20


@dataclass(frozen=True)
class Tracker:
    """An RPC tracker, and which of its servers to take.

    Attributes:
        host: its address.
        port: its port.
        key: name under which the servers registered.
    """

    host: str
    port: int
    key: str


class ServerLostError(Exception):
    """A server did not answer any more: by its own fault, or by that of the candidate."""


class NoServerError(Exception):
    """The tracker does not answer, or has no free server."""


def check_tracker(tracker: Tracker) -> None:
    """Make sure that something listens there.

    Raises:
        OSError: nothing does.
    """
    socket.create_connection((tracker.host, tracker.port), timeout=_TRACKER_SECONDS).close()


class Kernel(Protocol):
    """A candidate's kernel, bound to inputs, weights and an output."""

    def output(self) -> Array:
        """Its result after one run."""

    def seconds(self) -> float:
        """The least time of the runs of a turn."""


class Place(Protocol):
    """A layer on a machine.

    Attributes:
        inputs: values of its inputs.
    """

    inputs: list[Array]

    def load(self, module: tvm.runtime.Module, weights: Sequence[Array], output: Spec) -> Kernel:
        """A kernel of that layer, its packed weights, and its output's sizes and dtype."""


class Machine(Protocol):
    """Where candidates run."""

    def place(self, inputs: Sequence[Spec], between: int) -> Place:
        """A layer of these inputs, of a model that touches so many bytes between two runs of it."""


class Local:
    """This machine; candidates run as they would inside of the model (`measure.py`).

    Args:
        target: this machine.
    """

    def __init__(self, target: CpuTarget) -> None:
        self._target = target
        self._others: dict[int, list[Run]] = {}
        set_threads(target.num_cores)

    def place(self, inputs: Sequence[Spec], between: int) -> Place:
        """A layer in this process."""
        if between not in self._others:
            self._others[between] = other_layers(between, self._target)
        tensors, writes = written_inputs(inputs, self._target)
        return _LocalPlace(tensors, [*self._others[between], *writes])


class _LocalPlace:
    """A layer's inputs in memory, and what is to run before each run of its kernels."""

    def __init__(self, tensors: list[Any], before: list[Run]) -> None:
        self._tensors, self._before = tensors, before
        self.inputs = [tensor.numpy() for tensor in tensors]

    def load(self, module: tvm.runtime.Module, weights: Sequence[Array], output: Spec) -> Kernel:
        tensors, result = (
            [*self._tensors, *map(tvm.runtime.tensor, weights)],
            tvm.runtime.empty(*output),
        )
        kernel = module["main"]
        return _LocalKernel(lambda: kernel(*tensors, result), self._before, result)


@dataclass
class _LocalKernel:
    """A kernel in this process, and what is to run before each of its runs."""

    run: Run
    before: Sequence[Run]
    result: Any

    def output(self) -> Array:
        self.run()
        return np.asarray(self.result.numpy())

    def seconds(self) -> float:
        return turn(self.run, self.before)


class Remote:
    """A server; between two runs of a kernel it writes as many bytes as the model touches.

    Args:
        tracker: assigns one of its free servers.
        target: the server's processor.

    Raises:
        NoServerError: the tracker does not answer, or has no free server.
    """

    def __init__(self, tracker: Tracker, target: CpuTarget) -> None:
        from tvm import rpc

        self._target, self._triple = target, str(target.tvm.attrs["mtriple"])
        # TVM waits for a server for ever.
        socket.setdefaulttimeout(_TRACKER_SECONDS)
        try:
            check_tracker(tracker)
            session = rpc.connect_tracker(tracker.host, tracker.port)
            self._server = session.request(
                tracker.key, session_timeout=_SESSION_SECONDS, max_retry=1
            )
            # TVM's default is half the cores.
            self._server.get_function("runtime.config_threadpool")(1, target.num_cores)
        except (RuntimeError, OSError, ValueError) as error:
            raise NoServerError(one_line(error)) from error

    def place(self, inputs: Sequence[Spec], between: int) -> Place:
        """A layer on the server."""
        arrays = [random_tensor(*spec).numpy() for spec in inputs]
        return _RemotePlace(self._server, self._triple, arrays, between)


class _RemotePlace:
    """A layer's inputs on a server."""

    def __init__(self, server: Any, triple: str, arrays: list[Array], between: int) -> None:
        self._server, self._triple, self._between = server, triple, between
        self.inputs = arrays
        self._tensors = _sent(lambda: [tvm.runtime.tensor(each, server.cpu()) for each in arrays])

    def load(self, module: tvm.runtime.Module, weights: Sequence[Array], output: Spec) -> Kernel:
        with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
            # Writing over a library that the server has loaded would end it.
            path = Path(folder) / f"candidate-{uuid.uuid4().hex}.so"
            export_library(module, path, self._triple)
            return _sent(lambda: self._send(path, weights, output))

    def _send(self, path: Path, weights: Sequence[Array], output: Spec) -> Kernel:
        device = self._server.cpu()
        self._server.upload(str(path))
        loaded = self._server.load_module(path.name)
        packed = [tvm.runtime.tensor(each, device) for each in weights]
        result = tvm.runtime.empty(*output, device)
        timer = loaded.time_evaluator(
            "main", device, number=1, repeat=_REPEATS, cache_flush_bytes=self._between
        )
        return _RemoteKernel(loaded["main"], timer, [*self._tensors, *packed, result])


@dataclass
class _RemoteKernel:
    """A kernel on a server; its output is the last of its arguments."""

    function: Any
    timer: Any
    arguments: list[Any]

    def output(self) -> Array:
        def run() -> Array:
            self.function(*self.arguments)
            return np.asarray(self.arguments[-1].numpy())

        return _sent(run)

    def seconds(self) -> float:
        # The first run finds what another candidate left in the caches.
        return _sent(lambda: float(min(self.timer(*self.arguments).results[1:])))


def _sent(call: Callable[[], _T]) -> _T:
    """What a call to the server gives."""
    try:
        return call()
    except (RuntimeError, OSError, ValueError) as error:
        raise ServerLostError(one_line(error)) from error
