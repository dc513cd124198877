"""Linking compiled objects into a shared library with LLD, which comes as a Python package.

A user's machine has no C toolchain, and the code that TVM emits needs none of its libraries.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from tvm import relax

from leakyforge.errors import CompileError


def export_library(executable: relax.VMExecutable, path: Path) -> None:
    """Write the executable's code as an ELF shared library.

    Raises:
        CompileError: the linker fails.
    """
    executable.export_library(str(path), fcompile=_link)


def _link(output: str, objects: list[str], **_options: Any) -> None:
    """`fcompile` of TVM's `export_library`: link object files into `output`."""
    command = [sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-o", output, *objects]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"the linker failed on {output}: {done.stderr.strip()}")


_link.get_target_triple = lambda: "x86_64-linux-gnu"  # type: ignore[attr-defined]
