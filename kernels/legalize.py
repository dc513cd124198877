"""Lowering Relax operators with constant weights to our definitions."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import relax, te, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from leakyforge.kernels import words
from leakyforge.kernels.algorithms import Algorithm, Definition, prefers_products
from leakyforge.kernels.choice import Choice
from leakyforge.kernels.conv2d import Conv2dShape, pointwise_shape
from leakyforge.kernels.conv_transpose import (
    TransposedShape,
    add_products,
    phase_weights,
    product_weights,
    shuffle_phases,
)
from leakyforge.kernels.expressions import operator_name
from leakyforge.kernels.importer import LAYER_NAMES, LAYERS
from leakyforge.kernels.measure import Layer
from leakyforge.kernels.pooled import find_pools, lower_pool
from leakyforge.kernels.sources import Source, find_source
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.views import conv1d, matmul

# Of a call, and whether a 2x2 maximum pool alone reads what it gives (`pooled`).
Legalize = Callable[[relax.BlockBuilder, relax.Call, bool], relax.Expr]
# Of a layer in words, its sizes, and the input channels that lie together in memory.
Choose = Callable[[str, Layer, int], tuple[Algorithm, Choice]]

# relax.OpPatternKind.kOutEWiseFusable: elementwise operators may be fused behind it.
_OUT_ELEMENTWISE_FUSABLE = {"op_pattern": 4}


def _default_legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower a call as TVM would."""
    return call.op.get_attr("FLegalize")(builder, call)


def _constant_value(value: relax.Expr) -> npt.NDArray[np.generic] | None:
    """Array of a constant, None for anything else."""
    return np.asarray(value.value.numpy()) if isinstance(value, tvm.ir.GenericConst) else None


def packed_constant(
    array: npt.NDArray[np.generic], span: tvm.ir.Span | None
) -> tvm.ir.GenericConst:
    """A constant of the array's dtype, with the span of the layer that it is packed for.

    `relax.const` by itself makes float64 a float32.
    """
    plain = relax.const(array, str(array.dtype))
    return tvm.ir.GenericConst(plain.value, plain.ty, span)


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


def legalize_conv2d(target: CpuTarget, choose_algorithm: Choose) -> Legalize:
    """Lower `relax.nn.conv2d` and `conv1d` with constant weights, channels last."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call, is_pooled: bool) -> relax.Expr:
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
            groups=int(attributes.groups),
            pooled=is_pooled,
        )
        layer = words.convolution(shape, is_1d=is_1d)
        if is_1d:
            convolve, packed = _one_row(layer, data, constant, shape, choose_algorithm)
            definition = functools.partial(conv1d, shape=shape, convolve=convolve)
            return _call(builder, "conv1d", definition, data, packed_constant(packed, call.span))
        source = find_source(builder, data)
        return _convolution(builder, call, layer, source, constant, shape, choose_algorithm)

    return legalize


def _convolution(
    builder: relax.BlockBuilder,
    call: relax.Call,
    layer: str,
    source: Source,
    weight: npt.NDArray[np.generic],
    shape: Conv2dShape,
    choose_algorithm: Choose,
) -> relax.Expr:
    """A convolution of rank 4 by the algorithm that is chosen for it; `layer` is it in words."""
    copies = not source.is_plain
    inputs = tuple(_sizes_of_one(tensor.ty) for tensor in source.tensors)
    algorithm, choice = choose_algorithm(
        layer, Layer(shape, inputs, source.read, copies), math.gcd(*source.channels)
    )
    definition = algorithm.define(shape, choice.note(), copies=copies)
    packed = packed_constant(algorithm.pack(weight, shape), call.span)

    def reading(*tensors: te.Tensor) -> te.Tensor:
        *inputs, weights = tensors
        return definition(source.read(*inputs), weights)

    return _call(builder, "conv2d", reading, *source.tensors, packed)


def _one_row(
    layer: str,
    data: relax.Expr,
    weight: npt.NDArray[np.generic],
    shape: Conv2dShape,
    choose_algorithm: Choose,
) -> tuple[Definition, npt.NDArray[np.generic]]:
    """A convolution of one dimension as one over data of rank 4, and its packed weights."""
    batch, *sizes = _sizes_of_one(data.ty)
    line = Layer(shape, ((batch, 1, *sizes),), lambda tensor: tensor, copies=False)
    algorithm, choice = choose_algorithm(layer, line, shape.in_channels)
    return algorithm.define(shape, choice.note(), copies=False), algorithm.pack(weight, shape)


def _sizes_of_one(kind: relax.TensorType) -> tuple[int, ...]:
    """Sizes of a tensor, a symbolic batch taken as one."""
    batch = kind.shape[0]
    return (int(batch) if isinstance(batch, tirx.IntImm) else 1, *(_static_sizes(kind) or ()))


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


def legalize_conv_transpose(
    target: CpuTarget, choose_algorithm: Choose, *, strict: bool
) -> Legalize:
    """Lower `relax.nn.conv2d_transpose` and `conv1d_transpose` with constant weights."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call, _: bool) -> relax.Expr:
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
        inner, weight = shape.phases(), phase_weights(constant, shape)
        finish: Definition = shuffle_phases
        if prefers_products(shape, target, strict=strict):
            inner, weight, finish = shape.products(), product_weights(constant), add_products
        layer = words.transposed(shape, is_1d=is_1d)
        if is_1d:
            convolve, packed = _one_row(layer, data, weight, inner, choose_algorithm)
            definition = functools.partial(conv1d, shape=inner, convolve=convolve, keep_rows=True)
            convolution = _call(
                builder, "conv1d", definition, data, packed_constant(packed, call.span)
            )
        else:
            source = find_source(builder, data)
            convolution = _convolution(
                builder, call, layer, source, weight, inner, choose_algorithm
            )
        last = functools.partial(finish, shape=shape, rank=3 if is_1d else 4)
        name = "add_products" if finish is add_products else "shuffle_phases"
        return builder.call_te(last, builder.emit(convolution), primfunc_name_hint=name)

    return legalize


