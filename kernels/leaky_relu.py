"""LeakyRelu and its gradient: the smallest complete operators, definition to legalization.

    y = x            where x >= 0
    y = alpha * x    elsewhere                (ONNX operator LeakyRelu, opsets 1, 6, 16)

Bytes moved: one read and one write of the tensor; one multiplication per element. The result is
equal to ONNX Runtime's to the last bit, which asks for three things that TVM's own `leakyrelu`
does not do: the comparison is x >= 0 (TVM's is x > 0, which flips the sign of -0 for a negative
alpha), alpha = 0 still multiplies (-inf * 0 is NaN, -1 * 0 is -0), and float16 and bfloat16 are
computed in float32 and rounded once.

    dx = dy            where x > 0
    dx = alpha * dy    elsewhere

The derivative does not exist at 0, where alpha is taken as PyTorch does; of a NaN, which is not
above 0, it is alpha too. Bytes moved: two reads and one write.

The definitions of elements take vectors of elements as well.
"""

import math

import numpy as np
from tvm import ir, relax, te, tirx

from leakyforge.kernels.elements import computed, constant, rounded, with_lanes


def leaky_relu(x: te.Tensor, alpha: float) -> te.Tensor:
    """Elementwise LeakyRelu.

    Args:
        x: any shape; float16, bfloat16, float32 or float64.
        alpha: slope for x < 0, already rounded to float32 as an ONNX attribute is.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    return te.compute(
        x.shape, lambda *index: leaky_relu_element(x(*index), alpha), name="leaky_relu"
    )


def leaky_relu_element(x: ir.Expr, alpha: float) -> ir.Expr:
    """One element of LeakyRelu, for use in the epilogue of another kernel too."""
    wide = computed(x)
    return rounded(tirx.Select(wide >= constant(0.0, wide), wide, _scaled(wide, alpha)), x)


def leaky_relu_gradient_element(x: ir.Expr, dy: ir.Expr, alpha: float) -> ir.Expr:
    """One element of LeakyRelu's gradient at `x`, given the gradient `dy` behind it."""
    wide = computed(dy)
    return rounded(tirx.Select(x > constant(0.0, x), wide, _scaled(wide, alpha)), dy)


def _scaled(x: ir.Expr, alpha: float) -> ir.Expr:
    """The product alpha * x, of 0 too: -inf * 0 is NaN and -1 * 0 is -0."""
    factor = constant(alpha, x)
    if alpha == 0.0:
        # TVM's simplifier folds x * 0.0 into 0.0, but does not know the number that these bits are.
        bits = x.ty.dtype.bits
        minus_zero = tirx.reinterpret(
            str(x.ty.dtype), tirx.const(-(1 << (bits - 1)), with_lanes(f"int{bits}", x))
        )
        factor = minus_zero if math.copysign(1.0, alpha) < 0 else minus_zero * minus_zero
    return x * factor


def legalize_leaky_relu(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `relax.nn.leakyrelu` to the definition above."""
    # An ONNX attribute is a float32; the front end's own default for an absent alpha is a double.
    alpha = float(np.float32(call.attrs.alpha))
    return builder.call_te(leaky_relu, call.args[0], alpha)
