"""Other engines: where each is installed, a process for each, and the turns that they take.

Each engine has a process of its own, so that its memory can be measured and its dependencies may
clash with ours: what does not import here runs in a virtual environment under the user's cache.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from leakyforge.errors import EngineError
from leakyforge.runtime import engine_worker
from leakyforge.runtime.benchmark import TURN_SECONDS, WARM_SECONDS
from leakyforge.runtime.tensors import Array

_PEAK_SIZE = 1536
# After 50 ms, threads of some engines were still spinning and took the CPU from the next one.
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Peer:
    """An engine that is not ours, and how it is had.

    Attributes:
        modules: that have to import.
        requirements: what pip installs into an environment where they do not.
        tools: what pip installs there without its dependencies.
        environment: name of that environment, which engines may share.
        large: it takes gigabytes, and is installed only where it is named.
    """

    modules: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    environment: str = ""
    large: bool = False

    @property
    def folder(self) -> Path:
        """Where its environment is, if it has been made."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "leakyforge" / "peers" / self.environment


REFERENCE = "onnxruntime"
_TORCH = Peer(
    ("torch", "torchvision", "onnx2torch"),
    ("torch", "torchvision", "onnx2torch"),
    environment="torch",
    large=True,
)
PEERS: Mapping[str, Peer] = {
    REFERENCE: Peer(("onnxruntime",)),
    "openvino": Peer(("openvino",), ("openvino>=2025.0", "numpy"), environment="openvino"),
    # Pins a protobuf that onnx does not take.
    "mnn": Peer(("MNN",), ("MNN>=3.5", "numpy"), environment="mnn"),
    # pnnx, the converter, names torch as a dependency, and does not need it for ONNX files.
    "ncnn": Peer(
        ("ncnn", "pnnx"),
        ("ncnn>=1.0.20261020", "numpy"),
        tools=("pnnx>=20261020",),
        environment="ncnn",
    ),
    "torch": _TORCH,
    "torch.compile": _TORCH,
}


def interpreter(peer: Peer, *, installs_large: bool) -> str:
    """The Python that runs an engine: this one, or that of an environment made for it.

    Args:
        peer: the engine.
        installs_large: install what takes gigabytes too.

    Raises:
        EngineError: the engine is not installed, or cannot be.
    """
    if all(importlib.util.find_spec(module) is not None for module in peer.modules):
        return sys.executable
    python, ready = peer.folder / "bin" / "python", peer.folder / "ready"
    if ready.is_file():
        return str(python)
    if not peer.requirements:
        raise EngineError(f"{', '.join(peer.modules)}: not all of these can be imported")
    if peer.large and not installs_large:
        raise EngineError("not installed, since it takes gigabytes; name it with --peer")
    # Takes a while to import, and a session does not need it.
    import venv

    venv.create(peer.folder, with_pip=True)
    _pip_install(python, *peer.requirements)
    if peer.tools:
        _pip_install(python, "--no-deps", *peer.tools)
    ready.touch()
    return str(python)


def _pip_install(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise EngineError(f"pip install {' '.join(arguments)}: {(lines or ['failed'])[-1]}")


class Worker:
    """An engine in a process of its own, which ends with the context; see `engine_worker`.

    Args:
        engine: its name in `engine_worker.ENGINES`.
        python: the interpreter that runs it.
        model: an ONNX file, for ours an artifact.
        feeds: arrays by input name.
        outputs: names of the outputs.
        threads: that the engine uses.
        folder: for the arrays on their way.
        verify_key: for ours, the key by which the artifact has to be signed.

    Raises:
        EngineError: it does not load the model, or its process ended.
    """

    def __init__(
        self,
        engine: str,
        python: str,
        model: Path,
        feeds: Mapping[str, Array],
        outputs: Sequence[str],
        threads: int,
        folder: Path,
        verify_key: str | Path | None = None,
    ) -> None:
        inputs, results = folder / f"{engine}-inputs.npz", folder / f"{engine}-outputs.npz"
        arrays: Any = dict(feeds)
        np.savez(inputs, **arrays)
        script = str(Path(engine_worker.__file__))
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": str(threads),
            "LEAKYFORGE_OUTPUTS": json.dumps(list(outputs)),
            "LEAKYFORGE_VERIFY_KEY": "" if verify_key is None else str(verify_key),
        }
        # Ours has to import leakyforge, from the source tree too.
        root = str(Path(engine_worker.__file__).parent.parent)
        if (Path(root) / "leakyforge").is_dir():
            environment["PYTHONPATH"] = root
        self.engine = engine
        self.process = subprocess.Popen(
            [python, script, engine, str(model), str(inputs), str(results), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip
        try:
            answer = self._answer()
            if "error" in answer:
                raise EngineError(answer["error"])
            self.version: str = answer["version"]
            self.load_seconds: float = answer["load_seconds"]
            with np.load(results, allow_pickle=False) as archive:
                self.outputs: list[Array] = [archive[str(i)] for i in range(len(archive.files))]
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end()

    def turn(self, warm: float, counted: float) -> list[float]:
        """Seconds of the calls of one turn."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([warm, counted]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise EngineError(self._ended()) from error
        times: list[float] = self._answer()
        return times

    def close(self) -> float:
        """End the process; MB of memory that the engine added."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        answer = self._answer()
        self.process.wait()
        return float(answer["added_kib"]) / 1024

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EngineError(self._ended())
        return json.loads(line)

    def _ended(self) -> str:
        return f"the process of {self.engine} ended with status {self.process.wait()}"

    def _end(self) -> None:
        """Leave no process behind, whatever happened."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            # What a failed write has left is written again.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class TakesTurns(Protocol):
    """What `interleave` times."""

    def turn(self, warm: float, counted: float) -> list[float]:
        """Seconds of the calls in the counted seconds, after others in the warm ones."""
        ...


def interleave(workers: Mapping[str, TakesTurns], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, the engines in turn, until the time is up; three turns at least.

    Before a turn there is a pause, in which the threads of the engine before it stop spinning.
    """
    samples: dict[str, list[float]] = {engine: [] for engine in workers}
    deadline = time.perf_counter() + seconds
    turns = 0
    while time.perf_counter() < deadline or turns < 3:
        for engine, worker in workers.items():
            time.sleep(_PAUSE_SECONDS)
            samples[engine] += worker.turn(WARM_SECONDS, TURN_SECONDS)
        turns += 1
    return samples


def peak_worker(threads: int, folder: Path) -> Worker:
    """A worker that multiplies matrices by ONNX Runtime: the machine's peak."""
    square = np.ones((_PEAK_SIZE, _PEAK_SIZE), np.float32)
    sides = {"left": square, "right": square}
    return Worker("peak", sys.executable, folder, sides, [], threads, folder)


def peak_gflops(times: Sequence[float]) -> float:
    """Speed of the fastest call of `peak_worker`."""
    return 2 * _PEAK_SIZE**3 / min(times) / 1e9


def copy_worker(threads: int, folder: Path) -> Worker:
    """A worker that copies memory, larger than the caches."""
    return Worker("copy", sys.executable, folder, {}, [], threads, folder)


def copy_gb_per_second(times: Sequence[float]) -> float:
    """Bytes that the fastest call of `copy_worker` read and wrote."""
    return 2 * engine_worker.COPY_BYTES / min(times) / 1e9
