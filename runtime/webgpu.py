"""Running a launch plan on a WebGPU device, through wgpu.

wgpu-native brings WebGPU to Vulkan, Metal and Direct3D 12. Without a GPU, Mesa's software Vulkan
(Debian's mesa-vulkan-drivers) is a device on any CPU. Source: W3C, "WebGPU".
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from leakyforge.errors import DeviceError, ExecutionError, MissingDependencyError
from leakyforge.runtime.artifact import Artifact, unpack_weights
from leakyforge.runtime.plan import ALIGNMENT, Launch, LaunchPlan, read_plan
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tensors import Array, empty_output

# What kernels are compiled for: the defaults that every device grants, whatever this one has more.
_LIMITS = {
    "max-storage-buffers-per-shader-stage": 8,
    "max-compute-invocations-per-workgroup": 256,
    "max-compute-workgroup-size-x": 256,
    "max-compute-workgroup-size-y": 256,
    "max-compute-workgroup-size-z": 64,
    "max-compute-workgroup-storage-size": 16 << 10,
    "max-compute-workgroups-per-dimension": 65535,
}
# Defaults that a model may exceed where the device allows it.
_MOST_BUFFER, _MOST_BINDING = 256 << 20, 128 << 20
# WebGPU on OpenGL lacks parts of it.
_BACKENDS = ("Vulkan", "Metal", "D3D12")
_TYPES = ("DiscreteGPU", "IntegratedGPU")
_HALF = "shader-f16"
_HELP = (
    "install the GPU's driver for Vulkan, or Mesa's, which runs on any CPU: apt install "
    "mesa-vulkan-drivers"
)


class WebGpuEngine:
    """A plan on a device: pipelines made, weights uploaded, buffers allocated.

    Args:
        artifact: whose plan and weights they are.
        device: a part of the device's name; by default the first GPU, else the first device.

    Raises:
        ArtifactFormatError: the artifact holds no plan.
        MissingDependencyError: wgpu is not installed.
        DeviceError: there is no such device, or the plan does not fit on it.
    """

    def __init__(self, artifact: Artifact, device: str | None = None) -> None:
        plan = self._plan = read_plan(artifact)
        self._specs = artifact.manifest.outputs
        weights = unpack_weights(artifact.weight_memory, artifact.variant.weights)
        self._wgpu = wgpu = _wgpu()
        adapter = choose_adapter(device)
        self.device = device_name(adapter)
        limits = self._limits(adapter)
        features = self._features(adapter)
        with self._named_errors(DeviceError, "cannot be prepared"):
            self._device = adapter.request_device_sync(
                required_features=features, required_limits=limits
            )
            usage = wgpu.BufferUsage
            self._arena = self._buffer(plan.arena)
            self._own = {
                index: self._buffer(buffer.size)
                for index, buffer in enumerate(plan.buffers)
                if buffer.offset is None
            }
            for index, weight in zip(plan.weights, weights, strict=True):
                self._write(index, weight)
            modules = [self._device.create_shader_module(code=text) for text in plan.programs]
            pipelines: dict[int, tuple[Any, Any]] = {}
            self._launches = [self._prepared(modules, pipelines, each) for each in plan.launches]
            sizes = [plan.buffers[index].size for index in plan.outputs]
            self._staging = self._device.create_buffer(
                size=max(4, sum(sizes)), usage=usage.COPY_DST | usage.MAP_READ
            )

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs for inputs in the order of the model's.

        Raises:
            ExecutionError: the device fails.
        """
        outputs, position = [empty_output(spec) for spec in self._specs], 0
        with self._named_errors(ExecutionError, "failed"):
            for index, array in zip(self._plan.inputs, feeds.values(), strict=True):
                self._write(index, array)
            encoder = self._device.create_command_encoder()
            compute = encoder.begin_compute_pass()
            for pipeline, group, grid in self._launches:
                compute.set_pipeline(pipeline)
                compute.set_bind_group(0, group)
                compute.dispatch_workgroups(*grid)
            compute.end()
            for index in self._plan.outputs:
                source, offset, size = self._place(index)
                encoder.copy_buffer_to_buffer(source, offset, self._staging, position, size)
                position += size
            self._device.queue.submit([encoder.finish()])
            self._staging.map_sync(self._wgpu.MapMode.READ)
            copied = np.frombuffer(self._staging.read_mapped(), np.uint8)
            self._staging.unmap()
        position = 0
        for index, array in zip(self._plan.outputs, outputs, strict=True):
            array.reshape(-1).view(np.uint8)[:] = copied[position : position + array.nbytes]
            position += self._plan.buffers[index].size
        return outputs

    def _buffer(self, size: int) -> Any:
        """Memory that kernels read and write."""
        usage = self._wgpu.BufferUsage
        return self._device.create_buffer(
            size=max(4, size), usage=usage.STORAGE | usage.COPY_DST | usage.COPY_SRC
        )

    def _place(self, index: int) -> tuple[Any, int, int]:
        """The memory that a buffer of the plan is in, where it begins there, and its size."""
        buffer = self._plan.buffers[index]
        if buffer.offset is None:
            return self._own[index], 0, buffer.size
        return self._arena, buffer.offset, buffer.size

    def _write(self, index: int, array: Array) -> None:
        """Copy an array to the device, in whole words."""
        target, offset, size = self._place(index)
        data = np.zeros(size, np.uint8)
        data[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._device.queue.write_buffer(target, offset, data)

    def _prepared(
        self, modules: list[Any], pipelines: dict[int, tuple[Any, Any]], launch: Launch
    ) -> tuple[Any, Any, tuple[int, int, int]]:
        """A kernel's pipeline, which its launches share, its arguments, and its grid."""
        if launch.program not in pipelines:
            pipelines[launch.program] = self._pipeline(modules[launch.program], launch)
        pipeline, layout = pipelines[launch.program]
        entries = []
        for binding, index in enumerate(launch.buffers):
            memory, offset, size = self._place(index)
            resource = {"buffer": memory, "offset": offset, "size": size}
            entries.append({"binding": binding, "resource": resource})
        group = self._device.create_bind_group(layout=layout, entries=entries)
        return pipeline, group, launch.grid

    def _pipeline(self, module: Any, launch: Launch) -> tuple[Any, Any]:
        """A kernel, and the layout of its arguments, of which it may use some only."""
        entries = [
            {
                "binding": binding,
                "visibility": self._wgpu.ShaderStage.COMPUTE,
                "buffer": {"type": self._wgpu.BufferBindingType.storage},
            }
            for binding in range(len(launch.buffers))
        ]
        layout = self._device.create_bind_group_layout(entries=entries)
        pipeline = self._device.create_compute_pipeline(
            layout=self._device.create_pipeline_layout(bind_group_layouts=[layout]),
            compute={"module": module, "entry_point": launch.kernel},
        )
        return pipeline, layout

    def _limits(self, adapter: Any) -> dict[str, int]:
        """The limits to ask for.

        Raises:
            DeviceError: the device has less.
        """
        wanted = {**_LIMITS, **_sizes(self._plan)}
        for name, value in wanted.items():
            if adapter.limits[name] < value:
                raise DeviceError(
                    f"the model needs a device with {name} of {value}, {self.device} has "
                    f"{adapter.limits[name]}; take a smaller batch or image, or another --device"
                )
        return {**wanted, "min-storage-buffer-offset-alignment": min(ALIGNMENT, 256)}

    def _features(self, adapter: Any) -> list[str]:
        """The features to ask for.

        Raises:
            DeviceError: the device lacks one.
        """
        if not any(text.startswith("enable f16;") for text in self._plan.programs):
            return []
        if _HALF not in adapter.features:
            raise DeviceError(
                f"the model computes in float16, and {self.device} lacks {_HALF}; take another "
                "--device, or compile the model in float32"
            )
        return [_HALF]

    @contextlib.contextmanager
    def _named_errors(
        self, kind: type[DeviceError] | type[ExecutionError], what: str
    ) -> Iterator[None]:
        try:
            yield
        except (self._wgpu.GPUError, RuntimeError) as error:
            memory = isinstance(error, self._wgpu.GPUOutOfMemoryError)
            reason = "out of device memory" if memory else one_line(error)
            if "lost" in str(error):
                reason = f"the device was lost; make a new session: {reason}"
            raise kind(f"the model {what} on WebGPU device {self.device}: {reason}") from error


def _sizes(plan: LaunchPlan) -> dict[str, int]:
    """Bytes of a buffer and of a binding that a plan needs."""
    largest = max((buffer.size for buffer in plan.buffers), default=0)
    return {
        "max-buffer-size": max(_MOST_BUFFER, plan.arena, largest),
        "max-storage-buffer-binding-size": max(_MOST_BINDING, largest),
    }


def find_adapters() -> list[Any]:
    """All WebGPU devices, at least one, GPUs first.

    Raises:
        MissingDependencyError: wgpu is not installed.
        DeviceError: there is none.
    """
    adapters = [
        adapter
        for adapter in _wgpu().gpu.enumerate_adapters_sync()
        if adapter.info["backend_type"] in _BACKENDS
    ]
    if not adapters:
        raise DeviceError(f"there is no WebGPU device; {_HELP}")
    return sorted(adapters, key=lambda each: each.info["adapter_type"] not in _TYPES)


def choose_adapter(name: str | None = None) -> Any:
    """The WebGPU device whose name holds `name`; by default the first GPU, else the first one.

    Raises:
        MissingDependencyError, DeviceError: as `find_adapters`; or none has that name.
    """
    adapters = find_adapters()
    for adapter in adapters:
        if name is None or name.lower() in device_name(adapter).lower():
            return adapter
    names = ", ".join(repr(device_name(adapter)) for adapter in adapters)
    raise DeviceError(f"no WebGPU device is called {name!r}; there is {names}")


def device_name(adapter: Any) -> str:
    """Name of a WebGPU device."""
    return str(adapter.info["device"])


def _wgpu() -> Any:
    try:
        import wgpu
    except ImportError as error:
        raise MissingDependencyError(
            "a WebGPU artifact needs wgpu; run: pip install 'leakyforge[webgpu]'"
        ) from error
    return wgpu
