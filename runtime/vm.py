"""Running a compiled library by TVM's Relax virtual machine, on the CPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from leakyforge.errors import ExecutionError
from leakyforge.runtime.artifact import Artifact, unpack_weights
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tensors import Array, empty_aligned, format_shapes, numpy_dtype
from leakyforge.runtime.tvm_runtime import load_vm, set_threads, tvm_ffi

# Of as many bytes as a type that only ml_dtypes has.
_BITS = {1: "uint8", 2: "uint16"}
# First address and the one behind the last.
_Addresses = tuple[int, int]


class VmLibrary:
    """A variant's library, loaded, with its weights.

    Args:
        artifact: whose library it is.
        threads: of its parallel loops.

    Attributes:
        machine: TVM's virtual machine.
        memory: of the weights.
        weights: TVM tensors, views of that memory.
        threads: as given.
        model: name of the model.

    Raises:
        ArtifactError: the system's loader refuses the library.
        InputError: more threads than CPUs.
    """

    def __init__(self, artifact: Artifact, threads: int) -> None:
        set_threads(threads)
        self.threads = threads
        self.model = artifact.manifest.model
        self.machine = load_vm(artifact.library, str(artifact.path))
        self.memory = artifact.weight_memory
        weights = unpack_weights(self.memory, artifact.variant.weights)
        self.weights = [to_tvm(weight) for weight in weights]

    def instrument(self, hook: Callable[..., None] | None) -> None:
        """Have a hook called around every function that a run calls; None takes it away."""
        self.machine["set_instrument"](hook)


class VmFunction:
    """A function of a library, on arrays.

    Args:
        library: that holds it.
        name: in the library.
        outputs: how many it gives.
        weights: those of the library that it takes after its inputs.
    """

    def __init__(
        self, library: VmLibrary, name: str, outputs: int, weights: slice = slice(None)
    ) -> None:
        self._library = library
        self._threads = library.threads
        self._function = library.machine[name]
        self._weights = library.weights[weights]
        start = library.memory.ctypes.data
        self._weight_addresses = (start, start + library.memory.nbytes)
        self._has_one_output = outputs == 1
        self._copies: dict[str, Array] = {}

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs, owned by the caller, for inputs in the order of the function's.

        Raises:
            ExecutionError: the compiled code refuses what fits the declared shapes.
        """
        set_threads(self._threads)
        tensors, borrowed = [], [self._weight_addresses]
        for name, array in feeds.items():
            # DLPack as tvm_ffi speaks it cannot say "read-only", and numpy then refuses.
            tensor = to_tvm(array if array.flags.carray else self._copy(name, array))
            tensors.append(tensor)
            borrowed.append(_addresses(tensor, array.nbytes))
        try:
            result = self._function(*tensors, *self._weights)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ExecutionError(
                f"model {self._library.model!r} failed on {format_shapes(feeds)}: {one_line(error)}"
            ) from error
        outputs = []
        for tensor in [result] if self._has_one_output else result:
            array = to_numpy(tensor)
            addresses = _addresses(tensor, array.nbytes)
            # An output may be an input, a weight, or another output under a second name.
            outputs.append(array.copy() if _overlap(addresses, borrowed) else array)
            borrowed.append(addresses)
        return outputs

    def _copy(self, name: str, array: Array) -> Array:
        """A copy of consecutive elements, in memory that is kept for the next run."""
        copy = self._copies.get(name)
        if copy is None or copy.shape != array.shape:
            copy = self._copies[name] = empty_aligned(array.shape, array.dtype)
        copy[...] = array
        return copy


class VmEngine(VmFunction):
    """A variant whose library computes the whole model; arguments and errors as `VmLibrary`'s."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        super().__init__(VmLibrary(artifact, threads), "main", len(artifact.manifest.outputs))

    def instrument(self, hook: Callable[..., None] | None) -> None:
        """As `VmLibrary.instrument`."""
        self._library.instrument(hook)


def to_tvm(array: Array) -> Any:
    """A TVM tensor over an aligned array's memory."""
    ffi = tvm_ffi()
    # Numpy's DLPack has no types of ml_dtypes, such as bfloat16 and float8.
    is_foreign = array.dtype.isbuiltin != 1
    if array.size and not is_foreign:
        return ffi.from_dlpack(array)
    # Numpy's strides of an empty array are not those of a compact one, a view's are.
    bits = ffi.from_dlpack(array.view(_BITS[array.dtype.itemsize]) if is_foreign else array)
    return _retyped(bits, str(array.dtype))


def _addresses(tensor: Any, size: int) -> _Addresses:
    """Where a tensor of so many bytes lies."""
    start: int = tensor.data_ptr()
    return start, start + size


def _overlap(addresses: _Addresses, others: Sequence[_Addresses]) -> bool:
    """Whether the first address is one of the others'."""
    first = addresses[0]
    # A generator takes half a microsecond.
    for start, stop in others:  # noqa: SIM110
        if start <= first < stop:
            return True
    return False


def to_numpy(tensor: Any) -> Array:
    """A numpy array over a tensor's memory."""
    try:
        return np.from_dlpack(tensor)
    except (RuntimeError, BufferError):
        # Numpy takes no bfloat16 or float8, which ml_dtypes adds to it.
        dtype = numpy_dtype(str(tensor.dtype))
        return np.from_dlpack(_retyped(tensor, _BITS[dtype.itemsize])).view(dtype)


def _retyped(tensor: Any, dtype: str) -> Any:
    """The same memory as another dtype of the same size."""
    ffi = tvm_ffi()
    view = ffi.get_global_func("runtime.TVMTensorCreateView")
    return view(tensor, ffi.Shape(tensor.shape), ffi.dtype(dtype), 0)
