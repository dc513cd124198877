"""The order of the passes, from an imported model to a module that the VM can run."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx

from leakyforge.errors import CompileError
from leakyforge.kernels.choose import Lookup, choose
from leakyforge.kernels.conv2d import match_conv2d
from leakyforge.kernels.conv2d_dot import match_conv2d_dot
from leakyforge.kernels.depthwise import match_depthwise
from leakyforge.kernels.expressions import operator_name, substitute
from leakyforge.kernels.fusion import LimitFusion
from leakyforge.kernels.grouped import match_grouped
from leakyforge.kernels.host_calls import call_host_functions
from leakyforge.kernels.leaky_relu import legalize_leaky_relu
from leakyforge.kernels.legalize import (
    Choose,
    lower_constant_weights,
    takes_transposed,
)
from leakyforge.kernels.log_softmax import legalize_log_softmax
from leakyforge.kernels.measure import Stopwatch
from leakyforge.kernels.pooled import MarkPools
from leakyforge.kernels.reduction import match_reduction
from leakyforge.kernels.schedules import NoMatch, first_match, match_elementwise, match_pool
from leakyforge.kernels.strassen import match_strassen
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.tuning import metaschedule
from leakyforge.kernels.weights import HoistedModule, hoist_weights
from leakyforge.kernels.winograd import match_winograd
from leakyforge.kernels.winograd1d import match_winograd1d

# Of data and weights: what the definitions take.
LAYOUTS = {
    "relax.nn.conv1d": ["NWC", "OWI"],
    "relax.nn.conv1d_transpose": ["NWC", "IWO"],
    "relax.nn.conv2d": ["NHWC", "OHWI"],
    "relax.nn.conv2d_transpose": ["NHWC", "IHWO"],
}

# What TVM's own transposed convolutions are lowered in.
_TRANSPOSED_LAYOUTS = {
    "relax.nn.conv1d_transpose": ["NCW", "IOW"],
    "relax.nn.conv2d_transpose": ["NCHW", "IOHW"],
}

Rule = Callable[[s_tir.Schedule, CpuTarget], NoMatch | None]

# Tried in this order; a rule that fits schedules the function and returns None.
RULES: dict[str, Rule] = {
    "winograd": match_winograd,
    "winograd1d": match_winograd1d,
    "strassen": match_strassen,
    "conv2d": match_conv2d,
    "conv2d_dot": match_conv2d_dot,
    "depthwise": match_depthwise,
    "grouped": match_grouped,
    "elementwise": match_elementwise,
    "reduction": match_reduction,
    "pool": match_pool,
}


# In the place of TVM's own, for the folding of constants too, which asks for it of every operator:
# TVM's refuses a float16 whose alpha is beyond float16.
tvm.ir.register_op_attr("relax.nn.leakyrelu", "FLegalize", legalize_leaky_relu, level=11)


@dataclass(frozen=True)
class Decision:
    """Which rule scheduled a function, and why those before it did not.

    Attributes:
        function: name of the function in the library.
        rule: name of the rule, None where the loops were left as they were.
        refused: reason of each rule that did not apply.
        target: LLVM's name of the processor that it was scheduled for.
        note: what a tuning record says of it, or why the record was not taken; empty without one.
        workload: of the tuning record that was taken, None where none was.
    """

    function: str
    rule: str | None
    refused: dict[str, str]
    target: str
    note: str = ""
    workload: str | None = None


def choose_layout(module: tvm.IRModule) -> tvm.IRModule:
    """Put channels last around convolutions: a tile's channels are then one vector in memory."""
    # Weights must be constants, not transpositions of constants, to be packed.
    fold = relax.transform.FoldConstant()
    if not _has_convolution(module):
        # TVM's pass fails on operators that it knows by other names of their axes.
        return fold(module)
    leaky_relu = "relax.nn.leakyrelu"
    if tvm.ir.Op.get(leaky_relu).get_attr("FRelaxInferLayout") is None:
        # TVM gives relu a rule for layouts and leakyrelu none: without it every one is a barrier.
        relu = tvm.ir.Op.get("relax.nn.relu").get_attr("FRelaxInferLayout")
        tvm.ir.register_op_attr(leaky_relu, "FRelaxInferLayout", relu)
    relax.analysis.post_order_visit(module["main"], _refuse_sizes)
    converted = relax.transform.ConvertLayout({}, _wanted_layouts)(module)
    return fold(converted)


def _refuse_sizes(node: relax.Expr) -> None:
    """Refuse an operator on a tensor and a size, on which the pass for layouts crashes."""
    if not isinstance(node, relax.Call) or operator_name(node) == "":
        return
    is_tensor = [isinstance(argument.ty, relax.TensorType) for argument in node.args]
    is_size = [isinstance(argument.ty, tvm.ir.PrimType) for argument in node.args]
    if any(is_tensor) and any(is_size):
        raise CompileError(
            f"{operator_name(node)} of a tensor and of a size that is not known at compile time; "
            "fix the inputs with --shape"
        )


def _has_convolution(module: tvm.IRModule) -> bool:
    """Whether an operator takes a layout."""
    names: set[str] = set()
    relax.analysis.post_order_visit(
        module["main"],
        lambda node: names.add(operator_name(node)),
    )
    return not names.isdisjoint(LAYOUTS)


def _wanted_layouts(call: relax.Call) -> dict[str, list[str]]:
    """Layouts to give to a call.

    TVM's own transposed convolution has no channels-last form to fall back on where our definitions
    do not take it, and without a wish it takes the layout of what is before it.
    """
    name = call.op.name
    if name in _TRANSPOSED_LAYOUTS and not takes_transposed(call):
        return {name: _TRANSPOSED_LAYOUTS[name]}
    return {name: LAYOUTS[name]} if name in LAYOUTS else {}


