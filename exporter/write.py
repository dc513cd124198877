"""Writing a file whole or not at all."""

import os
import uuid
from pathlib import Path

from leakyforge.errors import ExportError


def check_destination(path: str | os.PathLike[str]) -> Path:
    """Return `path` as a `Path`, before the work whose result goes there.

    Raises:
        ExportError: It is a directory or another thing that is no file, or its folder is missing.
    """
    destination = Path(path)
    if destination.is_dir():
        raise ExportError(f"{destination} is a directory; give the path of a file in it")
    if not destination.parent.is_dir():
        raise ExportError(f"{destination.parent} is not a folder; create it first")
    # A rename would replace a device like /dev/null.
    if destination.exists() and not destination.is_file():
        raise ExportError(f"{destination} is not a regular file; give another path")
    return destination


def write_atomically(destination: Path, data: bytes) -> Path:
    """Write `data` under a temporary name in the same folder, rename it, return `destination`.

    Raises:
        ExportError: The system refuses; the folder is then as it was.
    """
    # Not tempfile: its files are readable by their owner only.
    temporary = destination.with_name(f".leakyforge-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            # Without it a power cut after the rename can leave an empty file.
            os.fsync(file.fileno())
        temporary.replace(destination)
    except OSError as error:
        raise ExportError(f"cannot write {destination}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return destination
