"""The table of `python -m benchmarks`, from figures that are given."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
RESULT = {
    "engine": "leakyforge", "version": "0.1", "median_ms": 2.0, "p10_ms": 1.5, "p90_ms": 2.5,
    "ratio": 1.0, "error": 1e-6, "roofline": 1.25, "load_seconds": 0.5, "memory_mb": 20.0,
    "reason": None,
}  # fmt: skip
ROWS = {
    "model, 2 threads": {
        "cpu": "a CPU", "date": "2026-01-01", "flops": 3e9, "peak_gflops": 250.0,
        "compile_seconds": 7.0,
        "results": [
            RESULT,
            {**RESULT, "engine": "other", "median_ms": 5.0, "ratio": 2.5},
            {"engine": "absent", "median_ms": None, "ratio": None, "reason": "not there"},
        ],
    }
}  # fmt: skip


def load(name="__main__"):
    """A benchmark's module, which is not installed."""
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = module
    spec.loader.exec_module(module)
    return module


def test_table_shows_ratios_and_reasons():
    text = load().markdown(ROWS)
    assert "| model | other | absent | best | bars | reached |" in text
    assert "| model, 2 threads | 2.50 | - | - | - | - |" in text
    assert "| other 0.1 | 5.000 | 1.500 | 2.500 | 2.50 | 1.0e-06 | 1.25 | 20 | 0.50 |" in text
    assert "| absent | not timed: not there |" in text
    assert "3 GFLOP, peak 250 GFLOP/s; compiled in 7.0 s" in text


@pytest.mark.parametrize(
    ("model", "ratios", "cells"),
    [
        ("MLP, batch 1", (1.1, 1.05, 2.0), ["1.05", "1.1 / 1.05", "yes"]),
        ("MLP, batch 1", (1.09, 1.2, 2.0), ["1.09", "1.1 / 1.05", "no"]),
        ("MLP, batch 1", (1.2, 1.04, 2.0), ["1.04", "1.1 / 1.05", "no"]),
        ("MLP, batch 1", (1.2, None, 1.3), ["1.20", "1.1 / 1.05", "yes"]),
        ("MLP, batch 1", (None, 1.2, 1.3), ["-", "-", "-"]),
        ("DCGAN generator", (1.2, 1.1, 2.0), ["1.10", "-", "-"]),
    ],
)
def test_bars(model, ratios, cells):
    bench = load()
    engines = dict(zip(bench.RIVALS, ratios, strict=True))
    # No rival, and so not among the best.
    assert bench.bar_cells(model, {**engines, "torch": 0.5}) == cells


def test_bars_are_those_of_models_in_the_table():
    bench = load()
    assert bench.BARS.keys() <= {*bench.MODELS, "speech embedding"}


@pytest.mark.parametrize(("name", "table"), [("__main__", "benchmark"), ("tuning", "tuning")])
def test_committed_table_is_that_of_the_committed_figures(name, table, monkeypatch):
    # `benchmarks.tuning` imports from `benchmarks`, which is not installed.
    monkeypatch.syspath_prepend(ROOT)
    rows = json.loads((ROOT / "docs" / f"{table}.json").read_text())
    assert (ROOT / "docs" / f"{table}.md").read_text() == load(name).markdown(rows)


def test_elementwise_table_shows_ratios_and_bandwidth():
    row = {
        "name": "forward", "threads": 1, "kib": 2048, "bytes": 4 << 20,
        "microseconds": {"memcpy": 30.0, "leakyforge": 40.0, "torch": 80.0},
    }  # fmt: skip
    results = {"cpu": "a CPU", "cache": 32 << 20, "date": "2026-01-01", "rows": [row]}
    text = load("elementwise").markdown(results)
    assert "a CPU, last cache 32 MiB" in text
    assert "| tensor | leakyforge us | GB/s | memcpy | torch |" in text
    assert "| 2 MiB | 40.0 | 104.9 | 0.75 | 2.00 |" in text


def test_elementwise_engines_compute_what_ours_does():
    """Every engine is timed on the same function, and memcpy copies everything."""
    import numpy as np

    elementwise = load("elementwise")
    x, dy, out = (elementwise._normal(4097, seed) for seed in range(3))
    desired = np.where(x >= 0, x, x * np.float32(elementwise.ALPHA))
    elementwise.onnxruntime_call(x, out, 1)()
    np.testing.assert_array_equal(out, desired)
    forward = elementwise.torch_call("forward", x, dy, out, 1)
    if forward is not None:
        out[...] = 0
        forward()
        np.testing.assert_array_equal(out, desired)
        elementwise.torch_call("gradient", x, dy, out, 1)()
        desired = np.where(x > 0, dy, dy * np.float32(elementwise.ALPHA))
        np.testing.assert_array_equal(out, desired)
    for threads, copy in [
        (1, elementwise.memcpy), (2, elementwise.memcpy), (1, elementwise.pooled_memcpy)
    ]:  # fmt: skip
        out[...] = 0
        copy(out, x, threads)()
        np.testing.assert_array_equal(out, x)
