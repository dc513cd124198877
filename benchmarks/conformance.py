"""ONNX's backend test suite against leakyforge: docs/CONFORMANCE.md and the baseline.

python -m benchmarks.conformance              every case, about fifteen minutes on two cores
python -m benchmarks.conformance --check      fails where a case of the baseline no longer passes
python -m benchmarks.conformance --failed     only what did not pass, into the same report
python -m benchmarks.conformance --only softmax    prints the cases that do not pass, writes nothing

The suite compares, with its own tolerances. Each case runs in a worker process with limits of time
and memory; a crash ends that case alone.
"""

import collections
import functools
import io
import json
import multiprocessing
import os
import platform
import re
import resource
import sys
import textwrap
import unittest
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import onnx
from onnx.backend.test import BackendTest
from onnx.backend.test.loader import load_model_tests
from pebble import ProcessExpired, ProcessPool

from leakyforge.errors import LeakyforgeError, UnsupportedOperatorError
from leakyforge.files import atomic_file
from leakyforge.kernels.backend import LeakyforgeBackend
from leakyforge.kernels.onnx_ops import CONVERTERS
from leakyforge.runtime import cpu

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "CONFORMANCE.md"
STORE = ROOT / "docs" / "conformance.json"
BASELINE = ROOT / "tests" / "conformance" / "baseline.txt"

# Of the suite; "real" downloads models, and its results depend on the network.
KINDS = {
    "node": "OnnxBackendNodeModelTest",
    "simple": "OnnxBackendSimpleModelTest",
    "pytorch-converted": "OnnxBackendPyTorchConvertedModelTest",
    "pytorch-operator": "OnnxBackendPyTorchOperatorModelTest",
}
FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}
# Operators of which the project promises every case.
PROMISED = (
    "LeakyRelu",
    "PRelu",
    "Relu",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "AveragePool",
    "MaxPool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
    "Resize",
    "Upsample",
    "Pad",
    "Concat",
    "Slice",
    "Softmax",
    "BatchNormalization",
)

PASSED, WRONG, REFUSED, UNSUPPORTED, UNNAMED = (
    "passed",
    "wrong result",
    "refused",
    "not supported",
    "crashed",
)
_SECONDS = 120
_BYTES = 8 << 30
# A worker is replaced after so many cases: compiled libraries stay loaded.
_CASES_PER_WORKER = 200


@dataclass(frozen=True)
class Case:
    """A case of the suite.

    Attributes:
        kind: one of `KINDS`.
        name: as the suite has it.
        operator: what it tests.
        is_float: all inputs and outputs are tensors, and one is of a floating-point type.
    """

    kind: str
    name: str
    operator: str
    is_float: bool

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        status: `PASSED` or another of the five.
        reason: the error's first line; empty where it passed.
    """

    status: str
    reason: str = ""


@functools.cache
def cases() -> dict[str, Case]:
    """Every case of the suite by its id, in the suite's order."""
    found = {}
    for kind in KINDS:
        plain: dict[str, str] = {}
        for test in load_model_tests(kind=kind):
            model = test.model or onnx.load(Path(test.model_dir) / "model.onnx")
            operator = _operator(test.name, model, plain)
            plain[test.name] = operator
            case = Case(kind, test.name, operator, _is_float(model))
            found[case.id] = case
    return found


def _operator(name: str, model: onnx.ModelProto, plain: dict[str, str]) -> str:
    """The operator that a case tests; the expanded form of a case tests the same one."""
    original = re.sub(r"_expanded.*", "", name)
    if original in plain:
        return plain[original]
    operators = [node.op_type for node in model.graph.node if node.op_type != "Constant"]
    return operators[0] if len(set(operators)) == 1 else "several operators"


def _is_float(model: onnx.ModelProto) -> bool:
    values = (*model.graph.input, *model.graph.output)
    if any(value.type.WhichOneof("value") != "tensor_type" for value in values):
        return False
    return any(value.type.tensor_type.elem_type in FLOATS for value in values)


