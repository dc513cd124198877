"""Latency beside every other engine: a process for each, interleaved turns, outputs compared.

Each engine has a process of its own, so that its memory can be measured and its dependencies may
clash with ours: what does not import here runs in a virtual environment under the user's cache.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leakyforge.errors import InputError
from leakyforge.runtime import cpu, engine_worker
from leakyforge.runtime.artifact import read_artifact
from leakyforge.runtime.benchmark import TURN_SECONDS, WARM_SECONDS, smallest
from leakyforge.runtime.parity import find_onnx
from leakyforge.runtime.reference import random_feeds
from leakyforge.runtime.tensors import Array
from leakyforge.runtime.threads import usable_cores

OURS, REFERENCE = "leakyforge", "onnxruntime"
# Modules that have to import, and what pip installs where they do not.
PEERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    REFERENCE: (("onnxruntime",), ()),
    "openvino": (("openvino",), ("openvino>=2025.0", "numpy")),
    # Pins a protobuf that onnx does not take.
    "mnn": (("MNN",), ("MNN>=3.5", "numpy")),
    # Not installed by us: the index's own torch brings gigabytes of CUDA libraries.
    "torch": (("torch", "torchvision", "onnx2torch"), ()),
    "torch.compile": (("torch", "torchvision", "onnx2torch"), ()),
}
# An engine that is farther off computes something else.
LARGEST_ERROR = 1e-2
_PEAK_SIZE = 1536
# After 50 ms, threads of some engines were still spinning and took the CPU from the next one.
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class PeerResult:
    """One engine's figures; `reason` says why there are none.

    Attributes:
        engine: name.
        version: of the engine.
        median_ms: median time of one inference.
        p10_ms: tenth percentile.
        p90_ms: ninetieth percentile.
        ratio: the median divided by leakyforge's: above 1, leakyforge is faster.
        error: largest difference from ONNX Runtime, as a share of the output's range.
        roofline: the model's own floating-point operations in the median time, as a share of the
            peak; above 1 where an algorithm needs fewer operations than the definition.
        load_seconds: loading, converting and the first run.
        memory_mb: resident memory that these and all runs added, at its peak.
        reason: why the engine was not timed.
    """

    engine: str
    version: str = ""
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    ratio: float | None = None
    error: float | None = None
    roofline: float | None = None
    load_seconds: float | None = None
    memory_mb: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class PeersReport:
    """Figures of one run on one machine; only their ratios mean anything elsewhere.

    Attributes:
        model: name of the model.
        cpu: name of the CPU.
        threads: of every engine.
        flops: floating-point operations of convolutions and products in the model's definition.
        peak_gflops: speed of a product of matrices by numpy's BLAS in the same run.
        results: ours first.
    """

    model: str
    cpu: str
    threads: int
    flops: int
    peak_gflops: float
    results: tuple[PeerResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)


def compare_peers(
    artifact: str | Path,
    onnx: str | Path | None = None,
    *,
    threads: int | None = None,
    seconds: float = 10.0,
    on_engine: Callable[[str], None] = lambda _engine: None,
) -> PeersReport:
    """Time an artifact beside every engine of `PEERS` that can be had.

    Args:
        artifact: the artifact's path.
        onnx: the ONNX file that it was compiled from, found as in `check`.
        threads: of every engine; by default the physical cores that this process may use.
        seconds: how long to measure all engines together.
        on_engine: called with the name of each engine before it is installed and loaded.

    Raises:
        ArtifactError: the artifact cannot be loaded here.
        ModelError: the ONNX file is absent or another one.
        InputError: `seconds` is not positive.
    """
    if not seconds > 0:
        raise InputError(f"seconds={seconds}, but a benchmark needs a positive time")
    count = usable_cores() if threads is None else threads
    loaded = read_artifact(artifact)
    manifest = loaded.manifest
    proto = find_onnx(manifest, loaded.path, onnx)
    feeds = random_feeds(manifest.inputs, 0, smallest(manifest.inputs))
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as name:
        folder = Path(name)
        model = folder / "model.onnx"
        model.write_bytes(proto.SerializeToString())
        outputs = [spec.name for spec in manifest.outputs]
        workers: dict[str, Worker] = {}
        reasons: dict[str, str] = {}
        for engine in (OURS, *PEERS):
            on_engine(engine)
            source = Path(artifact) if engine == OURS else model
            try:
                workers[engine] = Worker(engine, source, feeds, outputs, count, folder)
            except EngineError as error:
                reasons[engine] = str(error)
        square = np.ones((_PEAK_SIZE, _PEAK_SIZE), np.float32)
        sides = {"left": square, "right": square}
        workers["peak"] = Worker("peak", model, sides, [], count, folder)
        errors = _errors(workers, reasons)
        samples = interleave(workers, seconds)
        memory = {engine: worker.close() for engine, worker in workers.items()}
    peak = 2 * _PEAK_SIZE**3 / min(samples.pop("peak")) / 1e9
    flops = model_flops(proto)
    if OURS not in samples:
        raise InputError(f"leakyforge did not run: {reasons[OURS]}")
    ours = statistics.median(samples[OURS])
    results = []
    for engine in (OURS, *PEERS):
        if engine in reasons:
            results.append(PeerResult(engine, reason=reasons[engine]))
            continue
        times = samples[engine]
        deciles = statistics.quantiles(times, n=10)
        median = statistics.median(times)
        results.append(
            PeerResult(
                engine,
                workers[engine].version,
                median * 1e3,
                deciles[0] * 1e3,
                deciles[-1] * 1e3,
                median / ours,
                errors[engine],
                flops / median / 1e9 / peak,
                workers[engine].load_seconds,
                memory[engine],
            )
        )
    return PeersReport(manifest.model, cpu.model_name(), count, flops, peak, tuple(results))


class EngineError(Exception):
    """An engine cannot be had or cannot run the model; the text says why."""


class Worker:
    """An engine in a process of its own; see `engine_worker`.

    Raises:
        EngineError: it cannot be installed, or does not load the model.
    """

    def __init__(
        self,
        engine: str,
        model: Path,
        feeds: Mapping[str, Array],
        outputs: Sequence[str],
        threads: int,
        folder: Path,
    ) -> None:
        inputs, results = folder / f"{engine}-inputs.npz", folder / f"{engine}-outputs.npz"
        arrays: Any = dict(feeds)
        np.savez(inputs, **arrays)
        script = str(Path(engine_worker.__file__))
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": str(threads),
            "LEAKYFORGE_OUTPUTS": json.dumps(list(outputs)),
        }
        # Ours has to import leakyforge, from the source tree too.
        root = str(Path(engine_worker.__file__).parent.parent)
        if (Path(root) / "leakyforge").is_dir():
            environment["PYTHONPATH"] = root
        self.process = subprocess.Popen(
            [interpreter(engine), script, engine, str(model), str(inputs), str(results),
             str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip
        answer = self._answer()
        if "error" in answer:
            self.process.wait()
            raise EngineError(answer["error"])
        self.version: str = answer["version"]
        self.load_seconds: float = answer["load_seconds"]
        with np.load(results, allow_pickle=False) as archive:
            self.outputs: list[Array] = [archive[str(index)] for index in range(len(archive.files))]

    def turn(self, warm: float, counted: float) -> list[float]:
        """Seconds of the calls of one turn."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([warm, counted]) + "\n")
        self.process.stdin.flush()
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
            raise EngineError(f"its process ended with status {self.process.wait()}")
        return json.loads(line)


