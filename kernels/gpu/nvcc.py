"""NVIDIA's compiler: from CUDA source to a cubin, and what ptxas says of each kernel.

Source: NVIDIA, "CUDA Compiler Driver NVCC", 13.0, and the output of its `-Xptxas -v`.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leakyforge.errors import CompileError, MissingDependencyError

_FIGURES = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for .*\n"
    r"ptxas info *: Function properties for (?P=kernel)\n"
    r" *(?P<stack>\d+) bytes stack frame, (?P<spill_stores>\d+) bytes spill stores, "
    r"(?P<spill_loads>\d+) bytes spill loads\n"
    r"ptxas info *: Used (?P<registers>\d+) registers(?P<memory>.*)"
)
_SHARED = re.compile(r"(\d+) bytes smem")
_CONSTANT = re.compile(r"(\d+) bytes cmem\[\d+\]")


@dataclass(frozen=True)
class Figures:
    """What ptxas says of one kernel.

    Attributes:
        registers: of a thread, each of 32 bits.
        spill_stores: bytes that a thread writes to local memory for want of registers.
        spill_loads: bytes that it reads back.
        stack: bytes of a thread's local memory.
        shared: bytes of a block's static shared memory.
        constant: bytes of constant memory, None where ptxas says nothing.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    constant: int | None


def architectures() -> list[str]:
    """The architectures that nvcc compiles for, such as sm_80.

    Raises:
        MissingDependencyError: there is no nvcc, or it does not run.
    """
    done = _nvcc(["--list-gpu-code"])
    names = done.stdout.split()
    if done.returncode != 0 or not names:
        raise MissingDependencyError(f"nvcc does not run: {_reason(done)}; {_HELP}")
    return names


def compile_cubin(source: str, architecture: str) -> tuple[bytes, dict[str, Figures]]:
    """A cubin, and ptxas's figures by the kernels' names.

    Args:
        source: in CUDA C++.
        architecture: out of `architectures`.

    Raises:
        MissingDependencyError: there is no nvcc.
        CompileError: it refuses the source, as where a kernel exceeds the architecture's limits.
    """
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
        text, cubin = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
        text.write_text(source, encoding="utf-8")
        # -w: TVM's source declares what it does not use.
        options = ["-w", "-Xptxas", "-v", "-cubin", f"-arch={architecture}"]
        done = _nvcc([*options, "-o", str(cubin), str(text)])
        if done.returncode != 0:
            raise CompileError(f"nvcc fails for {architecture}: {_reason(done)}")
        return cubin.read_bytes(), parse_figures(done.stderr)


def parse_figures(text: str) -> dict[str, Figures]:
    """The figures in what `nvcc -Xptxas -v` prints, by the kernels' names."""
    found = {}
    for match in _FIGURES.finditer(text):
        shared = _SHARED.search(match["memory"])
        banks = _CONSTANT.findall(match["memory"])
        found[match["kernel"]] = Figures(
            registers=int(match["registers"]),
            spill_stores=int(match["spill_stores"]),
            spill_loads=int(match["spill_loads"]),
            stack=int(match["stack"]),
            shared=0 if shared is None else int(shared[1]),
            constant=sum(map(int, banks)) if banks else None,
        )
    return found


_HELP = (
    "install NVIDIA's CUDA toolkit (https://developer.nvidia.com/cuda-downloads) and put its bin "
    "folder on the PATH"
)


def _nvcc(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    path = shutil.which("nvcc")
    if path is None:
        raise MissingDependencyError(f"CUDA targets need nvcc, which is not on the PATH; {_HELP}")
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=False)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The first line that nvcc calls an error, else its last."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(error|fatal)\b", line)]
    return (errors[:1] or lines[-1:] or [f"exit status {done.returncode}"])[0]
