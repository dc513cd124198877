"""exp, tanh, sigmoid and erf of float32 as vector code: LLVM would call libm for every element.

    exp(x)     = 2^n * e^r,  n = round(x / ln 2),  r = x - n * ln 2,  |r| <= ln(2) / 2
    tanh(x)    = -m / (m + 2),  m = exp(-2|x|) - 1,           with the sign of x
    sigmoid(x) = e / (1 + e) for x < 0, else 1 / (1 + e),     e = exp(-|x|)
    erf(x)     = x * P(x^2) for |x| < 1, else 1 - exp(-G(|x|)),   with the sign of x

The reduction is Cody and Waite's: ln 2 is split in two, the first part of so few bits that its
product with n is exact (Muller, "Elementary Functions", 3rd ed. 2016, section 11.2; the split is
that of Cephes, Moshier 1989). e^r - 1 is Taylor's polynomial of degree 7: the next term is below
0.09 u of the result (u = 2^-24). P and G are polynomials of degree 6, a Chebyshev interpolation of
erf(x) / x and a fit of -log(erfc(x)) on [1, 4] weighted by erfc(x), each within 0.02 u of erf.

Bounds, from u for each rounding: r carries 0.75 u, e^r - 1 2.3 u of itself, and adding 1 another u,
so that exp is within 3 ULP (a relative error of k*u is at most k ULP). The division and the sum
behind it make 5 ULP for sigmoid. The subtraction in m loses at most a factor 1 / 0.29, which with a
sum and a division gives 8 ULP for tanh; erf multiplies exp's error by erfc(1) = 0.16, and the
error 4 u of G by G * erfc <= 0.3, and stays within 4 ULP. Infinities, NaN and -0 give what the
definition gives; results below the normal numbers are rounded like others.

Work: 20 to 40 instructions for a vector, without branches.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import tvm
import tvm_ffi
from tvm import ir, tirx

from leakyforge.kernels.elements import constant

Function = Callable[[ir.Expr], ir.Expr]

_RULE = "llvm.FLowerIntrinsic"
# Between TVM's own rules (10) and any that a user would register (more than the default, 10).
_LEVEL = 99
# Calls within an argument that is still ours. TVM's analyser puts kept values into one another,
# and takes 10 to 100 times as long for each level: a second at most for two, minutes for three.
_MOST_NESTED = 1
# Adding it rounds to an integer, which is then in the low bits: 1.5 * 2^23.
_ROUND = 1.5 * 2.0**23
_ROUND_BITS = 0x4B400000
# ln 2 in two parts, the first of 9 bits.
_LN2_HIGH = 0.693359375
_LN2_LOW = math.log(2.0) - _LN2_HIGH
# Beyond these, e^x is infinite or rounds to 0.
_EXP_RANGE = (-104.0, 89.0)
# Of z^6 down to z^0.
_ERF_SMALL = (
    7.875875062685488e-05,
    -0.000801686428716587,
    0.005189087423433974,
    -0.026854212010626412,
    0.11283594715160218,
    -0.37612626666720334,
    1.1283791658483509,
)
_ERF_LARGE = (
    -0.0001865517095909902,
    0.002948945949467263,
    -0.021841707115134494,
    0.10311145663346165,
    0.6381424864161115,
    1.1270889234963974,
    0.00034196234351631036,
)


class _Values:
    """Values that are computed once, in order, each from those before it."""

    def __init__(self) -> None:
        self._bound: list[tuple[tirx.Var, ir.Expr]] = []

    def keep(self, value: ir.Expr) -> tirx.Var:
        """A name for a value."""
        variable = tirx.Var("value", str(value.ty.dtype))
        self._bound.append((variable, value))
        return variable

    def before(self, result: ir.Expr) -> ir.Expr:
        """An expression of these names, with their values."""
        for variable, value in reversed(self._bound):
            result = tirx.Let(variable, value, result)
        return result


def _bits(x: ir.Expr) -> ir.Expr:
    """The bits of a float32, as int32."""
    return tirx.reinterpret(str(x.ty.dtype).replace("float", "int"), x)


def _from_bits(bits: ir.Expr) -> ir.Expr:
    """The float32 of these bits."""
    return tirx.reinterpret(str(bits.ty.dtype).replace("int", "float"), bits)


def _magnitude(x: ir.Expr) -> ir.Expr:
    """|x|."""
    bits = _bits(x)
    return _from_bits(bits & constant(0x7FFFFFFF, bits))


def _with_sign(magnitude: ir.Expr, x: ir.Expr) -> ir.Expr:
    """A value above or equal to 0 with the sign of x."""
    bits = _bits(x)
    return _from_bits(_bits(magnitude) | (bits & constant(-(2**31), bits)))


def _polynomial(x: ir.Expr, coefficients: tuple[float, ...]) -> ir.Expr:
    """Horner's scheme, from the highest power down."""
    total = constant(coefficients[0], x)
    for coefficient in coefficients[1:]:
        total = total * x + constant(coefficient, x)
    return total


