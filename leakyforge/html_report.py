"""`check --html`: a parity check as one HTML file, which loads nothing and runs no script.

Names of models and tensors come from the model's file, so Jinja escapes whatever is put into the
page, and the page's own policy (Content-Security-Policy) forbids scripts and loading.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leakyforge.errors import InputError, LeakyforgeError, MissingDependencyError
from leakyforge.files import atomic_file, destination_problem
from leakyforge.pins import TVM_PINS, installed_version
from leakyforge.render import (
    ACCEPTANCE_COLUMNS,
    KERNEL_COLUMNS,
    PARITY_COLUMNS,
    acceptance_cells,
    kernel_cells,
    parity_cells,
)

if TYPE_CHECKING:
    from leakyforge.kernels.divergence import KernelParity
    from leakyforge.runtime import Manifest, ParityReport
    from leakyforge.runtime.parity import OutputParity
    from leakyforge.runtime.tensors import Array, TensorSpec

_TEMPLATE = "report.html.jinja"
_PACKAGES = (*TVM_PINS, "onnx", "onnxruntime", "numpy")
# Sizes in a histogram, in the units of its picture: about a phone's pixels.
_BAR, _HEIGHT = 20, 110


@dataclass(frozen=True)
class Share:
    """A cell with a bar.

    Attributes:
        text: the figure.
        width: of the bar in hundredths.
        wrong: whether it is too large.
    """

    text: str
    width: float
    wrong: bool = False


@dataclass(frozen=True)
class Table:
    """A table, whose rows are cards on a phone.

    Attributes:
        columns: their names; `result` holds "pass" or what is wrong.
        rows: a cell for each column.
        numbers: names of the columns to align to the right.
        facts: whether there are two columns, a name and what it is.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Share]]
    numbers: Sequence[str] = ()
    facts: bool = False


@dataclass(frozen=True)
class Bar:
    """A bin of a histogram.

    Attributes:
        x: its left side.
        height: of the bar.
        wrong: whether it lies beyond the tolerance.
        text: the bin and its count.
    """

    x: int
    height: float
    wrong: bool
    text: str


@dataclass(frozen=True)
class Histogram:
    """The errors of one output.

    Attributes:
        title: the output.
        reference: what it was compared with, and the variant.
        bars: one for each bin that is not empty.
        ticks: positions and texts below the axis.
        limit: position of the tolerance.
        summary: in words.
    """

    title: str
    reference: str
    bars: Sequence[Bar]
    ticks: Sequence[tuple[int, str]]
    limit: int
    summary: str


@dataclass(frozen=True)
class Layers:
    """The kernels of one variant by themselves.

    Attributes:
        variant: its name.
        table: a row for each kernel, None where they cannot be judged.
        problem: why not, else empty.
    """

    variant: str
    table: Table | None
    problem: str = ""


def check_html(path: Path) -> None:
    """Make sure that a report can be written, before the check itself.

    Raises:
        InputError: not at this path.
        MissingDependencyError: Jinja is not installed.
    """
    problem = destination_problem(path)
    if problem is not None:
        raise InputError(problem)
    _environment()


