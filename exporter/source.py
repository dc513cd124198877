"""What every kind of source becomes before it is checked: an ONNX model and where it is from."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Framework:
    """The framework that a model is from, to compare its outputs with those of the ONNX model.

    Attributes:
        name: with its version, as in `torch 2.13.0`.
        run: From one array for each input of the graph, in its order, to one for each output.
        examples: An array for each input that the model takes; values of other than floating point
            are used as they are, since indices and masks have ranges of their own.
        sizes_fixed: Whether a symbolic dimension keeps its size in the examples.
    """

    name: str
    run: Callable[[Sequence[Array]], list[Array]]
    examples: tuple[Array, ...]
    sizes_fixed: bool = False


@dataclass(frozen=True)
class Source:
    """A model in ONNX, not yet checked.

    Attributes:
        proto: the model.
        kind: what it was made from, as in `torch module`.
        name: of the module's class, the file or the zoo model.
        framework: None where nothing but the ONNX model computes it.
        files: SHA-256 in hexadecimal of each file that it was read from, by the file's role.
    """

    proto: onnx.ModelProto
    kind: str
    name: str
    framework: Framework | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """How an error calls it."""
        return f"{self.kind} {self.name}"


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder by name, in hexadecimal.

    Raises:
        OSError: The system refuses.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for file in files:
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def is_floating(array: Array) -> bool:
    """Return whether an array is of floating point, bfloat16 too."""
    return array.dtype.kind == "f" or array.dtype == np.dtype(ml_dtypes.bfloat16)


def example(shape: Sequence[int], dtype: str = "float32") -> Array:
    """Seeded standard normal values; for other than floating point, zeros."""
    if np.dtype(dtype).kind != "f":
        return np.zeros(shape, dtype)
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)
