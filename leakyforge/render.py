"""Reports as tables for people."""

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from leakyforge.exporter.inspect import OnnxSummary
    from leakyforge.kernels import LayerReport
    from leakyforge.kernels.bisect import BisectReport
    from leakyforge.kernels.divergence import KernelParity
    from leakyforge.models import ZooModel
    from leakyforge.runtime import BenchReport, Manifest, ParityReport, ProfileReport
    from leakyforge.runtime.acceptance import Acceptance
    from leakyforge.runtime.doctor import Finding
    from leakyforge.runtime.manifest import ParityRecord, Variant
    from leakyforge.runtime.parity import OutputParity
    from leakyforge.runtime.peers import PeerResult, PeersReport
    from leakyforge.runtime.roofline import RooflineReport

# What the stage says that `check --bisect` names.
_STAGES = {
    "unfused": "import, layouts and algorithms, before operators are fused",
    "fused": "operators in one kernel, before it is scheduled",
    "scheduled": "the kernel's schedule",
    "artifact": "these nodes are right when they are compiled anew: its code or weights are others",
}
# Of many names in a cell; JSON has them all.
_SHOWN = 6
PARITY_COLUMNS = (
    "output", "reference", "max abs", "max rel", "ULP", "cosine", "SNR dB", "tolerance", "from",
    "result",
)  # fmt: skip
ACCEPTANCE_COLUMNS = ("measure", "variant", "reference", "value", "bound", "from", "result")
KERNEL_COLUMNS = (
    "ONNX value", "kernel", "algorithm", "input -> output", "max abs", "tolerance", "used",
    "against", "result",
)  # fmt: skip
# A pipe has no width: wide enough that no column of ours is cut.
_PIPE_WIDTH = 160


def stdout() -> Console:
    """A console on standard output; a name is shown as it is, whatever brackets it holds."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def new_table(title: str, *columns: str, numbers: Iterable[int] = ()) -> Table:
    """An empty table; `numbers` are the columns to align to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    right = set(numbers)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    return table


def print_zoo(models: "Mapping[str, ZooModel]") -> None:
    """The models that can be exported by name, with their options and defaults."""
    table = new_table("Zoo", "name", "model", "options (--set)")
    for name, model in models.items():
        options = (
            f"{each.name}={each.default}"
            for each in signature(model.builder).parameters.values()
            if each.name not in ("batch", "opset")
        )
        table.add_row(name, model.description, " ".join(options))
    stdout().print(table)


def print_parity(report: "ParityReport") -> None:
    """A parity table for each variant, and what was not tested."""
    console = stdout()
    variants = dict.fromkeys(row.variant for row in report.outputs)
    for variant in variants:
        console.print(_parity_table(report, variant))
    for loss in report.roundings:
        console.print(
            f"{loss.output}{f' of {loss.variant}' if len(variants) > 1 else ''}: "
            f"{loss.ratio:.1f} times the rounding of {loss.reference} (bound {loss.bound:g}): "
            f"{'pass' if loss.passed else 'FAIL'}"
        )
    if report.acceptance:
        console.print(_acceptance_table(report))
    if report.leaky_relus:
        shares = [row.share for row in report.leaky_relus]
        console.print(
            f"{len(shares)} LeakyRelu; share of inputs below zero: least {min(shares):.1%}, "
            f"most {max(shares):.1%}"
        )
    for untested in report.never_negative:
        console.print(
            f"alpha {untested.alpha:g} of LeakyRelu {untested.node!r} was not tested: its input "
            "was never below zero; give other inputs with --inputs"
        )
    for variant, reason in report.not_run.items():
        console.print(f"variant {variant} was not run: {reason}")
    not_run = f"; not run: {', '.join(report.not_run)}" if report.not_run else ""
    console.print(f"parity: {'pass' if report else 'FAIL'}{not_run}")


def _acceptance_table(report: "ParityReport") -> Table:
    """What the differences do to boxes, pictures, sound or classes."""
    table = new_table("Acceptance", *ACCEPTANCE_COLUMNS, numbers=(3,))
    for row in report.acceptance:
        table.add_row(*acceptance_cells(row))
    return table


