"""Where the time of a run goes: every call of a kernel beside the machine's peaks.

The Relax virtual machine calls an instrument before and after each of its functions. Runs with and
without it take turns with the two measurements of the machine: a product of matrices by ONNX
Runtime for arithmetic, and a copy of memory.
"""

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leakyforge.errors import InputError
from leakyforge.runtime import cpu, engine_worker
from leakyforge.runtime.artifact import read_artifact
from leakyforge.runtime.benchmark import refuse_device, smallest
from leakyforge.runtime.engines import (
    copy_gb_per_second,
    copy_worker,
    interleave,
    peak_gflops,
    peak_worker,
)
from leakyforge.runtime.manifest import Kernel
from leakyforge.runtime.reference import random_feeds
from leakyforge.runtime.session import Session
from leakyforge.runtime.tensors import format_shape
from leakyforge.runtime.tvm_runtime import tvm_ffi

# What the clock can tell apart: no kernel takes less.
_CLOCK_SECONDS = 1e-9


@dataclass(frozen=True)
class KernelProfile:
    """One call of a kernel.

    Attributes:
        kernel: name of the function in the library.
        output: name of the layer's output in the ONNX graph, None where it was not traced.
        algorithm: of the kernel (see `manifest.Kernel`).
        shapes: of its first input and of its output.
        median_ms: median time over the runs.
        share: of the time of a run.
        flops: floating-point operations of its convolutions and products by their definition.
        computed: of the same by the algorithm (see `manifest.Kernel`).
        gflops_per_second: those of the definition in the median time.
        bytes_moved: inputs, weights and outputs, each once.
        gb_per_second: these in the median time.
        peak_share: `computed` in the median time, as a share of the peak; above 1 where a kernel
            is faster than ONNX Runtime's product.
        copy_share: `bytes_moved` in the median time, as a share of a copy's speed; above 1 where
            they lie in a cache.
        bound: "compute" or "memory", whichever share is the larger.
    """

    kernel: str
    output: str | None
    algorithm: str | None
    shapes: str
    median_ms: float
    share: float
    flops: int
    computed: int
    gflops_per_second: float
    bytes_moved: int
    gb_per_second: float
    peak_share: float
    copy_share: float
    bound: str


@dataclass(frozen=True)
class ProfileReport:
    """The calls of a run, and the machine that they ran on.

    Attributes:
        model: name of the model.
        variant: that was run.
        cpu: name of the CPU.
        threads: that were used.
        runs: how many were measured call by call.
        peak_gflops: speed of a product of matrices by ONNX Runtime in the same run.
        copy_gb_per_second: bytes that a copy of memory read and wrote in the same run.
        run_ms: median time of a whole run, without the instrument.
        kernels_ms: the medians of all calls together.
        between_ms: the rest of the run: Python, the virtual machine and its memory. The instrument
            adds up to a microsecond to each call, so that short runs may have less than none.
        flops: by the definition, of all calls.
        computed: by the algorithms, of all calls.
        bytes_moved: of all calls.
        kernels: the calls in their order.
    """

    model: str
    variant: str
    cpu: str
    threads: int
    runs: int
    peak_gflops: float
    copy_gb_per_second: float
    run_ms: float
    kernels_ms: float
    between_ms: float
    flops: int
    computed: int
    bytes_moved: int
    kernels: tuple[KernelProfile, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)


def profile(
    artifact: str | Path,
    *,
    threads: int | None = None,
    seconds: float = 5.0,
    variant: str | None = None,
    verify_key: str | Path | None = None,
) -> ProfileReport:
    """Time every call of a kernel in a run, symbolic sizes taken as 1.

    Args:
        artifact: the artifact's path.
        threads: by default the physical cores that this process may use.
        seconds: how long to measure.
        variant: of the artifact; by default the best for this CPU.
        verify_key: Ed25519 public key in a PEM file, by which the artifact has to be signed.

    Raises:
        ArtifactError: the artifact cannot be loaded here, or is not signed by `verify_key`.
        InputError: `seconds` is not positive, or there are too many threads.
        EngineError: the peaks cannot be measured.
    """
    if not seconds > 0:
        raise InputError(f"seconds={seconds}, but a profile needs a positive time")
    loaded = read_artifact(artifact, variant, verify_key=verify_key)
    refuse_device(loaded)
    session = Session(loaded, threads=threads)
    specs = loaded.manifest.inputs
    feeds = random_feeds(specs, 0, smallest(specs))
    calls = _Calls(session, lambda: session.run(None, feeds))
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        samples = interleave(
            {
                "run": _Run(calls.run),
                "calls": calls,
                "peak": stack.enter_context(peak_worker(session.threads, folder)),
                "copy": stack.enter_context(copy_worker(session.threads, folder)),
            },
            seconds,
        )
    run = statistics.median(samples["run"])
    peak, copy = peak_gflops(samples["peak"]), copy_gb_per_second(samples["copy"])
    rows = [
        _row(kernel, call, call_seconds, run, peak, copy)
        for kernel, call, call_seconds in calls.kernels(loaded.variant.kernels)
    ]
    kernels = sum(row.median_ms for row in rows)
    return ProfileReport(
        model=loaded.manifest.model,
        variant=session.variant,
        cpu=cpu.model_name(),
        threads=session.threads,
        runs=len(calls.times),
        peak_gflops=peak,
        copy_gb_per_second=copy,
        run_ms=run * 1e3,
        kernels_ms=kernels,
        between_ms=run * 1e3 - kernels,
        flops=sum(row.flops for row in rows),
        computed=sum(row.computed for row in rows),
        bytes_moved=sum(row.bytes_moved for row in rows),
        kernels=tuple(rows),
    )


