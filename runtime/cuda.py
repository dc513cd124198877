"""Running a launch plan on a CUDA device, through NVIDIA's driver API.

cuda-bindings, NVIDIA's own Python package, calls it: no TVM is needed to run, and the plan is the
same as OpenCL's. TVM's CUDA runtime would need its virtual machine, host code and a second path
through the compiler beside the plan. Source: NVIDIA, "CUDA Driver API" and "CUDA C++ Programming
Guide", 13.0.
"""

import contextlib
import math
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from leakyforge.errors import DeviceError, ExecutionError, MissingDependencyError
from leakyforge.runtime.artifact import Artifact, unpack_weights
from leakyforge.runtime.plan import Launch, Sizes, read_plan
from leakyforge.runtime.tensors import Array, empty_output

# Blocks of a grid along x, y and z on every device: programming guide, table of the technical
# specifications per compute capability.
_MOST_BLOCKS: Sizes = (2**31 - 1, 65535, 65535)
_HELP = "install NVIDIA's driver on a machine with its GPU, or compile with --target cpu"


@dataclass(frozen=True)
class CudaDevice:
    """A CUDA device.

    Attributes:
        index: the driver's number of it.
        name: its product name.
        capability: major and minor number of its compute capability.
    """

    index: int
    name: str
    capability: tuple[int, int]

    @property
    def architecture(self) -> str:
        """Name of its capability in nvcc, such as sm_80."""
        return "sm_{}{}".format(*self.capability)

    def runs(self, architecture: str) -> bool:
        """Whether it runs cubins of an architecture: of its major number, and no higher minor.

        Source: programming guide, "Binary Compatibility".
        """
        major, minor = divmod(int(architecture.removeprefix("sm_")), 10)
        return major == self.capability[0] and minor <= self.capability[1]


class CudaEngine:
    """A plan on a device: cubin loaded, weights uploaded, buffers allocated, launches in a graph.

    They are freed with the engine. A graph is launched by one call, however many kernels it has.

    Args:
        artifact: whose plan and weights they are.
        device: a part of the device's name; by default the first that runs the cubin.

    Raises:
        ArtifactFormatError: the artifact holds no plan.
        MissingDependencyError: cuda-bindings is not installed.
        DeviceError: there is no such device, it is of another architecture, or the plan does not
            fit on it.
    """

    def __init__(self, artifact: Artifact, device: str | None = None) -> None:
        plan = self._plan = read_plan(artifact)
        self._specs = artifact.manifest.outputs
        weights = unpack_weights(artifact.weight_memory, artifact.variant.weights)
        self.device = choose_cuda_device(artifact.variant.name, device)
        cuda = self._cuda = _driver()
        with (
            self._named_errors(DeviceError, "cannot be prepared"),
            contextlib.ExitStack() as stack,
        ):
            ordinal = _checked(cuda.cuDeviceGet(self.device.index))
            self._context = _checked(cuda.cuDevicePrimaryCtxRetain(ordinal))
            stack.callback(cuda.cuDevicePrimaryCtxRelease, ordinal)
            _checked(cuda.cuCtxSetCurrent(self._context))
            self._check_memory()
            module = _checked(cuda.cuModuleLoadData(plan.cubin))
            stack.callback(cuda.cuModuleUnload, module)
            self._stream = _checked(cuda.cuStreamCreate(0))
            stack.callback(cuda.cuStreamDestroy, self._stream)
            arena = self._allocate(plan.arena, stack)
            self._buffers = [
                self._allocate(each.size, stack) if each.offset is None else arena + each.offset
                for each in plan.buffers
            ]
            for index, weight in zip(plan.weights, weights, strict=True):
                _checked(cuda.cuMemcpyHtoD(self._buffers[index], weight.ctypes.data, weight.nbytes))
            graph = self._captured(module)
            stack.callback(cuda.cuGraphDestroy, graph)
            self._graph = _checked(cuda.cuGraphInstantiate(graph, 0))
            stack.callback(cuda.cuGraphExecDestroy, self._graph)
            # The last one is called first: another thread may be the one that frees.
            stack.callback(cuda.cuCtxSetCurrent, self._context)
            weakref.finalize(self, stack.pop_all().close)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs for inputs in the order of the model's.

        Raises:
            ExecutionError: the device fails.
        """
        cuda, stream = self._cuda, self._stream
        # Copies read the arrays until the stream is synchronised.
        arrays = [np.ascontiguousarray(array) for array in feeds.values()]
        outputs = []
        with self._named_errors(ExecutionError, "failed"):
            _checked(cuda.cuCtxSetCurrent(self._context))
            for index, array in zip(self._plan.inputs, arrays, strict=True):
                pointer = self._buffers[index]
                _checked(cuda.cuMemcpyHtoDAsync(pointer, array.ctypes.data, array.nbytes, stream))
            _checked(cuda.cuGraphLaunch(self._graph, stream))
            for index, spec in zip(self._plan.outputs, self._specs, strict=True):
                array = empty_output(spec)
                pointer = self._buffers[index]
                _checked(cuda.cuMemcpyDtoHAsync(array.ctypes.data, pointer, array.nbytes, stream))
                outputs.append(array)
            _checked(cuda.cuStreamSynchronize(stream))
        return outputs

    def _captured(self, module: Any) -> Any:
        """The plan's launches as a graph, which the device runs in their order."""
        cuda, stream = self._cuda, self._stream
        # What other threads do on their streams stays theirs.
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(cuda.cuStreamBeginCapture(stream, mode))
        for launch in self._plan.launches:
            self._launch(module, launch)
        return _checked(cuda.cuStreamEndCapture(stream))

    def _launch(self, module: Any, launch: Launch) -> None:
        """Launch a kernel; its arguments are copied."""
        cuda = self._cuda
        kernel = _checked(cuda.cuModuleGetFunction(module, launch.kernel.encode()))
        attribute = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
        most = _checked(cuda.cuFuncGetAttribute(attribute, kernel))
        if math.prod(launch.group) > most:
            raise DeviceError(
                f"kernel {launch.kernel} needs blocks of {math.prod(launch.group)} threads, "
                f"{self.device.name} runs it with at most {most}; compile for smaller blocks"
            )
        if any(size > limit for size, limit in zip(launch.grid, _MOST_BLOCKS, strict=True)):
            raise DeviceError(
                f"kernel {launch.kernel} needs a grid of {launch.grid} blocks, CUDA devices take "
                f"at most {_MOST_BLOCKS}; take a smaller batch or image"
            )
        arguments = np.array([self._buffers[index] for index in launch.buffers], np.uint64)
        places = arguments.itemsize * np.arange(len(arguments), dtype=np.uint64)
        pointers = places + np.uint64(arguments.ctypes.data)
        _checked(
            cuda.cuLaunchKernel(
                kernel, *launch.grid, *launch.group, 0, self._stream, pointers.ctypes.data, 0
            )
        )

    def _allocate(self, size: int, stack: contextlib.ExitStack) -> int:
        """Address of memory of the device, at least a byte, that is freed with the stack."""
        pointer = _checked(self._cuda.cuMemAlloc(max(1, size)))
        stack.callback(self._cuda.cuMemFree, pointer)
        return int(pointer)

    def _check_memory(self) -> None:
        """Refuse what the device has no room for."""
        free, total = _checked(self._cuda.cuMemGetInfo())
        needed = self._plan.memory
        if needed > free:
            raise DeviceError(
                f"out of device memory: the model needs {needed / 2**20:.0f} MiB, "
                f"{self.device.name} has {free / 2**20:.0f} of {total / 2**20:.0f} MiB free; take "
                "a smaller batch or image, or end what else runs there"
            )

    @contextlib.contextmanager
    def _named_errors(
        self, kind: type[DeviceError] | type[ExecutionError], what: str
    ) -> Iterator[None]:
        try:
            yield
        except _DriverError as error:
            raise kind(f"the model {what} on CUDA device {self.device.name}: {error}") from error


