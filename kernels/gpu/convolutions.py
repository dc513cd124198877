"""Convolutions of constant weights: the direct sum, or Winograd's algorithm where it pays.

This comes before TVM lowers the rest. Convolutions in groups, of one dimension, of weights that are
no constants and of other dtypes than float32 are left to TVM's definitions.
"""

import functools
from collections.abc import Mapping
from typing import Any

import tvm
from tvm import ir, relax, te, tirx, topi
from tvm.relax.expr_functor import PyExprMutator, mutator

from leakyforge.kernels import words
from leakyforge.kernels.choice import Choice, Trial
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.expressions import operator_name
from leakyforge.kernels.gpu.estimates import direct_seconds, reference_gpu, winograd_seconds
from leakyforge.kernels.gpu.limits import device_limits
from leakyforge.kernels.gpu.target import GpuTarget
from leakyforge.kernels.gpu.winograd import (
    KERNEL,
    Tiling,
    multiply,
    transform_input,
    transform_output,
    transform_weights,
)
from leakyforge.kernels.importer import LAYERS
from leakyforge.kernels.legalize import layer_spans, packed_constant
from leakyforge.runtime.manifest import CUDA

# The sum of a direct convolution.
BLOCK = "direct_convolution"
# m to choose from; F(6, 3) loses too much (docs/cost-model.md).
_OUTPUTS = (2, 4)
# What the direct sum has to be estimated to take longer: Winograd's is less exact.
_GAIN = 1.1
# The largest buffer that every device has. OpenCL: Khronos, "The OpenCL Specification", 3.0, table
# 5, CL_DEVICE_MAX_MEM_ALLOC_SIZE; WebGPU: W3C, "WebGPU", 3.6.2, maxStorageBufferBindingSize.
_MOST_BYTES = 128 << 20
# relax.OpPatternKind: kOutEWiseFusable takes elementwise operators behind it, kOpaque nothing.
_FUSABLE, _OPAQUE = {"op_pattern": 4}, {"op_pattern": 8}


def lower_convolutions(
    module: tvm.IRModule, target: GpuTarget, *, strict: bool, unmeasured: str
) -> tvm.IRModule:
    """Lower convolutions to our definitions.

    Args:
        module: imported.
        target: the GPU.
        strict: keep to the sums of the definition.
        unmeasured: why algorithms are not measured.
    """
    lowering = _Lowering(module, target, strict, unmeasured)
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            lowering.builder_.update_func(variable, lowering.visit_expr(function))
    return relax.transform.DeadCodeElimination()(lowering.builder_.get())


def choose(
    shape: Conv2dShape,
    batch: int,
    target: GpuTarget,
    *,
    strict: bool,
    is_half: bool,
    unmeasured: str,
) -> tuple[Tiling | None, Choice]:
    """The tiles of Winograd's algorithm, None for the direct sum, and why.

    Args:
        shape: the convolution.
        batch: of images.
        target: the GPU.
        strict: keep to the sums of the definition.
        is_half: whether its input is float16, of which it computes in float32.
        unmeasured: why algorithms are not measured.
    """
    limits, gpu = device_limits(target.tvm), reference_gpu(target)
    seconds = direct_seconds(shape, batch, limits, gpu)
    found: list[tuple[float, Tiling | None]] = [(seconds, None)]
    refused = _refusal(shape, strict=strict, is_half=is_half)
    reasons = [] if refused is None else [refused]
    for tiling in [] if reasons else [Tiling(shape, batch, outputs) for outputs in _OUTPUTS]:
        weights, transformed, sums = tiling.bytes
        # The last two lie in one buffer, the arena.
        size = max(weights, transformed + sums)
        if target.machine != CUDA and size > _MOST_BYTES:
            reasons.append(
                f"{_name(tiling)} takes a buffer of {size >> 20} MiB, more than some devices have"
            )
        else:
            found.append((winograd_seconds(tiling, limits, gpu), tiling))
    found.sort(key=lambda each: each[0])
    least, taken = found[0]
    if taken is not None and seconds < _GAIN * least:
        reasons.append("Winograd has to be estimated to save a tenth")
        taken = None
    choice = Choice(
        layer=words.convolution(shape, is_1d=False),
        algorithm="direct" if taken is None else f"Winograd {_name(taken)}, {taken.tiles} tiles",
        taken=[tiling for _, tiling in found].index(taken),
        trials=tuple(Trial(_name(tiling), each / least) for each, tiling in found),
        not_measured=f"{unmeasured}; estimated for {gpu.name}",
        refused=tuple(reasons),
    )
    return taken, choice


def _refusal(shape: Conv2dShape, *, strict: bool, is_half: bool) -> str | None:
    """Why Winograd's algorithm is no candidate."""
    if strict:
        return "precision is strict: no Winograd"
    if is_half:
        return "its input is float16: no Winograd"
    if (shape.kernel, shape.strides, shape.dilation) != ((KERNEL, KERNEL), (1, 1), (1, 1)):
        return "Winograd takes 3x3 kernels of stride 1, without dilation"
    if min(shape.in_channels, shape.out_channels) == 1:
        return "Winograd takes more than one channel"
    return None


