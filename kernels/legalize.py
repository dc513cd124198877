"""Lowering Relax operators with constant weights to our definitions."""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax, te, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from leakyforge.kernels.conv2d import (
    Conv2dShape,
    conv2d,
    heuristic_config,
    pack_weights,
)
from leakyforge.kernels.conv2d_dot import DotConfig, conv2d_dot, dot_config, pack_dot_weights
from leakyforge.kernels.conv_transpose import TransposedShape, phase_weights, shuffle_phases
from leakyforge.kernels.depthwise import (
    DepthwiseConfig,
    depthwise,
    depthwise_config,
    pack_depthwise_weights,
)
from leakyforge.kernels.grouped import grouped, grouped_config, pack_grouped_weights
from leakyforge.kernels.schedules import NoMatch
from leakyforge.kernels.sources import Source, find_source
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.views import conv1d, matmul
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


def _static_sizes(kind: relax.TensorType) -> tuple[int, ...] | None:
    """Sizes of a channels-last tensor after its batch; None where one is symbolic."""
    if kind.shape is None:
        return None
    sizes = list(kind.shape)[1:]
    if not all(isinstance(size, tirx.IntImm) for size in sizes):
        return None
    return tuple(int(size) for size in sizes)


def _pair(values: Sequence[tirx.IntImm], missing: int) -> tuple[int, int]:
    """Rows and columns; an attribute of one dimension has columns only."""
    *row, column = (int(value) for value in values)
    return (row[0] if row else missing), column


def _weight(call: relax.Call, layouts: tuple[str, str]) -> npt.NDArray[np.generic] | None:
    """Constant weights of a convolution in these layouts, else None."""
    constant = _constant_value(call.args[1])
    attributes = call.attrs
    given = (attributes.data_layout, attributes.kernel_layout)
    if constant is None or constant.dtype not in (np.float32, np.float64):
        return None
    return constant if given == layouts else None


