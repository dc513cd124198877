"""How much of an output is lost to rounding, beside what the reference itself loses.

Both are compared with the model in float64, by the root of the mean of the squared differences
over all elements and samples: the largest difference of a small output is a matter of luck.

The bound is FACTOR times the reference's own loss. It comes from the algorithms: Winograd's F(m, r)
computes A'[(G g) * (B' d)], and for independent values of variance 1 the roundings of its products
have sum_j A'_ij^2 |G_j|^2 |B'_j|^2 / r times the variance of those of the definition's r products.
Over the m results, and squared where both dimensions are transformed, the root of that is 6.9 for
F(4x4, 3x3), the largest of those in use, Strassen's among them (tests/parity/test_own_rounding.py).
A reference that loses less than one rounding of the output is taken to lose that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from leakyforge.runtime.tensors import Array, TensorSpec
from leakyforge.tolerance import UNIT_ROUNDOFF

FACTOR = 8.0


@dataclass(frozen=True)
class OwnRounding:
    """One output of one variant, beside one reference.

    Attributes:
        output: name of the output.
        reference: engine and setting whose loss is the measure.
        ours: root mean square of our differences from float64, over all samples.
        theirs: the same of the reference.
        ratio: `ours` by `theirs`, or by one rounding of the output where that is more.
        bound: the largest ratio that passes.
        variant: of the artifact.
    """

    output: str
    reference: str
    ours: float
    theirs: float
    ratio: float
    bound: float
    variant: str

    @property
    def passed(self) -> bool:
        """Whether no more is lost than the bound."""
        return self.ratio <= self.bound


def compare_roundings(
    specs: Sequence[TensorSpec],
    ours: Sequence[Mapping[str, Array]],
    theirs: Sequence[Mapping[str, Array]],
    exact: Sequence[Mapping[str, Array]],
    reference: str,
    variant: str,
) -> list[OwnRounding]:
    """A row for each floating-point output.

    Args:
        specs: outputs of the model.
        ours: outputs of the variant by name, for each sample.
        theirs: those of the reference.
        exact: those in float64.
        reference: its name.
        variant: its name.
    """
    rows = []
    for spec in specs:
        if spec.dtype not in UNIT_ROUNDOFF:
            continue
        values = [sample[spec.name] for sample in exact]
        lost = _loss([sample[spec.name] for sample in ours], values)
        least = _loss([sample[spec.name] for sample in theirs], values)
        rounding = UNIT_ROUNDOFF[spec.dtype] * _root_mean_square(values)
        measure = max(least, rounding)
        ratio = lost / measure if measure > 0.0 else (inf if lost > 0.0 else 0.0)
        rows.append(OwnRounding(spec.name, reference, lost, least, ratio, FACTOR, variant))
    return rows


def _loss(samples: Sequence[Array], exact: Sequence[Array]) -> float:
    """Root mean square of the differences; infinite where a shape differs or a value is NaN."""
    differences = []
    for sample, value in zip(samples, exact, strict=True):
        if sample.shape != value.shape:
            return inf
        # Parity itself looks at where NaN and infinities are.
        finite = np.isfinite(value)
        difference = sample[finite].astype(np.float64) - value[finite].astype(np.float64)
        if not np.isfinite(difference).all():
            return inf
        differences.append(difference)
    return _root_mean_square(differences)


def _root_mean_square(samples: Sequence[Array]) -> float:
    """Over all finite elements; 0 without any."""
    values = np.concatenate([sample[np.isfinite(sample)].astype(np.float64) for sample in samples])
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
