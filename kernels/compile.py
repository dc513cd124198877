"""From an ONNX model to an artifact."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import onnx
import tvm
from tvm import relax

from leakyforge.errors import CompileError, LeakyforgeError, ModelError, ShapeError
from leakyforge.exporter.rounding import quantisations, rounding_steps
from leakyforge.kernels.elementary import our_elementary_functions
from leakyforge.kernels.explain import LayerReport, report_layers
from leakyforge.kernels.flops import device_flops, kernel_record
from leakyforge.kernels.gpu import (
    GpuTarget,
    Origin,
    build_cubin,
    build_plan,
    build_wgsl,
    parse_gpu_target,
    schedule_gpu,
    split_phases,
)
from leakyforge.kernels.half import add_up_in_float32
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.link import export_library
from leakyforge.kernels.lowering import PIPELINE
from leakyforge.kernels.onnx_model import SourceModel, fix_shapes, fold, load_onnx
from leakyforge.kernels.pipeline import (
    Decision,
    choose_layout,
    fuse,
    legalize_and_fuse,
    lower_to_vm,
    schedule,
)
from leakyforge.kernels.target import CpuTarget, parse_targets
from leakyforge.kernels.tuning.records import Find, Winner, winners
from leakyforge.onnx_graph import graph_inputs, input_range
from leakyforge.opsets import OLDEST_OF_ONNXRUNTIME, at_least
from leakyforge.pins import TVM_PINS
from leakyforge.runtime.artifact import (
    SUFFIX,
    Artifact,
    check_destination,
    pack_weights,
    place_weights,
    write_artifact,
)
from leakyforge.runtime.manifest import CUDA, WEBGPU, Kernel, Manifest, Variant
from leakyforge.runtime.plan import LaunchPlan
from leakyforge.runtime.record import record_parity
from leakyforge.runtime.reference import load_reference, one_line, random_feeds
from leakyforge.runtime.tensors import Array, TensorSpec

STAGES = (
    "read",
    "fold",
    "import",
    "fuse",
    "schedule",
    "lower",
    "build",
    "link",
    "reference",
    "check",
    "write",
)


PRECISIONS = ("default", "strict")


def compile(
    source: str | Path | onnx.ModelProto,
    target: str = "cpu",
    *,
    output: str | Path | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    precision: str = "default",
    measure: bool = True,
    tuned: bool = True,
    records: Path | None = None,
    on_stage: Callable[[str], None] = lambda _stage: None,
    on_decision: Callable[[Decision], None] = lambda _decision: None,
    on_layer: Callable[[LayerReport], None] = lambda _report: None,
) -> Path:
    """Compile an ONNX model into an artifact.

    Args:
        source: an ONNX file, or a model in memory.
        target: `cpu` (this machine), `cpu:NAME`, `cpu:fat` (a variant for each of several
            processors), a TVM target in JSON, `opencl`, `webgpu`, or `cuda:sm_80` with any
            architecture that nvcc knows.
        output: the artifact's path; by default the source's, ending in `.lfa`.
        shapes: a size for every dimension of the named inputs; symbolic dimensions of the others
            stay symbolic.
        seed: of the reference inputs that the artifact carries.
        precision: `default` may compute by the algorithms of Winograd and Strassen, `strict` adds
            up the products of the definition only.
        measure: with the target `cpu`, choose the algorithms of large convolutions by measurement;
            without, by the cost model, so that equal inputs and records give equal bytes.
        tuned: take what `tune` found for a layer, or what comes with the package.
        records: the database of `tune`; the user's by default, if there is one.
        on_stage: called with a name out of `STAGES` when that stage begins; from "fuse" to "link"
            they come again for each variant.
        on_decision: called for every kernel with the rule that scheduled it.
        on_layer: called for every run of a kernel, in order, with its algorithm and why.

    Returns:
        The artifact's path.

    Raises:
        ModelError: the model cannot be read, checked or imported (see its subclasses).
        ShapeError: a shape does not fit.
        TargetError: the target is unknown.
        MissingDependencyError: a CUDA target without nvcc.
        CompileError: the precision is unknown, or TVM fails on the graph.
        TuningError: the records cannot be read.
        ParityError: the code differs from ONNX Runtime on the reference inputs.
        ArtifactError: the artifact cannot be written; a file of that name is left as it was.
    """
    gpu = parse_gpu_target(target)
    targets = parse_targets(target) if gpu is None else (gpu,)
    if precision not in PRECISIONS:
        raise CompileError(f"unknown precision {precision!r}; use {' or '.join(PRECISIONS)}")
    on_stage("read")
    model = load_onnx(source)
    path = Path(output) if output is not None else _default_output(source)
    check_destination(path)
    proto = fix_shapes(model.proto, shapes or {})
    on_stage("fold")
    folded = fold(proto)
    on_stage("import")
    imported = import_onnx(add_up_in_float32(folded))
    unmeasured = _unmeasured(target, measure)
    variants: list[Variant] = []
    members: dict[str, bytes] = {}
    with winners(records) if tuned else contextlib.nullcontext(_no_winner) as find:
        for each in targets:
            if isinstance(each, GpuTarget):
                variant, parts, module = _build_gpu(imported, each, on_stage, on_decision, on_layer)
            else:
                variant, parts, module = _build(
                    imported, each, precision == "strict", unmeasured, find, on_stage, on_decision,
                    on_layer,
                )  # fmt: skip
            variants.append(variant)
            members |= parts
    on_stage("reference")
    inputs, outputs = _input_specs(proto, module), _output_specs(folded, module)
    # Each holds the weights once more, and the reference needs as much again.
    del folded, imported, module
    reference = load_reference(at_least(proto, OLDEST_OF_ONNXRUNTIME))
    feeds = random_feeds(inputs, seed)
    desired = reference.run(feeds)
    manifest = _manifest(
        model, inputs, outputs, targets[0].machine, f"{reference.name}, seed {seed}", variants
    )
    on_stage("check")
    manifest = record_parity(path, manifest, members, feeds, desired)
    on_stage("write")
    write_artifact(path, manifest, members, feeds, desired)
    return path


def compile_in_memory(source: onnx.ModelProto) -> Artifact:
    """Compile a model for this CPU into an artifact that is not written and not compared.

    Args:
        source: the model; the algorithms of its layers are not measured.

    Returns:
        The artifact, without reference inputs and outputs.

    Raises:
        ModelError: the model cannot be read, checked or imported (see its subclasses).
        CompileError: TVM fails on the graph.
    """
    model = load_onnx(source)
    (target,) = parse_targets("cpu")
    folded = fold(model.proto)
    imported = import_onnx(add_up_in_float32(folded))
    variant, members, module = _build(
        imported, target, False, "not asked for", _no_winner, *(lambda _: None,) * 3
    )
    manifest = _manifest(
        model,
        _input_specs(model.proto, module),
        _output_specs(folded, module),
        target.machine,
        "none",
        [variant],
    )
    weights = place_weights(variant.weights, members)
    return Artifact(
        Path(f"{model.name}{SUFFIX}"), manifest, variant, members[variant.library], weights, {}, {}
    )


def _no_winner(_workload: str, _target: CpuTarget) -> None:
    """Tuning records are not asked for."""


def _manifest(
    model: SourceModel,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    machine: str,
    reference: str,
    variants: list[Variant],
) -> Manifest:
    """What an artifact says of itself."""
    return Manifest(
        model=model.name,
        onnx_sha256=model.sha256,
        onnx_path=None if model.path is None else str(model.path),
        inputs=inputs,
        outputs=outputs,
        machine=machine,
        reference=reference,
        versions=dict(TVM_PINS),
        leakyforge=metadata.version("leakyforge"),
        variants=tuple(variants),
    )


def _unmeasured(target: str, measure: bool) -> str | None:
    """Why algorithms are not measured; None where they are."""
    if target != "cpu":
        return f"the target is {target}, not cpu, this machine"
    return None if measure else "measuring is switched off"


def _variant(
    target: CpuTarget,
    library: bytes,
    weights: list[Array],
    kernels: tuple[Kernel, ...],
    tuning_records: tuple[str, ...],
) -> tuple[Variant, dict[str, bytes]]:
    """Description of a target's code, and the members that hold it."""
    specs, members = pack_weights(weights)
    name = f"library/{target.name}.so"
    variant = Variant(
        name=target.name,
        features=tuple(sorted(target.features)),
        target=str(target.tvm),
        thread_hint=target.num_cores,
        tuning_records=tuning_records,
        library=name,
        library_size=len(library),
        weights=specs,
        kernels=kernels,
    )
    return variant, {name: library, **members}


