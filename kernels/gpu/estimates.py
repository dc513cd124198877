"""What a convolution is estimated to take on a GPU, directly and by Winograd's algorithm.

    seconds = sum over kernels of max(operations / peak, bytes / bandwidth), and their starts

Operations are those of `gemm` in whole tiles, with what it waits for; bytes are those of a kernel's
tensors, each once. Peaks are those of the data sheets in `runtime.roofline`. A transform does about
two operations for each byte that it moves, less than any of these GPUs in that time: its bytes are
what it costs. Where several GPUs may run the code, the one that computes the most in the time of a
byte is taken, for which the transforms are dearest.
"""

import math

from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.gpu.gemm import estimated_products
from leakyforge.kernels.gpu.limits import DeviceLimits
from leakyforge.kernels.gpu.target import GpuTarget
from leakyforge.kernels.gpu.winograd import Tiling
from leakyforge.runtime.roofline import GPUS, Gpu

# Of float32.
_ITEMSIZE = 4
# From the end of a kernel to where the next one has filled the GPU; taken to be, not measured.
_START = 3e-6


def reference_gpu(target: GpuTarget) -> Gpu:
    """The GPU of a target with the most operations for a byte; out of all for OpenCL and WebGPU."""
    fitting = [gpu for gpu in GPUS.values() if gpu.architecture == target.name]
    return max(fitting or GPUS.values(), key=lambda gpu: gpu.balance)


def direct_seconds(shape: Conv2dShape, batch: int, limits: DeviceLimits, gpu: Gpu) -> float:
    """Of a convolution as an implicit matrix product."""
    pixels, depth = batch * shape.out_height * shape.out_width, math.prod(shape.kernel)
    depth *= shape.in_channels
    products = estimated_products(shape.out_channels, pixels, depth, 1, _ITEMSIZE, limits)
    weights = _ITEMSIZE * shape.out_channels * depth
    read, written = tensor_bytes(shape, batch)
    return gpu.seconds(2 * products, weights + read + written) + _START


def winograd_seconds(tiling: Tiling, limits: DeviceLimits, gpu: Gpu) -> float:
    """Of the same by Winograd's algorithm in three kernels."""
    shape, places = tiling.shape, tiling.size**2
    products = estimated_products(
        shape.out_channels, tiling.tiles, shape.in_channels, places, _ITEMSIZE, limits
    )
    weights, transformed, sums = tiling.bytes
    read, written = tensor_bytes(shape, tiling.batch)
    return (
        gpu.seconds(0, read + transformed)
        + gpu.seconds(2 * products, weights + transformed + sums)
        + gpu.seconds(0, sums + written)
        + 3 * _START
    )


def tensor_bytes(shape: Conv2dShape, batch: int) -> tuple[int, int]:
    """Bytes of a convolution's input and of its output."""
    each = _ITEMSIZE * batch
    return (
        each * shape.in_channels * shape.height * shape.width,
        each * shape.out_channels * shape.out_height * shape.out_width,
    )
