"""`compile --fallback onnxruntime`: a model in stages, of which ONNX Runtime runs some."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
import tvm
from tvm import relax

from leakyforge.errors import LeakyforgeError, ModelError, ShapeError
from leakyforge.kernels.cpu_code import (
    Code,
    Lowered,
    Options,
    cpu_variant,
    link,
    lower,
    merge,
    report,
)
from leakyforge.kernels.half import add_up_in_float32
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.onnx_model import fold
from leakyforge.kernels.partition import Graph, Part, Refusals, key, label
from leakyforge.kernels.specs import onnx_specs, output_specs
from leakyforge.kernels.target import CpuTarget
from leakyforge.opsets import OLDEST_OF_ONNXRUNTIME, at_least
from leakyforge.runtime.manifest import CompiledStage, OnnxStage, Stage
from leakyforge.runtime.reference import one_line

# A step of the compiler, which raises where it cannot take a model.
_Attempt = Callable[[onnx.ModelProto], object]


@dataclass(frozen=True)
class Compiler:
    """What a stage has to pass.

    Attributes:
        load: imports a model, and refuses values whose shape is not known.
        lower: what comes after it, with a prefix for the kernels; without one, only to see whether
            it can be done.
    """

    load: Callable[[onnx.ModelProto], tvm.IRModule]
    lower: Callable[[tvm.IRModule, str], Lowered]


def compile_parts(proto: onnx.ModelProto, target: CpuTarget, options: Options) -> Code:
    """Compile what can be compiled, for one kind of CPU; the rest stays in ONNX.

    Raises:
        ModelError: an input or output of the model is no tensor of numbers, or a stage is too
            large.
        ShapeError: the rank of one is not known.
        CompileError: no code can be generated.
    """
    options.on_stage("fold")
    try:
        folded = fold(proto)
    except ModelError:
        # What the compiler refuses of a model as a whole, ONNX Runtime may take.
        folded = at_least(proto, OLDEST_OF_ONNXRUNTIME)
    graph = Graph(folded)
    inputs, outputs = onnx_specs(proto, folded, graph.types)
    options.on_stage("import")

    tried = dataclasses.replace(options, unmeasured="only tried")
    compiler = Compiler(
        _load, lambda module, prefix: lower(module, target, options if prefix else tried, prefix)
    )
    parts, lowered, refused = plan_stages(graph, compiler)
    stages: list[Stage] = []
    members: dict[str, bytes] = {}
    for index, part in enumerate(parts):
        names = (
            tuple(value.name for value in part.model.graph.input),
            tuple(value.name for value in part.model.graph.output),
        )
        if part.compiled:
            count = len(lowered[index].hoisted.weights)
            labels = tuple(map(label, part.nodes))
            stages.append(CompiledStage(*names, labels, _function(index), count))
        else:
            reasons = {label(node): refused[key(node)] for node in part.nodes}
            member = f"stages/{index}.onnx"
            members[member] = part.model.SerializeToString(deterministic=True)
            stages.append(OnnxStage(*names, reasons, member, len(members[member])))
    code = list(lowered.values())
    records = (report(each.fused, each.decisions, options) for each in code)
    kernels = tuple(kernel for calls in records for kernel in calls)
    library = b""
    if code:
        module = merge({_function(index): each for index, each in lowered.items()})
        library = link(module, target, options, tvm.IRModule())
    weights = [weight for each in code for weight in each.hoisted.weights]
    tuned = tuple(dict.fromkeys(key for each in code for key in each.tuning_records))
    variant, parts_of_code = cpu_variant(target, library, weights, kernels, tuned, tuple(stages))
    return Code([variant], members | parts_of_code, inputs, outputs)


def _function(index: int) -> str:
    """Name of the function of a compiled stage in the library."""
    return f"stage{index}"


def _load(model: onnx.ModelProto) -> tvm.IRModule:
    """Import a part of a model.

    Raises:
        ModelError: the front end refuses it.
        ShapeError: it leaves the rank or a size of a value open.
    """
    module = import_onnx(add_up_in_float32(model))
    output_specs(model, module)
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            if isinstance(binding.var.ty, relax.TensorType) and binding.var.ty.shape is None:
                raise ShapeError("a shape is not known at compile time")
    return module


def plan_stages(
    graph: Graph, compiler: Compiler
) -> tuple[list[Part], dict[int, Lowered], Refusals]:
    """Cut a graph so that every compiled stage compiles.

    A stage that does not compile gives up one node at a time (see `_culprit`).

    Returns:
        The stages, what the compiled ones became, by their place, and why the nodes of the others
        were refused.
    """
    refused = graph.refusals()
    done: dict[tuple[str, ...], Lowered] = {}
    while True:
        parts = graph.cut(refused)
        lowered: dict[int, Lowered] = {}
        for index, part in enumerate(parts):
            if not part.compiled:
                continue
            prefix = f"{_function(index)}_"
            outputs = (value.name for value in part.model.graph.output)
            same = (prefix, *map(key, part.nodes), "", *outputs)
            attempt: _Attempt = compiler.load
            try:
                if same not in done:
                    module = compiler.load(part.model)
                    attempt = lambda model: compiler.lower(compiler.load(model), "")  # noqa: E731
                    done[same] = compiler.lower(module, prefix)
            except LeakyforgeError as error:
                refused |= _culprit(graph, part, attempt, error)
                break
            lowered[index] = done[same]
        else:
            return parts, lowered, refused


def _culprit(graph: Graph, part: Part, attempt: _Attempt, error: LeakyforgeError) -> Refusals:
    """The node that ends the shortest beginning of a stage which does not compile, and why.

    By bisection; a beginning gives what the rest of the stage reads, integers of rank 0 and 1
    aside: they are mostly sizes, which the compiler has no need to hold as tensors.
    """
    low, high = 0, len(part.nodes)
    while high - low > 1:
        middle = (low + high) // 2
        problem = _problem(graph, part.nodes[:middle], attempt)
        if problem is None:
            low = middle
        else:
            high, error = middle, problem
    # The rest of the message is about the model, and the reason about a node.
    reason = one_line(error.__cause__) if isinstance(error.__cause__, Exception) else str(error)
    return {key(part.nodes[high - 1]): reason}


def _problem(
    graph: Graph, nodes: Sequence[onnx.NodeProto], attempt: _Attempt
) -> LeakyforgeError | None:
    """Why nodes do not compile; None where they do."""
    model = graph.part(nodes)
    outputs = [value.name for value in model.graph.output if not _is_size(value)]
    if not outputs:
        return None
    try:
        attempt(graph.part(nodes, outputs))
    except LeakyforgeError as error:
        return error
    return None


def _is_size(value: onnx.ValueInfoProto) -> bool:
    """Whether a value may be a size or several."""
    kind = value.type.tensor_type
    return kind.elem_type == onnx.TensorProto.INT64 and len(kind.shape.dim) < 2
