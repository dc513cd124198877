"""The layers of a compiled model in the order in which they run, for `compile --explain`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import tvm
from tvm import ir, relax, s_tir, tirx

from leakyforge.kernels import (
    conv2d,
    conv2d_dot,
    depthwise,
    grouped,
    strassen,
    winograd,
    winograd1d,
)
from leakyforge.kernels.choice import Choice, read_choice
from leakyforge.kernels.expressions import operator_name
from leakyforge.kernels.gpu import convolutions
from leakyforge.kernels.gpu import winograd as gpu_winograd
from leakyforge.kernels.pipeline import Decision
from leakyforge.kernels.schedules import block_names

_SUMS = tuple(
    module.BLOCK
    for module in (
        conv2d, conv2d_dot, depthwise, grouped, strassen, winograd, winograd1d, convolutions,
        gpu_winograd,
    )
)  # fmt: skip
# Blocks of our definitions that end a sum, if not itself; what follows was fused behind it.
_ENDS = ("crop", "row", "product")
# Rules for operators of any kind: those for convolutions have nothing to say about others.
_GENERAL = ("elementwise", "reduction", "pool")


@dataclass(frozen=True)
class LayerReport:
    """One run of a kernel.

    Attributes:
        output: name of the layer's output in the ONNX graph; None where it cannot be traced.
        layer: the layer in words.
        kernel: the function in the library; layers of the same sizes have one in common.
        rule: the rule that scheduled it, None where its loops were left as they were.
        choice: algorithm of a convolution or product, and why; None for other operators.
        epilogue: operators that were fused behind it.
        reasons: why others were not taken.
        target: LLVM's name of the processor.
    """

    output: str | None
    layer: str
    kernel: str
    rule: str | None
    choice: Choice | None
    epilogue: tuple[str, ...]
    reasons: str
    target: str


def report_layers(module: tvm.IRModule, decisions: Iterable[Decision]) -> list[LayerReport]:
    """A report for each call of a kernel in `main`.

    Args:
        module: after fusion, before scheduling.
        decisions: about its functions.
    """
    by_function = {decision.function: decision for decision in decisions}
    notes = {name: _note(module[name]) for name in by_function}
    return [
        _report(call, by_function[name], *notes[name])
        for call in kernel_calls(module)
        if (name := str(call.args[0].name_hint)) in by_function
    ]


def kernel_calls(module: tvm.IRModule) -> list[relax.Call]:
    """Calls of TensorIR functions in `main` and its branches, in order."""
    calls = []

    def visit(expression: relax.Expr) -> None:
        if operator_name(expression) == "relax.call_tir":
            calls.append(expression)

    relax.analysis.post_order_visit(module["main"].body, visit)
    return calls


def _report(
    call: relax.Call, decision: Decision, choice: Choice | None, epilogue: tuple[str, ...]
) -> LayerReport:
    spans = (getattr(argument, "span", None) for argument in call.args[1].fields)
    name = next((str(span.source_name.name) for span in spans if span is not None), None)
    if choice is not None:
        layer, reasons = choice.layer, choice.reasons()
    else:
        layer = operator_words(call, decision.function)
        refused = decision.refused.items() if decision.rule is None else ()
        notes = [decision.note] if decision.note else []
        notes += [f"{rule}: {why}" for rule, why in refused if rule in _GENERAL]
        reasons = "; ".join(notes)
    return LayerReport(
        name, layer, decision.function, decision.rule, choice, epilogue, reasons, decision.target
    )


def operator_words(call: relax.Call, function: str) -> str:
    """Name of the operators, and sizes of the first input and of the output."""
    name = re.sub(r"\d+(?=_|$)", "", function).removeprefix("fused_")
    sizes = [_sizes(each.ty) for each in (*call.args[1].fields[:1], call)]
    return f"{name}, {' -> '.join(sizes)}"


def _sizes(kind: relax.Type) -> str:
    if not isinstance(kind, relax.TensorType) or kind.shape is None:
        return "?"
    sizes = (int(size) if isinstance(size, tirx.IntImm) else size for size in kind.shape)
    return "x".join(map(str, sizes)) or "scalar"


def _note(function: tirx.PrimFunc) -> tuple[Choice | None, tuple[str, ...]]:
    """Choice and epilogue of a function, nothing where it holds no sum of ours."""
    schedule = s_tir.Schedule(tvm.IRModule({"main": function}))
    names = block_names(schedule)
    block = next((block for block in _SUMS if block in names), None)
    if block is None:
        return None, ()
    end = max(index for index, name in enumerate(names) if name in (*_ENDS, block))
    epilogue = tuple(_fused(schedule, name) for name in names[end + 1 :])
    return read_choice(schedule, block), epilogue


def _fused(schedule: s_tir.Schedule, block: str) -> str:
    """An operator that was fused behind a sum; one of a number for each channel is a bias."""
    name = re.sub(r"\d+$", "", block.removeprefix("T_"))
    if name != "add":
        return {"leaky_relu": "LeakyRelu"}.get(name, name)
    shapes = [read.source.shape for read in schedule.get(schedule.get_sblock(block)).reads]
    per_channel = any(sum(size != 1 for size in map(_size, shape)) == 1 for shape in shapes)
    return "bias" if len(shapes) > 1 and per_channel else "add"


def _size(size: ir.Expr) -> int | None:
    """A size, None where it is symbolic."""
    return int(size) if isinstance(size, tirx.IntImm) else None