class _DriverError(Exception):
    """The driver's API gave an error."""


def find_cuda_devices() -> list[CudaDevice]:
    """All CUDA devices, at least one.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        DeviceError: there is no driver, or no device.
    """
    cuda = _driver()
    try:
        _checked(cuda.cuInit(0))
        count = _checked(cuda.cuDeviceGetCount())
        devices = [_describe(cuda, index) for index in range(count)]
    except RuntimeError as error:
        # What cuda-bindings raises where it does not find the driver's library.
        raise DeviceError(f"there is no CUDA driver; {_HELP}") from error
    except _DriverError as error:
        raise DeviceError(f"the CUDA driver finds no device: {error}; {_HELP}") from error
    if not devices:
        raise DeviceError(f"there is no CUDA device; {_HELP}")
    return devices


def choose_cuda_device(architecture: str, name: str | None = None) -> CudaDevice:
    """The first CUDA device that runs an architecture's code, and whose name holds `name`.

    Args:
        architecture: nvcc's name, such as sm_80.
        name: a part of the device's name; None for any.

    Raises:
        MissingDependencyError, DeviceError: as `find_cuda_devices`; or none has that name, or none
            of them runs the code.
    """
    devices = find_cuda_devices()
    named = [device for device in devices if name is None or name.lower() in device.name.lower()]
    if not named:
        names = ", ".join(repr(device.name) for device in devices)
        raise DeviceError(f"no CUDA device is called {name!r}; there is {names}")
    for device in named:
        if device.runs(architecture):
            return device
    others = ", ".join(f"{device.name} is {device.architecture}" for device in named)
    raise DeviceError(
        f"the model is compiled for {architecture}, and {others}; compile it with "
        f"--target cuda:{named[0].architecture}"
    )


def _describe(cuda: Any, index: int) -> CudaDevice:
    device = _checked(cuda.cuDeviceGet(index))
    attributes = cuda.CUdevice_attribute
    major = attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    minor = attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
    name = bytes(_checked(cuda.cuDeviceGetName(256, device)))
    return CudaDevice(
        index,
        name.rstrip(b"\0").decode(),
        (
            int(_checked(cuda.cuDeviceGetAttribute(major, device))),
            int(_checked(cuda.cuDeviceGetAttribute(minor, device))),
        ),
    )


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of the driver gave beside its status; of several values, all.

    Raises:
        _DriverError: the status is an error.
    """
    status, *values = result
    if int(status) != 0:
        name = str(status.name)
        memory = name == "CUDA_ERROR_OUT_OF_MEMORY"
        raise _DriverError("out of device memory" if memory else name)
    return values[0] if len(values) == 1 else values


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise MissingDependencyError(
            "a CUDA artifact needs cuda-bindings; run: pip install 'leakyforge[cuda]'"
        ) from error
    return driver