def acceptance_cells(row: "Acceptance") -> list[str]:
    """A row under `ACCEPTANCE_COLUMNS`."""
    return [
        row.measure,
        row.variant,
        row.reference,
        f"{row.value:.6g}",
        f"at {'least' if row.at_least else 'most'} {row.bound:.6g}",
        row.origin,
        "pass" if row.passed else "FAIL",
    ]


def _parity_table(report: "ParityReport", variant: str) -> Table:
    """The rows of one variant."""
    inputs = "1 input" if report.samples == 1 else f"{report.samples} inputs"
    seed = "" if report.seed is None else f", seed {report.seed}"
    table = new_table(
        f"Parity of {report.artifact}, variant {variant} ({inputs}{seed})",
        *PARITY_COLUMNS,
        numbers=range(2, 8),
    )
    for row in report.outputs:
        if row.variant == variant:
            table.add_row(*parity_cells(row))
    return table


def parity_cells(row: "OutputParity") -> list[str]:
    """A row under `PARITY_COLUMNS`."""
    return [
        row.output,
        row.reference,
        f"{row.max_abs:.2e}",
        f"{row.max_rel:.2e}",
        "-" if row.max_ulp is None else str(row.max_ulp),
        f"{row.cosine:.8f}",
        f"{row.snr_db:.1f}",
        f"{row.atol:.2e}",
        row.origin,
        "pass" if row.passed else f"FAIL {row.problem or f'at {list(row.worst_index)}'}",
    ]


def print_bisect(report: "BisectReport") -> None:
    """A row for each kernel, the worst first, then what is at fault."""
    table = new_table(
        f"Kernels of {report.artifact}, variant {report.variant}, each on exact inputs",
        *KERNEL_COLUMNS,
        numbers=range(4, 7),
    )
    for row in report.kernels:
        table.add_row(*kernel_cells(row))
    console = stdout()
    console.print(table)
    for output in (*report.simplified, *report.outputs):
        if not output.passed:
            what = "the simplified model's" if output in report.simplified else "the artifact's"
            console.print(f"{what} output {output.output} differs from {output.reference}")
    for line in _fault_lines(report):
        console.print(line)


def kernel_cells(row: "KernelParity") -> list[str]:
    """A row under `KERNEL_COLUMNS`."""
    cells = [row.value or "-", row.kernel.name, row.kernel.algorithm or "-", row.shapes]
    if row.error is None:
        return [*cells, *["-"] * 4, "with the next"]
    return [
        *cells,
        f"{row.error.max_abs:.2e}",
        f"{row.error.atol:.2e}",
        f"{row.needed:.2f}",
        row.error.reference,
        "pass" if row.passed else f"FAIL {row.error.problem}",
    ]


def _fault_lines(report: "BisectReport") -> Iterator[str]:
    """What is at fault, in sentences."""
    fault = report.fault
    if fault is None:
        yield f"bisect: {'pass' if report else 'FAIL'}, no kernel is outside its own tolerance"
        return
    kernels = " and ".join((*fault.parts, fault.kernel.name))
    yield f"at fault: {kernels}, algorithm {fault.kernel.algorithm or 'none'}"
    yield f"computes: {', '.join(fault.nodes) or 'a layout'}, {fault.shapes}"
    if report.stage is not None:
        yield f"stage: {report.stage} ({_STAGES[report.stage]})"
    if report.stage_problem:
        yield f"stage: not known: {report.stage_problem}"
    if report.reproducer is not None:
        yield f"reproducer: {report.reproducer}, inputs {report.inputs}"
    yield "bisect: FAIL"


def print_peers(report: "PeersReport") -> None:
    """Every engine's latency, error, share of the roofline, memory and time to load."""
    compiled = (
        "" if report.compile_seconds is None else f", compiled in {report.compile_seconds:.1f} s"
    )
    table = new_table(
        f"{report.model}: {report.threads} threads on {report.cpu}, "
        f"{report.flops / 1e9:.3g} GFLOP, peak {report.peak_gflops:.0f} GFLOP/s{compiled}",
        "engine", "median ms", "p10", "p90", "speed against it", "error", "roofline", "memory MB",
        "load s",
        numbers=range(1, 9),
    )  # fmt: skip
    for row in report.results:
        cells = peer_cells(row)
        table.add_row(*cells, *[""] * (9 - len(cells)))
    stdout().print(table)


