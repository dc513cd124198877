"""ONNX operator Cast to and from 8-bit floats: by tables, as TVM's casts round wrong.

https://onnx.ai/onnx/operators/onnx__Cast.html and https://onnx.ai/onnx/technical/float8.html.
Formulas, with the format's values in order of their magnitude v[0] < v[1] < ...:

    decode: result = value[bits]
    encode: bits = how many k have |x| above the middle of v[k] and v[k + 1], or at it for an odd k
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from tvm import relax, te, tirx

from leakyforge.kernels.onnx_ops.node import Node, dtype_of, numpy_name

_BITS = "uint8"
_SIGN = 0x80


@dataclass(frozen=True)
class Format:
    """An 8-bit format.

    Attributes:
        name: TVM's and ml_dtypes's.
        largest: bits of the largest finite value.
        beyond: bits of what is larger, where it does not saturate, without a sign.
        nan: bits of NaN.
        signed_zero: whether there is a negative zero, and a sign on NaN and infinity.
    """

    name: str
    largest: int
    beyond: int
    nan: int
    signed_zero: bool

    def values(self) -> npt.NDArray[np.float32]:
        """The value of each of the 256 bit patterns."""
        every = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, self.name))
        values: npt.NDArray[np.float32] = every.astype(np.float32)
        return values


FORMATS = {
    each.name: each
    for each in (
        Format("float8_e4m3fn", largest=0x7E, beyond=0x7F, nan=0x7F, signed_zero=True),
        Format("float8_e4m3fnuz", largest=0x7F, beyond=0x80, nan=0x80, signed_zero=False),
        Format("float8_e5m2", largest=0x7B, beyond=0x7C, nan=0x7E, signed_zero=True),
        Format("float8_e5m2fnuz", largest=0x7F, beyond=0x80, nan=0x80, signed_zero=False),
    )
}


def convert_cast(node: Node) -> relax.Expr:
    """Cast."""
    to = numpy_name(node.attributes["to"])
    data = node.input(0)
    if isinstance(data.ty, relax.TensorType) and FORMATS.keys() & {dtype_of(data), to}:
        return _cast(node, data, to)
    return node.standard()


def convert_cast_like(node: Node) -> relax.Expr:
    """CastLike: a Cast to the type of the second input."""
    data = node.input(0)
    if isinstance(data.ty, relax.ShapeType):
        data = node.builder.emit(relax.op.shape_to_tensor(data))
    return _cast(node, data, dtype_of(node.input(1)))


def _cast(node: Node, data: relax.Expr, to: str) -> relax.Expr:
    source = dtype_of(data)
    if source == to:
        return data
    if source in FORMATS:
        data = decode(node, data, FORMATS[source])
    if to not in FORMATS:
        return relax.op.astype(data, to)
    saturates = bool(node.attributes.get("saturate", 1))
    return encode(node, relax.op.astype(data, "float32"), FORMATS[to], saturates)


def decode(node: Node, data: relax.Expr, form: Format) -> relax.Expr:
    """The float32 values of an 8-bit tensor."""

    def look_up(tensor: te.Tensor, table: te.Tensor) -> te.Tensor:
        return te.compute(
            tensor.shape,
            lambda *at: table[tirx.Cast("int32", tirx.reinterpret(_BITS, tensor[at]))],
            name="float8_decode",
        )

    return node.emit_te(look_up, data, relax.const(form.values(), "float32"))


def encode(node: Node, data: relax.Expr, form: Format, saturates: bool) -> relax.Expr:
    """A float32 tensor rounded to an 8-bit format, ties to even."""
    values = form.values()[: form.largest + 1].astype(np.float64)
    # The last is where the next value would be, if the format went on.
    following = np.append(values[1:], 2 * values[-1] - values[-2])
    middles = relax.const(((values + following) / 2).astype(np.float32), "float32")

    def round_to(tensor: te.Tensor, middle: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, len(values)), "k")

        def above(*at: Any) -> Any:
            size = te.abs(tensor[at])
            tie = tirx.all(size == middle[k], k % 2 == 1)
            return te.sum(tirx.Cast("int32", tirx.any(size > middle[k], tie)), axis=k)

        counts = te.compute(tensor.shape, above, name="float8_count")
        return te.compute(
            tensor.shape,
            lambda *at: _bits(tensor[at], counts[at], form, saturates),
            name="float8_encode",
        )

    return node.emit_te(round_to, node.builder.normalize(data), middles)


def _bits(value: Any, count: Any, form: Format, saturates: bool) -> Any:
    """The bits for a value and the number of middles below its magnitude."""
    beyond = form.largest if saturates else form.beyond
    size = tirx.Select(count > form.largest, tirx.const(beyond, "int32"), count)
    negative = tirx.reinterpret("int32", value) < 0
    if not form.signed_zero:
        negative = tirx.all(negative, count > 0)
    signed = tirx.Select(negative, tirx.bitwise_or(size, tirx.const(_SIGN, "int32")), size)
    bits = tirx.Select(tirx.isnan(value), tirx.const(form.nan, "int32"), signed)
    return tirx.reinterpret(form.name, tirx.Cast(_BITS, bits))
