"""Convolutions and products of matrices as one form: an implicit matrix product.

    out[batch, row, column] =
        sum over depth of left[batch, row, depth] * right[batch, column, depth]

Axes of a sum of products fall into four kinds, by the operands that they index: both and the
output (batch), the first and the output (row), the second and the output (column), both and not
the output (depth). Of a convolution pixels are rows, output channels columns, and input channels
and taps the depth; its matrix of patches is never stored, but computed where it is read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tvm import ir, s_tir, sym, tirx
from tvm.s_tir.schedule import SBlockRV

from leakyforge.kernels.schedules import (
    NoMatch,
    inline_consumers,
    only_reduction,
)


class Axis(Enum):
    """The kinds of axes, in their order in the product."""

    BATCH = 0
    ROW = 1
    COLUMN = 2
    DEPTH = 3


@dataclass(frozen=True)
class Run:
    """Elements that lie one after another in memory.

    Attributes:
        axis: the kind of axis that they lie along, None where the last axis is not one of them.
        length: how many, before a gap or the end.
    """

    axis: Axis | None
    length: int


@dataclass(frozen=True)
class Product:
    """A sum of products in the form above.

    Attributes:
        block: the sum, over loops for batch, row, column and depth.
        operands: the blocks that arrange left and right as matrices.
        sizes: of batch, row, column and depth.
        left: what is contiguous of the first operand.
        right: what is contiguous of the second operand.
        output: what is contiguous of the output.
    """

    block: SBlockRV
    operands: tuple[SBlockRV, SBlockRV]
    sizes: tuple[int, int, int, int]
    left: Run
    right: Run
    output: Run


def find_product(schedule: s_tir.Schedule) -> Product | NoMatch:
    """Bring the only reduction of a function into the form above, its epilogue in one block."""
    block = only_reduction(schedule)
    if isinstance(block, NoMatch):
        return block
    statement = schedule.get(block)
    value = getattr(statement.body, "value", None)
    if not (isinstance(value, tirx.Add) and isinstance(value.b, tirx.Mul)):
        return NoMatch("its reduction adds up no products")
    if len(statement.reads) != 2 or len(statement.writes) != 1:
        return NoMatch("its products are not of two tensors")
    sizes = [axis.dom.extent for axis in statement.iter_vars]
    if not all(isinstance(size, tirx.IntImm) for size in sizes):
        return NoMatch("a size is symbolic")
    kinds = _kinds(statement)
    if isinstance(kinds, NoMatch):
        return kinds
    left, right, output = (
        _run(region, statement, kinds) for region in (*statement.reads, *statement.writes)
    )
    if schedule.get_consumers(block):
        inline_consumers(schedule, block)
    operands = schedule.reindex(block, ("read", 0)), schedule.reindex(block, ("read", 1))
    result = schedule.reindex(block, ("write", 0))
    # The axes are as many and in the same order as before, their variables may be others.
    statement = schedule.get(block)
    regions = (*statement.reads, *statement.writes)
    orders = (
        (Axis.BATCH, Axis.ROW, Axis.DEPTH),
        (Axis.BATCH, Axis.COLUMN, Axis.DEPTH),
        (Axis.BATCH, Axis.ROW, Axis.COLUMN),
    )
    for arranged, region, order in zip((*operands, result), regions, orders, strict=True):
        axes = [_axis_of(index.min, statement) for index in region.region]
        index_map = _index_map(statement, axes, kinds, order)
        schedule.transform_layout(
            arranged, ("read" if arranged is result else "write", 0), index_map
        )
    every = list(range(len(kinds)))
    schedule.transform_block_layout(block, _index_map(statement, every, kinds, tuple(Axis)))
    sizes = [
        math.prod(_extent(statement, axis) for axis in every if kinds[axis] is kind)
        for kind in Axis
    ]
    return Product(block, operands, (sizes[0], sizes[1], sizes[2], sizes[3]), left, right, output)


def inline_epilogue(schedule: s_tir.Schedule, block: SBlockRV) -> None:
    """Compute what follows a block in it: the crop, the output's own axes, the epilogue."""
    while consumers := schedule.get_consumers(block):
        schedule.reverse_compute_inline(consumers[0])