def peer_cells(row: "PeerResult") -> list[str]:
    """The cells of an engine's row: its figures, or its name and the reason why there are none."""
    if row.median_ms is None:
        return [row.engine, f"not timed: {row.reason}"]
    return [
        f"{row.engine} {row.version}",
        f"{row.median_ms:.3f}",
        f"{row.p10_ms:.3f}",
        f"{row.p90_ms:.3f}",
        f"{row.ratio:.2f} x",
        f"{row.error:.1e}",
        f"{row.roofline:.2f}",
        f"{row.memory_mb:.0f}",
        f"{row.load_seconds:.2f}",
    ]


def print_profile(report: "ProfileReport") -> None:
    """A row for each call of a kernel, then all of them, and what is between them."""
    table = new_table(
        f"{report.model}, variant {report.variant}: {report.threads} threads on {report.cpu}, "
        f"{report.runs} runs, peak {report.peak_gflops:.0f} GFLOP/s, "
        f"copy {report.copy_gb_per_second:.0f} GB/s",
        "layer's output", "kernel", "algorithm", "input -> output", "ms", "share", "GFLOP",
        "computed", "GFLOP/s",
        "of peak", "MB", "GB/s", "bound by",
        numbers=range(4, 12),
    )  # fmt: skip
    for row in report.kernels:
        products = ["-"] * 4
        if row.flops > 0:
            products = [
                f"{row.flops / 1e9:.3g}",
                f"{row.computed / 1e9:.3g}",
                f"{row.gflops_per_second:.0f}",
                f"{row.peak_share:.2f}",
            ]
        table.add_row(
            row.output or "-",
            row.kernel,
            row.algorithm or "-",
            row.shapes,
            f"{row.median_ms:.4f}",
            f"{row.share:.1%}",
            *products,
            f"{row.bytes_moved / 1e6:.3g}",
            f"{row.gb_per_second:.1f}",
            row.bound,
        )
    table.add_section()
    table.add_row(
        "all kernels", "", "", "", f"{report.kernels_ms:.4f}",
        f"{report.kernels_ms / report.run_ms:.1%}", f"{report.flops / 1e9:.3g}",
        f"{report.computed / 1e9:.3g}", "", "", f"{report.bytes_moved / 1e6:.3g}",
    )  # fmt: skip
    between = f"{report.between_ms / report.run_ms:.1%}"
    table.add_row("between them", "", "", "", f"{report.between_ms:.4f}", between)
    table.add_row("a run", "", "", "", f"{report.run_ms:.4f}", "100.0%")
    stdout().print(table)


def print_bench(report: "BenchReport") -> None:
    """Latency, then start time and memory, beside the other engines."""
    inputs = ", ".join(f"{name} {shape}" for name, shape in report.inputs.items())
    table = new_table(
        f"Latency of {report.model}, variant {report.variant}, {inputs}: "
        f"{report.threads} threads on {report.cpu}, {report.calls} calls in turns",
        "engine", "median ms", "p10", "p90", "speed against it",
        numbers=range(1, 5),
    )  # fmt: skip
    for row in report.latencies:
        table.add_row(
            row.engine,
            f"{row.median_ms:.3f}",
            f"{row.p10_ms:.3f}",
            f"{row.p90_ms:.3f}",
            f"{row.speedup:.3f} x",
        )
    console = stdout()
    console.print(table)
    if not report.startups:
        return
    table = new_table(
        "Start in a fresh process, medians of 3",
        "engine", "import ms", "session ms", "first run ms", "memory MB",
        numbers=range(1, 5),
    )  # fmt: skip
    for start in report.startups:
        table.add_row(
            start.engine,
            f"{start.import_ms:.1f}",
            f"{start.session_ms:.1f}",
            f"{start.first_run_ms:.1f}",
            f"{start.memory_mb:.1f}",
        )
    console.print(table)


