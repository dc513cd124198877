"""Activations and their derivatives, one element or a vector of them at a time.

    sigmoid(x) = 1 / (1 + e^-x)            dx = dy * e / (1 + e)^2,      e = e^-|x|
    tanh(x)                                dx = dy * 4e / (1 + e)^2,     e = e^-2|x|
    relu(x) = x where x >= 0, else 0       dx = dy where x > 0, else 0
    prelu(x, s) = x where x >= 0, else s * x
                                           dx = dy where x > 0, else s * dy
                                           ds = 0 where x > 0, else x * dy

LeakyRelu, whose slope is a number, is in `leaky_relu`. The derivatives of sigmoid and tanh are
written from e, which is at most 1: y * (1 - y) and 1 - y^2 lose all digits where y is near 1, and
these are within a few ULP everywhere. A NaN stays one, except in the derivatives of the last two:
as in PyTorch, relu's passes dy on, and prelu's takes the slope. -0 is not below zero, and at 0 the
derivative is that of the negative side.

Sources: Nair and Hinton, "Rectified Linear Units Improve Restricted Boltzmann Machines", ICML 2010
(relu); He et al., "Delving Deep into Rectifiers", arXiv:1502.01852 (prelu); Xu et al., "Empirical
Evaluation of Rectified Activations in Convolutional Network", arXiv:1505.00853 (rrelu, which is
prelu with slopes that are drawn).
"""

from types import MappingProxyType
from typing import NamedTuple

from tvm import ir, tirx

from leakyforge.kernels.elements import Element, constant, rounded_once


class Activation(NamedTuple):
    """A function of `x`, and the gradient at `x` from the gradient `dy` behind it."""

    forward: Element
    gradient: Element


def sigmoid(x: ir.Expr) -> ir.Expr:
    """One element of the logistic function: within 5 ULP in float32."""
    return tirx.sigmoid(x)


def sigmoid_gradient(x: ir.Expr, dy: ir.Expr) -> ir.Expr:
    """One element of its gradient."""
    return dy * _bell(x, 1.0)


def tanh(x: ir.Expr) -> ir.Expr:
    """One element of the hyperbolic tangent: within 8 ULP in float32, by libm in float64."""
    if x.ty.dtype.bits == 64:
        # TVM's own code subtracts exponentials, which near 0 leaves few digits, and no -0.
        return tirx.call_llvm_pure_intrin(str(x.ty.dtype), "llvm.tanh", x)
    return tirx.tanh(x)


def tanh_gradient(x: ir.Expr, dy: ir.Expr) -> ir.Expr:
    """One element of its gradient."""
    return dy * (constant(4.0, x) * _bell(x, 2.0))


def relu(x: ir.Expr) -> ir.Expr:
    """One element of max(x, 0), of which a NaN stays one."""
    zero = constant(0.0, x)
    return tirx.Select(x < zero, zero, x)


def relu_gradient(x: ir.Expr, dy: ir.Expr) -> ir.Expr:
    """One element of its gradient."""
    zero = constant(0.0, x)
    return tirx.Select(x <= zero, zero, dy)


def prelu(x: ir.Expr, slope: ir.Expr) -> ir.Expr:
    """One element of LeakyRelu with a slope of its own."""
    return tirx.Select(x >= constant(0.0, x), x, x * slope)


def prelu_gradient(x: ir.Expr, slope: ir.Expr, dy: ir.Expr) -> ir.Expr:
    """One element of its gradient by `x`."""
    return tirx.Select(x > constant(0.0, x), dy, dy * slope)


def prelu_slope_gradient(x: ir.Expr, dy: ir.Expr) -> ir.Expr:
    """One element of its gradient by the slope."""
    zero = constant(0.0, x)
    return tirx.Select(x > zero, zero, x * dy)


def _bell(x: ir.Expr, factor: float) -> ir.Expr:
    """Sigmoid's derivative at factor * x: e / (1 + e)^2 with e = e^-|factor * x|."""
    kept = tirx.Var("e", str(x.ty.dtype))
    one = constant(1.0, x)
    power = tirx.exp(tirx.abs(x) * constant(-factor, x))
    return tirx.Let(kept, power, kept / ((one + kept) * (one + kept)))


ACTIVATIONS = MappingProxyType(
    {
        name: Activation(rounded_once(forward), rounded_once(gradient))
        for name, forward, gradient in (
            ("sigmoid", sigmoid, sigmoid_gradient),
            ("tanh", tanh, tanh_gradient),
            ("relu", relu, relu_gradient),
        )
    }
)