def write_html(
    path: Path,
    report: "ParityReport",
    onnx: Path | None = None,
    inputs: "Mapping[str, Array] | None" = None,
    verify_key: Path | None = None,
) -> None:
    """Write a report, whole or not at all.

    The kernels of each variant are judged by themselves here, on the first inputs of the check
    (see `kernels.bisect`), where the compiler is installed and the artifact is for the CPU.

    Args:
        path: HTML file to write.
        report: of a check.
        onnx: the ONNX file that was given to the check.
        inputs: the inputs that were given to it.
        verify_key: the public key that was given to it.

    Raises:
        ArtifactError: the artifact was changed since the check.
        InputError: the file cannot be written; one of that name is left as it was.
        MissingDependencyError: Jinja is not installed.
    """
    content = _content(report, onnx, inputs, verify_key)
    text = _environment().get_template(_TEMPLATE).render(content)
    try:
        with atomic_file(path) as stream:
            # A path of the file system may hold bytes that are no characters.
            stream.write(text.encode(errors="replace"))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _environment() -> Any:
    """Jinja, which escapes every text."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            "an HTML report needs Jinja2; pip install 'leakyforge[report]'"
        ) from error
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _content(
    report: "ParityReport",
    onnx: Path | None,
    inputs: "Mapping[str, Array] | None",
    verify_key: Path | None,
) -> dict[str, Any]:
    """What the template shows."""
    from leakyforge.runtime import read_manifest

    manifest = read_manifest(report.artifact, verify_key=verify_key)
    variants = list(dict.fromkeys(row.variant for row in report.outputs))
    return {
        "report": report,
        "manifest": manifest,
        "outputs": _outputs(report),
        "histograms": [_histogram(row) for row in report.outputs if row.histogram],
        "roundings": _roundings(report),
        "acceptance": Table(
            ACCEPTANCE_COLUMNS, [acceptance_cells(row) for row in report.acceptance], ("value",)
        ),
        "leaky_relus": _leaky_relus(report),
        "layers": [_layers(report, variant, onnx, inputs, verify_key) for variant in variants],
        "model": _model(manifest),
        "environment": _machine(),
    }


def _outputs(report: "ParityReport") -> Table:
    """Every output against every reference."""
    return Table(
        ("variant", *PARITY_COLUMNS),
        [[row.variant, *parity_cells(row)] for row in report.outputs],
        PARITY_COLUMNS[2:8],
    )


def _histogram(row: "OutputParity") -> Histogram:
    """The errors of an output as shares of its tolerance."""
    from leakyforge.runtime.histogram import UPPER_ENDS

    ranges = ["no error", f"up to {UPPER_ENDS[0]:.0e}"]
    ranges += [f"{low:.1e} to {high:.1e}" for low, high in pairwise(UPPER_ENDS)]
    ranges.append(f"above {UPPER_ENDS[-1]:g}")
    most, total = max(row.histogram), sum(row.histogram)
    # The bin of an end is the second after it: the first has no error, and an end belongs below.
    first_wrong = UPPER_ENDS.index(1.0) + 2
    bars = [
        # A single element among millions is still to be seen.
        Bar(
            index * _BAR,
            max(count / most * _HEIGHT, 2.0),
            index >= first_wrong,
            f"{text}: {count:,} elements",
        )
        for index, (text, count) in enumerate(zip(ranges, row.histogram, strict=True))
        if count
    ]
    decades = [(at, end) for at, end in enumerate(UPPER_ENDS) if at % 4 == 0]
    ticks = [((at + 2) * _BAR, f"{end:g}") for at, end in decades]
    exact = row.histogram[0] / total if total else 1.0
    return Histogram(
        row.output,
        f"{row.reference}, variant {row.variant}",
        bars,
        [(_BAR // 2, "0"), *ticks],
        first_wrong * _BAR,
        f"{total:,} elements, {exact:.1%} without any error; the largest is "
        f"{row.needed:.2g} of its tolerance",
    )


def _roundings(report: "ParityReport") -> Table:
    """What is lost to rounding, beside the references."""
    return Table(
        ("variant", "output", "reference", "our loss", "its loss", "times", "bound", "result"),
        [
            [
                row.variant, row.output, row.reference, f"{row.ours:.2e}", f"{row.theirs:.2e}",
                f"{row.ratio:.1f}", f"{row.bound:g}", "pass" if row.passed else "FAIL",
            ]
            for row in report.roundings
        ],
        ("our loss", "its loss", "times", "bound"),
    )  # fmt: skip


def _leaky_relus(report: "ParityReport") -> Table:
    """Alpha of each LeakyRelu, and how much of its input alpha was for."""
    return Table(
        ("node", "alpha", "inputs below zero"),
        [
            [row.node, f"{row.alpha:g}", Share(f"{row.share:.1%}", row.share * 100)]
            for row in report.leaky_relus
        ],
        ("alpha",),
    )


def _layers(
    report: "ParityReport",
    variant: str,
    onnx: Path | None,
    inputs: "Mapping[str, Array] | None",
    verify_key: Path | None,
) -> Layers:
    """Each kernel of a variant on exact inputs, in the order of a run."""
    try:
        from leakyforge.kernels.bisect import judge_layers
    except ImportError as error:
        return Layers(variant, None, f"the compiler is not installed: {error}")
    seed = 0 if report.seed is None else report.seed
    try:
        rows = judge_layers(
            report.artifact, onnx, inputs=inputs, seed=seed, variant=variant, verify_key=verify_key
        )
    except LeakyforgeError as error:
        return Layers(variant, None, str(error))
    table = Table(KERNEL_COLUMNS, [_kernel(row) for row in rows], ("max abs", "tolerance"))
    return Layers(variant, table)


def _kernel(row: "KernelParity") -> list[str | Share]:
    """The row of a kernel, with a bar for the share of its tolerance."""
    used = KERNEL_COLUMNS.index("used")
    cells: list[str | Share] = list(kernel_cells(row))
    if row.error is not None:
        cells[used] = Share(f"{row.needed:.2f}", min(row.needed, 1.0) * 100, not row.passed)
    return cells


def _model(manifest: "Manifest") -> Table:
    """What was compiled, and for what."""
    rows = [
        ["model", manifest.model],
        ["ONNX file", manifest.onnx_path or "from memory"],
        ["SHA-256", manifest.onnx_sha256],
        *(["input", _tensor(spec)] for spec in manifest.inputs),
        *(["output", _tensor(spec)] for spec in manifest.outputs),
    ]
    for variant in manifest.variants:
        weights = sum(spec.nbytes for spec in variant.weights)
        rows.append(
            [
                f"variant {variant.name}",
                f"kernels: {len(variant.kernels)}, code: {variant.library_size:,} bytes, "
                f"weights: {weights:,} bytes, target: {variant.target}",
            ]
        )
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    rows.append(["compiled by", f"leakyforge {manifest.leakyforge}, {versions}"])
    return Table(("", ""), rows, facts=True)


def _tensor(spec: "TensorSpec") -> str:
    """Dtype, shape and name of an input or output; last, a name turns nothing behind it."""
    from leakyforge.runtime.tensors import format_shape

    return f"{spec.dtype} {format_shape(spec.shape)} {spec.name}"


def _machine() -> Table:
    """Where the check ran, and with what."""
    return Table(("", ""), list(_facts()), facts=True)


def _facts() -> Iterator[list[str]]:
    from leakyforge.runtime import cpu, threads

    yield ["checked", datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")]
    yield ["leakyforge", installed_version("leakyforge") or "from a source tree"]
    yield ["processor", f"{cpu.model_name()}, {cpu.machine()}"]
    yield ["threads", f"{threads.usable_cores()} usable physical cores"]
    yield ["system", platform.platform()]
    yield ["Python", platform.python_version()]
    for name in _PACKAGES:
        yield [name, installed_version(name) or "absent"]