@functools.cache
def _suite() -> dict[str, type[unittest.TestCase]]:
    return dict(BackendTest(LeakyforgeBackend).test_cases)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))


def _run_case(kind: str, name: str) -> Outcome:
    """Run one case in this process, which it may end."""
    test: Any = _suite()[KINDS[kind]](f"{name}_cpu")
    method = getattr(test, f"{name}_cpu")
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method()
    except UnsupportedOperatorError as error:
        return Outcome(UNSUPPORTED, _first_line(error))
    except LeakyforgeError as error:
        return Outcome(REFUSED, _first_line(error))
    except AssertionError as error:
        return Outcome(WRONG, _first_line(error))
    except Exception as error:  # noqa: BLE001 - what is not named is counted
        return Outcome(UNNAMED, f"{type(error).__name__}: {_first_line(error)}")
    return Outcome(PASSED)


def run_cases(chosen: Iterable[Case], workers: int) -> Iterator[tuple[str, Outcome]]:
    """Id and outcome of each case in order, each run in a worker process.

    From a process that has run no kernel: TVM's threads do not come along into forked workers.
    """
    _suite()  # before the workers are forked, which then have it
    with ProcessPool(
        max_workers=workers,
        max_tasks=_CASES_PER_WORKER,
        initializer=_limit_memory,
        context=multiprocessing.get_context("fork"),
    ) as pool:
        futures = {
            case.id: pool.schedule(_run_case, args=(case.kind, case.name), timeout=_SECONDS)
            for case in chosen
        }
        for name, future in futures.items():
            try:
                yield name, future.result()
            except FutureTimeoutError:
                yield name, Outcome(UNNAMED, f"took more than {_SECONDS} s")
            except ProcessExpired as error:
                yield name, Outcome(UNNAMED, f"the process ended with {error.exitcode}")


def _first_line(error: Exception) -> str:
    return textwrap.shorten(str(error), width=300, placeholder=" ...")


def read_baseline() -> set[str]:
    """Ids of the cases that have passed."""
    return set(BASELINE.read_text().split()) if BASELINE.is_file() else set()


def broken(outcomes: dict[str, Outcome], baseline: set[str]) -> list[str]:
    """A line for each case of the baseline that was run and did not pass."""
    return [
        f"{name}: {outcome.status}: {outcome.reason}"
        for name, outcome in outcomes.items()
        if name in baseline and outcome.status != PASSED
    ]


