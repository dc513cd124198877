"""Floating-point operations of each kernel that a run calls, for the profile of an artifact.

    flops    = 2 * products in the sums of the definition
    computed = 2 * iterations of the loop nest that adds up products

Both count convolutions and products of matrices only, a multiplication and an addition for each
product, and a symbolic size as 1. They differ where a direct convolution computes whole tiles, of
which it keeps what is inside; in transposed convolutions, whose phases are wider than the input;
and in Winograd's and Strassen's, whose transforms are not counted.
"""

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from leakyforge.kernels.conv2d import PRODUCTS
from leakyforge.kernels.explain import LayerReport
from leakyforge.runtime.manifest import Kernel


def kernel_record(module: tvm.IRModule, report: LayerReport) -> Kernel:
    """What an artifact keeps of one call of a kernel.

    Args:
        module: after fusion and before its functions are scheduled.
        report: of the call.
    """
    choice = report.choice
    algorithm = report.rule if choice is None else choice.trials[choice.taken].algorithm
    return Kernel(report.kernel, report.output, algorithm, *product_flops(module[report.kernel]))


def product_flops(function: tirx.PrimFunc) -> tuple[int, int]:
    """Operations of the definition and of the algorithm of a function that is not scheduled."""
    return _count(function.body)


def device_flops(function: tirx.PrimFunc, scheduled: tirx.PrimFunc) -> list[tuple[int, int]]:
    """Operations of the definition and of the algorithm of each kernel of a device's function.

    Every statement of the function becomes a kernel. The definition's operations are those of the
    one that adds up the most products.

    Args:
        function: before it was scheduled.
        scheduled: after.
    """
    defined, _ = product_flops(function)
    body = scheduled.body.block.body
    statements = list(body) if isinstance(body, tirx.SeqStmt) else [body]
    computed = [_count(statement)[1] for statement in statements]
    most = computed.index(max(computed))
    return [(defined if index == most else 0, count) for index, count in enumerate(computed)]


def _count(body: Any) -> tuple[int, int]:
    """Operations of the definition and of the algorithm in a statement."""
    blocks: list[s_tir.SBlock] = []
    tvm_ffi.structural_walk(body, (s_tir.SBlock, blocks.append), order="pre")
    defined = computed = 0
    for block in filter(_adds_products, blocks):
        products = math.prod(_size(axis) for axis in block.iter_vars)
        computed += 2 * products
        if PRODUCTS in block.annotations:
            # Our own carry those of the definition.
            products = _size(block.iter_vars[0]) * int(str(block.annotations[PRODUCTS]))
        defined += 2 * products
    return defined, computed


def _adds_products(block: s_tir.SBlock) -> bool:
    """Whether a block is a sum of products."""
    value = getattr(block.body, "value", None)
    reduces = any(axis.iter_type == tirx.IterVar.CommReduce for axis in block.iter_vars)
    return reduces and isinstance(value, tirx.Add) and isinstance(value.b, tirx.Mul)


def _size(axis: tirx.IterVar) -> int:
    """Iterations of an axis."""
    extent = axis.dom.extent
    return int(extent) if isinstance(extent, tirx.IntImm) else 1
