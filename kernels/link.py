"""Linking compiled objects into a shared library with LLD, which comes as a Python package.

A user's machine has no C toolchain, and the code that TVM emits needs none of its libraries.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from leakyforge.errors import CompileError


def export_library(
    executable: relax.VMExecutable | tvm.runtime.Module, path: Path, triple: str
) -> None:
    """Write compiled code as an ELF shared library.

    Args:
        executable: what `relax.build` or `tvm.compile` gave.
        path: the library's.
        triple: LLVM's description of the machine that it is for, such as aarch64-linux-gnu.

    Raises:
        CompileError: the linker fails.
    """

    def link(output: str, objects: list[str], **_options: Any) -> None:
        _link(output, objects)

    # TVM compiles what surrounds the kernels for this one.
    link.get_target_triple = lambda: triple  # type: ignore[attr-defined]
    executable.export_library(str(path), fcompile=link)


def _link(output: str, objects: list[str]) -> None:
    """Link object files into `output`; they say themselves what machine they are for."""
    command = [sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-o", output, *objects]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"the linker failed on {output}: {done.stderr.strip()}")
