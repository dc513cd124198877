"""LeakyRelu and its gradient by themselves, on numpy arrays."""

import functools
import math
from collections.abc import Callable

import numpy as np
import tvm

from leakyforge.errors import CompileError, InputError, TargetError
from leakyforge.kernels.flat import flat_function
from leakyforge.kernels.leaky_relu import leaky_relu_element, leaky_relu_gradient_element
from leakyforge.kernels.target import parse_target
from leakyforge.runtime import cpu
from leakyforge.runtime import threads as thread_count
from leakyforge.runtime.tensors import Array, format_shape, numpy_dtype
from leakyforge.runtime.tvm_runtime import set_threads

DTYPES = ("float16", "bfloat16", "float32", "float64")


class LeakyReluKernel:
    """LeakyRelu and its gradient, compiled once for arrays of every shape.

    The definitions are those of `leaky_relu`; results are equal to numpy's to the last bit. Arrays
    that are contiguous, aligned to their elements and writeable are used where they lie, others
    are copied. Calls may come from several threads at once.

    Args:
        alpha: slope below zero, any finite number; rounded to the dtype of the computation, which
            is float32 for the 16-bit types.
        dtype: of all arrays, out of `DTYPES`.
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
        if dtype not in DTYPES:
            raise CompileError(f"LeakyRelu has no dtype {dtype!r}; use one of {', '.join(DTYPES)}")
        with np.errstate(over="ignore"):
            factor = alpha if dtype == "float64" else float(np.float32(alpha))
        if not math.isfinite(factor):
            raise CompileError(f"alpha={alpha} is not a finite number in {dtype}")
        cpu_target = parse_target(target)
        lacking = cpu_target.features - cpu.host_features()
        if lacking:
            raise TargetError(
                f"target {target!r} needs CPU features that this machine lacks: "
                f"{', '.join(sorted(lacking))}"
            )
        self.threads = thread_count.usable_cores() if threads is None else threads
        thread_count.check_threads(self.threads)
        self.dtype = numpy_dtype(dtype)
        # Numpy cannot hand out bfloat16, and the kernel takes its bits.
        self._is_bfloat16 = dtype == "bfloat16"
        compile_flat = functools.partial(
            flat_function,
            dtype=dtype,
            target=cpu_target,
            streaming_bytes=cpu.last_level_cache(),
        )
        forward = functools.partial(leaky_relu_element, alpha=factor)
        gradient = functools.partial(leaky_relu_gradient_element, alpha=factor)
        library = tvm.compile(
            tvm.IRModule(
                {
                    "forward": compile_flat("forward", forward, ["x"]),
                    "gradient": compile_flat("gradient", gradient, ["x", "dy"]),
                }
            ),
            cpu_target.tvm,
        )
        self._forward = library["forward"]
        self._gradient = library["gradient"]

    def forward(self, x: Array, out: Array | None = None) -> Array:
        """LeakyRelu of an array.

        Args:
            x: any shape.
            out: where to write, `x` itself if you like; by default a new array.

        Returns:
            `out`.

        Raises:
            InputError: another dtype, or an `out` of another shape or without the right to write.
        """
        return self._run(self._forward, (np.asarray(x),), out)

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
        return self._run(self._gradient, (np.asarray(x), np.asarray(dy)), out)

    def _run(
        self, function: Callable[..., None], inputs: tuple[Array, ...], out: Array | None
    ) -> Array:
        """Call the kernel where the arrays lie, if it can; a microsecond is 4 % of 1 MiB's time."""
        result = np.empty(inputs[0].shape, self.dtype) if out is None else out
        shape = result.shape
        arrays = (*inputs, result)
        for array in arrays:
            if (
                array.dtype is not self.dtype
                or array.shape != shape
                or array.base is not None
                or not array.flags.carray
            ):
                return self._run_aside(function, inputs, result)
        self._call(function, arrays)
        return result

    def _run_aside(
        self, function: Callable[..., None], inputs: tuple[Array, ...], out: Array
    ) -> Array:
        """Check the arrays, and copy those that the kernel cannot use."""
        for array in (*inputs, out):
            if array.dtype != self.dtype or array.shape != inputs[0].shape:
                raise InputError(
                    f"{array.dtype} {format_shape(array.shape)} was given to a kernel of "
                    f"{self.dtype}, for an x of {format_shape(inputs[0].shape)}"
                )
        if not out.flags.writeable:
            raise InputError("out is read-only")
        written = out if out.flags.carray else np.empty(out.shape, self.dtype)
        # An element is read before it is written, but only where both lie at one address.
        read = [
            array
            if array.flags.carray and (array is out or not np.may_share_memory(array, written))
            else array.copy()
            for array in inputs
        ]
        self._call(function, (*read, written))
        if written is not out:
            out[...] = written
        return out

    def _call(self, function: Callable[..., None], arrays: tuple[Array, ...]) -> None:
        """Call the kernel on contiguous arrays of one shape."""
        if self._is_bfloat16:
            arrays = tuple(array.view(np.uint16) for array in arrays)
        if arrays[0].ndim != 1:
            arrays = tuple(array.ravel() for array in arrays)
        set_threads(self.threads)
        # The strides of an empty array may be any.
        if arrays[0].size:
            function(*arrays)