def interpreter(engine: str) -> str:
    """The Python that runs an engine: this one, or that of an environment made for it.

    Raises:
        EngineError: the engine cannot be installed.
    """
    modules, requirements = PEERS.get(engine, ((), ()))
    if all(importlib.util.find_spec(module) is not None for module in modules):
        return sys.executable
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leakyforge/peers"
    folder = cache / engine
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if ready.is_file():
        return str(python)
    if not requirements:
        raise EngineError(f"{', '.join(modules)}: not all of these can be imported")
    venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise EngineError(f"pip install {' '.join(requirements)}: {(lines or ['failed'])[-1]}")
    ready.touch()
    return str(python)


def _errors(workers: dict[str, Worker], reasons: dict[str, str]) -> dict[str, float]:
    """Each engine's error; those that compute something else are ended, with the reason."""
    if REFERENCE not in workers:
        raise InputError(f"ONNX Runtime does not run the model: {reasons[REFERENCE]}")
    desired = workers[REFERENCE].outputs
    errors = {}
    for engine in [name for name in workers if name != "peak"]:
        errors[engine] = output_error(workers[engine].outputs, desired)
        if not errors[engine] <= LARGEST_ERROR:
            reasons[engine] = f"its outputs differ: {errors[engine]:.1e} of the range"
            workers.pop(engine).close()
    return errors


def output_error(actual: Sequence[Array], desired: Sequence[Array]) -> float:
    """Largest difference as a share of an output's range; infinite for another shape or a NaN."""
    if [array.shape for array in actual] != [array.shape for array in desired]:
        return float("inf")
    shares = [0.0]
    for ours, theirs in zip(actual, desired, strict=True):
        extent = float(np.abs(theirs).max(initial=0.0))
        difference = np.abs(np.subtract(ours, theirs))
        share = float(difference.max(initial=0.0)) / (extent or 1.0)
        shares.append(share if np.isfinite(share) else float("inf"))
    return max(shares)


def interleave(workers: Mapping[str, Any], seconds: float) -> dict[str, list[float]]:
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


def model_flops(proto: Any) -> int:
    """Floating-point operations of convolutions and products: two for each multiplication.

    Symbolic sizes count as 1.
    """
    import onnx

    graph = onnx.shape_inference.infer_shapes(proto).graph
    shapes: dict[str, tuple[int, ...]] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(dim.dim_value or 1 for dim in dims)
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        data, weight = shapes.get(node.input[0], ()), shapes.get(node.input[1], ())
        result = shapes.get(node.output[0], ())
        if node.op_type == "Conv":
            total += 2 * int(np.prod(result)) * int(np.prod(weight[1:]))
        elif node.op_type == "ConvTranspose":
            total += 2 * int(np.prod(data)) * int(np.prod(weight[1:]))
        else:
            transposed = any(item.name == "transA" and item.i for item in node.attribute)
            total += 2 * int(np.prod(result)) * data[0 if transposed else -1]
    return total