def print_outputs(outputs: Mapping[str, "npt.NDArray[np.generic]"]) -> None:
    """Shape, dtype and extent of each output."""
    table = new_table(
        "Outputs", "name", "dtype", "shape", "min", "max", "mean", numbers=range(3, 6)
    )
    for name, array in outputs.items():
        values = array.astype("float64")
        extent = (values.min(), values.max(), values.mean()) if values.size else ()
        shape = "x".join(map(str, array.shape)) or "scalar"
        table.add_row(name, str(array.dtype), shape, *(f"{value:.6g}" for value in extent))
    stdout().print(table)


def print_manifest(path: str, manifest: "Manifest") -> None:
    """What an artifact says of itself."""
    table = new_table(f"Artifact {path}", "field", "value")
    for spec in manifest.inputs:
        table.add_row("input", f"{spec.name}: {spec.dtype} {'x'.join(map(str, spec.shape))}")
    for spec in manifest.outputs:
        table.add_row("output", f"{spec.name}: {spec.dtype} {'x'.join(map(str, spec.shape))}")
    table.add_row("model", f"{manifest.model} ({manifest.onnx_path or 'from memory'})")
    table.add_row("ONNX SHA-256", manifest.onnx_sha256)
    table.add_row("reference", manifest.reference)
    table.add_row("built with", ", ".join(f"{k} {v}" for k, v in manifest.versions.items()))
    for variant in manifest.variants:
        table.add_section()
        table.add_row("variant", variant.name)
        table.add_row("CPU features", " ".join(variant.features))
        table.add_row("target", variant.target)
        table.add_row("library", f"{variant.library_size:,} bytes")
        weights = sum(spec.nbytes for spec in variant.weights)
        table.add_row("weights", f"{len(variant.weights)}, {weights:,} bytes")
        if variant.memory is not None:
            table.add_row("device memory", f"{variant.memory:,} bytes")
        if variant.tuning_records:
            table.add_row("tuning records", f"of {len(variant.tuning_records)} layers")
        table.add_row("parity", _parity_text(variant.parity))
    console = stdout()
    console.print(table)
    for variant in manifest.variants:
        if variant.stages:
            console.print(_stages_table(variant))
        if any(kernel.resources is not None for kernel in variant.kernels):
            console.print(_resources_table(variant))


def _stages_table(variant: "Variant") -> Table:
    """The border: what is compiled, what ONNX Runtime runs, and why."""
    table = new_table(
        f"Stages of {variant.name}, in the order in which they run",
        "stage", "runs in", "takes", "gives", "nodes", "why not compiled",
        numbers=(0,),
    )  # fmt: skip
    for index, stage in enumerate(variant.stages):
        if index:
            table.add_section()
        compiled = "" if isinstance(stage.nodes, dict) else "leakyforge"
        cells = [str(index), compiled or "ONNX Runtime", _few(stage.inputs), _few(stage.outputs)]
        # Each reason once, beside its nodes.
        reasons: dict[str, list[str]] = {}
        for node in stage.nodes:
            reason = stage.nodes[node] if isinstance(stage.nodes, dict) else ""
            reasons.setdefault(reason, []).append(node)
        for reason, nodes in reasons.items():
            table.add_row(*cells, _few(nodes), reason)
            cells = [""] * len(cells)
    return table


