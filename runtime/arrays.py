"""Arrays in files: .npy and .npz, read without pickle and written at once."""

import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from leakyforge.errors import InputError
from leakyforge.files import atomic_file, destination_problem
from leakyforge.runtime.reference import one_line
from leakyforge.runtime.tensors import Array, numpy_dtype

# What numpy and zipfile raise over damaged files.
_UNREADABLE = (
    OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def load_npy(path: Path) -> Array:
    """Read one array.

    Raises:
        InputError: no such file, or not an .npy file of plain numbers.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise InputError(f"array file {path} cannot be read: {one_line(error)}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"{path} holds several arrays; give it with --inputs")
    return _bfloat16_again(array)


def load_npz(path: Path) -> dict[str, Array]:
    """Read all arrays of an .npz file.

    Raises:
        InputError: no such file, or not an .npz file of plain numbers.
    """
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise InputError(
                f"{path} holds one array without a name; give it with --input NAME={path}"
            )
        with stored:
            return {name: _bfloat16_again(stored[name]) for name in stored.files}
    except _UNREADABLE as error:
        raise InputError(f"array file {path} cannot be read: {one_line(error)}") from error


def _bfloat16_again(array: Array) -> Array:
    """Numpy writes bfloat16 as pairs of raw bytes and does not know them when it reads."""
    return array.view(numpy_dtype("bfloat16")) if array.dtype == np.dtype("V2") else array


def save_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays to an .npz file under a temporary name and rename it.

    Raises:
        InputError: the file cannot be written; one of that name is left as it was.
    """
    problem = destination_problem(path)
    if problem is not None:
        raise InputError(problem)
    try:
        with atomic_file(path) as stream:
            _write_npz(stream, arrays)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _write_npz(stream: IO[bytes], arrays: Mapping[str, Array]) -> None:
    """As `numpy.savez`, which has parameters of its own and so refuses an array called `file`."""
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                # Untyped in the numpy that Python 3.10 gets.
                np.lib.format.write_array(  # type: ignore[no-untyped-call, unused-ignore]
                    member, array, allow_pickle=False
                )