def markdown(outcomes: dict[str, Outcome], known: dict[str, Case]) -> str:
    """The report of a run over the whole suite."""
    versions = {name: metadata.version(name) for name in ("leakyforge", "onnx", "apache-tvm")}
    total = collections.Counter(outcome.status for outcome in outcomes.values())
    lines = [
        "# Conformance",
        "",
        "Written by `python -m benchmarks.conformance`: ONNX's own backend test suite, its data "
        "and its tolerances, run against `leakyforge.kernels.backend`.",
        "",
        ", ".join(f"{name} {version}" for name, version in versions.items())
        + f", Python {platform.python_version()}, {cpu.model_name()}.",
        "",
        "The compiler wants what decides a shape as a constant: inputs such as axes, sizes, pads "
        "and scales are bound from the data of the case before it is compiled, as the backend does "
        "for every caller; a run with others compiles again.",
        "",
        f"- {PASSED}: equal within the suite's tolerance.",
        f"- {WRONG}: another value, shape or dtype.",
        f"- {REFUSED}: an error of leakyforge that names what is wrong.",
        f"- {UNSUPPORTED}: an operator that the compiler does not take, named as such.",
        f"- {UNNAMED}: any other error, the end of the process, or more than {_SECONDS} s.",
        "",
        "Float cases take and return tensors only, one of them at least in float16, bfloat16, "
        "float32 or float64.",
        "",
        "| | cases | passed | share |",
        "|---|---|---|---|",
    ]
    groups = {kind: [case for case in known.values() if case.kind == kind] for kind in KINDS}
    groups["all"] = list(known.values())
    groups["float cases"] = [case for case in known.values() if case.is_float]
    groups["promised operators, float cases"] = [
        case for case in groups["float cases"] if case.operator in PROMISED
    ]
    for name, group in groups.items():
        passed = sum(outcomes[case.id].status == PASSED for case in group)
        lines.append(f"| {name} | {len(group)} | {passed} | {passed / len(group):.1%} |")
    statuses = (PASSED, WRONG, REFUSED, UNSUPPORTED, UNNAMED)
    lines += [
        "",
        ", ".join(f"{status} {total[status]}" for status in statuses) + ".",
        "",
        "## By operator",
        "",
        "| operator | cases | " + " | ".join(statuses) + " |",
        "|---|" + "---|" * (len(statuses) + 1),
    ]
    operators: dict[str, list[str]] = {}
    for case in known.values():
        operators.setdefault(case.operator, []).append(outcomes[case.id].status)
    for operator, found in sorted(operators.items()):
        counts = " | ".join(str(found.count(status) or "") for status in statuses)
        lines.append(f"| {operator} | {len(found)} | {counts} |")
    lines += ["", "## What does not pass", ""]
    for name, outcome in sorted(outcomes.items()):
        if outcome.status != PASSED:
            reason = outcome.reason.replace("`", "'")
            lines.append(f"- {name}: {outcome.status}: `{reason}`")
    return "\n".join(lines) + "\n"


def _read_store() -> dict[str, Outcome]:
    """The outcomes of the last run."""
    return {name: Outcome(*row) for name, row in json.loads(STORE.read_text()).items()}


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as stream:
        stream.write(text.encode())
    click.echo(f"wrote {path.relative_to(ROOT)}")


@click.command()
@click.option("--only", multiple=True, help="Cases whose id or operator contains this; no report.")
@click.option("--ours", is_flag=True, help="Only the promised operators and our converters'.")
@click.option("--failed", is_flag=True, help="Only what did not pass, the rest as it was.")
@click.option("--workers", type=int, default=os.cpu_count(), show_default=True)
@click.option("--check", is_flag=True, help="Compare with the baseline and write nothing.")
def main(only: tuple[str, ...], ours: bool, failed: bool, workers: int, check: bool) -> None:
    """Run ONNX's backend test suite; write docs/CONFORMANCE.md and the baseline."""
    baseline = read_baseline()
    parts = [part.lower() for part in only]
    chosen = [
        case
        for case in cases().values()
        if (not parts or any(part in f"{case.id} {case.operator}".lower() for part in parts))
        and not (ours and case.operator not in {*PROMISED, *CONVERTERS})
        and not (failed and case.id in baseline)
    ]
    outcomes = {}
    for name, outcome in run_cases(chosen, workers):
        outcomes[name] = outcome
        if outcome.status != PASSED:
            click.echo(f"{name}: {outcome.status}: {outcome.reason}")
    passed = sum(outcome.status == PASSED for outcome in outcomes.values())
    click.echo(f"{passed} of {len(outcomes)} passed")
    regressions = broken(outcomes, baseline)
    if regressions:
        click.echo(f"{len(regressions)} cases of the baseline do not pass any more:", err=True)
        click.echo("\n".join(regressions), err=True)
        sys.exit(1)
    if not (check or only):
        outcomes = {**(_read_store() if failed else {}), **outcomes}
        rows = {name: [outcome.status, outcome.reason] for name, outcome in outcomes.items()}
        _write(STORE, json.dumps(rows, indent=0) + "\n")
        _write(REPORT, markdown(outcomes, cases()))
        names = [name for name, outcome in outcomes.items() if outcome.status == PASSED]
        _write(BASELINE, "\n".join(sorted(names)) + "\n")


if __name__ == "__main__":
    main()
