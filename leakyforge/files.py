"""Writing a file whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def destination_problem(path: Path) -> str | None:
    """What keeps a file from being written at `path`, with what to do; None where nothing does."""
    if path.is_dir():
        return f"{path} is a directory; give the path of a file in it"
    if not path.parent.is_dir():
        return f"{path.parent} is not a folder; create it first"
    # A rename would replace a device like /dev/null.
    if path.exists() and not path.is_file():
        return f"{path} is not a regular file; give another path"
    return None


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream into a temporary file beside `path`, which takes its place when the block ends.

    On an error nothing is left behind, and a file that was at `path` is as it was.

    Raises:
        OSError: the system refuses.
    """
    # Not tempfile: its files are readable by their owner only.
    temporary = path.with_name(f".leakyforge-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            # Without it a power cut after the rename can leave an empty file.
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
