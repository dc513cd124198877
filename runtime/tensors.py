"""Tensor descriptions: names, shapes with symbols, dtypes, and memory that kernels can take."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from leakyforge.errors import InputError

Array = npt.NDArray[np.generic]
Shape = tuple[int | str, ...]

# Of weights and staged inputs: a vector is then in one line of the cache.
ALIGNMENT = 64

# Of fewer than 8 bits: the type that kernels compute with and that holds all of its values.
CARRIERS = {
    "int2": "int8",
    "uint2": "uint8",
    "int4": "int8",
    "uint4": "uint8",
    "float4_e2m1fn": "float8_e4m3fn",
}
_ONNX_TYPES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: name in the ONNX graph.
        shape: sizes, with a text for a symbolic dimension.
        dtype: numpy's name, or `bfloat16`.
        low: least value that the model expects at this input, None where it did not say.
        high: greatest value that the model expects.
        rounding_steps: floating-point roundings on the way to this output (see `tolerance`).
        quantisations: of those, to 8 bits.
    """

    name: str
    shape: Shape
    dtype: str
    low: float | None = None
    high: float | None = None
    rounding_steps: int = 0
    quantisations: int = 0

    @property
    def type(self) -> str:
        """ONNX Runtime's name of the type, as in `tensor(float)`."""
        return f"tensor({_ONNX_TYPES.get(self.dtype, self.dtype)})"


@functools.cache
def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """Numpy dtype of a name; bfloat16 and those of fewer than 16 bits come from ml_dtypes.

    Raises:
        TypeError: there is none.
    """
    if name.startswith(("bfloat", "float8", "float4", "int4", "uint4", "int2", "uint2")):
        import ml_dtypes

        foreign: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, name, name))
        return foreign
    return np.dtype(name)


def format_shape(shape: Shape | list[int | str]) -> str:
    """A shape as the command line writes it: 1x3x416x416, `scalar` for rank 0."""
    return "x".join(str(dim) for dim in shape) or "scalar"


def format_shapes(arrays: Mapping[str, Array]) -> str:
    """Names and shapes of arrays, in words."""
    return ", ".join(f"{name} {format_shape(array.shape)}" for name, array in arrays.items())


def bind_shape(spec: TensorSpec, shape: tuple[int, ...], symbols: dict[str, int]) -> None:
    """Check a concrete shape against a declared one and note what the symbols become.

    Raises:
        InputError: another rank, another size, or one symbol with two sizes.
    """
    if shape == spec.shape:
        return
    fits = len(shape) == len(spec.shape)
    bound = {name: size for name, size in symbols.items() if name in spec.shape}
    for declared, size in zip(spec.shape, shape, strict=False):
        if isinstance(declared, int):
            fits = fits and declared == size
        else:
            fits = fits and symbols.setdefault(declared, size) == size
    if not fits:
        others = ", ".join(f"{name} = {size}" for name, size in bound.items())
        where = f" where another input has {others}" if others else ""
        raise InputError(
            f"input {spec.name!r} has shape {format_shape(shape)}, "
            f"the model takes {format_shape(spec.shape)}{where}"
        )


def empty_output(spec: TensorSpec) -> Array:
    """Uninitialised array of an output whose shape is fixed."""
    return np.empty(tuple(int(size) for size in spec.shape), numpy_dtype(spec.dtype))


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """Uninitialised array whose data lie on a 64-byte boundary."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
