"""LeakyRelu: the smallest complete operator, definition to legalization.

    y = x            where x >= 0
    y = alpha * x    elsewhere                (ONNX operator LeakyRelu, opsets 1, 6, 16)

Bytes moved: one read and one write of the tensor; one multiplication per element. The result is
equal to ONNX Runtime's to the last bit, which asks for three things that TVM's own `leakyrelu`
does not do: the comparison is x >= 0 (TVM's is x > 0, which flips the sign of -0 for a negative
alpha), alpha = 0 still multiplies (-inf * 0 is NaN, -1 * 0 is -0), and float16 and bfloat16 are
computed in float32 and rounded once.
"""

import math

import numpy as np
from tvm import ir, relax, te, tirx


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
    dtype = str(x.ty.dtype)
    if dtype in ("float16", "bfloat16"):
        return leaky_relu_element(x.astype("float32"), alpha).astype(dtype)
    if alpha == 0.0:
        # TVM's simplifier folds x * 0.0 into 0.0: write out the three values that it has.
        finite_product = tirx.const(-math.copysign(0.0, alpha), dtype)
        product = tirx.Select(
            x > tirx.const(-math.inf, dtype), finite_product, tirx.const(math.nan, dtype)
        )
    else:
        product = x * tirx.const(alpha, dtype)
    return tirx.Select(x >= tirx.const(0, dtype), x, product)


def legalize_leaky_relu(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `relax.nn.leakyrelu` to the definition above (for `relax.transform.LegalizeOps`)."""
    # An ONNX attribute is a float32; the front end's own default for an absent alpha is a double.
    alpha = float(np.float32(call.attrs.alpha))
    return builder.call_te(leaky_relu, call.args[0], alpha)
