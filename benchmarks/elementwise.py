"""Measures docs/elementwise.md: LeakyRelu and its gradient beside memcpy, ONNX Runtime and torch.

python -m benchmarks.elementwise             64 KiB to 256 MiB, about five minutes
python -m benchmarks.elementwise --seconds 0.2 --largest 4
python -m benchmarks.elementwise --render    the table and the plot again, without measuring
"""

import ctypes
import datetime
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import tvm
from onnx import TensorProto, helper
from tvm import tirx

from leakyforge.kernels import LeakyReluKernel, parse_target
from leakyforge.runtime import cpu
from leakyforge.runtime.engine_worker import turn
from leakyforge.runtime.reference import onnxruntime_session
from leakyforge.runtime.tensors import Array
from leakyforge.runtime.tvm_runtime import set_threads

DOCS = Path(__file__).parent.parent / "docs"
ALPHA = 0.1
KIB = [64 << exponent for exponent in range(13)]
CASES = [(name, threads) for threads in (1, 2) for name in ("forward", "gradient")]
# Threads of an engine go on spinning for up to 40 ms after its last call.
_PAUSE_SECONDS = 0.05
# A turn first brings data and threads back, uncounted.
_WARM_SECONDS = 0.005
_TURN_SECONDS = 0.01
_LEAST_TURNS = 5
POOLED = "memcpy, our threads"


@click.command()
@click.option("--seconds", type=float, default=5.0, show_default=True, help="For each row.")
@click.option("--largest", type=int, default=256, show_default=True, help="MiB of a tensor.")
@click.option("--render", is_flag=True, help="Write table and plot from docs/elementwise.json.")
def main(seconds: float, largest: int, render: bool) -> None:
    """Time LeakyRelu and its gradient at many sizes and write docs/elementwise.*."""
    store = DOCS / "elementwise.json"
    if not render:
        measured = {
            "cpu": cpu.model_name(),
            "cache": cpu.last_level_cache(),
            "date": datetime.date.today().isoformat(),
            "rows": [
                measure(name, threads, kib, seconds)
                for name, threads in CASES
                for kib in KIB
                if kib <= largest << 10
            ],
        }
        store.write_text(json.dumps(measured, indent=1) + "\n")
    results = json.loads(store.read_text())
    (DOCS / "elementwise.md").write_text(markdown(results))
    plot(results, DOCS / "elementwise.png")
    click.echo(f"wrote {DOCS}/elementwise.md and elementwise.png")