def _build_gpu(
    module: tvm.IRModule,
    target: GpuTarget,
    on_stage: Callable[[str], None],
    on_decision: Callable[[Decision], None],
    on_layer: Callable[[LayerReport], None],
) -> tuple[Variant, dict[str, bytes], tvm.IRModule]:
    """The variant of a device, its members, and the module before lowering, for its types."""
    with _tvm_errors(module):
        on_stage("fuse")
        fused = fuse(split_phases(module), target.tvm)
        on_stage("schedule")
        scheduled, decisions = schedule_gpu(fused, target)
        _report(fused, decisions, on_decision, on_layer)
        on_stage("build")
        plan, weights, origins = build_plan(scheduled, target)
        kernels = _launch_records(fused, scheduled, decisions, plan, origins)
        if target.machine == CUDA:
            plan, kernels = build_cubin(plan, kernels, target.name)
        elif target.machine == WEBGPU:
            plan = build_wgsl(plan)
    specs, members = pack_weights(weights)
    library, name = plan.to_json(), f"library/{target.name}.json"
    variant = Variant(
        name=target.name,
        features=(),
        target=str(target.tvm),
        thread_hint=1,
        tuning_records=(),
        library=name,
        library_size=len(library),
        weights=specs,
        kernels=tuple(kernels),
        memory=plan.memory,
    )
    return variant, {name: library, **members}, fused


