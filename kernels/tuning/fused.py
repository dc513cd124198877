"""Kernels of a model that none of our algorithms computes, as layers to tune."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx

from leakyforge.kernels.elementary import our_elementary_functions
from leakyforge.kernels.explain import kernel_calls, operator_words
from leakyforge.kernels.flops import product_flops
from leakyforge.kernels.legalize import tensor_bytes
from leakyforge.kernels.lowering import PIPELINE
from leakyforge.kernels.measure import MOST_BETWEEN, Spec
from leakyforge.kernels.pipeline import of_any_address, schedule
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.tuning.metaschedule import (
    RULES,
    MetaScheduleSpace,
    Sketches,
    workload_of,
)
from leakyforge.kernels.tuning.tunable import Array, Tunable


@dataclass(frozen=True)
class FusedKernel(Tunable):
    """A kernel that a rule schedules, or none, and that MetaSchedule may schedule instead.

    Attributes:
        function: not scheduled; its last parameter is its result.
    """

    function: tirx.PrimFunc

    @property
    def rules_config(self) -> str:
        """That a rule of ours schedules it."""
        return RULES

    @property
    def inputs(self) -> list[Spec]:
        """All parameters but the last one."""
        return [_spec(each) for each in self.function.params[:-1]]

    @property
    def output(self) -> Spec:
        """The last parameter."""
        return _spec(self.function.params[-1])

    def space(self, target: CpuTarget, seed: int) -> MetaScheduleSpace:
        """What MetaSchedule draws."""
        source = random.Random(f"{seed} {self.workload}")
        return MetaScheduleSpace(self.function, target, source)

    def build(self, config: str, target: CpuTarget) -> tuple[tvm.runtime.Module, list[Array]]:
        """The kernel by the rules or by MetaSchedule; it takes its inputs only."""
        if config == RULES:
            scheduled, _ = schedule(tvm.IRModule({"main": self.function}), target)
        else:
            function = of_any_address(Sketches(self.function, target).schedule(config))
            scheduled = tvm.IRModule({"main": function})
        return _compiled(scheduled["main"], target.tvm), []

    def desired(self, inputs: Sequence[Array]) -> Array:
        """The result of the function's loops as they are written."""
        shape, dtype = self.output
        result = tvm.runtime.empty(shape, dtype)
        kernel = _compiled(self.function, tvm.target.Target("llvm"))["main"]
        kernel(*map(tvm.runtime.tensor, inputs), result)
        return np.asarray(result.numpy())

    def roundings(self) -> int:
        """Of its reductions, and one for each other step."""
        blocks: list[s_tir.SBlock] = []
        tvm_ffi.structural_walk(self.function.body, (s_tir.SBlock, blocks.append), order="pre")
        return sum(map(_steps, blocks))

    def computed_flops(self, _config: str) -> int:
        """Of the definition, for every schedule."""
        return product_flops(self.function)[1]


def _spec(parameter: tirx.Var) -> Spec:
    kind = parameter.ty
    return tuple(int(size) for size in kind.shape), str(kind.dtype)


def _steps(block: s_tir.SBlock) -> int:
    """Values of which a block makes each of its own."""
    reduced = tirx.IterVar.CommReduce
    return math.prod(int(axis.dom.extent) for axis in block.iter_vars if axis.iter_type == reduced)


def _compiled(function: tirx.PrimFunc, target: tvm.target.Target) -> tvm.runtime.Module:
    """A function alone, with the elementary functions that it has in a model."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    with our_elementary_functions():
        return tvm.compile(module, target=target, tir_pipeline=PIPELINE)


def fused_kernels(module: tvm.IRModule) -> list[FusedKernel]:
    """The kernels of a fused module that MetaSchedule may schedule, each once, in order."""
    calls = kernel_calls(module)
    between = min(sum(map(_touched, calls)), MOST_BETWEEN)
    found: dict[str, FusedKernel] = {}
    for call in calls:
        name = str(call.args[0].name_hint)
        function = module[name]
        key = workload_of(function) if isinstance(function, tirx.PrimFunc) else None
        if key is None:
            continue
        earlier = found.get(key)
        count = 1 if earlier is None else earlier.count + 1
        first = earlier or FusedKernel(operator_words(call, name), key, 1, between, function)
        found[key] = replace(first, count=count)
    return list(found.values())


def _touched(call: relax.Call) -> int:
    """Bytes of a call's result and of its weights."""
    weights = [each for each in call.args[1].fields if isinstance(each, tvm.ir.GenericConst)]
    results = call.ty.fields if isinstance(call.ty, relax.TupleType) else [call.ty]
    return sum(tensor_bytes(kind) for kind in (*results, *(each.ty for each in weights)))
