"""TVM's runtime without its compiler.

`import tvm` loads libtvm_compiler.so (259 MB, seconds). To run an artifact, libtvm_runtime.so and
libtvm_runtime_extra.so are enough; they lie in the same package, which is found here without being
imported.
"""

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from leakyforge.errors import ArtifactError, MissingDependencyError
from leakyforge.pins import check_tvm_pins
from leakyforge.runtime.elf import missing_bytes
from leakyforge.runtime.threads import check_threads

# tvm::runtime::threading::ThreadGroup::AffinityMode
_ONE_CPU_EACH = -2
_SHARE_ALL_CPUS = -3
_CPU_DEVICE = 1
_POOLED_ALLOCATOR = 2

_pool = threading.local()
_loading = threading.Lock()


@functools.cache
def tvm_ffi() -> Any:
    """The `tvm_ffi` module with TVM's runtime library loaded.

    Raises:
        VersionError: the installed pair of packages is not the pinned one.
        MissingDependencyError: the runtime library is not where the package should have it.
    """
    check_tvm_pins()
    with _loading:
        with _torch_hidden():
            module = importlib.import_module("tvm_ffi")
        if "tvm" not in sys.modules:
            for library in _runtime_libraries():
                ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    return module


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """Keep `import tvm_ffi` from importing torch (over a second), unless torch is there already."""
    if "torch" in sys.modules or "tvm_ffi" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


def _runtime_libraries() -> list[Path]:
    """The runtime itself, and the library that sorts."""
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise MissingDependencyError("package tvm is not installed; run: pip install leakyforge")
    folder = Path(spec.origin).parent / "lib"
    libraries = [folder / "libtvm_runtime.so", folder / "libtvm_runtime_extra.so"]
    for library in libraries:
        if not library.is_file():
            raise MissingDependencyError(f"TVM's runtime {library} is absent; reinstall apache-tvm")
    return libraries


def load_vm(library: bytes, name: str) -> Any:
    """Load a compiled library and initialise its virtual machine on the CPU.

    Args:
        library: bytes of an ELF shared library exported by TVM.
        name: the artifact, for the error message.

    Returns:
        The initialised Relax virtual machine, a tvm_ffi module.

    Raises:
        ArtifactError: the library is cut, or the system's loader refuses it.
    """
    ffi = tvm_ffi()
    lacks = missing_bytes(library)
    if lacks:
        raise ArtifactError(
            f"the library in artifact {name} cannot be loaded: {lacks}; compile the model again"
        )
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
        path = Path(folder) / "library.so"
        try:
            path.write_bytes(library)
            machine = ffi.load_module(str(path))["vm_load_executable"]()
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ArtifactError(
                f"the library in artifact {name} cannot be loaded from {folder}: {reason}; "
                "if that folder is mounted noexec, set TMPDIR to another one"
            ) from error
    machine["vm_initialization"](_CPU_DEVICE, 0, _POOLED_ALLOCATOR)
    return machine


def set_threads(count: int) -> None:
    """Give the calling thread's pool `count` threads: TVM keeps a pool for each calling thread.

    To be called before every parallel call: it also moves the caller off the workers' CPUs.

    Raises:
        InputError: more threads than CPUs that this process may use.
    """
    if getattr(_pool, "size", None) != count:
        _configure_pool(count)
    taken: set[int] = _pool.taken
    if taken and _current_cpu()() in taken:
        _leave(taken)


def _configure_pool(count: int) -> None:
    """Make the calling thread's pool, and say which CPUs its workers have for themselves."""
    cpus = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]
    check_threads(count)
    # TVM's own 300000 keep idle threads spinning for 150 ms, ONNX Runtime's spin for 40 ms.
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "60000")
    # A session on all CPUs gives each worker its own, the first being left to the caller: woken
    # workers otherwise land on the caller's CPU, where both wait for one another in turns.
    mode = _ONE_CPU_EACH if count == len(cpus) else _SHARE_ALL_CPUS
    tvm_ffi().get_global_func("runtime.config_threadpool")(mode, count, cpus)
    _pool.size = count
    _pool.taken = {int(cpu) for cpu in cpus[1:]} if mode == _ONE_CPU_EACH else set()


def _leave(taken: set[int]) -> None:
    """Move the calling thread off CPUs; its affinity stays."""
    affinity = os.sched_getaffinity(0)
    free = affinity - taken
    if free:
        os.sched_setaffinity(0, free)
        os.sched_setaffinity(0, affinity)


@functools.cache
def _current_cpu() -> Callable[[], int]:
    """The C library's sched_getcpu."""
    function: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
    return function
