"""What an elementwise expression of one tensor is, found by evaluating it at seven points.

The expressions are made of the operators below, zeros, and products with constants. All of them
are homogeneous, f(t·x) = t·f(x) for t > 0, so f(-1) and f(1) are the slopes of the whole function
below and above zero; NaN, the infinities and the two zeros are points of their own. An operator
applies only where its rounded results are those slopes times x, rounded once:

* a product, where one factor is -1, 0 or 1: rounding 0.3·(0.7·x) twice is not rounding 0.21·x;
* a sum, where one term is zero;
* a comparison, that of PRelu too, of -x, 0 and x: 0.1·x > 0 is false where 0.1·x underflows;
* Max, Min, Where, Relu, Clip and Neg always, since they choose and rounding keeps the order.

NaN passes through Max, Min, Relu and Clip, as in ONNX Runtime and numpy.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

_Samples: TypeAlias = npt.NDArray[Any]

# Slope below zero (negated) and above it, then the special points.
_POINTS = np.array([-1.0, 1.0, np.nan, -np.inf, np.inf, -0.0, 0.0])
_SLOPES = slice(0, 2)
_ZEROS = slice(5, 7)


@dataclass(frozen=True)
class Function:
    """A function of x at `_POINTS`: floats, or truth values for a condition.

    Attributes:
        samples: float64 or bool, of shape (7,).
        signed_zeros: the signs of its zeros are certain. Those of Max(-0, 0), and of a sum in
            which a product underflows, are not.
    """

    samples: _Samples
    signed_zeros: bool = True


Operand: TypeAlias = Function | float

IDENTITY = Function(_POINTS)
_ZERO = Function(np.zeros(len(_POINTS)))


def leaky_relu_alpha(function: Function) -> float | None:
    """The alpha for which a function is LeakyRelu at every point, None if there is none.

    A zero of either sign counts as equal, but for a negative alpha: there zeros are where the
    forms of LeakyRelu differ, and their signs have to match as well.
    """
    samples = function.samples
    if samples.dtype == bool:
        return None
    alpha = -float(samples[0])
    with np.errstate(invalid="ignore"):
        wanted = np.where(_POINTS >= 0, _POINTS, alpha * _POINTS)
    if not np.array_equal(samples, wanted, equal_nan=True):
        return None
    if alpha < 0 and not (
        function.signed_zeros
        and np.array_equal(np.signbit(samples[_ZEROS]), np.signbit(wanted[_ZEROS]))
    ):
        return None
    return alpha


def apply(op_type: str, operands: Sequence[Operand]) -> Function | None:
    """An ONNX operator applied to functions of x.

    Args:
        op_type: a key of `OPERATORS`.
        operands: one for each input, a float for a constant.

    Returns:
        None where the result is not slopes times x, rounded once.
    """
    with np.errstate(invalid="ignore"):
        return OPERATORS[op_type](*operands)


def _numbers(operands: Sequence[Operand]) -> list[Function] | None:
    """Functions with float values; a constant is one only if it is zero."""
    functions = [_ZERO if operand == 0 else operand for operand in operands]
    found = [each for each in functions if isinstance(each, Function) and _is_number(each)]
    return found if len(found) == len(functions) else None


def _is_number(function: Function) -> bool:
    return bool(function.samples.dtype != bool)


def _is_exact(function: Function) -> bool:
    """Whether its slopes are -1, 0 or 1, so that no value was rounded."""
    return bool(np.isin(function.samples[_SLOPES], (-1.0, 0.0, 1.0)).all())


def _choice(
    choose: Callable[[_Samples, _Samples], _Samples], *operands: Operand
) -> Function | None:
    """Max or Min."""
    functions = _numbers(operands)
    if functions is None:
        return None
    return Function(functools.reduce(choose, (each.samples for each in functions)), False)


def _relu(x: Operand) -> Function | None:
    return _choice(np.maximum, x, 0.0)


def _clip(x: Operand, low: Operand | None = None, high: Operand | None = None) -> Function | None:
    """Clip to a side of 0; where a bound is left out, an infinity becomes the largest number."""
    if low == 0 and high == np.inf:
        return _choice(np.maximum, x, 0.0)
    if low == -np.inf and high == 0:
        return _choice(np.minimum, x, 0.0)
    return None


def _product(left: Operand, right: Operand) -> Function | None:
    x, factor = (right, left) if isinstance(left, float) else (left, right)
    if not isinstance(x, Function) or not isinstance(factor, float) or not _is_number(x):
        return None
    if not np.isfinite(factor) or not (abs(factor) == 1 or _is_exact(x)):
        return None
    return Function(x.samples * factor, x.signed_zeros)


def _negative(x: Operand) -> Function | None:
    return _product(x, -1.0)


def _sum(*operands: Operand) -> Function | None:
    functions = _numbers(operands)
    if functions is None:
        return None
    terms = np.stack([each.samples for each in functions])
    if (np.count_nonzero(terms[:, _SLOPES], axis=0) > 1).any():
        return None
    return Function(functools.reduce(np.add, terms), False)


def _difference(left: Operand, right: Operand) -> Function | None:
    negative = _negative(_ZERO if right == 0 else right)
    return None if negative is None else _sum(left, negative)


def _prelu(x: Operand, slope: Operand) -> Function | None:
    scaled = _product(x, slope) if isinstance(slope, float) else None
    if scaled is None or not isinstance(x, Function) or not _is_exact(x):
        return None
    return Function(np.where(x.samples < 0, scaled.samples, x.samples), x.signed_zeros)


def _comparison(
    compare: Callable[[_Samples, _Samples], _Samples], left: Operand, right: Operand
) -> Function | None:
    functions = _numbers((left, right))
    if functions is None or not all(map(_is_exact, functions)):
        return None
    return Function(compare(functions[0].samples, functions[1].samples))


def _not(condition: Operand) -> Function | None:
    if not isinstance(condition, Function) or _is_number(condition):
        return None
    return Function(~condition.samples)


def _where(condition: Operand, then: Operand, otherwise: Operand) -> Function | None:
    functions = _numbers((then, otherwise))
    if functions is None or not isinstance(condition, Function) or _is_number(condition):
        return None
    chosen, other = functions
    return Function(
        np.where(condition.samples, chosen.samples, other.samples),
        chosen.signed_zeros and other.signed_zeros,
    )


def _identity(x: Operand) -> Function | None:
    return x if isinstance(x, Function) else None


OPERATORS: dict[str, Callable[..., Function | None]] = {
    "Add": _sum,
    "Clip": _clip,
    "Greater": functools.partial(_comparison, np.greater),
    "GreaterOrEqual": functools.partial(_comparison, np.greater_equal),
    "Identity": _identity,
    "Less": functools.partial(_comparison, np.less),
    "LessOrEqual": functools.partial(_comparison, np.less_equal),
    "Max": functools.partial(_choice, np.maximum),
    "Min": functools.partial(_choice, np.minimum),
    "Mul": _product,
    "Neg": _negative,
    "Not": _not,
    "PRelu": _prelu,
    "Relu": _relu,
    "Sub": _difference,
    "Sum": _sum,
    "Where": _where,
}
