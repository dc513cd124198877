"""The calls of kernels in a run: what each was given and what it wrote, and calling it again.

The Relax virtual machine calls an instrument before and after each of its functions. Tensors are
copied there, because activations share memory that is overwritten later in the run.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leakyforge.runtime.manifest import Kernel
from leakyforge.runtime.session import Session
from leakyforge.runtime.tensors import Array
from leakyforge.runtime.tvm_runtime import tvm_ffi
from leakyforge.runtime.vm_tensors import to_numpy, to_tvm


@dataclass(frozen=True)
class KernelCall:
    """One call of a kernel in a run.

    Attributes:
        kernel: its record.
        inputs: what it was given, by position among its arguments.
        outputs: what it wrote, by position.
        addresses: of the memory of inputs and outputs, by position.
    """

    kernel: Kernel
    inputs: dict[int, Array]
    outputs: dict[int, Array]
    addresses: dict[int, int]
    _function: Any
    _arguments: tuple[Any, ...]

    def replay(self, inputs: Mapping[int, Array]) -> dict[int, Array]:
        """Call the kernel again.

        Args:
            inputs: arrays to take instead of those of the run, by position, of the same shapes and
                dtypes.

        Returns:
            What it writes, by position.
        """
        outputs = {at: np.zeros_like(array) for at, array in self.outputs.items()}
        arrays = {**self.inputs, **inputs, **outputs}
        tensors = {at: to_tvm(np.ascontiguousarray(array)) for at, array in arrays.items()}
        self._function(*(tensors.get(at, each) for at, each in enumerate(self._arguments)))
        return {at: to_numpy(tensors[at]).copy() for at in outputs}


def capture_calls(
    session: Session, kernels: Sequence[Kernel], feeds: Mapping[str, Array]
) -> list[KernelCall]:
    """Run a model once and give its calls of kernels, in order.

    Args:
        session: on the CPU.
        kernels: records of its variant (see `manifest.Variant`).
        feeds: an array for each input.

    Raises:
        InputError: the session runs on a device, or the inputs do not fit.
        ExecutionError: the compiled code refuses the inputs.
    """
    recorder = _Recorder(kernels)
    session.instrument(recorder)
    try:
        session.run(None, feeds)
    finally:
        session.instrument(None)
    return recorder.calls


class _Recorder:
    """The instrument."""

    def __init__(self, kernels: Collection[Kernel]) -> None:
        self.calls: list[KernelCall] = []
        self._names = {kernel.name for kernel in kernels}
        self._left = iter(kernels)
        self._before: dict[int, Array] = {}

    def __call__(
        self, function: Any, name: str, before: bool, _result: Any, *arguments: Any
    ) -> None:
        """Copy the tensors of a kernel, before and after it ran."""
        if name not in self._names:
            return
        tensors = {
            at: each for at, each in enumerate(arguments) if isinstance(each, tvm_ffi().Tensor)
        }
        arrays = {at: to_numpy(tensor).copy() for at, tensor in tensors.items()}
        if before:
            self._before = arrays
            return
        # The last is an output; others are where the kernel changed what was in them.
        last = max(tensors)
        outputs = {
            at: array
            for at, array in arrays.items()
            if at == last or array.tobytes() != self._before[at].tobytes()
        }
        inputs = {at: array for at, array in self._before.items() if at not in outputs}
        # A run leaves out the records of the branches that it does not take.
        kernel = next(kernel for kernel in self._left if kernel.name == name)
        addresses = {at: int(tensor.data_ptr()) for at, tensor in tensors.items()}
        self.calls.append(
            KernelCall(kernel, inputs, outputs, addresses, function, tuple(arguments))
        )
