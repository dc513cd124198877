"""Latency beside every other engine: interleaved turns, the same inputs, outputs compared first."""

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leakyforge.errors import EngineError, InputError
from leakyforge.onnx_graph import model_flops, save_onnx
from leakyforge.runtime import cpu, engines
from leakyforge.runtime.artifact import read_artifact
from leakyforge.runtime.benchmark import OURS, refuse_device, smallest
from leakyforge.runtime.engines import REFERENCE, Worker, interleave, interpreter, peak_worker
from leakyforge.runtime.parity import find_onnx
from leakyforge.runtime.reference import random_feeds
from leakyforge.runtime.tensors import Array
from leakyforge.runtime.threads import check_threads, usable_cores

# An engine that is farther off computes something else.
LARGEST_ERROR = 1e-2
_PEAK = "peak"


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
        peak_gflops: speed of a product of matrices by ONNX Runtime in the same run.
        compile_seconds: what compiling the artifact took, None where it was there before.
        results: ours first.
    """

    model: str
    cpu: str
    threads: int
    flops: int
    peak_gflops: float
    compile_seconds: float | None
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
    names: Sequence[str] = (),
    compile_seconds: float | None = None,
    on_engine: Callable[[str], None] = lambda _engine: None,
    verify_key: str | Path | None = None,
) -> PeersReport:
    """Time an artifact beside other engines.

    Outputs are compared with ONNX Runtime's before any time is taken.

    Args:
        artifact: the artifact's path.
        onnx: the ONNX file that it was compiled from, found as in `check`.
        threads: of every engine; by default the physical cores that this process may use.
        seconds: how long to measure all engines together.
        names: engines of `engines.PEERS` to time beside ONNX Runtime, installed where they are
            absent; by default all, of which those that take gigabytes are not installed.
        compile_seconds: for the report.
        on_engine: called with the name of each engine before it is installed and loaded.
        verify_key: Ed25519 public key in a PEM file, by which the artifact has to be signed.

    Raises:
        ArtifactError: the artifact cannot be loaded here, or is not signed by `verify_key`.
        ModelError: the ONNX file is absent or another one.
        InputError: `seconds` is not positive, a name is unknown, or there are too many threads.
        EngineError: leakyforge or ONNX Runtime does not run the model, or a process ended.
    """
    if not seconds > 0:
        raise InputError(f"seconds={seconds}, but a benchmark needs a positive time")
    count = usable_cores() if threads is None else threads
    check_threads(count)
    others = _others(names)
    loaded = read_artifact(artifact, verify_key=verify_key)
    refuse_device(loaded)
    manifest = loaded.manifest
    proto = find_onnx(manifest, loaded.path, onnx)
    feeds = random_feeds(manifest.inputs, 0, smallest(manifest.inputs))
    outputs = [spec.name for spec in manifest.outputs]
    workers: dict[str, Worker] = {}
    errors: dict[str, float] = {}
    reasons: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        model = folder / "model.onnx"
        save_onnx(proto, model)

        def start(engine: str, python: str, source: Path) -> Worker:
            worker = Worker(engine, python, source, feeds, outputs, count, folder, verify_key)
            return stack.enter_context(worker)

        def load(engine: str) -> Worker:
            on_engine(engine)
            python = interpreter(engines.PEERS[engine], installs_large=engine in names)
            return start(engine, python, model)

        # These two first: without them the others need not be installed or loaded.
        on_engine(OURS)
        with _needed(OURS):
            workers[OURS] = start(OURS, sys.executable, Path(artifact))
        with _needed(REFERENCE):
            workers[REFERENCE] = load(REFERENCE)
        desired = workers[REFERENCE].outputs
        errors[REFERENCE] = 0.0
        with _needed(OURS):
            errors[OURS] = checked_error(workers[OURS].outputs, desired)
        for engine in others:
            try:
                worker = load(engine)
                errors[engine] = checked_error(worker.outputs, desired)
                workers[engine] = worker
            except EngineError as error:
                reasons[engine] = str(error)
        turns = {**workers, _PEAK: stack.enter_context(peak_worker(count, folder))}
        samples = interleave(turns, seconds)
        memory = {engine: worker.close() for engine, worker in workers.items()}
    peak = engines.peak_gflops(samples[_PEAK])
    flops = model_flops(proto)
    ours = statistics.median(samples[OURS])
    results = [
        PeerResult(engine, reason=reasons[engine])
        if engine in reasons
        else _timed(
            workers[engine], samples[engine], ours, errors[engine], memory[engine],
            flops / peak / 1e9,
        )
        for engine in (OURS, REFERENCE, *others)
    ]  # fmt: skip
    return PeersReport(
        manifest.model, cpu.model_name(), count, flops, peak, compile_seconds, tuple(results)
    )


def _timed(
    worker: Worker,
    times: Sequence[float],
    ours: float,
    error: float,
    memory_mb: float,
    peak_seconds: float,
) -> PeerResult:
    """Figures of an engine, beside our median and the model's time at the peak."""
    # Of few calls, the other method gives times that are below the least, and even below 0.
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    median = statistics.median(times)
    return PeerResult(
        worker.engine,
        worker.version,
        median * 1e3,
        deciles[0] * 1e3,
        deciles[-1] * 1e3,
        median / ours,
        error,
        peak_seconds / median,
        worker.load_seconds,
        memory_mb,
    )


def _others(names: Sequence[str]) -> list[str]:
    """The engines to time beside ONNX Runtime, in the order of the table.

    Raises:
        InputError: a name is unknown.
    """
    for name in names:
        if name not in engines.PEERS:
            raise InputError(f"unknown engine {name!r}; give one of: {', '.join(engines.PEERS)}")
    return [name for name in engines.PEERS if name != REFERENCE and (not names or name in names)]


@contextlib.contextmanager
def _needed(engine: str) -> Iterator[None]:
    """Say which engine it is that nothing can be measured without."""
    try:
        yield
    except EngineError as error:
        raise EngineError(f"{engine} does not run the model: {error}") from error


def checked_error(actual: Sequence[Array], desired: Sequence[Array]) -> float:
    """An engine's error.

    Raises:
        EngineError: it computes something else.
    """
    error = output_error(actual, desired)
    if not error <= LARGEST_ERROR:
        raise EngineError(f"its outputs differ: {error:.1e} of the range")
    return error


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
