"""Transposed convolutions as convolutions of their phases, without multiplications by zero.

    phases[n, phase*C + c, q] = sum over k, t of data[n, k, q - t] * weight[k, c, t*s + phase]
    out[n, c, y]              = phases[n, (y + p) % s * C + c, (y + p) // s]

The algorithm is that of `leakyforge.kernels.conv_transpose`, channels first. TVM's own definition
convolves an input with s - 1 zeros between its elements: s times the multiplications for each
dimension, s^2 times in two. Here the phases are written and read once more instead; bias, LeakyRelu
and a residual are computed as they are read.
"""

import functools

import numpy as np
import numpy.typing as npt
import tvm
from tvm import ir, relax, te
from tvm.relax.expr_functor import PyExprMutator, mutator

from leakyforge.kernels.conv_transpose import TransposedShape, phase_weights
from leakyforge.kernels.legalize import takes_transposed


def split_phases(module: tvm.IRModule) -> tvm.IRModule:
    """Replace transposed convolutions of constant weights; others are left to TVM."""
    lowering = _Lowering(module)
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            lowering.builder_.update_func(variable, lowering.visit_expr(function))
    return relax.transform.DeadCodeElimination()(lowering.builder_.get())


@mutator
class _Lowering(PyExprMutator):  # type: ignore[misc]
    """Replaces the calls of a module."""

    def visit_call_(self, op: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(op)
        layouts = {
            "relax.nn.conv1d_transpose": ("NCW", "IOW"),
            "relax.nn.conv2d_transpose": ("NCHW", "IOHW"),
        }.get(getattr(call.op, "name", ""))
        if layouts is None or not takes_transposed(call):
            return call
        given = call.attrs.data_layout, call.attrs.kernel_layout
        shape = _shape(call)
        padding = shape.phases().padding
        # A negative padding would cut off input, which `relax.nn.conv2d` does not.
        if given != layouts or call.args[1].ty.dtype != "float32" or min(padding) < 0:
            return call
        weight = _phase_weights(call, shape)
        if layouts == ("NCW", "IOW"):
            phases = relax.op.nn.conv1d(
                call.args[0], relax.const(weight[:, :, 0]), padding=[padding[1], padding[3]]
            )
        else:
            phases = relax.op.nn.conv2d(call.args[0], relax.const(weight), padding=list(padding))
        definition = functools.partial(_shuffle, shape=shape, rank=call.ty.ndim)
        return self.builder_.call_te(
            definition, self.builder_.emit(phases), primfunc_name_hint="shuffle_phases"
        )


def _shape(call: relax.Call) -> TransposedShape:
    """Sizes of a call; one dimension is two with a height of 1."""
    is_1d = call.ty.ndim == 3
    one = [1] if is_1d else []
    sizes = [[int(size) for size in kind.shape] for kind in (*(a.ty for a in call.args), call.ty)]
    data, weight, out = ([*each[:2], *one, *each[2:]] for each in sizes)
    strides = [*one, *(int(step) for step in call.attrs.strides)]
    before = [int(size) for size in call.attrs.padding][: 1 if is_1d else 2]
    padding = [0, *before] if is_1d else before
    return TransposedShape(
        height=data[2],
        width=data[3],
        in_channels=data[1],
        out_channels=weight[1],
        kernel=(weight[2], weight[3]),
        strides=(strides[0], strides[1]),
        padding=(padding[0], padding[1]),
        out_height=out[2],
        out_width=out[3],
        itemsize=4,
    )


def _phase_weights(call: relax.Call, shape: TransposedShape) -> npt.NDArray[np.float32]:
    """Weights [in][out][r][r'] as [phase and out][in][tap][tap']."""
    given = np.asarray(call.args[1].value.numpy())
    weight = given.reshape(shape.in_channels, shape.out_channels, *shape.kernel)
    phases = phase_weights(weight.transpose(0, 2, 3, 1), shape).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(phases, np.float32)


def _shuffle(phases: te.Tensor, shape: TransposedShape, rank: int) -> te.Tensor:
    """Rearrange [n, phase and c, q, q'] to the output, of rank 4, or 3 without its rows."""
    (stride_y, stride_x), (top, left) = shape.strides, shape.padding
    channels = shape.out_channels

    def channel(y: ir.Expr, x: ir.Expr, c: ir.Expr) -> ir.Expr:
        return ((y + top) % stride_y * stride_x + (x + left) % stride_x) * channels + c

    def line(n: ir.Expr, c: ir.Expr, x: ir.Expr) -> ir.Expr:
        return phases[n, channel(0, x, c), (x + left) // stride_x - shape.first(1)]

    def image(n: ir.Expr, c: ir.Expr, y: ir.Expr, x: ir.Expr) -> ir.Expr:
        row = (y + top) // stride_y - shape.first(0)
        return phases[n, channel(y, x, c), row, (x + left) // stride_x - shape.first(1)]

    sizes = (phases.shape[0], channels)
    if rank == 3:
        return te.compute((*sizes, shape.out_width), line, name="shuffle")
    return te.compute((*sizes, shape.out_height, shape.out_width), image, name="shuffle")
