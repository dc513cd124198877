"""Running an artifact, with ONNX Runtime's calling conventions."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leakyforge.errors import ExecutionError, InputError
from leakyforge.runtime import threads as thread_count
from leakyforge.runtime.artifact import (
    Artifact,
    read_artifact,
    unpack_weights,
)
from leakyforge.runtime.manifest import Manifest
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tensors import (
    Array,
    TensorSpec,
    bind_shape,
    empty_aligned,
    format_shape,
    numpy_dtype,
)
from leakyforge.runtime.tvm_runtime import load_vm, set_threads, tvm_ffi

# First address and the one behind the last.
_Addresses = tuple[int, int]


class Session:
    """A loaded artifact.

    Sessions are independent of one another; one session may be called from several threads,
    which then take turns.

    Args:
        path: an artifact file, or an artifact that was read before.
        threads: threads to use; by default the physical cores that this process may use.
        variant: of the file, the variant to run; by default the best for this CPU.

    Raises:
        ArtifactError: the file is missing, damaged, or not for this machine (see its subclasses).
        InputError: more threads than CPUs.
    """

    def __init__(
        self,
        path: str | Path | Artifact,
        threads: int | None = None,
        variant: str | None = None,
    ) -> None:
        artifact = (
            path if isinstance(path, Artifact) else read_artifact(path, variant, references=False)
        )
        self.manifest: Manifest = artifact.manifest
        self.variant = artifact.variant.name
        self.threads = thread_count.usable_cores() if threads is None else threads
        set_threads(self.threads)
        self._lock = threading.Lock()
        self._machine = load_vm(artifact.library, str(artifact.path))
        self._main = self._machine["main"]
        self._weight_memory = artifact.weight_memory
        weights = unpack_weights(artifact.weight_memory, artifact.variant.weights)
        self._weights = [_to_tvm(weight) for weight in weights]
        self._names = [spec.name for spec in self.manifest.outputs]
        memory = artifact.weight_memory
        self._weight_addresses = (memory.ctypes.data, memory.ctypes.data + memory.nbytes)
        self._copies: dict[str, Array] = {}

    def get_inputs(self) -> list[TensorSpec]:
        """Inputs with `name`, `shape` (a text for a symbolic dimension) and `type`."""
        return list(self.manifest.inputs)

    def get_outputs(self) -> list[TensorSpec]:
        """Outputs, described like the inputs."""
        return list(self.manifest.outputs)

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Array]:
        """Run the model once.

        Args:
            output_names: outputs to return, in this order; None, or none at all, for all.
            input_feed: an array for each input, of the dtype and shape that it declares.

        Returns:
            One array for each name, owned by the caller.

        Raises:
            InputError: an unknown or missing name, another dtype or another shape.
            ExecutionError: the compiled code refuses what fits the declared shapes.
        """
        # Microseconds count here: a small model takes 20 of them.
        if output_names:
            self._check_names(output_names)
        feeds = check_feeds(self.manifest.inputs, input_feed)
        with self._lock:
            set_threads(self.threads)
            tensors, borrowed = [], [self._weight_addresses]
            for name, array in feeds.items():
                # DLPack as tvm_ffi speaks it cannot say "read-only", and numpy then refuses.
                tensor = _to_tvm(array if array.flags.carray else self._copy(name, array))
                tensors.append(tensor)
                borrowed.append(_addresses(tensor, array.nbytes))
            try:
                result = self._main(*tensors, *self._weights)
            except (RuntimeError, ValueError, TypeError) as error:
                shapes = ", ".join(
                    f"{name} {format_shape(array.shape)}" for name, array in feeds.items()
                )
                raise ExecutionError(
                    f"model {self.manifest.model!r} failed on {shapes}: {one_line(error)}"
                ) from error
            outputs = []
            for tensor in [result] if len(self._names) == 1 else result:
                array = _to_numpy(tensor)
                addresses = _addresses(tensor, array.nbytes)
                # An output may be an input, a weight, or another output under a second name.
                outputs.append(array.copy() if _overlap(addresses, borrowed) else array)
                borrowed.append(addresses)
        if not output_names:
            return outputs
        return [outputs[self._names.index(name)] for name in output_names]

    def _check_names(self, wanted: Sequence[str]) -> None:
        """Refuse outputs that the model does not have."""
        for name in wanted:
            if name not in self._names:
                raise InputError(
                    f"the model has no output {name!r}; its outputs: {', '.join(self._names)}"
                )

    def instrument(self, hook: Callable[..., None] | None) -> None:
        """Have a hook called around every function that a run calls; None takes it away.

        It is given the function, its name, whether it is about to run, its result (None before),
        and its arguments.
        """
        with self._lock:
            self._machine["set_instrument"](hook)

    def _copy(self, name: str, array: Array) -> Array:
        """A copy of consecutive elements, in memory that is kept for the next run."""
        copy = self._copies.get(name)
        if copy is None or copy.shape != array.shape:
            copy = self._copies[name] = empty_aligned(array.shape, array.dtype)
        copy[...] = array
        return copy


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, Any]) -> dict[str, Array]:
    """Check names, dtypes and shapes of what is fed, and put it in the order of the inputs.

    Raises:
        InputError: names the input and both dtypes or both shapes.
    """
    arrays = {}
    symbols: dict[str, int] = {}
    for spec in specs:
        name = spec.name
        if name not in feeds or len(feeds) != len(specs):
            raise _wrong_names([spec.name for spec in specs], feeds)
        arrays[name] = array = np.asarray(feeds[name])
        if array.dtype != numpy_dtype(spec.dtype):
            raise InputError(
                f"input {name!r} has dtype {array.dtype}, the model takes {spec.dtype}"
            )
        if array.shape != spec.shape:
            bind_shape(spec, array.shape, symbols)
    return arrays


def _wrong_names(names: Sequence[str], feeds: Mapping[str, Any]) -> InputError:
    """The error that says which name is unknown or missing."""
    unknown = [name for name in feeds if name not in names]
    problem = (
        f"unknown input {unknown[0]!r}"
        if unknown
        else f"input {next(name for name in names if name not in feeds)!r} is missing"
    )
    return InputError(f"{problem}; the model takes: {', '.join(names)}")


def _to_tvm(array: Array) -> Any:
    """A TVM tensor over an aligned array's memory."""
    ffi = tvm_ffi()
    # Numpy calls bfloat16 a type of kind V, and DLPack leaves numpy without it.
    is_bfloat16 = array.dtype.kind == "V"
    if array.size and not is_bfloat16:
        return ffi.from_dlpack(array)
    # Numpy's strides of an empty array are not those of a compact one, a view's are.
    bits = ffi.from_dlpack(array.view(np.uint16) if is_bfloat16 else array)
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


def _to_numpy(tensor: Any) -> Array:
    """A numpy array over a tensor's memory."""
    try:
        return np.from_dlpack(tensor)
    except (RuntimeError, BufferError):
        # Numpy takes no bfloat16, which ml_dtypes adds to it.
        return np.from_dlpack(_retyped(tensor, "uint16")).view(numpy_dtype(str(tensor.dtype)))


def _retyped(tensor: Any, dtype: str) -> Any:
    """The same memory as another dtype of the same size."""
    ffi = tvm_ffi()
    view = ffi.get_global_func("runtime.TVMTensorCreateView")
    return view(tensor, ffi.Shape(tensor.shape), ffi.dtype(dtype), 0)
