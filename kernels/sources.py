"""What a convolution reads: joined and repeated tensors and an image's planes, by its padding.

A convolution copies its input into a padded block of memory. Copying from the tensors that were
joined, from the pixels that were repeated, or from an image whose channels come first, costs no
more, and saves one write and one read of the whole tensor. Formulas: concat[n, y, x, k] = the
first tensor whose channels reach k; upsampled[n, y, x, k] = data[n, y // f, x // f', k];
channels_last[n, y, x, k] = data[n, k, y, x].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import ir, relax, te, tirx

from leakyforge.kernels.expressions import operator_name

Read = Callable[..., te.Tensor]

# The axes of [n, k, y, x] in the order [n, y, x, k].
_LAST = [0, 2, 3, 1]
# An image's: of more planes, reading one element each would touch too many lines of the cache.
_FEW_CHANNELS = 4


@dataclass(frozen=True)
class Source:
    """Channels-last tensors of rank 4 and how the input is read from them.

    Attributes:
        tensors: what is read.
        channels: of each.
        read: the input, as a definition over `tensors`.
        is_plain: whether it is one tensor, unchanged.
    """

    tensors: tuple[relax.Expr, ...]
    channels: tuple[int, ...]
    read: Read
    is_plain: bool


def find_source(builder: relax.BlockBuilder, data: relax.Expr) -> Source:
    """Look through the operators above a convolution's input, of static sizes but for the batch."""
    call: Any = builder.lookup_binding(data) if isinstance(data, relax.Var) else None
    name = operator_name(call)
    if name == "relax.concat" and int(call.attrs.axis) == 3:
        return _joined([find_source(builder, part) for part in _fields(builder, call.args[0])])
    if name == "relax.image.resize2d":
        factors = _repeats(call)
        if factors is not None:
            return _repeated(find_source(builder, call.args[0]), factors)
    if name == "relax.permute_dims" and [int(axis) for axis in call.attrs.axes or ()] == _LAST:
        channels = int(data.ty.shape[3])
        if channels <= _FEW_CHANNELS:
            return Source((call.args[0],), (channels,), _channels_last, is_plain=False)
    return Source((data,), (int(data.ty.shape[3]),), lambda tensor: tensor, is_plain=True)


def _fields(builder: relax.BlockBuilder, fields: relax.Expr) -> list[relax.Expr]:
    """Members of a tuple, which may be bound to a name."""
    bound = builder.lookup_binding(fields) if isinstance(fields, relax.Var) else fields
    return list(bound.fields)


def _joined(parts: Sequence[Source]) -> Source:
    """Concatenation along the channels."""
    widths = [sum(part.channels) for part in parts]

    def read(*tensors: te.Tensor) -> te.Tensor:
        inputs, position = [], 0
        for part in parts:
            count = len(part.tensors)
            inputs.append(part.read(*tensors[position : position + count]))
            position += count

        def element(n: ir.Expr, y: ir.Expr, x: ir.Expr, k: ir.Expr) -> ir.Expr:
            first = sum(widths[:-1])
            value = inputs[-1][n, y, x, k - first]
            for tensor, width in zip(inputs[-2::-1], widths[-2::-1], strict=True):
                first -= width
                value = tirx.if_then_else(k < first + width, tensor[n, y, x, k - first], value)
            return value

        return te.compute((*inputs[0].shape[:3], sum(widths)), element, name="joined")

    return Source(
        tuple(tensor for part in parts for tensor in part.tensors),
        tuple(width for part in parts for width in part.channels),
        read,
        is_plain=False,
    )


def _channels_last(data: te.Tensor) -> te.Tensor:
    """[n, k, y, x] as [n, y, x, k]."""
    n, k, y, x = data.shape
    return te.compute((n, y, x, k), lambda n, y, x, k: data[n, k, y, x], name="channels_last")


def _repeats(call: relax.Call) -> tuple[int, int] | None:
    """Factors of a resize that repeats pixels; None for any other."""
    attributes, data, result = call.attrs, call.args[0].ty.shape, call.ty.shape
    floor = str(attributes.coordinate_transformation_mode) == "asymmetric" and (
        str(attributes.rounding_method) == "floor"
    )
    if str(attributes.method) != "nearest_neighbor" or str(attributes.layout) != "NHWC":
        return None
    sizes = [(int(data[axis]), int(result[axis])) for axis in (1, 2)]
    if not floor or any(large % small for small, large in sizes):
        return None
    return sizes[0][1] // sizes[0][0], sizes[1][1] // sizes[1][0]


def _repeated(part: Source, factors: tuple[int, int]) -> Source:
    """Every pixel repeated by whole factors."""
    rows, columns = factors

    def read(*tensors: te.Tensor) -> te.Tensor:
        data = part.read(*tensors)
        n, y, x, k = data.shape
        return te.compute(
            (n, y * rows, x * columns, k),
            lambda n, y, x, k: data[n, y // rows, x // columns, k],
            name="repeated",
        )

    return Source(part.tensors, part.channels, read, is_plain=False)
