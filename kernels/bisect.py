"""`check --bisect`: the kernel at fault, the stage of the compiler, and a reproducer.

Only the last step compiles, and only the nodes of the kernel at fault.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from leakyforge.errors import InputError, LeakyforgeError
from leakyforge.files import atomic_file, destination_problem
from leakyforge.kernels.divergence import KernelParity, judge_kernels
from leakyforge.kernels.half import add_up_in_float32
from leakyforge.kernels.onnx_model import fix_shapes, fold
from leakyforge.kernels.onnx_values import OnnxValues
from leakyforge.kernels.stages import first_wrong_stage
from leakyforge.kernels.target import parse_target
from leakyforge.runtime.arrays import save_npz
from leakyforge.runtime.artifact import Artifact, read_artifact
from leakyforge.runtime.capture import capture_calls
from leakyforge.runtime.parity import (
    OutputParity,
    compare,
    compare_outputs,
    find_onnx,
    finite_fields,
)
from leakyforge.runtime.reference import load_reference, random_feeds
from leakyforge.runtime.session import Session, check_feeds
from leakyforge.runtime.tensors import Array, TensorSpec

# Where a fresh compilation of the kernel's nodes is right.
ARTIFACT = "artifact"


@dataclass(frozen=True)
class BisectReport:
    """Every kernel of a run by itself, the worst first; true where none is at fault.

    Attributes:
        artifact: its path.
        variant: that was run.
        kernels: one row for each call, by the share of their tolerance that they need.
        outputs: of the run, against ONNX Runtime on the same inputs.
        simplified: outputs of the simplified model against the model's, both in ONNX Runtime: what
            the compiler is given.
        stage: the first stage of the compiler that is wrong on the nodes of the worst kernel (see
            `stages.STAGES`); `artifact` where compiling them anew is right; None without a fault.
        stage_problem: why the stage is not known, else empty.
        reproducer: the .onnx file of these nodes, None without a fault.
        inputs: the .npz file of their inputs.
    """

    artifact: str
    variant: str
    kernels: tuple[KernelParity, ...]
    outputs: tuple[OutputParity, ...]
    simplified: tuple[OutputParity, ...]
    stage: str | None = None
    stage_problem: str = ""
    reproducer: str | None = None
    inputs: str | None = None

    def __bool__(self) -> bool:
        outputs = (*self.outputs, *self.simplified)
        return all(row.passed for row in self.kernels) and all(row.passed for row in outputs)

    @property
    def fault(self) -> KernelParity | None:
        """The worst kernel where it is outside its tolerance."""
        return next((row for row in self.kernels[:1] if not row.passed), None)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {"passed": bool(self), **finite_fields(asdict(self))}


def bisect(
    artifact: str | Path,
    onnx_path: str | Path | None = None,
    *,
    inputs: Mapping[str, Array] | None = None,
    seed: int = 0,
    variant: str | None = None,
    output: str | Path | None = None,
    verify_key: str | Path | None = None,
) -> BisectReport:
    """Find the kernel by which an artifact differs from its ONNX model, and write a reproducer.

    Args:
        artifact: the artifact's path, for the CPU.
        onnx_path: the ONNX file that it was compiled from; by default found as `check` does.
        inputs: one array for each input; by default seeded random ones.
        seed: of the random inputs.
        variant: of the artifact; by default the best for this CPU.
        output: .onnx file to write where a kernel is at fault, its inputs as .npz beside it; by
            default ARTIFACT-fault.onnx.
        verify_key: Ed25519 public key in a PEM file, by which the artifact has to be signed.

    Raises:
        ArtifactError: the artifact cannot be loaded here, or is not signed by `verify_key`.
        ModelError: the ONNX file is absent or another one, or ONNX Runtime refuses it.
        InputError: `inputs` do not fit, the artifact is for a device or in stages, or the
            reproducer cannot be written.
    """
    path = Path(artifact)
    model_file = path.with_name(f"{path.stem}-fault.onnx") if output is None else Path(output)
    problem = destination_problem(model_file)
    if problem is not None:
        raise InputError(problem)
    run = _judged_run(path, onnx_path, inputs, seed, variant, verify_key)
    graph = run.graph
    rows = sorted(run.kernels, key=lambda row: row.needed, reverse=True)
    outputs, simplified = _parity(run)
    report = BisectReport(
        str(artifact), run.artifact.variant.name, tuple(rows), tuple(outputs), tuple(simplified)
    )
    fault = report.fault
    if fault is None or fault.value is None:
        return report
    part, names = graph.part(fault.sources, fault.value)
    given = {name: graph.values[name] for name in names}
    _write_model(part, model_file)
    inputs_file = model_file.with_suffix(".npz")
    save_npz(inputs_file, given)
    desired, engine = graph.exact(fault.sources, fault.value)

    def is_right(output: Array) -> bool:
        limits = graph.limits(fault.sources, str(fault.value), str(output.dtype))
        value = desired.astype(output.dtype)
        return compare(str(fault.value), output, value, limits, engine).passed

    report = dataclasses.replace(report, reproducer=str(model_file), inputs=str(inputs_file))
    try:
        stage = first_wrong_stage(part, given, is_right, parse_target(run.artifact.variant.target))
    except LeakyforgeError as error:
        # The kernel at fault is known all the same.
        return dataclasses.replace(report, stage_problem=str(error))
    return dataclasses.replace(report, stage=stage or ARTIFACT)


def judge_layers(
    artifact: str | Path,
    onnx_path: str | Path | None = None,
    *,
    inputs: Mapping[str, Array] | None = None,
    seed: int = 0,
    variant: str | None = None,
    verify_key: str | Path | None = None,
) -> tuple[KernelParity, ...]:
    """Judge the kernels of a run by themselves, in the order of their calls; writes nothing.

    Arguments and errors are those of `bisect`.
    """
    return _judged_run(Path(artifact), onnx_path, inputs, seed, variant, verify_key).kernels


@dataclass(frozen=True)
class _JudgedRun:
    """One run of an artifact.

    Attributes:
        artifact: whose variant ran.
        session: that ran it.
        source: its ONNX model.
        model: the same as the compiler was given it.
        feeds: an array for each input.
        graph: `model` and its values.
        kernels: one row for each call, in order.
    """

    artifact: Artifact
    session: Session
    source: onnx.ModelProto
    model: onnx.ModelProto
    feeds: dict[str, Array]
    graph: OnnxValues
    kernels: tuple[KernelParity, ...]


def _judged_run(
    path: Path,
    onnx_path: str | Path | None,
    inputs: Mapping[str, Array] | None,
    seed: int,
    variant: str | None,
    verify_key: str | Path | None,
) -> _JudgedRun:
    """Run an artifact once, and judge each of its kernels."""
    artifact = read_artifact(path, variant, verify_key=verify_key)
    if artifact.variant.stages:
        raise InputError(
            f"{path} runs in stages, some in ONNX Runtime, and --bisect judges the kernels of a "
            "model that is compiled as a whole; check it without --bisect"
        )
    session = Session(artifact)
    specs = artifact.manifest.inputs
    source = find_onnx(artifact.manifest, path, onnx_path)
    model = _compiled(source, specs)
    feeds = random_feeds(specs, seed) if inputs is None else check_feeds(specs, inputs)
    calls = capture_calls(session, artifact.variant.kernels, feeds)
    graph = OnnxValues(model, feeds)
    kernels = tuple(judge_kernels(calls, graph, feeds))
    return _JudgedRun(artifact, session, source, model, feeds, graph, kernels)


def _compiled(source: onnx.ModelProto, specs: Sequence[TensorSpec]) -> onnx.ModelProto:
    """The model as the compiler was given it: its shapes fixed, and simplified."""
    fixed = {
        spec.name: tuple(size for size in spec.shape if isinstance(size, int))
        for spec in specs
        if all(isinstance(size, int) for size in spec.shape)
    }
    return add_up_in_float32(fold(fix_shapes(source, fixed)))


def _parity(run: _JudgedRun) -> tuple[list[OutputParity], list[OutputParity]]:
    """Outputs of the artifact, and of the simplified model, against ONNX Runtime."""
    specs = run.session.get_outputs()
    reference = load_reference(run.source)
    desired = [reference.run(run.feeds)]
    names = [spec.name for spec in specs]
    ours = [dict(zip(names, run.session.run(None, run.feeds), strict=True))]
    simplified = [load_reference(run.model, optimised=False).run(run.feeds)]
    return (
        compare_outputs(specs, ours, desired, reference.name),
        compare_outputs(specs, simplified, desired, reference.name),
    )


def _write_model(model: onnx.ModelProto, path: Path) -> None:
    try:
        with atomic_file(path) as stream:
            stream.write(model.SerializeToString())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