def legalize_and_fuse(
    module: tvm.IRModule,
    target: CpuTarget,
    *,
    strict: bool = False,
    unmeasured: str | None = "not asked for",
    lookup: Lookup = lambda _workload: None,
) -> tvm.IRModule:
    """Lower operators to TensorIR and fuse convolution or product, bias and LeakyRelu.

    `strict` keeps to the sums of the definition; `unmeasured` says why algorithms are chosen by
    the cost model, None where they are measured; `lookup` finds tuning records.
    """

    def chooser(touched: int) -> Choose:
        stopwatch = Stopwatch(target, touched) if unmeasured is None else unmeasured
        return functools.partial(
            choose, target=target, strict=strict, stopwatch=stopwatch, lookup=lookup
        )

    lowered = lower_constant_weights(module, target, strict=strict, chooser=chooser)
    return fuse(lowered, target.tvm)


def fuse(module: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """Lower operators as TVM does, and fuse elementwise ones into what is before them."""
    with target:
        return tvm.transform.Sequential(
            [
                relax.backend.DispatchSampling(),
                relax.backend.DispatchSortScan(),
                relax.transform.LegalizeOps({"relax.nn.log_softmax": legalize_log_softmax}),
                relax.transform.AnnotateTIROpPattern(),
                MarkPools(),
                relax.transform.FoldConstant(),
                LimitFusion(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
                relax.transform.DeadCodeElimination(),
            ]
        )(module)


def schedule(
    module: tvm.IRModule, target: CpuTarget, *, lookup: Lookup = lambda _workload: None
) -> tuple[tvm.IRModule, list[Decision]]:
    """Schedule every function by its tuning record, else by the first rule that fits."""
    decisions = []
    scheduled = dict(module.functions)
    for variable, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc):
            scheduled[variable], decision = _schedule_function(
                str(variable.name_hint), function, target, lookup
            )
            decisions.append(decision)
            scheduled[variable] = of_any_address(scheduled[variable])
    return tvm.IRModule(scheduled, attrs=module.attrs), decisions


def of_any_address(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function for tensors that are aligned to their elements only, as numpy's arrays are.

    Loads that do not ask for more are as fast on aligned tensors, and inputs need not be copied.
    """
    replaced = {}
    for parameter in function.params:
        kind = parameter.ty
        if isinstance(kind, tirx.buffer.BufferType):
            itemsize = max(1, int(tvm_ffi.dtype(str(kind.dtype)).bits) // 8)
            replaced[parameter] = tirx.decl_buffer(
                kind.shape,
                str(kind.dtype),
                parameter.name,
                strides=list(kind.strides),
                elem_offset=kind.elem_offset,
                scope=kind.storage_scope,
                data_alignment=itemsize,
                offset_factor=kind.offset_factor,
            )
    return substitute(function, replaced)


def _schedule_function(
    name: str, function: tirx.PrimFunc, target: CpuTarget, lookup: Lookup
) -> tuple[tirx.PrimFunc, Decision]:
    """Take the tuning record of one function, or try the rules on it."""
    if is_empty(function):
        # Index arithmetic of fused loops would divide by a size of 0.
        empty = dict.fromkeys(RULES, "a tensor is empty")
        return function, Decision(name, None, empty, target.name)
    refused: dict[str, str] = {}
    rule, scheduled = first_match(function, RULES, target, refused) or (None, function)
    decision = Decision(name, rule, refused, target.name)
    workload = metaschedule.workload_of(function)
    winner = None if workload is None else lookup(workload)
    if winner is None:
        return scheduled, decision
    if winner.config == metaschedule.RULES:
        return scheduled, replace(decision, note=winner.words, workload=workload)
    try:
        recorded = metaschedule.Sketches(function, target).schedule(winner.config)
    except ValueError as error:
        # Records may come from anywhere.
        return scheduled, replace(decision, note=f"its tuning record is not taken: {error}")
    return recorded, Decision(name, metaschedule.RULE, {}, target.name, winner.words, workload)


def is_empty(function: tirx.PrimFunc) -> bool:
    """Whether a parameter has a size of 0."""
    # Symbolic sizes are parameters too, and have no shape.
    sizes = [size for parameter in function.params for size in getattr(parameter, "shape", ())]
    return any(isinstance(size, tirx.IntImm) and int(size) == 0 for size in sizes)


def call_kernels(module: tvm.IRModule, target: tvm.target.Target) -> HoistedModule:
    """Take the weights out of `main`, and have it call kernels with memory for their results."""
    hoisted = hoist_weights(module)
    with target:
        called = tvm.transform.Sequential(
            [
                relax.transform.RewriteDataflowReshape(),
                relax.transform.ToNonDataflow(),
                relax.transform.RemovePurityChecking(),
                relax.transform.CallTIRRewrite(),
            ]
        )(hoisted.module)
    return HoistedModule(called, hoisted.weights)


def lower_to_vm(module: tvm.IRModule, target: CpuTarget) -> HoistedModule:
    """Plan memory, and lower `main` to the Relax VM's builtins.

    Raises:
        CompileError: it calls a function that the runtime has not.
    """
    called = call_kernels(module, target.tvm)
    with target.tvm:
        lowered = tvm.transform.Sequential(
            [
                relax.transform.StaticPlanBlockMemory(),
                relax.transform.LowerAllocTensor(),
                relax.transform.KillAfterLastUse(),
                relax.transform.LowerRuntimeBuiltin(),
                relax.transform.ComputePrimValue(),
                relax.transform.VMShapeLower(),
                relax.transform.AttachGlobalSymbol(),
            ]
        )(called.module)
    return HoistedModule(call_host_functions(lowered), called.weights)
