"""What definitions of one element, or a vector of them, share: dtypes and constants."""

from collections.abc import Callable

import tvm_ffi
from tvm import ir, tirx

# One element, or a vector of them, of the output from those of the inputs.
Element = Callable[..., ir.Expr]


def constant(value: float, like: ir.Expr) -> ir.Expr:
    """A number in the dtype and the lanes of an expression."""
    return tirx.const(value, str(like.ty.dtype))


def computed(x: ir.Expr) -> ir.Expr:
    """The element in the dtype that it is computed in: float32 for the 16-bit types."""
    return x.astype(with_lanes("float32", x)) if x.ty.dtype.bits == 16 else x


def rounded(result: ir.Expr, like: ir.Expr) -> ir.Expr:
    """The result in the dtype of an operand."""
    return result.astype(str(like.ty.dtype)) if like.ty.dtype.bits == 16 else result


def rounded_once(element: Element) -> Element:
    """A definition that is computed in float32 for the 16-bit types, and then rounded."""
    return lambda *operands: rounded(element(*map(computed, operands)), operands[0])


def with_lanes(dtype: str, like: ir.Expr) -> str:
    """A dtype with as many lanes as an expression has."""
    return str(tvm_ffi.dtype(dtype).with_lanes(like.ty.dtype.lanes))