def _name(tiling: Tiling | None) -> str:
    return "direct" if tiling is None else f"F({tiling.outputs}, {KERNEL})"


@mutator
class _Lowering(PyExprMutator):  # type: ignore[misc]
    """Lowers the convolutions of a module."""

    def __init__(
        self, module: tvm.IRModule, target: GpuTarget, strict: bool, unmeasured: str
    ) -> None:
        super().__init__(module)
        self._target, self._strict, self._unmeasured = target, strict, unmeasured
        self._spans = iter(layer_spans(module))

    def visit_call_(self, op: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(op)
        span = next(self._spans, None) if operator_name(call) in LAYERS else None
        found = _shape(call)
        if found is None:
            return call
        shape, batch = found
        tiling, choice = choose(
            shape, batch, self._target, strict=self._strict, unmeasured=self._unmeasured,
            is_half=self._is_half(call.args[0]),
        )  # fmt: skip
        data, weight = call.args
        if tiling is None:
            definition = functools.partial(direct, shape=shape, note=choice.note())
            named = ir.GenericConst(weight.value, weight.ty, span)
            return self._call("conv2d", definition, _FUSABLE, data, named)
        packed = packed_constant(transform_weights(weight.value.numpy(), tiling), span)
        product = functools.partial(multiply, tiling=tiling, note=choice.note())
        transformed = self._call(
            "winograd_input", functools.partial(transform_input, tiling=tiling), _OPAQUE, data
        )
        products = self._call(
            "winograd_products", product, _OPAQUE, packed, self.builder_.emit(transformed)
        )
        return self._call(
            "winograd_output", functools.partial(transform_output, tiling=tiling), _FUSABLE,
            self.builder_.emit(products),
        )  # fmt: skip

    def _call(
        self,
        name: str,
        definition: "functools.partial[te.Tensor]",
        pattern: Mapping[str, int],
        *arguments: relax.Expr,
    ) -> relax.Expr:
        return self.builder_.call_te(
            definition, *arguments, primfunc_name_hint=name, primfunc_attrs=pattern
        )

    def _is_half(self, data: relax.Expr) -> bool:
        """Whether a value is a float16 one, cast (see `kernels.half`)."""
        if not isinstance(data, relax.Var):
            return False
        value: Any = self.builder_.lookup_binding(data)
        return operator_name(value) == "relax.astype" and str(value.args[0].ty.dtype) == "float16"


def _shape(call: relax.Call) -> tuple[Conv2dShape, int] | None:
    """Sizes of a convolution that is lowered here, and its batch; None for others."""
    if operator_name(call) != "relax.nn.conv2d" or not isinstance(call.args[1], ir.GenericConst):
        return None
    kinds, attributes = [each.ty for each in (*call.args, call)], call.attrs
    layouts = (str(attributes.data_layout), str(attributes.kernel_layout))
    if (
        layouts != ("NCHW", "OIHW")
        or int(attributes.groups) != 1
        or any(str(kind.dtype) != "float32" or kind.shape is None for kind in kinds)
        or not all(isinstance(size, tirx.IntImm) for kind in kinds for size in kind.shape)
        or any(int(size) == 0 for kind in kinds for size in kind.shape)
    ):
        return None
    (batch, inner, height, width), (outer, _, *kernel), _ = (
        [int(size) for size in kind.shape] for kind in kinds
    )
    top, left, bottom, right = (int(size) for size in attributes.padding)
    strides, dilation = (
        [int(step) for step in steps] for steps in (attributes.strides, attributes.dilation)
    )
    shape = Conv2dShape(
        height=height,
        width=width,
        in_channels=inner,
        out_channels=outer,
        kernel=(kernel[0], kernel[1]),
        strides=(strides[0], strides[1]),
        dilation=(dilation[0], dilation[1]),
        padding=(top, left, bottom, right),
        itemsize=4,
    )
    return shape, batch


def direct(
    data: te.Tensor, weight: te.Tensor, shape: Conv2dShape, note: Mapping[str, str]
) -> te.Tensor:
    """The sum of the definition over [n, k, y, x] and [c, k, i, j]; `note` goes with its block."""
    top, left, bottom, right = shape.padding
    padded = topi.nn.pad(data, [0, 0, top, left], [0, 0, bottom, right], name="pad")
    (down, along), (rows, columns) = shape.strides, shape.dilation
    k = te.reduce_axis((0, shape.in_channels), "k")
    i, j = (te.reduce_axis((0, size), name) for size, name in zip(shape.kernel, "ij", strict=True))
    return te.compute(
        (data.shape[0], shape.out_channels, shape.out_height, shape.out_width),
        lambda n, c, y, x: te.sum(
            padded[n, k, y * down + i * rows, x * along + j * columns] * weight[c, k, i, j],
            axis=[k, i, j],
        ),
        name=BLOCK,
        attrs=dict(note),
    )
