"""bfloat16 as the upper half of a float32, in integers, for kernels that TVM does not legalize.

Both take vectors as well.
"""

import tvm_ffi
from tvm import ir, tirx


def widen(bits: ir.Expr) -> ir.Expr:
    """The float32 of the bits of a bfloat16, a uint16; exact."""
    integer = bits.astype(_lanes_of("uint32", bits))
    return tirx.reinterpret(
        _lanes_of("float32", bits), tirx.shift_left(integer, _integer(16, integer))
    )


def narrow(value: ir.Expr) -> ir.Expr:
    """The bits of the bfloat16 nearest to a float32, ties to even; a NaN stays one."""
    integer = tirx.reinterpret(_lanes_of("uint32", value), value)
    lowest = tirx.bitwise_and(
        tirx.shift_right(integer, _integer(16, integer)), _integer(1, integer)
    )
    rounded = tirx.shift_right(integer + lowest + _integer(0x7FFF, integer), _integer(16, integer))
    # Rounding could carry a NaN over into an infinity or a zero.
    magnitude = tirx.bitwise_and(integer, _integer(0x7FFFFFFF, integer))
    is_nan = magnitude > _integer(0x7F800000, integer)
    bits = tirx.Select(is_nan, _integer(0x7FC0, integer), rounded)
    return bits.astype(_lanes_of("uint16", value))


def _integer(value: int, like: ir.Expr) -> ir.Expr:
    return tirx.const(value, str(like.ty.dtype))


def _lanes_of(dtype: str, like: ir.Expr) -> str:
    return str(tvm_ffi.dtype(dtype).with_lanes(like.ty.dtype.lanes))
