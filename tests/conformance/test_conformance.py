"""Cases of ONNX's backend test suite that have passed still do; `python -m benchmarks.conformance`.

Here are those of the promised operators and of our own converters, the others run by the command.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pebble")

ROOT = Path(__file__).parent.parent.parent


def load():
    """The command's module, which is not installed; workers find it by its name."""
    path = ROOT / "benchmarks" / "conformance.py"
    spec = importlib.util.spec_from_file_location("conformance", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["conformance"] = module
    spec.loader.exec_module(module)
    return module


conformance = load()
CASES = conformance.cases()


def outcome(status, reason=""):
    return conformance.Outcome(status, reason)


def test_promised_operators_and_our_converters_pass_as_before():
    baseline = conformance.read_baseline()
    operators = {CASES[name].operator for name in baseline}
    # The suite has no case of GlobalLpPool.
    assert operators >= set(conformance.PROMISED) - {"GlobalLpPool"}
    # A process of its own: its workers are forked, without the threads that ran kernels here.
    command = [sys.executable, "-m", "benchmarks.conformance", "--ours", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    passed = re.search(r"(\d+) of \d+ passed", run.stdout)
    assert int(passed[1]) > 350, run.stdout


def test_the_baseline_names_cases_of_the_suite():
    baseline = conformance.read_baseline()
    assert len(baseline) > 1000
    assert baseline <= CASES.keys()


def test_a_crash_costs_only_its_own_case(monkeypatch):
    def run(_kind, name):
        if name == "test_relu":
            os._exit(3)
        return outcome(conformance.PASSED)

    # Workers are forked, so that they run what stands here.
    monkeypatch.setattr(conformance, "_run_case", run)
    monkeypatch.setattr(run, "__module__", "conformance")
    monkeypatch.setattr(run, "__qualname__", "_run_case")
    chosen = [CASES["node/test_relu"], CASES["node/test_elu"]]
    outcomes = dict(conformance.run_cases(chosen, 1))
    assert outcomes["node/test_relu"].status == conformance.UNNAMED
    assert outcomes["node/test_elu"].status == conformance.PASSED


def test_only_cases_of_the_baseline_are_regressions():
    outcomes = {
        "node/test_relu": outcome(conformance.WRONG, "another value"),
        "node/test_elu": outcome(conformance.REFUSED, "new"),
        "node/test_add": outcome(conformance.PASSED),
    }
    lines = conformance.broken(outcomes, {"node/test_relu", "node/test_add"})
    assert lines == ["node/test_relu: wrong result: another value"]


def test_the_report_counts_by_operator():
    outcomes = {name: outcome(conformance.PASSED) for name in CASES}
    outcomes["node/test_relu"] = outcome(conformance.UNSUPPORTED, "operator Relu is `not` there")
    text = conformance.markdown(outcomes, CASES)
    assert "| all | 2024 | 2023 | 100.0% |" in text
    assert "- node/test_relu: not supported: `operator Relu is 'not' there`" in text


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("node/test_softmax_axis_0_expanded_ver18", "Softmax"),
        ("node/test_clip_expanded", "Clip"),
        ("node/test_leakyrelu", "LeakyRelu"),
        ("pytorch-converted/test_PReLU_1d", "PRelu"),
    ],
)
def test_operator_of_a_case(name, operator):
    assert CASES[name].operator == operator


def test_float_cases():
    assert CASES["node/test_relu"].is_float
    assert not CASES["node/test_and2d"].is_float
    assert not CASES["node/test_sequence_insert_at_back"].is_float
