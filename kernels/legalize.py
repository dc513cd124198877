"""Lowering Relax operators with constant weights to our definitions."""

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax, te, tirx

from leakyforge.kernels.conv2d import Conv2dShape, conv2d, heuristic_config, matmul, pack_weights
from leakyforge.kernels.schedules import NoMatch
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.winograd import transform_weights, winograd, winograd_config

Definition = Callable[..., te.Tensor]
Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

# relax.OpPatternKind.kOutEWiseFusable: elementwise operators may be fused behind it.
_OUT_ELEMENTWISE_FUSABLE = {"op_pattern": 4}


def _default_legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower a call as TVM would."""
    return call.op.get_attr("FLegalize")(builder, call)


def _constant_value(value: relax.Expr) -> npt.NDArray[np.generic] | None:
    """Array of a constant, None for anything else."""
    return np.asarray(value.value.numpy()) if isinstance(value, tvm.ir.GenericConst) else None


def _typed_constant(array: npt.NDArray[np.generic]) -> tvm.ir.GenericConst:
    """A constant of the array's dtype: `relax.const` by itself makes float64 a float32."""
    return relax.const(array, str(array.dtype))


def _call(
    builder: relax.BlockBuilder, name: str, definition: Definition, *arguments: relax.Expr
) -> relax.Expr:
    """A call of a definition to which elementwise operators may be fused."""
    return builder.call_te(
        definition,
        *arguments,
        primfunc_name_hint=name,
        primfunc_attrs=_OUT_ELEMENTWISE_FUSABLE,
    )


def _static_sizes(kind: relax.TensorType) -> tuple[int, int, int] | None:
    """Height, width and channels of a channels-last tensor; None where one is symbolic."""
    if kind.shape is None or len(kind.shape) != 4:
        return None
    sizes = list(kind.shape)[1:]
    if not all(isinstance(size, tirx.IntImm) for size in sizes):
        return None
    height, width, channels = (int(size) for size in sizes)
    return height, width, channels


def legalize_conv2d(target: CpuTarget) -> Legalize:
    """Lower `relax.nn.conv2d` with constant weights, channels last, to the definition above."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        data, weight = call.args
        attributes = call.attrs
        sizes = _static_sizes(data.ty)
        constant = _constant_value(weight)
        layouts = (attributes.data_layout, attributes.kernel_layout, attributes.out_layout)
        if (
            constant is None
            or sizes is None
            or layouts != ("NHWC", "OHWI", "NHWC")
            or int(attributes.groups) != 1
            or constant.dtype not in (np.float32, np.float64)
        ):
            return _default_legalize(builder, call)
        top, left, bottom, right = (int(size) for size in attributes.padding)
        shape = Conv2dShape(
            *sizes,
            out_channels=constant.shape[0],
            kernel=(constant.shape[1], constant.shape[2]),
            strides=(int(attributes.strides[0]), int(attributes.strides[1])),
            dilation=(int(attributes.dilation[0]), int(attributes.dilation[1])),
            padding=(top, left, bottom, right),
            itemsize=constant.dtype.itemsize,
        )
        faster = winograd_config(shape, target)
        if isinstance(faster, NoMatch):
            config = heuristic_config(shape, target)
            packed = _typed_constant(pack_weights(constant, config))
            definition = functools.partial(
                conv2d, shape=shape, config=config, declined=faster.reason
            )
        else:
            packed = _typed_constant(transform_weights(constant, faster))
            definition = functools.partial(winograd, shape=shape, config=faster)
        return _call(builder, "conv2d", definition, data, packed)

    return legalize


def legalize_matmul(target: CpuTarget) -> Legalize:
    """Lower `relax.matmul` of a matrix with a constant one: rows as pixels, a 1x1 kernel."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        left, right = call.args
        constant = _constant_value(right)
        if (
            constant is None
            or constant.ndim != 2
            or left.ty.ndim != 2
            or constant.dtype not in (np.float32, np.float64)
            or str(left.ty.dtype) != str(constant.dtype)
        ):
            return _default_legalize(builder, call)
        rows = left.ty.shape[0]
        symbolic = not isinstance(rows, tirx.IntImm)
        shape = Conv2dShape(
            height=1,
            width=1 if symbolic else int(rows),
            in_channels=constant.shape[0],
            out_channels=constant.shape[1],
            kernel=(1, 1),
            strides=(1, 1),
            dilation=(1, 1),
            padding=(0, 0, 0, 0),
            itemsize=constant.dtype.itemsize,
        )
        config = heuristic_config(shape, target)
        weight = constant.T[:, np.newaxis, np.newaxis, :]
        packed = _typed_constant(pack_weights(weight, config))
        definition = functools.partial(matmul, shape=shape, config=config)
        return _call(builder, "matmul", definition, left, packed)

    return legalize
