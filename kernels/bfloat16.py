"""bfloat16 as the upper half of a float32, in integers, for kernels that TVM does not legalize.

Both take vectors as well.
"""

from tvm import ir, tirx

from leakyforge.kernels.elements import constant, with_lanes


def widen(bits: ir.Expr) -> ir.Expr:
    """The float32 of the bits of a bfloat16, a uint16; exact."""
    integer = bits.astype(with_lanes("uint32", bits))
    return tirx.reinterpret(
        with_lanes("float32", bits), tirx.shift_left(integer, constant(16, integer))
    )


def narrow(value: ir.Expr) -> ir.Expr:
    """The bits of the bfloat16 nearest to a float32, ties to even; a NaN stays one."""
    integer = tirx.reinterpret(with_lanes("uint32", value), value)
    lowest = tirx.bitwise_and(
        tirx.shift_right(integer, constant(16, integer)), constant(1, integer)
    )
    rounded = tirx.shift_right(integer + lowest + constant(0x7FFF, integer), constant(16, integer))
    # Rounding could carry a NaN over into an infinity or a zero.
    magnitude = tirx.bitwise_and(integer, constant(0x7FFFFFFF, integer))
    is_nan = magnitude > constant(0x7F800000, integer)
    bits = tirx.Select(is_nan, constant(0x7FC0, integer), rounded)
    return bits.astype(with_lanes("uint16", value))
