"""An activation and its gradient by themselves, on numpy arrays."""

import numpy as np

from leakyforge.errors import CompileError
from leakyforge.kernels.activations import ACTIVATIONS, Activation
from leakyforge.kernels.flat_kernel import FlatKernel
from leakyforge.runtime.tensors import Array


class ActivationKernel(FlatKernel):
    """An activation of one array and its gradient, compiled once for arrays of every shape.

    The definitions are those of `activations`, computed in float32 for the 16-bit types and rounded
    once.

    Args:
        activation: `sigmoid`, `tanh`, `relu`, or a definition.
        dtype: of all arrays: float16, bfloat16, float32 or float64.
        target: `cpu`, `cpu:NAME` or a TVM target in JSON that this machine can run.
        threads: threads to use; by default the physical cores that this process may use.

    Raises:
        CompileError: the activation or the dtype is unknown.
        TargetError: the target is unknown, or needs CPU features that this machine lacks.
        InputError: more threads than CPUs.
    """

    def __init__(
        self,
        activation: str | Activation,
        dtype: str = "float32",
        target: str = "cpu",
        threads: int | None = None,
    ) -> None:
        if isinstance(activation, str):
            if activation not in ACTIVATIONS:
                known = ", ".join(ACTIVATIONS)
                raise CompileError(f"no activation is called {activation!r}; use one of {known}")
            activation = ACTIVATIONS[activation]
        functions = {
            "forward": (activation.forward, ["x"]),
            "gradient": (activation.gradient, ["x", "dy"]),
        }
        super().__init__(functions, dtype, target, threads)

    def forward(self, x: Array, out: Array | None = None) -> Array:
        """The activation of an array.

        Args:
            x: any shape.
            out: where to write, `x` itself if you like; by default a new array.

        Returns:
            `out`.

        Raises:
            InputError: another dtype, or an `out` of another shape or without the right to write.
        """
        return self.run("forward", (np.asarray(x),), out)

    def gradient(self, x: Array, dy: Array, out: Array | None = None) -> Array:
        """Gradient of a loss by `x`, from its gradient by `forward(x)`.

        Args:
            x: any shape.
            dy: the gradient behind, of the shape of `x`.
            out: where to write, `x` or `dy` if you like; by default a new array.

        Returns:
            `out`.

        Raises:
            InputError: another dtype or shape, or an `out` without the right to write.
        """
        return self.run("gradient", (np.asarray(x), np.asarray(dy)), out)
