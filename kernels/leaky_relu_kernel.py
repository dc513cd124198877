"""LeakyRelu and its gradient by themselves, on numpy arrays."""

import functools
import math

import numpy as np

from leakyforge.errors import CompileError
from leakyforge.kernels.activation_kernel import ActivationKernel
from leakyforge.kernels.activations import Activation
from leakyforge.kernels.leaky_relu import leaky_relu_element, leaky_relu_gradient_element


class LeakyReluKernel(ActivationKernel):
    """LeakyRelu and its gradient, compiled once for arrays of every shape.

    The definitions are those of `leaky_relu`; results are equal to numpy's to the last bit. Arrays
    that are contiguous, aligned to their elements and writeable are used where they lie, others
    are copied. Calls may come from several threads at once.

    Args:
        alpha: slope below zero, any finite number; rounded to the dtype of the computation, which
            is float32 for the 16-bit types.
        dtype: of all arrays: float16, bfloat16, float32 or float64.
        target: `cpu`, `cpu:NAME` or a TVM target in JSON that this machine can run.
        threads: threads to use; by default the physical cores that this process may use.

    Raises:
        CompileError: the dtype is unknown, or alpha is not finite.
        TargetError: the target is unknown, or needs CPU features that this machine lacks.
        InputError: more threads than CPUs.
    """

    def __init__(
        self,
        alpha: float,
        dtype: str = "float32",
        target: str = "cpu",
        threads: int | None = None,
    ) -> None:
        with np.errstate(over="ignore"):
            factor = alpha if dtype == "float64" else float(np.float32(alpha))
        if not math.isfinite(factor):
            raise CompileError(f"alpha={alpha} is not a finite number in {dtype}")
        definition = Activation(
            functools.partial(leaky_relu_element, alpha=factor),
            functools.partial(leaky_relu_gradient_element, alpha=factor),
        )
        super().__init__(definition, dtype, target, threads)
