"""The matrices of Winograd convolution F(m, r), and linear combinations by them.

    y = A' [ (G g) * (B' d) ]     m outputs of a kernel g of r, from m + r - 1 inputs d

In two dimensions each matrix is applied to the rows and to the columns of a tile: A' [...] A,
G g G' and B' d B.

They come from the Cook-Toom construction over rational points. Points decide the error:
0, 1, -1, 1/2, -2 lose a third of what the usual 0, 1, -1, 2, -2 lose (Barabasz et al., "Error
Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", ACM TOMS
46(4), 2020), about as much as a sum of 64 times the length; the tolerance stays that of the sum.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from tvm import ir, tirx

Matrix = npt.NDArray[np.float64]

_POINTS = (
    Fraction(0),
    Fraction(1),
    Fraction(-1),
    Fraction(1, 2),
    Fraction(-2),
    Fraction(-1, 2),
    Fraction(2),
)


@dataclass(frozen=True)
class Transform:
    """The three matrices of F(m, r), for one dimension."""

    output: Matrix  # A', m x (m + r - 1)
    kernel: Matrix  # G, (m + r - 1) x r
    input: Matrix  # B', (m + r - 1) x (m + r - 1)


@functools.cache
def cook_toom(outputs: int, kernel: int) -> Transform:
    """Matrices of F(outputs, kernel) over the first points and infinity.

    Column j of A' and row j of G evaluate a polynomial at point j, G divided by the product of the
    point's distances from the others; row j of B' holds the polynomial that vanishes at the others.
    """
    points = _POINTS[: outputs + kernel - 2]
    one, zero = Fraction(1), Fraction(0)
    evaluate = [[point**i for point in points] + [one if i == outputs - 1 else zero]
                for i in range(outputs)]  # fmt: skip
    scaled, vanishing = [], []
    for point in points:
        others = [other for other in points if other != point]
        distance = math.prod((point - other for other in others), start=one)
        scaled.append([point**i / distance for i in range(kernel)])
        vanishing.append([*_polynomial(others), zero])
    scaled.append([zero] * (kernel - 1) + [one])
    vanishing.append(_polynomial(points))
    matrices = (np.array(rows, dtype=np.float64) for rows in (evaluate, scaled, vanishing))
    return Transform(*matrices)


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, lowest first, of the monic polynomial with these roots."""
    result = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *result]
        scaled = [root * value for value in (*result, Fraction(0))]
        result = [high - low for high, low in zip(shifted, scaled, strict=True)]
    return result


def transform_kernels(weight: npt.NDArray[np.generic], outputs: int) -> npt.NDArray[np.float64]:
    """Square kernels [out][row][column][in] as G g G', [place's row][its column][out][in]."""
    matrix = cook_toom(outputs, weight.shape[1]).kernel
    transformed: npt.NDArray[np.float64] = np.einsum(
        "xi,oijk,yj->xyok", matrix, weight.astype(np.float64), matrix
    )
    return transformed


def combine(matrix: Matrix, row: ir.Expr, term: Callable[[int], ir.Expr], dtype: str) -> ir.Expr:
    """The row's linear combination of terms, zeros left out; `row` is constant once unrolled."""
    sums = []
    for coefficients in matrix:
        parts = [
            term(index) if value == 1.0 else term(index) * tirx.const(float(value), dtype)
            for index, value in enumerate(coefficients)
            if value != 0.0
        ]
        sums.append(functools.reduce(lambda total, part: total + part, parts))
    result = sums[-1]
    for index in reversed(range(len(sums) - 1)):
        result = tirx.Select(row == index, sums[index], result)
    return result