def _launch_records(
    fused: tvm.IRModule,
    scheduled: tvm.IRModule,
    decisions: Sequence[Decision],
    plan: LaunchPlan,
    origins: Sequence[Origin],
) -> list[Kernel]:
    """A record for each launch of a plan."""
    rules = {decision.function: decision.rule for decision in decisions}
    flops = {
        name: device_flops(fused[name], scheduled[name])
        for name in {origin.function for origin in origins}
    }
    return [
        Kernel(
            launch.kernel,
            None,
            rules[origin.function],
            *flops[origin.function][origin.position],
            bytes_moved=origin.bytes_moved,
        )
        for launch, origin in zip(plan.launches, origins, strict=True)
    ]


def _report(
    fused: tvm.IRModule,
    decisions: list[Decision],
    on_decision: Callable[[Decision], None],
    on_layer: Callable[[LayerReport], None],
) -> tuple[Kernel, ...]:
    """Tell of what was decided, and return the record of each call of a kernel."""
    for decision in decisions:
        on_decision(decision)
    reports = report_layers(fused, decisions)
    for report in reports:
        on_layer(report)
    return tuple(kernel_record(fused, report) for report in reports)


def _default_output(source: str | Path | onnx.ModelProto) -> Path:
    if isinstance(source, onnx.ModelProto):
        raise ModelError("a model in memory needs output=..., the artifact's path")
    return Path(source).with_suffix(SUFFIX)


def _build(
    module: tvm.IRModule,
    target: CpuTarget,
    strict: bool,
    unmeasured: str | None,
    find: Find,
    on_stage: Callable[[str], None],
    on_decision: Callable[[Decision], None],
    on_layer: Callable[[LayerReport], None],
) -> tuple[Variant, dict[str, bytes], tvm.IRModule]:
    """The variant of a CPU, its members, and the module before lowering, for its types."""
    used: list[str] = []

    def lookup(workload: str) -> Winner | None:
        winner = find(workload, target)
        if winner is not None and workload not in used:
            used.append(workload)
        return winner

    with _tvm_errors(module):
        on_stage("fuse")
        fused = legalize_and_fuse(
            choose_layout(module), target, strict=strict, unmeasured=unmeasured, lookup=lookup
        )
        on_stage("schedule")
        scheduled, decisions = schedule(fused, target)
        kernels = _report(fused, decisions, on_decision, on_layer)
        on_stage("lower")
        hoisted = lower_to_vm(scheduled, target)
        on_stage("build")
        with target.tvm, our_elementary_functions():
            executable = relax.build(
                hoisted.module, target.tvm, relax_pipeline=None, tir_pipeline=PIPELINE
            )
        on_stage("link")
        with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
            path = Path(folder) / "library.so"
            export_library(executable, path, str(target.tvm.attrs["mtriple"]))
            library = path.read_bytes()
    return *_variant(target, library, hoisted.weights, kernels, tuple(used)), fused


@contextlib.contextmanager
def _tvm_errors(module: tvm.IRModule) -> Iterator[None]:
    """Turn whatever TVM raises into one named error."""
    try:
        yield
    except LeakyforgeError:
        raise
    except Exception as error:
        message = f"TVM cannot compile the model: {one_line(error)}"
        symbols = relax.analysis.defined_symbolic_vars(module["main"])
        if symbols:
            names = ", ".join(sorted(str(symbol) for symbol in symbols))
            message += f"; give the symbolic dimensions a size with --shape: {names}"
        raise CompileError(message) from error


def _input_specs(proto: onnx.ModelProto, module: tvm.IRModule) -> tuple[TensorSpec, ...]:
    """Inputs under their ONNX names, with the shapes that were compiled."""
    specs = []
    for value, variable in zip(graph_inputs(proto), module["main"].params, strict=True):
        low, high = input_range(proto, value.name, ModelError) or (None, None)
        specs.append(_spec(value.name, variable.ty, low=low, high=high))
    return tuple(specs)


def _output_specs(folded: onnx.ModelProto, module: tvm.IRModule) -> tuple[TensorSpec, ...]:
    """Outputs under their ONNX names, with the shapes that TVM inferred."""
    steps, quantised = rounding_steps(folded), quantisations(folded)
    names = [value.name for value in folded.graph.output]
    result = module["main"].ret_ty
    types = [result] if len(names) == 1 else list(result.fields)
    return tuple(
        _spec(name, kind, rounding_steps=steps[name], quantisations=quantised[name])
        for name, kind in zip(names, types, strict=True)
    )


def _spec(name: str, kind: relax.TensorType, **fields: float | None) -> TensorSpec:
    """Describe a Relax tensor type."""
    if kind.shape is None:
        raise ShapeError(
            f"the shape of {name!r} is not known at compile time; fix the inputs with --shape"
        )
    shape = tuple(
        int(size) if isinstance(size, tvm.tirx.IntImm) else str(size) for size in kind.shape
    )
    return TensorSpec(name, shape, str(kind.dtype), **fields)  # type: ignore[arg-type]