@dataclass(frozen=True)
class _Call:
    """What the virtual machine called: a function's name, and the tensors that it was given."""

    name: str
    shapes: str
    bytes_moved: int


class _Run:
    """Whole runs, for `interleave`."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run

    def turn(self, warm: float, counted: float) -> list[float]:
        """Seconds of each run of one turn."""
        engine_worker.turn(self._run, warm)
        return engine_worker.turn(self._run, counted)


class _Calls:
    """Runs whose calls are timed one by one, for `interleave`.

    Attributes:
        calls: of one run, builtins of the virtual machine among them.
        times: seconds of each of the calls, for every run.
    """

    def __init__(self, session: Session, run: Callable[[], Any]) -> None:
        self.run = run
        self.calls: list[_Call] = []
        self.times: list[list[float]] = []
        self._session = session
        self._started = 0.0
        session.instrument(self._describe)
        run()
        session.instrument(None)

    def turn(self, warm: float, counted: float) -> list[float]:
        """Seconds of each run of one turn."""
        engine_worker.turn(self.run, warm)
        self._session.instrument(self._clock)
        try:
            return engine_worker.turn(self._one_run, counted)
        finally:
            self._session.instrument(None)

    def kernels(self, records: Sequence[Kernel]) -> list[tuple[Kernel, _Call, float]]:
        """The kernels among the calls, with their records and their median seconds.

        The least median is that of a builtin that does nothing: what the instrument itself takes.
        """
        medians = [statistics.median(times) for times in zip(*self.times, strict=True)]
        instrument = min(medians)
        names = {record.name for record in records}
        left = iter(records)
        found = []
        for call, median in zip(self.calls, medians, strict=True):
            if call.name in names:
                # A run leaves out the records of the branches that it does not take.
                record = next(record for record in left if record.name == call.name)
                found.append((record, call, max(median - instrument, _CLOCK_SECONDS)))
        return found

    def _one_run(self) -> None:
        self.times.append([])
        self.run()

    def _describe(
        self, _function: Any, name: str, before: bool, _result: Any, *arguments: Any
    ) -> None:
        if before:
            self.calls.append(_describe(name, arguments))

    def _clock(self, _function: Any, _name: str, before: bool, *_rest: Any) -> None:
        now = time.perf_counter()
        if not before:
            self.times[-1].append(now - self._started)
        self._started = time.perf_counter()


def _describe(name: str, arguments: Collection[Any]) -> _Call:
    """A call by the tensors among its arguments, of which the output is the last."""
    tensors = [value for value in arguments if isinstance(value, tvm_ffi().Tensor)]
    shapes = [format_shape(list(tensor.shape)) for tensor in tensors]
    sizes = [
        math.prod(tensor.shape) * int(tensor.dtype.bits) * int(tensor.dtype.lanes) // 8
        for tensor in tensors
    ]
    return _Call(name, " -> ".join([*shapes[:-1][:1], *shapes[-1:]]), sum(sizes))


def _row(
    kernel: Kernel, call: _Call, seconds: float, run: float, peak: float, copy: float
) -> KernelProfile:
    """Rates of one call, and which of the machine's two limits it is nearer to."""
    gb_per_second = call.bytes_moved / seconds / 1e9
    peak_share, copy_share = kernel.computed / seconds / 1e9 / peak, gb_per_second / copy
    return KernelProfile(
        kernel=kernel.name,
        output=kernel.output,
        algorithm=kernel.algorithm,
        shapes=call.shapes,
        median_ms=seconds * 1e3,
        share=seconds / run,
        flops=kernel.flops,
        computed=kernel.computed,
        gflops_per_second=kernel.flops / seconds / 1e9,
        bytes_moved=call.bytes_moved,
        gb_per_second=gb_per_second,
        peak_share=peak_share,
        copy_share=copy_share,
        bound="compute" if peak_share >= copy_share else "memory",
    )