def _kinds(statement: s_tir.SBlock) -> list[Axis | None] | NoMatch:
    """The kind of each axis, None where it has one element only."""
    left, right, output = (
        [variable for index in region.region for variable in _variables(index.min)]
        for region in (*statement.reads, *statement.writes)
    )
    by_use = {
        (True, True, True): Axis.BATCH,
        (True, False, True): Axis.ROW,
        (False, True, True): Axis.COLUMN,
        (True, True, False): Axis.DEPTH,
    }
    kinds: list[Axis | None] = []
    for position, axis in enumerate(statement.iter_vars):
        used = tuple(
            any(variable.same_as(axis.var) for variable in variables)
            for variables in (left, right, output)
        )
        if _extent(statement, position) == 1:
            kinds.append(None)
        elif used in by_use:
            kinds.append(by_use[used])
        else:
            return NoMatch(f"its axis {axis.var.name} is no axis of a product of matrices")
    if Axis.DEPTH not in kinds:
        return NoMatch("its products are not added up")
    return kinds


def _variables(expression: ir.Expr) -> Sequence[ir.Var]:
    """Variables of an index."""
    found: Sequence[ir.Var] = tirx.analysis.undefined_vars(expression)
    return found


def _extent(statement: s_tir.SBlock, axis: int) -> int:
    """Size of an axis."""
    return int(statement.iter_vars[axis].dom.extent)


def _axis_of(index: ir.Expr, statement: s_tir.SBlock) -> int | None:
    """Position of the axis that an index is, None where it is another expression."""
    analyzer = sym.Analyzer()
    for axis in statement.iter_vars:
        # Of a kernel of one element, the taps are nothing.
        analyzer.bind(axis.var, axis.dom)
    simple = analyzer.simplify(index)
    same = (simple.same_as(axis.var) for axis in statement.iter_vars)
    return next((position for position, is_same in enumerate(same) if is_same), None)


def _run(region: tirx.BufferRegion, statement: s_tir.SBlock, kinds: Sequence[Axis | None]) -> Run:
    """What is contiguous of a tensor, for axes of a kind that are fused in their order."""
    kind, length = None, 1
    # Axes of a kind are fused innermost last, and have to lie so in memory.
    rest = list(enumerate(kinds))
    for index, size in zip(reversed(region.region), reversed(region.source.shape), strict=True):
        if int(size) == 1:
            continue
        axis = _axis_of(index.min, statement)
        if axis is None or kinds[axis] is None:
            break
        kind = kinds[axis] if kind is None else kind
        rest = [each for each in rest if each[1] is kind]
        if not rest or rest.pop()[0] != axis:
            break
        length *= _extent(statement, axis)
        if _extent(statement, axis) != int(size):
            break
    return Run(kind, length)


def _index_map(
    statement: s_tir.SBlock,
    axes: Sequence[int | None],
    kinds: Sequence[Axis | None],
    order: Sequence[Axis],
) -> tirx.IndexMap:
    """From these axes of a block to one axis for each kind, the axes of a kind fused."""
    dtype = str(statement.iter_vars[0].dom.extent.ty.dtype)
    indices = [tirx.Var(f"i{position}", dtype) for position in range(len(axes))]
    fused: dict[Axis, ir.Expr] = {kind: tirx.const(0, dtype) for kind in order}
    for index, axis in zip(indices, axes, strict=True):
        kind = None if axis is None else kinds[axis]
        if axis is not None and kind is not None:
            fused[kind] = fused[kind] * _extent(statement, axis) + index
    return tirx.IndexMap(indices, [fused[kind] for kind in order], None)
