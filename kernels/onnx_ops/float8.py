"""ONNX operator Cast to and from floats of 8 bits and 4: by tables, as TVM's casts round wrong.

https://onnx.ai/onnx/operators/onnx__Cast.html and https://onnx.ai/onnx/technical/float8.html.
Formulas, with the format's values in order of their magnitude v[0] < v[1] < ...:

    decode: result = value[bits]
    encode: bits of v[how many k have |x| above limit[k], or at it where a tie goes up]

To the nearest value, limit[k] is the middle of v[k] and v[k + 1], and a tie goes up for an odd k.
Of types of fewer than 8 bits (see `packed`) the bits are those of the carrier; an integer that is
cast to one keeps its lowest bits.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from tvm import relax, te, tirx

from leakyforge.errors import ModelError
from leakyforge.kernels.onnx_ops.node import Node, dtype_of, numpy_name
from leakyforge.runtime.tensors import CARRIERS

_BITS = "uint8"
# A format of powers of two only, without sign.
_POWERS = "float8_e8m0fnu"
_SIGN = 0x80


@dataclass(frozen=True)
class Format:
    """A format of 8 bits or 4.

    Attributes:
        name: ml_dtypes's.
        largest: bits of the largest finite value.
        beyond: bits, as it is stored, of what is larger, where it does not saturate, without a
            sign.
        nan: bits of NaN, as it is stored.
        signed_zero: whether there is a negative zero, and a sign on NaN and infinity.
    """

    name: str
    largest: int
    beyond: int
    nan: int
    signed_zero: bool

    def values(self) -> npt.NDArray[np.float32]:
        """The value of each bit pattern."""
        kind = getattr(ml_dtypes, self.name)
        every = np.arange(2 ** ml_dtypes.finfo(kind).bits, dtype=np.uint8).view(kind)
        values: npt.NDArray[np.float32] = every.astype(np.float32)
        return values

    @property
    def stored(self) -> str:
        """TVM's name of the type that holds the values."""
        return CARRIERS.get(self.name, self.name)


FORMATS = {
    each.name: each
    for each in (
        Format("float8_e4m3fn", largest=0x7E, beyond=0x7F, nan=0x7F, signed_zero=True),
        Format("float8_e4m3fnuz", largest=0x7F, beyond=0x80, nan=0x80, signed_zero=False),
        Format("float8_e5m2", largest=0x7B, beyond=0x7C, nan=0x7E, signed_zero=True),
        Format("float8_e5m2fnuz", largest=0x7F, beyond=0x80, nan=0x80, signed_zero=False),
        Format("float8_e8m0fnu", largest=0xFE, beyond=0xFF, nan=0xFF, signed_zero=False),
        # Of infinity and NaN, which it has not, ONNX says nothing: the largest, and minus zero.
        Format("float4_e2m1fn", largest=7, beyond=0x4C, nan=0x80, signed_zero=True),
    )
}


# Types that TVM's casts round to wrong, or do not have.
OURS = FORMATS.keys() | CARRIERS.keys()


def convert_cast(node: Node) -> relax.Expr:
    """Cast."""
    to = numpy_name(node.attributes["to"])
    data = node.input(0)
    if isinstance(data.ty, relax.TensorType) and OURS & {dtype_of(data), to}:
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
    if to in FORMATS:
        return encode(node, relax.op.astype(data, "float32"), FORMATS[to])
    if to in CARRIERS:
        # Up and down again, which gives the carrier's upper bits the sign. Of a negative float, an
        # unsigned carrier has no value.
        spare = relax.const(8 - ml_dtypes.iinfo(to).bits, CARRIERS[to])
        wide = relax.op.astype(relax.op.astype(data, "int32"), CARRIERS[to])
        return relax.op.right_shift(relax.op.left_shift(wide, spare), spare)
    return relax.op.astype(data, to)


def decode(node: Node, data: relax.Expr, form: Format) -> relax.Expr:
    """The float32 values of an 8-bit tensor."""

    def look_up(tensor: te.Tensor, table: te.Tensor) -> te.Tensor:
        return te.compute(
            tensor.shape,
            lambda *at: table[tirx.Cast("int32", tirx.reinterpret(_BITS, tensor[at]))],
            name="float8_decode",
        )

    return node.emit_te(look_up, data, relax.const(form.values(), "float32"))


def encode(node: Node, data: relax.Expr, form: Format) -> relax.Expr:
    """A float32 tensor rounded to a format, as the attributes `saturate` and `round_mode` say.

    Raises:
        ModelError: there is no such mode.
    """
    saturates = bool(node.attributes.get("saturate", 1))
    values = form.values()[: form.largest + 1]
    limits, ties_up = _limits(node, values.astype(np.float64), form)
    bits = values.astype(getattr(ml_dtypes, form.stored)).view(_BITS)
    tables = (limits.astype(np.float32), ties_up.astype(np.int32), bits.astype(np.int32))

    def round_to(
        tensor: te.Tensor, limit: te.Tensor, tie_up: te.Tensor, pattern: te.Tensor
    ) -> te.Tensor:
        k = te.reduce_axis((0, len(values)), "k")

        def above(*at: Any) -> Any:
            size = te.abs(tensor[at])
            at_tie = tirx.all(size == limit[k], tie_up[k] != 0)
            return te.sum(tirx.Cast("int32", tirx.any(size > limit[k], at_tie)), axis=k)

        counts = te.compute(tensor.shape, above, name="float8_count")

        def element(*at: Any) -> Any:
            last = tirx.const(form.largest, "int32")
            size = pattern[tirx.min(counts[at], last)]
            if not saturates:
                outside = counts[at] > last
                if form.name == _POWERS:
                    outside = tirx.any(outside, tensor[at] < float(values[0]))
                size = tirx.Select(outside, tirx.const(form.beyond, "int32"), size)
            return _signed(tensor[at], size, form)

        return te.compute(tensor.shape, element, name="float8_encode")

    constants = (relax.const(table, str(table.dtype)) for table in tables)
    return node.emit_te(round_to, node.builder.normalize(data), *constants)


def _limits(
    node: Node, values: npt.NDArray[np.float64], form: Format
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Above which |x| the next value is taken, and whether at it, too."""
    # The last is where the next value would be, if the format went on.
    last = 2 * values[-1] if form.name == _POWERS else 2 * values[-1] - values[-2]
    following = np.append(values[1:], last)
    middles, every = (values + following) / 2, np.ones(len(values), np.bool_)
    if form.name != _POWERS:
        return middles, np.arange(len(values)) % 2 == 1
    mode = node.text("round_mode", "up")
    modes = {"up": (values, ~every), "down": (following, every), "nearest": (middles, every)}
    if mode not in modes:
        raise ModelError(f"{node.operator}: round_mode {mode!r}; ONNX has {', '.join(modes)}")
    return modes[mode]


def _signed(value: Any, size: Any, form: Format) -> Any:
    """The element for a value and the bits of its magnitude."""
    negative = tirx.reinterpret("int32", value) < 0
    if not form.signed_zero:
        negative = tirx.all(negative, size > 0)
    signed = tirx.Select(negative, tirx.bitwise_or(size, tirx.const(_SIGN, "int32")), size)
    bits = tirx.Select(tirx.isnan(value), tirx.const(form.nan, "int32"), signed)
    return tirx.reinterpret(form.stored, tirx.Cast(_BITS, bits))
