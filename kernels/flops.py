"""Floating-point operations of each kernel that a run calls, for the profile of an artifact.

    flops    = 2 * outputs * products in the sum of each output           (of the definition)
    computed = 2 * iterations of the loop nest that adds up products      (of the algorithm)

Both count convolutions and products of matrices only, a multiplication and an addition for each
product, and a symbolic size as 1. They differ where a direct convolution computes whole tiles, of
which it keeps what is inside, and in Winograd's, whose transforms are not counted. A transposed
convolution is counted as the convolution of its phases (see `conv_transpose`).
"""

import math
from collections.abc import Mapping

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx

from leakyforge.kernels import conv2d, winograd
from leakyforge.runtime.manifest import Kernel

# The block that keeps what is inside of a convolution's tiles.
_CROP = "crop"


def kernel_calls(module: tvm.IRModule, rules: Mapping[str, str | None]) -> tuple[Kernel, ...]:
    """A record for each call of a kernel, in the order of `main`.

    Args:
        module: after fusion and before its functions are scheduled.
        rules: name of the rule that scheduled each function.
    """
    calls: list[Kernel] = []

    def visit(expression: relax.Expr) -> None:
        if getattr(getattr(expression, "op", None), "name", "") == "relax.call_tir":
            variable = expression.args[0]
            name = str(variable.name_hint)
            flops, computed = product_flops(module[variable])
            calls.append(Kernel(name, rules[name], flops, computed))

    relax.analysis.post_order_visit(module["main"].body, visit)
    return tuple(calls)


def product_flops(function: tirx.PrimFunc) -> tuple[int, int]:
    """Operations of the definition and of the algorithm of a function that is not scheduled."""
    found: list[s_tir.SBlock] = []
    tvm_ffi.structural_walk(function.body, (s_tir.SBlock, found.append), order="pre")
    blocks = {str(block.name_hint): block for block in found}
    defined = computed = 0
    for name, block in blocks.items():
        if not _adds_products(block):
            continue
        outputs, terms = _iterations(block, reduces=False), _iterations(block, reduces=True)
        computed += 2 * outputs * terms
        if name in (conv2d.BLOCK, winograd.BLOCK):
            outputs = _iterations(blocks[_CROP], reduces=False)
        if name == winograd.BLOCK:
            terms *= int(block.annotations[winograd.CONFIG]["kernel"]) ** 2
        defined += 2 * outputs * terms
    return defined, computed


def _adds_products(block: s_tir.SBlock) -> bool:
    """Whether a block is a sum of products."""
    value = getattr(block.body, "value", None)
    reduces = any(axis.iter_type == tirx.IterVar.CommReduce for axis in block.iter_vars)
    return reduces and isinstance(value, tirx.Add) and isinstance(value.b, tirx.Mul)


def _iterations(block: s_tir.SBlock, *, reduces: bool) -> int:
    """Iterations over a block's output, or over the sum of each of its elements."""
    return math.prod(
        int(axis.dom.extent) if isinstance(axis.dom.extent, tirx.IntImm) else 1
        for axis in block.iter_vars
        if (axis.iter_type == tirx.IterVar.CommReduce) == reduces
    )
