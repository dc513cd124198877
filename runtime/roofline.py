"""The least time of each kernel on a GPU by its data sheet: what can be said without the GPU.

    intensity = operations / bytes
    least     = max(operations / peak, bytes / bandwidth)

Operations are those of the algorithm in convolutions and products, bytes those of the kernel's
tensors, each once. Both are bounds, no measurement: a kernel reads some of its tensors more than
once, and is never at the peak; only tensors that are still in the GPU's cache can make it faster.
Source: S. Williams, A. Waterman, D. Patterson, "Roofline", Communications of the ACM 52 (4), 2009.
"""

from dataclasses import asdict, dataclass
from typing import Any

from leakyforge.errors import InputError
from leakyforge.runtime.manifest import DEVICE_KINDS, Kernel, Manifest


@dataclass(frozen=True)
class Gpu:
    """A GPU as its data sheet has it.

    Attributes:
        name: of the product.
        flops_per_second: peak in float32, without tensor cores.
        bytes_per_second: bandwidth of its memory.
        architecture: nvcc's name.
        source: the data sheet.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    architecture: str
    source: str

    @property
    def balance(self) -> float:
        """Operations in the time that a byte takes."""
        return self.flops_per_second / self.bytes_per_second

    def seconds(self, flops: float, size: float) -> float:
        """Least time of so many operations and bytes."""
        return max(flops / self.flops_per_second, size / self.bytes_per_second)


GPUS = {
    "a10": Gpu("A10", 31.2e12, 600e9, "sm_86", "NVIDIA A10 Tensor Core GPU data sheet, 2021"),
    "a100": Gpu(
        "A100 SXM 80GB", 19.5e12, 2039e9, "sm_80", "NVIDIA A100 Tensor Core GPU data sheet, 2021"
    ),
    "h100": Gpu("H100 SXM", 67e12, 3350e9, "sm_90", "NVIDIA H100 Tensor Core GPU data sheet, 2024"),
    "h200": Gpu("H200 SXM", 67e12, 4800e9, "sm_90", "NVIDIA H200 Tensor Core GPU data sheet, 2024"),
    "l4": Gpu("L4", 30.3e12, 300e9, "sm_89", "NVIDIA L4 Tensor Core GPU data sheet, 2023"),
    "l40s": Gpu("L40S", 91.6e12, 864e9, "sm_89", "NVIDIA L40S data sheet, 2023"),
}


@dataclass(frozen=True)
class KernelBound:
    """The bound of one kernel.

    Attributes:
        kernel: its name in the plan.
        calls: how often a run calls it.
        flops: floating-point operations of a call, in convolutions and products by definition.
        computed: of the same by the algorithm (see `manifest.Kernel`).
        bytes_moved: bytes of its tensors, each once.
        intensity: `computed` for each of these bytes.
        occupancy: of a multiprocessor of the architecture that it was compiled for; None where that
            is not known (see `manifest.Resources`).
        bound: "compute" or "memory", whichever takes longer.
        least_us: least time of a call in microseconds.
    """

    kernel: str
    calls: int
    flops: int
    computed: int
    bytes_moved: int
    intensity: float
    occupancy: float | None
    bound: str
    least_us: float


@dataclass(frozen=True)
class RooflineReport:
    """The bounds of an artifact's kernels on a GPU.

    Attributes:
        model: name of the model.
        variant: whose kernels they are.
        gpu: the GPU and its peaks.
        kernels: in the order of their first calls.
        least_us: of all calls of a run together.
    """

    model: str
    variant: str
    gpu: Gpu
    kernels: tuple[KernelBound, ...]
    least_us: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)


def roofline(manifest: Manifest, gpu: str) -> RooflineReport:
    """Bounds of the kernels of an artifact for a device.

    Args:
        manifest: the artifact's.
        gpu: a name out of `GPUS`.

    Raises:
        InputError: the GPU is not in the table, or the artifact is code for a CPU.
    """
    if gpu not in GPUS:
        raise InputError(f"no data sheet of GPU {gpu!r} is known; give one of: {', '.join(GPUS)}")
    if manifest.machine not in DEVICE_KINDS:
        raise InputError(
            f"the artifact of {manifest.model} is code for a CPU, which bench --profile measures; "
            "a roofline is for artifacts of --target cuda:sm_NN, opencl or webgpu"
        )
    # An artifact for a device has one variant.
    variant, limits = manifest.variants[0], GPUS[gpu]
    calls: dict[str, int] = {}
    for kernel in variant.kernels:
        calls[kernel.name] = calls.get(kernel.name, 0) + 1
    records = {kernel.name: kernel for kernel in variant.kernels}
    bounds = tuple(_bound(records[name], count, limits) for name, count in calls.items())
    least = sum(bound.least_us * bound.calls for bound in bounds)
    return RooflineReport(manifest.model, variant.name, limits, bounds, least)


def _bound(kernel: Kernel, calls: int, gpu: Gpu) -> KernelBound:
    size = kernel.bytes_moved or 0
    return KernelBound(
        kernel=kernel.name,
        calls=calls,
        flops=kernel.flops,
        computed=kernel.computed,
        bytes_moved=size,
        intensity=kernel.computed / size if size else 0.0,
        occupancy=None if kernel.resources is None else kernel.resources.occupancy,
        bound="compute" if kernel.computed > size * gpu.balance else "memory",
        least_us=gpu.seconds(kernel.computed, size) * 1e6,
    )
