"""Running a compiled library by TVM's Relax virtual machine, on the CPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leakyforge.errors import ExecutionError
from leakyforge.runtime.artifact import Artifact, unpack_weights
from leakyforge.runtime.host_functions import register_host_functions
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tensors import Array, empty_aligned, format_shapes
from leakyforge.runtime.tvm_runtime import load_vm, set_threads
from leakyforge.runtime.vm_tensors import to_numpy, to_tvm

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
        register_host_functions()
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