def _few(names: Sequence[str]) -> str:
    """The first names of many, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _resources_table(variant: "Variant") -> Table:
    """What each CUDA kernel takes of a multiprocessor, once for all of its calls."""
    table = new_table(
        f"Kernels for {variant.name}: registers and bytes by ptxas, of a thread or a block; "
        "threads on a multiprocessor computed from them",
        "kernel", "calls", "block", "registers", "spilled, reloaded", "stack", "shared",
        "constant", "threads", "occupancy", "limit",
        numbers=range(1, 10),
    )  # fmt: skip
    calls = Counter(kernel.name for kernel in variant.kernels)
    for kernel in {kernel.name: kernel for kernel in variant.kernels}.values():
        if kernel.resources is None:
            continue
        use = kernel.resources
        table.add_row(
            kernel.name,
            str(calls[kernel.name]),
            str(use.threads),
            str(use.registers),
            f"{use.spill_stores}, {use.spill_loads}",
            str(use.stack),
            f"{use.shared:,}",
            "-" if use.constant is None else str(use.constant),
            "-" if use.resident is None else str(use.resident),
            "-" if use.occupancy is None else f"{use.occupancy:.0%}",
            use.limit or "-",
        )
    return table


def print_roofline(report: "RooflineReport") -> None:
    """The least time of each kernel on a GPU, and where the figures are from."""
    gpu = report.gpu
    table = new_table(
        f"Roofline of {report.model}, variant {report.variant}, on {gpu.name}: "
        f"{gpu.flops_per_second / 1e12:g} TFLOP/s in float32, "
        f"{gpu.bytes_per_second / 1e9:g} GB/s ({gpu.source})",
        "kernel", "calls", "GFLOP", "computed", "MB", "FLOP/byte", "occupancy", "bound by",
        "least us",
        numbers=(1, 2, 3, 4, 5, 6, 8),
    )  # fmt: skip
    for row in report.kernels:
        table.add_row(
            row.kernel,
            str(row.calls),
            f"{row.flops / 1e9:.3g}",
            f"{row.computed / 1e9:.3g}",
            f"{row.bytes_moved / 1e6:.3g}",
            f"{row.intensity:.3g}",
            "-" if row.occupancy is None else f"{row.occupancy:.0%}",
            row.bound,
            f"{row.least_us:.3g}",
        )
    table.add_section()
    table.add_row("all calls", *[""] * 7, f"{report.least_us:.3g}")
    console = stdout()
    console.print(table)
    console.print(
        "A bound for each call, not a measurement: operations at the data sheet's peak, or each "
        "tensor once through memory."
    )


def _parity_text(record: "ParityRecord") -> str:
    """A parity record in a sentence."""
    if record.lacks:
        return f"{record.result}: {record.cpu} lacks {', '.join(record.lacks)}"
    outputs = ", ".join(
        f"{row.output} {row.error:.1e} of its range (tolerance {row.tolerance:.1e})"
        for row in record.outputs
    )
    return f"{record.result} on {record.cpu}: {outputs}"


def print_onnx(summary: "OnnxSummary") -> None:
    """What is inside an ONNX file."""
    table = new_table(f"ONNX file {summary.path}", "field", "value")
    for name, text in summary.inputs.items():
        table.add_row("input", f"{name}: {text}")
    for name, text in summary.outputs.items():
        table.add_row("output", f"{name}: {text}")
    table.add_row("producer", summary.producer)
    table.add_row("opset", ", ".join(f"{name} {v}" for name, v in summary.opsets.items()))
    table.add_row("parameters", f"{summary.parameters:,} in {summary.weight_bytes:,} bytes")
    table.add_row("operations", f"{summary.flops:,} in convolutions and products")
    table.add_row(
        "activations",
        f"{summary.activation_bytes:,} bytes, the largest {summary.largest_activation} with "
        f"{summary.largest_activation_bytes:,}"
        if summary.largest_activation
        else "of unknown shape",
    )
    table.add_row("operators", ", ".join(f"{name} {n}" for name, n in summary.operators.items()))
    alphas = sorted(set(summary.alphas.values()))
    table.add_row(
        "LeakyRelu", f"{len(summary.alphas)}, alpha {', '.join(f'{a:g}' for a in alphas)}"
    )
    if summary.unsupported is not None:
        table.add_row("not compiled", ", ".join(summary.unsupported) or "none")
    stdout().print(table)


def print_layers(layers: Iterable["LayerReport"]) -> None:
    """Each layer, its algorithm, and why the others were not taken; a table per target."""
    for target, group in itertools.groupby(layers, lambda layer: layer.target):
        table = new_table(
            f"Layers for {target}",
            "output", "layer", "kernel (rule)", "algorithm", "fused", "why not others",
        )  # fmt: skip
        for each in group:
            table.add_row(
                each.output or "",
                each.layer,
                f"{each.kernel} ({each.rule or 'no rule'})",
                "" if each.choice is None else each.choice.algorithm,
                ", ".join(each.epilogue),
                each.reasons,
            )
        stdout().print(table)


def print_findings(findings: Iterable["Finding"]) -> None:
    """What the doctor found."""
    table = new_table("leakyforge doctor", "", "what", "found", "to do")
    for finding in findings:
        table.add_row("ok" if finding.ok else "!!", finding.name, finding.found, finding.advice)
    stdout().print(table)
