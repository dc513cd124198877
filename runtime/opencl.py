"""Running a launch plan on an OpenCL device, through PyOpenCL.

Any device will do: a GPU, or a CPU by PoCL, which `pip install leakyforge[opencl]` brings. PyOpenCL
keeps built programs in the user's cache. Source: Khronos, "The OpenCL Specification", 3.0.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from leakyforge.errors import DeviceError, ExecutionError, MissingDependencyError
from leakyforge.runtime.artifact import Artifact, unpack_weights
from leakyforge.runtime.plan import ALIGNMENT, Launch, read_plan
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tensors import Array, empty_output


class OpenClEngine:
    """A plan on a device: program built, weights uploaded, buffers allocated.

    Args:
        artifact: whose plan and weights they are.
        device: a part of the device's name; by default the first GPU, else the first device.

    Raises:
        ArtifactFormatError: the artifact holds no plan.
        MissingDependencyError: PyOpenCL is not installed.
        DeviceError: there is no such device, or the plan does not fit on it.
    """

    def __init__(self, artifact: Artifact, device: str | None = None) -> None:
        plan = self._plan = read_plan(artifact)
        self._specs = artifact.manifest.outputs
        weights = unpack_weights(artifact.weight_memory, artifact.variant.weights)
        self._cl = _pyopencl()
        self.device = choose_device(device)
        self._check_limits()
        with self._named_errors(DeviceError, "cannot be prepared"):
            context = self._cl.Context([self.device])
            self._queue = self._cl.CommandQueue(context)
            flags = self._cl.mem_flags.READ_WRITE
            arena = self._cl.Buffer(context, flags, max(1, plan.arena))
            self._buffers = [
                self._cl.Buffer(context, flags, each.size)
                if each.offset is None
                else arena.get_sub_region(each.offset, each.size)
                for each in plan.buffers
            ]
            programs = [self._cl.Program(context, text).build() for text in plan.programs]
            for index, weight in zip(plan.weights, weights, strict=True):
                self._cl.enqueue_copy(self._queue, self._buffers[index], _bytes(weight))
            self._launches = [self._prepared(programs, launch) for launch in plan.launches]
            self._queue.finish()

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs for inputs in the order of the model's.

        Raises:
            ExecutionError: the device fails.
        """
        copy, queue = self._cl.enqueue_copy, self._queue
        with self._named_errors(ExecutionError, "failed"):
            for index, array in zip(self._plan.inputs, feeds.values(), strict=True):
                copy(queue, self._buffers[index], _bytes(array))
            for kernel, grid, group in self._launches:
                self._cl.enqueue_nd_range_kernel(queue, kernel, grid, group)
            outputs = []
            for index, spec in zip(self._plan.outputs, self._specs, strict=True):
                array = empty_output(spec)
                copy(queue, _bytes(array), self._buffers[index])
                outputs.append(array)
            queue.finish()
        return outputs

    def _prepared(
        self, programs: Sequence[Any], launch: Launch
    ) -> tuple[Any, Sequence[int], Sequence[int]]:
        """A kernel with its arguments, the work items in all, and those of a group."""
        kernel = self._cl.Kernel(programs[launch.program], launch.kernel)
        kernel.set_args(*(self._buffers[index] for index in launch.buffers))
        info = self._cl.kernel_work_group_info
        most = kernel.get_work_group_info(info.WORK_GROUP_SIZE, self.device)
        if math.prod(launch.group) > most:
            raise DeviceError(
                f"kernel {launch.kernel} needs groups of {math.prod(launch.group)} work items, "
                f"{self.device.name} runs it with at most {most}; compile for smaller groups"
            )
        sizes = [count * size for count, size in zip(launch.grid, launch.group, strict=True)]
        return kernel, sizes, launch.group

    def _check_limits(self) -> None:
        """Refuse what the device cannot hold, or cannot divide."""
        alignment = self.device.mem_base_addr_align // 8
        if ALIGNMENT % alignment:
            raise DeviceError(
                f"{self.device.name} divides its memory at multiples of {alignment} bytes, the "
                f"model's tensors lie at multiples of {ALIGNMENT}; take another --device"
            )
        largest = max(self._plan.arena, *(buffer.size for buffer in self._plan.buffers), 0)
        total = self._plan.memory
        if largest > self.device.max_mem_alloc_size or total > self.device.global_mem_size:
            raise DeviceError(
                f"the model needs {total / 2**20:.0f} MiB in buffers of up to "
                f"{largest / 2**20:.0f} MiB, {self.device.name} has "
                f"{self.device.global_mem_size / 2**20:.0f} MiB in buffers of up to "
                f"{self.device.max_mem_alloc_size / 2**20:.0f} MiB; take a smaller batch or image"
            )

    @contextlib.contextmanager
    def _named_errors(
        self, kind: type[DeviceError] | type[ExecutionError], what: str
    ) -> Iterator[None]:
        try:
            yield
        except self._cl.Error as error:
            memory = isinstance(error, self._cl.MemoryError)
            reason = "out of device memory" if memory else one_line(error)
            raise kind(f"the model {what} on OpenCL device {self.device.name}: {reason}") from error


def find_devices() -> list[Any]:
    """All OpenCL devices, at least one.

    Raises:
        MissingDependencyError: PyOpenCL is not installed.
        DeviceError: there is none.
    """
    cl = _pyopencl()
    try:
        devices = [device for platform in cl.get_platforms() for device in platform.get_devices()]
    except cl.Error as error:
        raise DeviceError(f"no OpenCL platform works: {one_line(error)}; {_HELP}") from error
    if not devices:
        raise DeviceError(f"there is no OpenCL device; {_HELP}")
    return devices


def choose_device(name: str | None = None) -> Any:
    """The OpenCL device whose name holds `name`; by default the first GPU, else the first one.

    Raises:
        MissingDependencyError, DeviceError: as `find_devices`; or none has that name.
    """
    devices = find_devices()
    if name is None:
        is_gpu = _pyopencl().device_type.GPU
        return next((device for device in devices if device.type & is_gpu), devices[0])
    for device in devices:
        if name.lower() in device.name.lower():
            return device
    names = ", ".join(repr(device.name) for device in devices)
    raise DeviceError(f"no OpenCL device is called {name!r}; there is {names}")


_HELP = "install a driver, or PoCL, which runs on any CPU: pip install 'leakyforge[opencl]'"


def _pyopencl() -> Any:
    try:
        import pyopencl
    except ImportError as error:
        raise MissingDependencyError(
            "an OpenCL artifact needs PyOpenCL; run: pip install 'leakyforge[opencl]'"
        ) from error
    return pyopencl


def _bytes(array: Array) -> Array:
    """The array's memory as bytes: PyOpenCL knows no bfloat16, and no empty strides."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
