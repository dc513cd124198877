"""From an ONNX model to an artifact."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import onnx
import tvm

from leakyforge.errors import CompileError, ModelError, ShapeError
from leakyforge.kernels.cpu_code import (
    Code,
    Options,
    cpu_variant,
    link,
    lower,
    report,
    tvm_errors,
)
from leakyforge.kernels.explain import LayerReport
from leakyforge.kernels.fallback import compile_parts
from leakyforge.kernels.flops import device_flops
from leakyforge.kernels.gpu import (
    GpuTarget,
    Origin,
    build_cubin,
    build_plan,
    build_wgsl,
    lower_convolutions,
    parse_gpu_target,
    schedule_gpu,
    split_phases,
)
from leakyforge.kernels.half import add_up_in_float32
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.onnx_model import SourceModel, fix_shapes, fold, load_onnx
from leakyforge.kernels.packed import PACKED_TYPES
from leakyforge.kernels.pipeline import Decision, fuse
from leakyforge.kernels.specs import input_specs, output_specs
from leakyforge.kernels.target import CpuTarget, parse_targets
from leakyforge.kernels.tuning.records import no_winner, winners
from leakyforge.onnx_graph import graph_inputs
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
from leakyforge.runtime.reference import load_reference, random_feeds
from leakyforge.runtime.session import check_feeds
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
FALLBACKS = ("onnxruntime",)


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
    fallback: str | None = None,
    inputs: Mapping[str, Array] | None = None,
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
        fallback: `onnxruntime` has ONNX Runtime run what cannot be compiled (see `partition`), on
            one kind of CPU; by default such a model is refused.
        inputs: an array for each input, which the artifact carries as reference inputs; by default
            seeded random ones.
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
        CompileError: the precision or the fallback is unknown or does not go with the target, or
            TVM fails on the graph.
        InputError: `inputs` do not fit the model.
        TuningError: the records cannot be read.
        ParityError: the code differs from ONNX Runtime on the reference inputs.
        ArtifactError: the artifact cannot be written; a file of that name is left as it was.
    """
    gpu = parse_gpu_target(target)
    targets = parse_targets(target) if gpu is None else (gpu,)
    if precision not in PRECISIONS:
        raise CompileError(f"unknown precision {precision!r}; use {' or '.join(PRECISIONS)}")
    if fallback is not None:
        _check_fallback(fallback, target, targets)
    on_stage("read")
    model = load_onnx(source)
    path = Path(output) if output is not None else _default_output(source)
    check_destination(path)
    proto = fix_shapes(model.proto, shapes or {})
    _check_reference_types(proto)
    with winners(records) if tuned else contextlib.nullcontext(no_winner) as find:
        options = Options(
            precision == "strict", _unmeasured(target, measure), find, on_stage, on_decision,
            on_layer,
        )  # fmt: skip
        try:
            code = _compile_whole(proto, targets, options)
        except (ModelError, CompileError, ShapeError):
            if fallback is None:
                raise
            (cpu_target,) = (each for each in targets if isinstance(each, CpuTarget))
            code = compile_parts(proto, cpu_target, options)
    on_stage("reference")
    reference = load_reference(at_least(proto, OLDEST_OF_ONNXRUNTIME))
    feeds = random_feeds(code.inputs, seed) if inputs is None else check_feeds(code.inputs, inputs)
    desired = reference.run(feeds)
    origin = f"seed {seed}" if inputs is None else "given inputs"
    manifest = _manifest(
        model,
        code.inputs,
        code.outputs,
        targets[0].machine,
        f"{reference.name}, {origin}",
        code.variants,
    )
    on_stage("check")
    manifest = record_parity(path, manifest, code.members, feeds, desired)
    on_stage("write")
    write_artifact(path, manifest, code.members, feeds, desired)
    return path


def _compile_whole(
    proto: onnx.ModelProto, targets: Sequence[CpuTarget | GpuTarget], options: Options
) -> Code:
    """Compile every node for every target."""
    options.on_stage("fold")
    folded = fold(proto)
    options.on_stage("import")
    imported = import_onnx(add_up_in_float32(folded))
    variants: list[Variant] = []
    members: dict[str, bytes] = {}
    for each in targets:
        if isinstance(each, GpuTarget):
            variant, parts, module = _build_gpu(imported, each, options)
        else:
            variant, parts, module = _build(imported, each, options)
        variants.append(variant)
        members |= parts
    return Code(variants, members, input_specs(proto, module), output_specs(folded, module))


def _check_reference_types(proto: onnx.ModelProto) -> None:
    """Refuse inputs and outputs that the reference cannot be given or asked for."""
    for value in (*graph_inputs(proto), *proto.graph.output):
        kind = value.type.tensor_type.elem_type
        if kind in PACKED_TYPES:
            raise ModelError(
                f"{value.name!r} is of type {onnx.TensorProto.DataType.Name(kind)}, of which ONNX "
                "Runtime, the reference, takes and gives no arrays; cast it in the model"
            )


def _check_fallback(fallback: str, target: str, targets: Sequence[CpuTarget | GpuTarget]) -> None:
    """Refuse a fallback that is not known, or that the target has not."""
    if fallback not in FALLBACKS:
        raise CompileError(f"unknown fallback {fallback!r}; use {' or '.join(FALLBACKS)}")
    if len(targets) > 1 or not isinstance(targets[0], CpuTarget):
        raise CompileError(
            f"--fallback {fallback} goes with one kind of CPU, and the target is {target}; "
            "use --target cpu or cpu:NAME"
        )


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
    variant, members, module = _build(imported, target, Options())
    manifest = _manifest(
        model,
        input_specs(model.proto, module),
        output_specs(folded, module),
        target.machine,
        "none",
        [variant],
    )
    weights = place_weights(variant.weights, members)
    return Artifact(
        Path(f"{model.name}{SUFFIX}"), manifest, variant, members[variant.library], weights, {}, {}
    )


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


def _build_gpu(
    module: tvm.IRModule, target: GpuTarget, options: Options
) -> tuple[Variant, dict[str, bytes], tvm.IRModule]:
    """The variant of a device, its members, and the module before lowering, for its types."""
    with tvm_errors(module):
        options.on_stage("fuse")
        lowered = lower_convolutions(
            split_phases(module), target, strict=options.strict,
            unmeasured=options.unmeasured or "only estimates on GPUs",
        )  # fmt: skip
        fused = fuse(lowered, target.tvm)
        options.on_stage("schedule")
        scheduled, decisions = schedule_gpu(fused, target)
        report(fused, decisions, options)
        options.on_stage("build")
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


def _default_output(source: str | Path | onnx.ModelProto) -> Path:
    if isinstance(source, onnx.ModelProto):
        raise ModelError("a model in memory needs output=..., the artifact's path")
    return Path(source).with_suffix(SUFFIX)


def _build(
    module: tvm.IRModule, target: CpuTarget, options: Options
) -> tuple[Variant, dict[str, bytes], tvm.IRModule]:
    """The variant of a CPU, its members, and the module before lowering, for its types."""
    lowered = lower(module, target, options)
    kernels = report(lowered.fused, lowered.decisions, options)
    library = link(lowered.hoisted.module, target, options, module)
    return *cpu_variant(
        target, library, lowered.hoisted.weights, kernels, lowered.tuning_records
    ), lowered.fused