def measure(name: str, threads: int, kib: int, seconds: float) -> dict[str, Any]:
    """Median times of every engine at one size, the engines in turn."""
    click.echo(f"{name}, {threads} threads, {kib} KiB", err=True)
    size = kib * 1024 // 4
    x, dy, out, copy = (_normal(size, seed) for seed in range(4))
    kernel = LeakyReluKernel(ALPHA, threads=threads)
    # A gradient moves three arrays; memcpy moves as many bytes, in two arrays half as large again.
    source = x if name == "forward" else np.concatenate([x, dy[: size // 2]])
    target = np.zeros_like(source)
    engines: dict[str, Callable[[], Any]] = {"memcpy": memcpy(target, source, threads)}
    if threads > 1:
        engines[POOLED] = pooled_memcpy(target, source, threads)
    if name == "forward":
        engines["leakyforge"] = lambda: kernel.forward(x, out)
        engines["ONNX Runtime"] = onnxruntime_call(x, copy, threads)
    else:
        engines["leakyforge"] = lambda: kernel.gradient(x, dy, out)
    torch_engine = torch_call(name, x, dy, copy, threads)
    if torch_engine is not None:
        engines["torch"] = torch_engine
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    turns = 0
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or turns < _LEAST_TURNS:
        turns += 1
        for engine, call in engines.items():
            time.sleep(_PAUSE_SECONDS)
            turn(call, _WARM_SECONDS)
            times[engine] += turn(call, _TURN_SECONDS)
    if name == "forward":
        np.testing.assert_array_equal(out, np.where(x >= 0, x, x * np.float32(ALPHA)))
    else:
        np.testing.assert_array_equal(out, np.where(x > 0, dy, dy * np.float32(ALPHA)))
    return {
        "name": name,
        "threads": threads,
        "kib": kib,
        "bytes": source.nbytes * 2,
        "microseconds": {engine: statistics.median(each) * 1e6 for engine, each in times.items()},
    }


def _normal(size: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def memcpy(target: Array, source: Array, threads: int) -> Callable[[], Any]:
    """The C library's memcpy, on one thread or on halves in two, which release Python's lock."""
    to, start, size = target.ctypes.data, source.ctypes.data, source.nbytes
    if threads == 1:
        return lambda: ctypes.memmove(to, start, size)
    pool = ThreadPoolExecutor(1)
    libc = ctypes.CDLL(None).memcpy
    libc.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    half = size // 2

    def call() -> None:
        other = pool.submit(libc, to + half, start + half, size - half)
        libc(to, start, half)
        other.result()

    return call


def pooled_memcpy(target: Array, source: Array, threads: int) -> Callable[[], Any]:
    """The same in the threads that our kernel runs in, which start much sooner."""
    size = tirx.Var("n", "int64")
    arrays = [tirx.decl_buffer((size,), "float32", name, data_alignment=4) for name in ("y", "x")]
    part = tirx.Var("part", "int64")
    share = tirx.floordiv(size, tirx.const(threads, "int64"))
    places = [tirx.address_of(array[part * share]) for array in arrays]
    copy = tirx.call_extern("handle", "memcpy", *places, share * tirx.const(4, "int64"))
    body = tirx.For(
        part,
        tirx.const(0, "int64"),
        tirx.const(threads, "int64"),
        tirx.ForKind.PARALLEL,
        tirx.Evaluate(copy),
    )
    function = tirx.PrimFunc(arrays, body).with_attr("global_symbol", "copy")
    run = tvm.compile(tvm.IRModule({"copy": function}), parse_target("cpu").tvm)["copy"]

    def call() -> None:
        set_threads(threads)
        run(target, source)

    return call


def onnxruntime_call(x: Array, out: Array, threads: int) -> Callable[[], Any]:
    """ONNX Runtime's LeakyRelu, bound to its arrays so that it copies nothing."""
    node = helper.make_node("LeakyRelu", ["x"], ["y"], alpha=ALPHA)
    names = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name in ("x", "y")]
    graph = helper.make_graph([node], "leaky", names[:1], names[1:])
    proto: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=10
    )
    session = onnxruntime_session(proto, threads=threads)
    binding = session.io_binding()
    for bind, name, array in ((binding.bind_input, "x", x), (binding.bind_output, "y", out)):
        bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    return lambda: session.run_with_iobinding(binding)


def torch_call(
    name: str, x: Array, dy: Array, out: Array, threads: int
) -> Callable[[], Any] | None:
    """Torch's operator into a tensor that is there, None where torch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    left, right, target = (torch.from_numpy(array) for array in (x, dy, out))
    if name == "forward":
        forward = torch.ops.aten.leaky_relu.out
        return lambda: forward(left, ALPHA, out=target)
    gradient = torch.ops.aten.leaky_relu_backward.grad_input
    return lambda: gradient(right, left, ALPHA, False, grad_input=target)


def markdown(results: dict[str, Any]) -> str:
    """One table for each function and number of threads."""
    lines = [
        "# LeakyRelu and its gradient",
        "",
        f"Written by `python -m benchmarks.elementwise` on {results['date']}: {results['cpu']}, "
        f"last cache {results['cache'] >> 20} MiB; float32, medians, the engines in turn, each "
        "reading what it read before, so that small arrays lie in the caches.",
        "memcpy is the C library's and moves as many bytes as the function reads and writes; with "
        "two threads it copies halves, once in two Python threads, of which the smaller sizes "
        "mostly show the start, and once in the threads that our kernel runs in.",
        "A ratio is the engine's time divided by ours: above 1, leakyforge is faster.",
        "",
        "![Ratios to memcpy](elementwise.png)",
    ]
    for name, threads in CASES:
        rows = _rows(results, name, threads)
        if not rows:
            continue
        peers = list(dict.fromkeys(engine for row in rows for engine in row["microseconds"]))
        peers.remove("leakyforge")
        lines += [
            "",
            f"## {name}, {threads} thread{'s' if threads > 1 else ''}",
            "",
            "| tensor | leakyforge us | GB/s | " + " | ".join(peers) + " |",
            "|---|---|---|" + "---|" * len(peers),
        ]
        for row in rows:
            ours = row["microseconds"]["leakyforge"]
            ratios = [f"{row['microseconds'][peer] / ours:.2f}" for peer in peers]
            lines.append(
                f"| {format_size(row['kib'])} | {ours:.1f} | {row['bytes'] / ours / 1e3:.1f} | "
                + " | ".join(ratios)
                + " |"
            )
    return "\n".join(lines) + "\n"


def _rows(results: dict[str, Any], name: str, threads: int) -> list[dict[str, Any]]:
    return [row for row in results["rows"] if (row["name"], row["threads"]) == (name, threads)]


def format_size(kib: int) -> str:
    """A size in KiB or MiB."""
    return f"{kib} KiB" if kib < 1024 else f"{kib >> 10} MiB"


def plot(results: dict[str, Any], path: Path) -> None:
    """Ratio to memcpy over the size of the tensor, and a line at 0.95."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, threads in CASES:
        rows = _rows(results, name, threads)
        ratios = [row["microseconds"]["memcpy"] / row["microseconds"]["leakyforge"] for row in rows]
        axes.plot([row["kib"] for row in rows], ratios, "o-", label=f"{name}, threads: {threads}")
    axes.axhline(0.95, color="black", linewidth=1, linestyle="--")
    axes.set_xscale("log", base=2)
    sizes = sorted({row["kib"] for row in results["rows"]})
    axes.set_xticks(sizes, [format_size(kib) for kib in sizes], rotation=45)
    axes.set_ylabel("time of memcpy / time of leakyforge")
    axes.set_xlabel("size of the tensor")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
