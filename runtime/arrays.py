"""Arrays in files: .npy and .npz, read without pickle and written at once."""

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from leakyforge.errors import InputError
from leakyforge.runtime.tensors import Array


def load_npy(path: Path) -> Array:
    """Read one array.

    Raises:
        InputError: no such file, or not an .npy file of plain numbers.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"array file {path} cannot be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds several arrays; give it with --inputs")
    return array


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
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"array file {path} cannot be read: {error}") from error


def save_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays to an .npz file under a temporary name and rename it.

    Raises:
        InputError: the file cannot be written; one of that name is left as it was.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        os.replace(temporary, path)  # noqa: PTH105 - a path string, not a Path
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # noqa: PTH108 - as above
