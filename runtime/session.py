"""Running an artifact, with ONNX Runtime's calling conventions."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leakyforge.errors import InputError
from leakyforge.runtime import threads as thread_count
from leakyforge.runtime.artifact import Artifact, read_artifact
from leakyforge.runtime.cuda import CudaEngine
from leakyforge.runtime.manifest import CUDA, DEVICE_KINDS, OPENCL, WEBGPU, Manifest
from leakyforge.runtime.opencl import OpenClEngine
from leakyforge.runtime.staged import StagedEngine
from leakyforge.runtime.tensors import CARRIERS, Array, TensorSpec, bind_shape, numpy_dtype
from leakyforge.runtime.vm import VmEngine
from leakyforge.runtime.webgpu import WebGpuEngine


class Session:
    """A loaded artifact.

    An artifact holds native code, which runs with all rights of this process: load only one that
    you trust, or have its signature checked by `verify_key` before any of it is loaded.

    Sessions are independent of one another; one session may be called from several threads,
    which then take turns.

    Args:
        path: an artifact file, or an artifact that was read before.
        threads: threads to use; by default the physical cores that this process may use.
        variant: of the file, the variant to run; by default the best for this CPU.
        device: for an OpenCL, CUDA or WebGPU artifact, a part of the device's name; by default the
            first GPU, else the first device.
        verify_key: Ed25519 public key in a PEM file, by which the file has to be signed (see
            `leakyforge sign`).

    Raises:
        ArtifactSignatureError: the file is not signed by `verify_key`, or was changed since.
        ArtifactError: the file is missing, damaged, or not for this machine (see its subclasses).
        DeviceError: there is no such device, or the model does not fit on it.
        InputError: more threads than CPUs, a device for code that runs on the CPU, or a key for
            what is no file.
        KeyFileError: `verify_key` is no such file.
        MissingDependencyError: an OpenCL artifact without PyOpenCL, a CUDA one without
            cuda-bindings, a WebGPU one without wgpu, or one with stages for ONNX Runtime without
            onnxruntime, a key without cryptography.
    """

    def __init__(
        self,
        path: str | Path | Artifact,
        threads: int | None = None,
        variant: str | None = None,
        device: str | None = None,
        verify_key: str | Path | None = None,
    ) -> None:
        if not isinstance(path, Artifact):
            artifact = read_artifact(path, variant, references=False, verify_key=verify_key)
        elif verify_key is not None:
            raise InputError("verify_key is for a file; give it to read_artifact")
        else:
            artifact = path
        self.manifest: Manifest = artifact.manifest
        self.variant = artifact.variant.name
        self.threads = thread_count.usable_cores() if threads is None else threads
        self._lock = threading.Lock()
        self._names = [spec.name for spec in self.manifest.outputs]
        inputs, outputs = self.manifest.inputs, self.manifest.outputs
        self._packed_inputs = [
            (spec.name, numpy_dtype(CARRIERS[spec.dtype]))
            for spec in inputs
            if spec.dtype in CARRIERS
        ]
        self._packed_outputs = [
            (place, numpy_dtype(spec.dtype))
            for place, spec in enumerate(outputs)
            if spec.dtype in CARRIERS
        ]
        self._engine = _engine(artifact, self.threads, device)

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
            ExecutionError: the compiled code refuses what fits the declared shapes, or the device
                fails.
        """
        # Microseconds count here: a small model takes 20 of them.
        if output_names:
            self._check_names(output_names)
        feeds = check_feeds(self.manifest.inputs, input_feed)
        for name, dtype in self._packed_inputs:
            feeds[name] = feeds[name].astype(dtype)
        with self._lock:
            outputs = self._engine.run(feeds)
        for place, dtype in self._packed_outputs:
            outputs[place] = outputs[place].astype(dtype)
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
        if not isinstance(self._engine, (VmEngine, StagedEngine)):
            raise InputError(f"kernels of a {self.manifest.machine} artifact cannot be observed")
        with self._lock:
            self._engine.instrument(hook)


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


def _engine(
    artifact: Artifact, threads: int, device: str | None
) -> VmEngine | StagedEngine | OpenClEngine | CudaEngine | WebGpuEngine:
    """What runs the artifact: TVM's virtual machine, stages, or a launcher for a kind of device."""
    if artifact.manifest.machine == OPENCL:
        return OpenClEngine(artifact, device)
    if artifact.manifest.machine == CUDA:
        return CudaEngine(artifact, device)
    if artifact.manifest.machine == WEBGPU:
        return WebGpuEngine(artifact, device)
    if device is not None:
        kinds = " or ".join(DEVICE_KINDS.values())
        raise InputError(
            f"device={device!r} names a device of {kinds}, and {artifact.path} is code for a CPU"
        )
    return (
        StagedEngine(artifact, threads) if artifact.variant.stages else VmEngine(artifact, threads)
    )
