"""What is installed, what this machine has, what is missing and how to get it."""

import importlib.util
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

from leakyforge.errors import LeakyforgeError
from leakyforge.pins import TVM_PINS, installed_version
from leakyforge.runtime import cpu, threads
from leakyforge.runtime.cuda import find_cuda_devices
from leakyforge.runtime.opencl import find_devices
from leakyforge.runtime.tvm_runtime import tvm_ffi
from leakyforge.runtime.webgpu import device_name, find_adapters

_OPTIONAL = {
    "torch": ("exporting torch modules", "pip install 'leakyforge[torch]'"),
    "openvino": ("a peer in bench", "pip install 'leakyforge[peers]'"),
    "pebble": ("tuning", "pip install 'leakyforge[tune]'"),
}
_REQUIRED = ("onnx", "onnxscript", "onnxruntime", "ziglang")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        found: what it is here.
        ok: False where the main job cannot work without a change.
        advice: what to do, empty where nothing is.
    """

    name: str
    found: str
    ok: bool
    advice: str = ""


def examine() -> list[Finding]:
    """Look at versions, CPU, threads, TVM's runtime and devices."""
    machine, features = cpu.machine(), cpu.host_features()
    widths = ("avx512f", "avx2", "avx", "sse2", "sve", "neon")
    widest = next((name for name in widths if name in features), "no vectors")
    findings = [
        Finding("python", platform.python_version(), True),
        Finding("cpu", f"{cpu.model_name()}, {machine}, {widest}", machine in cpu.FEATURES),
        Finding("threads", f"{threads.usable_cores()} usable physical cores", True),
    ]
    findings += [_pinned(name, version) for name, version in TVM_PINS.items()]
    findings += [_required(name) for name in _REQUIRED]
    findings.append(_runtime())
    findings += [_optional(name, use, advice) for name, (use, advice) in _OPTIONAL.items()]
    findings += [_opencl(), _webgpu(), _cuda(), _nvcc()]
    return findings


def to_dicts(findings: list[Finding]) -> list[dict[str, Any]]:
    """Findings as plain values, for JSON."""
    return [asdict(finding) for finding in findings]


def _pinned(name: str, version: str) -> Finding:
    found = installed_version(name)
    if found == version:
        return Finding(name, found, True)
    return Finding(name, found or "absent", False, f"pip install {name}=={version}")


def _required(name: str) -> Finding:
    found = installed_version(name)
    return Finding(
        name, found or "absent", found is not None, "" if found else f"pip install {name}"
    )


def _optional(name: str, use: str, advice: str) -> Finding:
    if importlib.util.find_spec(name) is not None:
        return Finding(name, installed_version(name) or "installed", True)
    return Finding(name, "absent", True, f"for {use}: {advice}")


def _runtime() -> Finding:
    """Whether TVM's runtime library loads."""
    try:
        tvm_ffi()
    except LeakyforgeError as error:
        return Finding("tvm runtime", "does not load", False, str(error))
    return Finding("tvm runtime", "loads without the compiler", True)


def _opencl() -> Finding:
    """The devices that OpenCL artifacts can run on."""
    try:
        names = [str(device.name) for device in find_devices()]
    except LeakyforgeError as error:
        return Finding("opencl", "absent", True, f"for --target opencl: {error}")
    return Finding("opencl", ", ".join(names), True)


def _webgpu() -> Finding:
    """The devices that WebGPU artifacts can run on."""
    try:
        names = [device_name(adapter) for adapter in find_adapters()]
    except LeakyforgeError as error:
        return Finding("webgpu", "absent", True, f"to run --target webgpu: {error}")
    return Finding("webgpu", ", ".join(names), True)


def _cuda() -> Finding:
    """The devices that CUDA artifacts can run on."""
    try:
        devices = find_cuda_devices()
    except LeakyforgeError as error:
        return Finding("cuda", "absent", True, f"to run --target cuda:sm_NN: {error}")
    found = ", ".join(f"{device.name} ({device.architecture})" for device in devices)
    return Finding("cuda", found, True)


def _nvcc() -> Finding:
    """The compiler that `--target cuda:sm_NN` needs."""
    advice = "to compile for --target cuda:sm_NN: install NVIDIA's CUDA toolkit"
    path = shutil.which("nvcc")
    if path is None:
        return Finding("nvcc", "absent", True, advice)
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"release .*", done.stdout)
    if version is None:
        return Finding("nvcc", f"{path} does not run", True, advice)
    return Finding("nvcc", version[0], True)
