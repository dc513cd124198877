"""From scheduled TensorIR to machine code: TVM's pipeline, and two things that it does not do.

Register tiles stay on the stack. TVM takes every buffer of scope `local` from a workspace, and LLVM
must not drop stores to memory that it did not allocate: each step of a transform wrote its
intermediate values as well.

Weights that come from memory are prefetched. A core's share of a product takes one panel of weights
(the channels of a register tile) through all tiles of pixels: in the first pass the panel comes
from memory, far slower than it is multiplied; in the others memory waits. So each pass asks for its
share of the next panel, into the second-level cache.

    before   for panel, pass:  for step:  sums += inputs * weights[panel, step]
    after    for panel, pass:  for step:  prefetch weights[panel + 1, pass's share of the steps]
                                          sums += inputs * weights[panel, step]
"""

import math
from collections.abc import Callable, Sequence

import tvm
import tvm_ffi
from tvm import ir, s_tir, sym, tirx
from tvm.s_tir.pipeline import default_s_tir_pipeline
from tvm.tirx.compilation_pipeline import register_tir_pipeline

from leakyforge.kernels.expressions import substitute

# Name of the pipeline for `tvm.compile` and `relax.build`.
PIPELINE = "leakyforge"
# Attribute of the innermost loop of a sum: passes over a panel, and loops of the sum.
_PREFETCH = "leakyforge.prefetch"
# Larger tiles are not held in registers, and threads have small stacks.
STACK_BYTES = 16 << 10
_LINE_BYTES = 64
# With more passes the first is a small part, and prefetches cost more than they save.
MOST_PASSES = 16
# LLVM's `prefetch` of data to read, to the second level.
_READ, _SECOND_LEVEL, _DATA = 0, 2, 1


def prefetch_panels(
    schedule: s_tir.Schedule, sums: list[s_tir.schedule.LoopRV], pixels: Sequence[int | None]
) -> None:
    """Ask for the next panel of weights while a panel is multiplied, where that pays.

    Args:
        schedule: of a product whose weights are [panel][steps of the sum][channels].
        sums: the loops of the sum, innermost last. The loop around them runs over passes, or over
            panels and passes, fused.
        pixels: sizes of the loops over register tiles of pixels, which are the passes over a panel;
            None if not known.
    """
    passes = math.prod(size or 0 for size in pixels)
    if 1 < passes <= MOST_PASSES:
        schedule.annotate(sums[-1], _PREFETCH, [passes, len(sums)])


