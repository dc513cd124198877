"""What an elementwise expression of one tensor is, found by evaluating it at five points.

The expressions are made of the operators below, zeros, and products with constants. All of them
are homogeneous, f(t·x) = t·f(x) for t > 0, so f(-1) and f(1) are the slopes of the whole function
below and above zero, and f(0) is 0; NaN and the infinities are points of their own. An operator
applies only where its rounded results are those slopes times x, rounded once:

* a product, where one factor is -1, 0 or 1: rounding 0.3·(0.7·x) twice is not rounding 0.21·x;
* a sum, where all terms but one are zero;
* a comparison, of -x, 0 and x: 0.1·x > 0 is false where 0.1·x underflows;
* Max, Min, Where, Relu, Clip and Neg always, since they choose and rounding keeps the order;
  PRelu where its product does.

NaN passes through Max, Min, Relu and Clip, as in ONNX Runtime and numpy.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

# Values at -1, 1, NaN, -inf and inf: float64, or bool for a condition.
Function: TypeAlias = npt.NDArray[Any]
Operand: TypeAlias = Function | float

IDENTITY: Function = np.array([-1.0, 1.0, np.nan, -np.inf, np.inf])
_ZERO: Function = np.zeros(len(IDENTITY))
_FINITE = slice(0, 2)


def leaky_relu_alpha(function: Function) -> float | None:
    """The alpha for which a function is LeakyRelu at every point, None if there is none."""
    if function.dtype == bool:
        return None
    alpha = -float(function[0])
    with np.errstate(invalid="ignore"):
        leaky_relu = np.where(IDENTITY >= 0, IDENTITY, alpha * IDENTITY)
    return alpha if np.array_equal(function, leaky_relu, equal_nan=True) else None


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
    found = []
    for operand in operands:
        if isinstance(operand, float):
            if operand != 0:
                return None
            found.append(_ZERO)
        elif operand.dtype == bool:
            return None
        else:
            found.append(operand)
    return found


def _is_exact(function: Function) -> bool:
    """Whether its slopes are -1, 0 or 1, so that no value was rounded."""
    return bool(np.isin(function[_FINITE], (-1.0, 0.0, 1.0)).all())


def _choice(
    choose: Callable[[Function, Function], Function], *operands: Operand
) -> Function | None:
    """Max or Min."""
    functions = _numbers(operands)
    return None if functions is None else functools.reduce(choose, functions)


def _relu(x: Operand) -> Function | None:
    return _choice(np.maximum, x, 0.0)


def _clip(x: Operand, *bounds: Operand) -> Function | None:
    """Clip to a side of 0; where a bound is left out, an infinity becomes the largest number."""
    constants = [bound for bound in bounds if isinstance(bound, float)]
    if constants == [0.0, np.inf]:
        return _choice(np.maximum, x, 0.0)
    if constants == [-np.inf, 0.0]:
        return _choice(np.minimum, x, 0.0)
    return None


def _product(left: Operand, right: Operand) -> Function | None:
    x, factor = (right, left) if isinstance(left, float) else (left, right)
    if isinstance(x, float) or not isinstance(factor, float) or x.dtype == bool:
        return None
    if not np.isfinite(factor) or not (abs(factor) == 1 or _is_exact(x)):
        return None
    return x * factor


def _negative(x: Operand) -> Function | None:
    return _product(x, -1.0)


def _sum(*operands: Operand) -> Function | None:
    functions = _numbers(operands)
    if functions is None:
        return None
    terms = np.stack(functions)
    if (np.count_nonzero(terms[:, _FINITE], axis=0) > 1).any():
        return None
    return functools.reduce(np.add, functions)


def _difference(left: Operand, right: Operand) -> Function | None:
    functions = _numbers((left, right))
    return None if functions is None else _sum(functions[0], -functions[1])


def _prelu(x: Operand, slope: Operand) -> Function | None:
    scaled = _product(x, slope) if isinstance(slope, float) else None
    if scaled is None or isinstance(x, float):
        return None
    return np.where(x < 0, scaled, x)


def _comparison(
    compare: Callable[[Function, Function], Function], left: Operand, right: Operand
) -> Function | None:
    functions = _numbers((left, right))
    if functions is None or not all(map(_is_exact, functions)):
        return None
    return compare(*functions)


def _not(condition: Operand) -> Function | None:
    return None if isinstance(condition, float) or condition.dtype != bool else ~condition


def _where(condition: Operand, then: Operand, otherwise: Operand) -> Function | None:
    functions = _numbers((then, otherwise))
    if functions is None or isinstance(condition, float) or condition.dtype != bool:
        return None
    return np.where(condition, *functions)


def _identity(x: Operand) -> Function | None:
    return None if isinstance(x, float) else x


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