def legalize_conv2d(target: CpuTarget, *, strict: bool) -> Legalize:
    """Lower `relax.nn.conv2d` and `conv1d` with constant weights, channels last."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        data, attributes = call.args[0], call.attrs
        sizes = _static_sizes(data.ty)
        is_1d = len(attributes.strides) == 1
        constant = _weight(call, ("NWC", "OWI") if is_1d else ("NHWC", "OHWI"))
        if constant is None or sizes is None:
            return _default_legalize(builder, call)
        if is_1d:
            sizes, constant = (1, *sizes), constant[:, np.newaxis]
        half = len(attributes.padding) // 2
        (top, left), (bottom, right) = (
            _pair(attributes.padding[:half], 0),
            _pair(attributes.padding[half:], 0),
        )
        shape = Conv2dShape(
            height=sizes[0],
            width=sizes[1],
            in_channels=sizes[2],
            out_channels=constant.shape[0],
            kernel=(constant.shape[1], constant.shape[2]),
            strides=_pair(attributes.strides, 1),
            dilation=_pair(attributes.dilation, 1),
            padding=(top, left, bottom, right),
            itemsize=constant.dtype.itemsize,
        )
        groups = int(attributes.groups)
        if is_1d:
            convolve, packed = _direct(shape, constant, target, "it has one dimension", groups)
            definition = functools.partial(conv1d, shape=shape, convolve=convolve)
            return _call(builder, "conv1d", definition, data, packed)
        source = find_source(builder, data)
        return _convolution(builder, source, constant, shape, target, groups=groups, strict=strict)

    return legalize


def _convolution(
    builder: relax.BlockBuilder,
    source: Source,
    weight: npt.NDArray[np.generic],
    shape: Conv2dShape,
    target: CpuTarget,
    *,
    groups: int = 1,
    strict: bool,
) -> relax.Expr:
    """A convolution of rank 4 by the algorithm that is estimated to be the fastest.

    `strict` keeps to the definition's own sums.
    """
    faster = (
        NoMatch("precision is strict" if strict else "its channels are in groups")
        if strict or groups > 1
        else winograd_config(shape, target, math.gcd(*source.channels))
    )
    if isinstance(faster, NoMatch):
        definition, packed = _direct(shape, weight, target, faster.reason, groups)
        definition = functools.partial(definition, copies=not source.is_plain)
    else:
        packed = _typed_constant(transform_weights(weight, faster))
        definition = functools.partial(winograd, shape=shape, config=faster)

    def reading(*tensors: te.Tensor) -> te.Tensor:
        *inputs, weights = tensors
        return definition(source.read(*inputs), weights)

    return _call(builder, "conv2d", reading, *source.tensors, packed)


def _direct(
    shape: Conv2dShape,
    weight: npt.NDArray[np.generic],
    target: CpuTarget,
    declined: str,
    groups: int = 1,
) -> tuple[Definition, relax.Expr]:
    """A direct convolution over data of rank 4 and packed weights, and these weights."""
    if groups > 1:
        return _grouped(shape, weight, target, groups)
    dot = dot_config(shape, target)
    if isinstance(dot, DotConfig):
        packed = pack_dot_weights(weight, dot)
        return functools.partial(conv2d_dot, shape=shape, config=dot), _typed_constant(packed)
    config = heuristic_config(shape, target)
    definition = functools.partial(conv2d, shape=shape, config=config, declined=declined)
    return definition, _typed_constant(pack_weights(weight, config))


def _grouped(
    shape: Conv2dShape, weight: npt.NDArray[np.generic], target: CpuTarget, groups: int
) -> tuple[Definition, relax.Expr]:
    """As `_direct`, of a convolution in groups."""
    lanes = depthwise_config(shape, groups, target)
    if isinstance(lanes, DepthwiseConfig):
        packed = pack_depthwise_weights(weight, groups, lanes)
        definition = functools.partial(depthwise, shape=shape, groups=groups, config=lanes)
        return definition, _typed_constant(packed)
    config = grouped_config(shape, groups, target)
    packed = pack_grouped_weights(weight, groups, config)
    definition = functools.partial(
        grouped, shape=shape, groups=groups, config=config, declined=lanes.reason
    )
    return definition, _typed_constant(packed)


def takes_transposed(call: relax.Call) -> bool:
    """Whether `legalize_conv_transpose` lowers a call, once its channels are last."""
    attributes = call.attrs
    return (
        _constant_value(call.args[1]) is not None
        and int(attributes.groups) == 1
        and all(int(step) == 1 for step in attributes.dilation)
        and _static_sizes(call.args[0].ty) is not None
        and str(call.args[0].ty.dtype) in ("float32", "float64")
    )


def legalize_conv_transpose(target: CpuTarget, *, strict: bool) -> Legalize:
    """Lower `relax.nn.conv2d_transpose` and `conv1d_transpose` with constant weights."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        data, attributes = call.args[0], call.attrs
        sizes, results = _static_sizes(data.ty), _static_sizes(call.ty)
        is_1d = len(attributes.strides) == 1
        constant = _weight(call, ("NWC", "IWO") if is_1d else ("NHWC", "IHWO"))
        if constant is None or sizes is None or results is None or int(attributes.groups) != 1:
            return _default_legalize(builder, call)
        if is_1d:
            sizes, results, constant = (1, *sizes), (1, *results), constant[:, np.newaxis]
        shape = TransposedShape(
            height=sizes[0],
            width=sizes[1],
            in_channels=sizes[2],
            out_channels=constant.shape[3],
            kernel=(constant.shape[1], constant.shape[2]),
            strides=_pair(attributes.strides, 1),
            padding=_pair(attributes.padding[: len(attributes.padding) // 2], 0),
            out_height=results[0],
            out_width=results[1],
            itemsize=constant.dtype.itemsize,
        )
        weight = phase_weights(constant, shape)
        if is_1d:
            convolve, packed = _direct(shape.phases(), weight, target, "it has one dimension")
            definition = functools.partial(
                conv1d, shape=shape.phases(), convolve=convolve, keep_rows=True
            )
            phases = builder.emit(_call(builder, "conv1d_phases", definition, data, packed))
        else:
            source = find_source(builder, data)
            call = _convolution(builder, source, weight, shape.phases(), target, strict=strict)
            phases = builder.emit(call)
        shuffle = functools.partial(shuffle_phases, shape=shape, rank=3 if is_1d else 4)
        return builder.call_te(shuffle, phases, primfunc_name_hint="shuffle_phases")

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
        weight = constant.T[:, np.newaxis, np.newaxis, :]
        convolve, packed = _direct(shape, weight, target, "it is a product of matrices")
        definition = functools.partial(matmul, shape=shape, convolve=convolve)
        return _call(builder, "matmul", definition, left, packed)

    return legalize


@mutator
class _Lowering(PyExprMutator):  # type: ignore[misc]
    """Lowers calls of some operators while those above them are still operators."""

    def __init__(self, module: tvm.IRModule, lower: dict[str, Legalize]) -> None:
        super().__init__(module)
        self.lower = lower

    def visit_call_(self, op: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(op)
        lower = self.lower.get(getattr(call.op, "name", ""))
        return call if lower is None else lower(self.builder_, self.builder_.normalize(call))


def lower_constant_weights(
    module: tvm.IRModule, target: CpuTarget, *, strict: bool
) -> tvm.IRModule:
    """Lower convolutions and products with constant weights, together with what they read.

    This comes before TVM lowers the rest: concatenations and resizes are recognised as such.
    """
    lowering = _Lowering(
        module,
        {
            "relax.matmul": legalize_matmul(target),
            "relax.nn.conv1d": legalize_conv2d(target, strict=strict),
            "relax.nn.conv1d_transpose": legalize_conv_transpose(target, strict=strict),
            "relax.nn.conv2d": legalize_conv2d(target, strict=strict),
            "relax.nn.conv2d_transpose": legalize_conv_transpose(target, strict=strict),
        },
    )
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            lowering.builder_.update_func(variable, lowering.visit_expr(function))
    return relax.transform.DeadCodeElimination()(lowering.builder_.get())