class _Prefetches:
    """Puts prefetches into the annotated loops of a function."""

    def __init__(self) -> None:
        """Start outside of all loops."""
        self._loops: list[tirx.For] = []

    def mutate(self, loop: tirx.For, mutator: tvm_ffi.StructuralMutator) -> tirx.For:
        """A loop with what is inside changed."""
        self._loops.append(loop)
        is_annotated = _PREFETCH in loop.annotations
        changed = self._prefetching(loop) if is_annotated else mutator.default_mutate(loop)
        self._loops.pop()
        return changed

    def _prefetching(self, loop: tirx.For) -> tirx.For:
        """An annotated loop with a prefetch instead of the annotation."""
        passes, axes = (int(value) for value in loop.annotations[_PREFETCH])
        sums, panels = self._loops[-axes:], self._loops[-axes - 1].loop_var
        steps = math.prod(int(each.extent) for each in sums)
        step = sums[0].loop_var
        for each in sums[1:]:
            step = step * each.extent + each.loop_var
        weights, first = _panel(sums, panels, passes)
        itemsize = int(tvm_ffi.dtype(str(weights.dtype)).bits) // 8
        lines = math.ceil(int(weights.shape[-1]) * itemsize / _LINE_BYTES)
        # A power of two, so that the remainder is a mask.
        every = 1 << (max(1, passes // lines).bit_length() - 1)
        line = panels % passes * (steps // every) + step // every
        # Panels are contiguous: what lies beyond the last axis lies in the steps that follow.
        *outer, last = first
        panel = steps * int(weights.shape[-1])
        elements = last + panel + line * (_LINE_BYTES // itemsize)
        address = tirx.address_of(tirx.BufferLoad(weights, [*outer, elements]))
        options = (tirx.const(value, "int32") for value in (_READ, _SECOND_LEVEL, _DATA))
        prefetch: tirx.Stmt = tirx.Evaluate(
            tirx.call_llvm_intrin("void", "llvm.prefetch", address, *options)
        )
        if every > 1:
            prefetch = tirx.IfThenElse(loop.loop_var % every == 0, prefetch, None)
        body = tirx.SeqStmt([prefetch, loop.body])
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body)


def _panel(
    sums: Sequence[tirx.For], panels: ir.Var, passes: int
) -> tuple[tirx.Buffer, list[ir.Expr]]:
    """The weights that a step reads, and the indices at which their panel begins.

    Args:
        sums: the loops of the sum; in the innermost one is a product of weights, which are the same
            in all passes, and inputs, which are not.
        panels: the loop over passes, or over panels and passes, fused.
        passes: over each panel.
    """
    # All loops at their first steps.
    place: dict[ir.Var, ir.Expr] = {each.loop_var: each.min for each in sums}
    realizes: list[s_tir.SBlockRealize] = []

    def enter(loop: tirx.For) -> None:
        place[loop.loop_var] = loop.min

    tvm_ffi.structural_walk(
        sums[-1].body, [(tirx.For, enter), (s_tir.SBlockRealize, realizes.append)]
    )
    (realize,) = realizes
    loads: list[ir.TensorLoad] = []
    tvm_ffi.structural_walk(realize.block.body, (ir.TensorLoad, loads.append))
    bound = {
        variable.var: value
        for variable, value in zip(realize.block.iter_vars, realize.iter_values, strict=True)
    }
    analyzer = sym.Analyzer()
    analyzer.bind(panels, ir.Range(0, 1 << 30))

    def indices(load: ir.TensorLoad, at: ir.Expr) -> list[ir.Expr]:
        places = {**place, panels: at}
        return [
            analyzer.simplify(substitute(substitute(each, bound), places)) for each in load.indices
        ]

    first = panels // passes * passes
    for load in loads:
        same = zip(indices(load, first), indices(load, first + passes - 1), strict=True)
        if all(analyzer.can_prove_equal(one, other) for one, other in same):
            return load.source, indices(load, first)
    raise ValueError(f"no weights are the same in all passes of {panels}")


@tirx.transform.prim_func_pass(opt_level=0)
class _InsertPrefetches:
    """Pass over scheduled functions."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        return tvm_ffi.structural_mutate(function, (tirx.For, _Prefetches().mutate))


@tirx.transform.prim_func_pass(opt_level=0)
class _KeepOnStack:
    """Pass over lowered functions: register tiles are not taken from a workspace."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        return tvm_ffi.structural_mutate(function, (tirx.AllocBuffer, _kept))


def _kept(allocation: tirx.AllocBuffer, _mutator: tvm_ffi.StructuralMutator) -> tirx.AllocBuffer:
    """An allocation, marked to stay where it is if it is a register tile."""
    buffer = allocation.buffer
    sizes = [size for size in buffer.shape if isinstance(size, tirx.IntImm)]
    bits = int(tvm_ffi.dtype(str(buffer.dtype)).bits)
    is_small = math.prod(int(size) for size in sizes) * bits // 8 <= STACK_BYTES
    if buffer.scope() == "local" and len(sizes) == len(buffer.shape) and is_small:
        return tirx.AllocBuffer(buffer, {"disable_lower_builtin": tirx.const(1, "bool")})
    return allocation


def _pipeline() -> tuple[object, Callable[[], object], Callable[[], object]]:
    """TVM's pipeline, and ours before and behind it."""
    lower, finalize_host, finalize_device = default_s_tir_pipeline()
    sequential = tvm.transform.Sequential
    return (
        sequential([_InsertPrefetches(), lower]),
        lambda: sequential([_KeepOnStack(), finalize_host()]),
        finalize_device,
    )


register_tir_pipeline(PIPELINE, _pipeline)
