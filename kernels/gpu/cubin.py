"""From a launch plan with CUDA source to one with a cubin, and its kernels' resources."""

import dataclasses
import math
from collections.abc import Sequence

from leakyforge.errors import CompileError
from leakyforge.kernels.gpu.nvcc import Figures, compile_cubin
from leakyforge.kernels.gpu.occupancy import occupancy
from leakyforge.runtime.manifest import Kernel, Resources
from leakyforge.runtime.plan import LaunchPlan


def build_cubin(
    plan: LaunchPlan, kernels: Sequence[Kernel], architecture: str
) -> tuple[LaunchPlan, list[Kernel]]:
    """The plan with its source compiled, and the records of its launches with their resources.

    Args:
        plan: with CUDA source.
        kernels: a record for each launch.
        architecture: nvcc's name, such as sm_80.

    Raises:
        CompileError: nvcc refuses the source, or says nothing about a kernel.
        MissingDependencyError: there is no nvcc.
    """
    cubin, figures = compile_cubin("".join(plan.programs), architecture)
    records = []
    for launch, kernel in zip(plan.launches, kernels, strict=True):
        if launch.kernel not in figures:
            raise CompileError(f"nvcc compiled no kernel {launch.kernel}; report the model")
        threads = math.prod(launch.group)
        resources = _resources(architecture, threads, figures[launch.kernel])
        records.append(dataclasses.replace(kernel, resources=resources))
    return dataclasses.replace(plan, programs=(), cubin=cubin), records


def _resources(architecture: str, threads: int, figures: Figures) -> Resources:
    """What ptxas says, and the occupancy that follows from it."""
    fill = occupancy(architecture, threads, figures.registers, figures.shared)
    return Resources(
        **dataclasses.asdict(figures),
        threads=threads,
        resident=None if fill is None else fill.resident,
        occupancy=None if fill is None else fill.share,
        limit=None if fill is None else fill.limit,
    )