def _power_of_two(exponent: ir.Expr) -> ir.Expr:
    """2^n for -126 <= n <= 127."""
    return _from_bits((exponent + constant(127, exponent)) << constant(23, exponent))


def _reduced(values: _Values, x: ir.Expr) -> tuple[ir.Expr, ir.Expr]:
    """The n and e^r - 1 of e^x, for an x that is kept."""
    rounded = values.keep(x * constant(1.0 / math.log(2.0), x) + constant(_ROUND, x))
    bits = _bits(rounded)
    exponent = values.keep(bits - constant(_ROUND_BITS, bits))
    n = values.keep(rounded - constant(_ROUND, x))
    r = values.keep(x - n * constant(_LN2_HIGH, x) - n * constant(_LN2_LOW, x))
    taylor = tuple(1.0 / math.factorial(power) for power in range(7, 0, -1))
    return exponent, values.keep(r * _polynomial(r, taylor))


def _exp(values: _Values, x: ir.Expr) -> ir.Expr:
    """e^x, for an x that is kept."""
    low, high = (constant(limit, x) for limit in _EXP_RANGE)
    # The limits come first: of a NaN and another value, code for Max and Min takes the second.
    exponent, p = _reduced(values, values.keep(tirx.Max(low, tirx.Min(high, x))))
    # In two steps, of which the second one rounds: 2^n may be no normal number.
    half = values.keep(exponent >> constant(1, exponent))
    power = p + constant(1.0, p)
    return values.keep(power * _power_of_two(half) * _power_of_two(exponent - half))


def exp(x: ir.Expr) -> ir.Expr:
    """e^x."""
    values = _Values()
    return values.before(_exp(values, values.keep(x)))


def tanh(x: ir.Expr) -> ir.Expr:
    """Hyperbolic tangent."""
    values = _Values()
    x = values.keep(x)
    # exp(-40) is far below a rounding of 1.
    limit = constant(-40.0, x)
    double = values.keep(_magnitude(x) * constant(-2.0, x))
    exponent, p = _reduced(values, values.keep(tirx.Max(limit, double)))
    scale = values.keep(_power_of_two(exponent))
    m = values.keep(scale * p + (scale - constant(1.0, p)))
    return values.before(_with_sign((constant(0.0, m) - m) / (m + constant(2.0, m)), x))


def sigmoid(x: ir.Expr) -> ir.Expr:
    """Logistic function, 1 / (1 + e^-x)."""
    values = _Values()
    x = values.keep(x)
    zero, one = constant(0.0, x), constant(1.0, x)
    power = _exp(values, values.keep(zero - _magnitude(x)))
    return values.before(tirx.Select(x < zero, power, one) / (one + power))


def erf(x: ir.Expr) -> ir.Expr:
    """Error function."""
    values = _Values()
    x = values.keep(x)
    one, limit = constant(1.0, x), constant(4.0, x)
    magnitude = values.keep(_magnitude(x))
    square = values.keep(x * x)
    small = values.keep(_polynomial(square, _ERF_SMALL) * magnitude)
    clamped = values.keep(tirx.Min(limit, magnitude))
    decay = values.keep(constant(0.0, x) - _polynomial(clamped, _ERF_LARGE))
    large = one - _exp(values, decay)
    return values.before(_with_sign(tirx.Select(magnitude < one, small, large), x))


_FUNCTIONS: dict[str, Function] = {
    "tirx.erf": erf,
    "tirx.exp": exp,
    "tirx.sigmoid": sigmoid,
    "tirx.tanh": tanh,
}


@contextlib.contextmanager
def our_elementary_functions() -> Iterator[None]:
    """Put our code over TVM's for the time of one build.

    TVM asks when its loops are vectors already, so that all kernels are served by this.
    """
    originals = {}
    for name, function in _FUNCTIONS.items():
        original = tvm.ir.Op.get(name).get_attr(_RULE)
        originals[name] = original
        tvm.ir.register_op_attr(name, _RULE, _lowering(function, original), level=_LEVEL)
    try:
        yield
    finally:
        for name, original in originals.items():
            tvm.ir.Op.get(name).reset_attr(_RULE)
            if original is not None:
                tvm.ir.register_op_attr(name, _RULE, original)


def _lowering(function: Function, original: Function | None) -> Function:
    """The rule for one function: ours for float32, else what was there before."""

    def lower(call: ir.Expr) -> ir.Expr:
        argument = call.args[0]
        if str(call.ty.dtype).startswith("float32") and count_calls(argument) <= _MOST_NESTED:
            return function(argument)
        return call if original is None else original(call)

    return lower


def count_calls(code: ir.Expr | tirx.Stmt) -> int:
    """Calls of our functions within an expression or a statement."""
    found = []

    def look(call: ir.Call) -> None:
        if getattr(call.op, "name", "") in _FUNCTIONS:
            found.append(call)

    tvm_ffi.structural_walk(code, (ir.Call, look))
    return len(found)
