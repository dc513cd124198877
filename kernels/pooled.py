"""Maximum pools of 2x2 that are taken while the convolution before them is in registers.

    pool[n, y, x, c] = max(conv[n, 2y, 2x, c], ..., conv[n, 2y + 1, 2x + 1, c])

The windows do not overlap, so that each of the convolution's outputs belongs to one of them: the
pool is part of the epilogue, and the convolution's outputs, four times as many as the pool's, are
neither written to memory nor read again.
"""

from collections import Counter

import tvm
from tvm import ir, relax, te, tirx

from leakyforge.kernels.expressions import operator_name

_POOL = "relax.nn.max_pool2d"
# Behind them the pool is still the only reader of what the convolution gives.
_EPILOGUE = ("relax.nn.leakyrelu", "relax.nn.relu", "relax.add")
# Fewer channels fill no vector, and other algorithms than those that take a pool may be faster.
_LEAST_CHANNELS = 8
# Attribute of the functions of pools that are to be fused.
_FUSED = "leakyforge.fused_pool"
# relax.OpPatternKind.kElemWise: may be fused behind a convolution and its epilogue.
_ELEMENTWISE = 0


def max_pool(data: te.Tensor) -> te.Tensor:
    """The maximum of 2x2 pixels of [n, y, x, c], as [n, y // 2, x // 2, c]."""
    batch, height, width, channels = data.shape

    def largest(n: ir.Expr, y: ir.Expr, x: ir.Expr, c: ir.Expr) -> ir.Expr:
        top = tirx.max(data[n, 2 * y, 2 * x, c], data[n, 2 * y, 2 * x + 1, c])
        bottom = tirx.max(data[n, 2 * y + 1, 2 * x, c], data[n, 2 * y + 1, 2 * x + 1, c])
        return tirx.max(top, bottom)

    return te.compute((batch, height // 2, width // 2, channels), largest, name="max_pool2d")


def lower_pool(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """A pool out of `find_pools` as `max_pool`, to be fused behind its convolution."""
    return builder.call_te(
        max_pool, call.args[0], primfunc_name_hint="max_pool2d", primfunc_attrs={_FUSED: True}
    )


@tvm.transform.module_pass(opt_level=0)
class MarkPools:
    """Pass that lets TVM fuse the pools of `lower_pool` as it fuses elementwise operators.

    It comes behind `AnnotateTIROpPattern`, which finds strided reads and would not.
    """

    def transform_module(
        self, module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """The module with its pools marked."""
        marked = {
            variable: function.with_attr("op_pattern", _ELEMENTWISE)
            if _FUSED in (function.attrs or {})
            else function
            for variable, function in module.functions_items()
        }
        return tvm.IRModule(marked, attrs=module.attrs)


def find_pools(function: relax.Function) -> tuple[list[relax.Call], list[relax.Call]]:
    """Convolutions whose outputs only a 2x2 pool reads, through elementwise operators; the pools.

    Args:
        function: with channels last, before its operators are lowered.
    """
    values: dict[relax.Var, relax.Expr] = {}
    reads: Counter[relax.Var] = Counter()
    for block in function.body.blocks:
        for binding in block.bindings:
            value = getattr(binding, "value", None)
            if value is not None:
                values[binding.var] = value
                reads.update(_variables(value))
    reads.update(_variables(function.body.body))
    convolutions, pools = [], []
    for value in filter(_is_pool, values.values()):
        convolution = _convolution(value.args[0], values, reads)
        if convolution is not None:
            convolutions.append(convolution)
            pools.append(value)
    return convolutions, pools


def _variables(expression: relax.Expr) -> list[relax.Var]:
    """Variables that an expression reads, each time that it does."""
    found: list[relax.Var] = []
    relax.analysis.post_order_visit(
        expression, lambda each: found.append(each) if isinstance(each, relax.Var) else None
    )
    return found


def _is_pool(value: relax.Expr) -> bool:
    """Whether a value is a maximum of 2x2 pixels at stride 2, channels last, of even sizes."""
    if operator_name(value) != _POOL:
        return False
    attributes, shape = value.attrs, value.args[0].ty.shape
    sizes = [int(size) for size in list(shape)[1:] if isinstance(size, tirx.IntImm)]
    return (
        str(attributes.layout) == "NHWC"
        and [int(size) for size in attributes.pool_size] == [2, 2]
        and [int(step) for step in attributes.strides] == [2, 2]
        and not any(int(size) for size in attributes.padding)
        and all(int(step) == 1 for step in attributes.dilation)
        and len(sizes) == 3
        and sizes[0] % 2 == sizes[1] % 2 == 0
    )


def _convolution(
    data: relax.Expr, values: dict[relax.Var, relax.Expr], reads: Counter[relax.Var]
) -> relax.Call | None:
    """The convolution that gives a pool's input; None where there is none, or others read it."""
    while isinstance(data, relax.Var) and reads[data] == 1 and data in values:
        value = values[data]
        if operator_name(value) == "relax.nn.conv2d":
            channels = int(value.ty.shape[3])
            takes_pool = (
                str(value.attrs.data_layout) == "NHWC"
                and int(value.attrs.groups) == 1
                and isinstance(value.args[1], tvm.ir.GenericConst)
                and channels % _LEAST_CHANNELS == 0
            )
            return value if takes_pool else None
        if operator_name(value) not in _EPILOGUE:
            return None
        inputs = [each for each in value.args if not isinstance(each, tvm.ir.GenericConst)]
        if len(inputs) != 1:
            return None
        data = inputs[0]
    return None