def legalize_matmul(choose_algorithm: Choose) -> Legalize:
    """Lower `relax.matmul` of a matrix with a constant one: rows as pixels, a 1x1 kernel."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call, _: bool) -> relax.Expr:
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
        inner, columns = constant.shape
        width = 1 if symbolic else int(rows)
        plain = pointwise_shape(1, width, inner, columns, constant.dtype.itemsize)
        shape = dataclasses.replace(plain, is_product=True)
        line = Layer(shape, ((1, 1, width, inner),), lambda tensor: tensor, copies=False)
        name = words.product(shape, str(rows) if symbolic else str(int(rows)))
        algorithm, choice = choose_algorithm(name, line, inner)
        weight = constant.T[:, np.newaxis, np.newaxis, :]
        packed = packed_constant(algorithm.pack(weight, shape), call.span)
        convolve = algorithm.define(shape, choice.note(), copies=False)
        definition = functools.partial(matmul, shape=shape, convolve=convolve)
        return _call(builder, "matmul", definition, left, packed)

    return legalize


@mutator
class _Lowering(PyExprMutator):  # type: ignore[misc]
    """Lowers calls of some operators while those above them are still operators.

    The calls get the spans, in their order. Pools are lowered if `find_pools` names them.
    """

    def __init__(
        self,
        module: tvm.IRModule,
        lower: dict[str, Legalize],
        spans: Iterator[tvm.ir.Span | None],
    ) -> None:
        super().__init__(module)
        self.lower = lower
        self.spans = spans
        self.pooled, self.pools = find_pools(module["main"])

    def visit_call_(self, op: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(op)
        if any(op.same_as(pool) for pool in self.pools):
            return lower_pool(self.builder_, call)
        lower = self.lower.get(getattr(call.op, "name", ""))
        if lower is None:
            return call
        named = relax.Call(call.op, call.args, call.attrs, call.ty_args, next(self.spans))
        is_pooled = any(op.same_as(convolution) for convolution in self.pooled)
        return lower(self.builder_, self.builder_.normalize(named), is_pooled)


def _calls(module: tvm.IRModule, names: Iterable[str]) -> list[relax.Call]:
    """Calls of operators in `main`, in order."""
    bindings = (binding for block in module["main"].body.blocks for binding in block.bindings)
    values = (getattr(binding, "value", None) for binding in bindings)
    return [value for value in values if operator_name(value) in names]


def layer_spans(module: tvm.IRModule) -> list[tvm.ir.Span | None]:
    """A span for each layer with its name in the ONNX graph; none where the front end added some.

    Args:
        module: whose `main` has the names of its layers as an attribute.
    """
    calls = _calls(module, LAYERS)
    names = [str(name) for name in (module["main"].attrs or {}).get(LAYER_NAMES, ())]
    if len(names) != len(calls):
        return [None] * len(calls)
    return [tvm.ir.Span(tvm.ir.SourceName(name), 0, 0, 0, 0) for name in names]


def tensor_bytes(kind: relax.TensorType) -> int:
    """Bytes of a tensor, symbolic sizes taken as one."""
    sizes = (int(size) if isinstance(size, tirx.IntImm) else 1 for size in kind.shape or ())
    return math.prod(sizes) * int(tvm_ffi.dtype(str(kind.dtype)).bits) // 8


def lower_constant_weights(
    module: tvm.IRModule,
    target: CpuTarget,
    *,
    strict: bool,
    chooser: Callable[[int], Choose],
) -> tvm.IRModule:
    """Lower convolutions and products with constant weights, together with what they read.

    This comes before TVM lowers the rest: concatenations and resizes are recognised as such.

    Args:
        module: imported, in our layouts.
        target: the CPU.
        strict: keep to the sums of the definition.
        chooser: gives what chooses the algorithms, for the bytes that the model touches between two
            runs of one of its layers.
    """
    spans = iter(layer_spans(module))
    module["main"] = module["main"].without_attr(LAYER_NAMES)
    calls = _calls(module, LAYERS)
    # Their weights and results: what the model touches between two runs of one of them.
    touched = sum(tensor_bytes(kind) for call in calls for kind in (call.ty, call.args[1].ty))
    choose_algorithm = chooser(touched)
    convolution = legalize_conv2d(target, choose_algorithm)
    transposed = legalize_conv_transpose(target, choose_algorithm, strict=strict)
    lower = {
        "relax.matmul": legalize_matmul(choose_algorithm),
        "relax.nn.conv1d": convolution,
        "relax.nn.conv1d_transpose": transposed,
        "relax.nn.conv2d": convolution,
        "relax.nn.conv2d_transpose": transposed,
    }
    lowering = _Lowering(module, lower, spans)
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            lowering.builder_.update_func(variable, lowering.visit_expr(function))
    return relax.transform.DeadCodeElimination()(lowering.builder_.get())
