"""Elementwise functions on numpy arrays, compiled in memory: what every activation's kernel is."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tvm

from leakyforge.errors import CompileError, InputError, TargetError
from leakyforge.kernels.elementary import our_elementary_functions
from leakyforge.kernels.elements import Element
from leakyforge.kernels.flat import flat_function
from leakyforge.kernels.lowering import PIPELINE
from leakyforge.kernels.target import parse_target
from leakyforge.runtime import cpu
from leakyforge.runtime import threads as thread_count
from leakyforge.runtime.tensors import Array, format_shape, numpy_dtype
from leakyforge.runtime.tvm_runtime import set_threads

DTYPES = ("float16", "bfloat16", "float32", "float64")


class FlatKernel:
    """Elementwise functions, compiled once for arrays of every shape.

    Arrays that are contiguous, aligned to their elements and writeable are used where they lie,
    others are copied. Calls may come from several threads at once.

    Args:
        functions: for each name the definition of an element and the names of its inputs.
        dtype: of all arrays, out of `DTYPES`.
        target: `cpu`, `cpu:NAME` or a TVM target in JSON that this machine can run.
        threads: threads to use; by default the physical cores that this process may use.

    Raises:
        CompileError: the dtype is unknown.
        TargetError: the target is unknown, or needs CPU features that this machine lacks.
        InputError: more threads than CPUs.
    """

    def __init__(
        self,
        functions: Mapping[str, tuple[Element, Sequence[str]]],
        dtype: str,
        target: str,
        threads: int | None,
    ) -> None:
        if dtype not in DTYPES:
            raise CompileError(
                f"activations have no dtype {dtype!r}; use one of {', '.join(DTYPES)}"
            )
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
        module = tvm.IRModule(
            {
                name: flat_function(
                    name, element, inputs, dtype, cpu_target, cpu.last_level_cache()
                )
                for name, (element, inputs) in functions.items()
            }
        )
        with our_elementary_functions():
            library = tvm.compile(module, cpu_target.tvm, tir_pipeline=PIPELINE)
        self._functions: dict[str, Callable[..., None]] = {
            name: library[name] for name in functions
        }

    def run(self, name: str, inputs: tuple[Array, ...], out: Array | None) -> Array:
        """Call a function on arrays of one shape.

        Args:
            name: of the function.
            inputs: its inputs, in order.
            out: where to write, an input if you like; by default a new array.

        Returns:
            `out`.

        Raises:
            InputError: another dtype or shape, or an `out` without the right to write.
        """
        # A microsecond is 4 % of 1 MiB's time: first the arrays that need neither check nor copy.
        function = self._functions[name]
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
