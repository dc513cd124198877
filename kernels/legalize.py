"""What the legalizations of several operators need."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax, tirx

Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

# relax.OpPatternKind.kOutEWiseFusable: elementwise operators may be fused behind it.
OUT_ELEMENTWISE_FUSABLE = {"op_pattern": 4}


def default_legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower a call as TVM would."""
    return call.op.get_attr("FLegalize")(builder, call)


def constant_value(value: relax.Expr) -> npt.NDArray[np.generic] | None:
    """Array of a constant, None for anything else."""
    return np.asarray(value.value.numpy()) if isinstance(value, tvm.ir.GenericConst) else None


def typed_constant(array: npt.NDArray[np.generic]) -> tvm.ir.GenericConst:
    """A constant of the array's dtype: `relax.const` by itself makes float64 a float32."""
    return relax.const(array, str(array.dtype))


def static_sizes(kind: relax.TensorType) -> tuple[int, int, int] | None:
    """Height, width and channels of a channels-last tensor; None where one is symbolic."""
    if kind.shape is None or len(kind.shape) != 4:
        return None
    sizes = list(kind.shape)[1:]
    if not all(isinstance(size, tirx.IntImm) for size in sizes):
        return None
    height, width, channels = (int(size) for size in sizes)
    return height, width, channels
