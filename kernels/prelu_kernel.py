"""PRelu and RRelu, whose slopes are arrays, and their gradients, on numpy arrays."""

import numpy as np

from leakyforge.errors import CompileError, InputError
from leakyforge.kernels.activations import prelu, prelu_gradient, prelu_slope_gradient
from leakyforge.kernels.elements import rounded_once
from leakyforge.kernels.flat_kernel import FlatKernel
from leakyforge.kernels.leaky_relu_kernel import LeakyReluKernel
from leakyforge.runtime.tensors import Array, format_shape


class PReluKernel(FlatKernel):
    """PRelu and its gradients by `x` and by the slope, compiled once for arrays of every shape.

    The definitions are those of `activations`. As in ONNX, the slope is broadcast to the shape of
    `x`: of one for each channel of [batch, channels, height, width] it is [channels, 1, 1]. A slope
    of another shape than `x` is copied to that shape first.

    Args:
        dtype: of all arrays: float16, bfloat16, float32 or float64.
        target: `cpu`, `cpu:NAME` or a TVM target in JSON that this machine can run.
        threads: threads to use; by default the physical cores that this process may use.

    Raises:
        CompileError: the dtype is unknown.
        TargetError: the target is unknown, or needs CPU features that this machine lacks.
        InputError: more threads than CPUs.
    """

    def __init__(
        self, dtype: str = "float32", target: str = "cpu", threads: int | None = None
    ) -> None:
        functions = {
            "forward": (rounded_once(prelu), ["x", "slope"]),
            "gradient": (rounded_once(prelu_gradient), ["x", "slope", "dy"]),
            "slope_gradient": (rounded_once(prelu_slope_gradient), ["x", "dy"]),
        }
        super().__init__(functions, dtype, target, threads)

    def forward(self, x: Array, slope: Array, out: Array | None = None) -> Array:
        """PRelu of an array.

        Args:
            x: any shape.
            slope: for x < 0, broadcast to the shape of `x`.
            out: where to write, `x` itself if you like; by default a new array.

        Returns:
            `out`.

        Raises:
            InputError: another dtype, a slope that does not broadcast to `x`, or an `out` of
                another shape or without the right to write.
        """
        x = np.asarray(x)
        return self.run("forward", (x, _broadcast(slope, x)), out)

    def gradient(self, x: Array, slope: Array, dy: Array, out: Array | None = None) -> Array:
        """Gradient of a loss by `x`, from its gradient by `forward(x, slope)`.

        Args:
            x: any shape.
            slope: as in `forward`.
            dy: the gradient behind, of the shape of `x`.
            out: where to write, `x` or `dy` if you like; by default a new array.

        Returns:
            `out`.

        Raises:
            InputError: as `forward`, or a `dy` of another shape.
        """
        x = np.asarray(x)
        return self.run("gradient", (x, _broadcast(slope, x), np.asarray(dy)), out)

    def slope_gradient(self, x: Array, slope: Array, dy: Array) -> Array:
        """Gradient of a loss by the slope, from its gradient by `forward(x, slope)`.

        Args:
            x: any shape.
            slope: as in `forward`; only its shape matters.
            dy: the gradient behind, of the shape of `x`.

        Returns:
            An array of the shape of `slope`: over the axes that were broadcast, the sum in float64
            of products of the dtype.

        Raises:
            InputError: as `gradient`.
        """
        x, slope = np.asarray(x), np.asarray(slope)
        _broadcast(slope, x)
        products = self.run("slope_gradient", (x, np.asarray(dy)), None)
        sizes = (1,) * (x.ndim - slope.ndim) + slope.shape
        axes = tuple(axis for axis, size in enumerate(sizes) if size != x.shape[axis])
        total = products.sum(axis=axes, dtype=np.float64) if axes else products
        return total.reshape(slope.shape).astype(self.dtype, copy=False)


class RReluKernel:
    """RRelu: in training PRelu with slopes that are drawn, at inference LeakyRelu with their mean.

    Args:
        lower: least slope, 0 or more; PyTorch's default.
        upper: greatest slope, not below `lower`; PyTorch's default.
        dtype: of all arrays: float16, bfloat16, float32 or float64.
        target: `cpu`, `cpu:NAME` or a TVM target in JSON that this machine can run.
        threads: threads to use; by default the physical cores that this process may use.

    Attributes:
        training: the kernel that takes slopes of the shape of `x`, as `draw` gives them.
        inference: the kernel whose slope is (lower + upper) / 2.

    Raises:
        CompileError: the dtype is unknown, or the bounds are not finite or not in order.
        TargetError: the target is unknown, or needs CPU features that this machine lacks.
        InputError: more threads than CPUs.
    """

    def __init__(
        self,
        lower: float = 1 / 8,
        upper: float = 1 / 3,
        dtype: str = "float32",
        target: str = "cpu",
        threads: int | None = None,
    ) -> None:
        if not 0 <= lower <= upper:
            raise CompileError(f"RRelu's slopes from {lower} to {upper} are not in order from 0 up")
        self.lower, self.upper = lower, upper
        self.inference = LeakyReluKernel((lower + upper) / 2, dtype, target, threads)
        self.training = PReluKernel(dtype, target, threads)

    def draw(self, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
        """Slopes for `training`, uniformly distributed and independent."""
        slopes = generator.uniform(self.lower, self.upper, shape)
        return slopes.astype(self.training.dtype)


def _broadcast(slope: Array, x: Array) -> Array:
    """The slope in the shape of `x`."""
    slope = np.asarray(slope)
    if slope.shape == x.shape:
        return slope
    try:
        return np.broadcast_to(slope, x.shape)
    except ValueError:
        raise InputError(
            f"a slope of {format_shape(slope.shape)} does not broadcast to an x of "
            f"{format_shape(x.shape)}"
        ) from None
