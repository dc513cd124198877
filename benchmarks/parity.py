"""Writes docs/parity.md: every model of the zoo in torch, in ONNX Runtime, and compiled.

python -m benchmarks.parity        needs torch, nvcc, an OpenCL device (PoCL) and a WebGPU device
                                   (Mesa's software Vulkan); some minutes

The definitions in torch are those of tests/models/test_torch_twins.py. Sizes are small, so that
every target takes seconds; the figures are errors, not times.
"""

import importlib.util
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np

from leakyforge import check, compile, export
from leakyforge.models import build
from leakyforge.runtime import read_manifest
from leakyforge.runtime.opencl import choose_device
from leakyforge.runtime.webgpu import choose_adapter, device_name

ROOT = Path(__file__).parent.parent
TWINS = ROOT / "tests" / "models" / "test_torch_twins.py"
TARGETS = ("cpu", "opencl", "webgpu", "cuda:sm_80", "cuda:sm_90")


@click.command()
def main() -> None:
    """Compare every model and write docs/parity.md."""
    # Before the work whose results would be lost without them.
    devices = f"OpenCL on {choose_device().name}; WebGPU on {device_name(choose_adapter())}"
    twins = _twins()
    rows = []
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
        for case, (name, options, network, _) in twins.CASES.items():
            click.echo(case)
            error = _framework_error(twins.results(build(name, **options), network))
            cells = [name, _words(options), f"{error:.1e} of the range"]
            path = export(name, Path(folder) / f"{case}.onnx", **options)
            for target in TARGETS:
                artifact = compile(path, target, output=Path(folder) / f"{case}.lfa")
                cells.append(_outcome(artifact))
            rows.append(cells)
    (ROOT / "docs" / "parity.md").write_text(markdown(rows, devices))


def _twins() -> Any:
    spec = importlib.util.spec_from_file_location("twins", TWINS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _framework_error(pairs: list[Any]) -> float:
    """Largest difference between ONNX Runtime and torch, as a share of an output's range."""
    return max(float(np.abs(ours - torch).max() / np.abs(torch).max()) for ours, torch in pairs)


def _outcome(artifact: Path) -> str:
    """How an artifact compares with ONNX Runtime; what its kernels take where nothing runs it."""
    (variant,) = read_manifest(artifact).variants
    if variant.parity is not None and variant.parity.result == "not run":
        resources = [kernel.resources for kernel in variant.kernels if kernel.resources]
        most = max(each.registers for each in resources)
        spilled = sum(each.spill_stores + each.spill_loads for each in resources)
        return f"not run; {len(resources)} kernels, at most {most} registers, {spilled} B spilled"
    report = check(artifact)
    share = max(row.needed for row in report.outputs)
    return f"{'pass' if report else 'FAIL'}, {share:.1%} of the tolerance"


def _words(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "as published"


def markdown(rows: list[list[str]], devices: str) -> str:
    """The table, with what it was made by."""
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "onnxruntime", "apache-tvm")
    )
    head = ["model", "options", "torch and ONNX Runtime differ by"]
    head += [f"ONNX Runtime and `--target {target}`" for target in TARGETS]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""# Parity of the zoo

Every model in torch, in ONNX Runtime, and compiled, by `python -m benchmarks.parity`.
{versions}; {devices}. A CUDA target is run where there is its device; else the figures are
ptxas's.
The tolerance is derived from the arithmetic (README, Parity); a share of 100 % would be all of it.

{table}
"""


if __name__ == "__main__":
    main()
