"""Benchmark beside other engines: processes, turns, errors, and what could not be timed."""

import math

import numpy as np
import pytest

from leakyforge.errors import InputError
from leakyforge.models import build
from leakyforge.runtime import peers
from leakyforge.runtime.peers import compare_peers, interleave, model_flops, output_error


@pytest.fixture
def only_onnxruntime(monkeypatch):
    """No engine but ONNX Runtime, and one that cannot be had."""
    absent = {"absent": (("no_such_module",), ())}
    monkeypatch.setattr(peers, "PEERS", {"onnxruntime": peers.PEERS["onnxruntime"], **absent})


def test_report_of_a_model(digits, only_onnxruntime):
    seen = []
    report = compare_peers(digits, threads=1, seconds=0.01, on_engine=seen.append)
    assert seen == ["leakyforge", "onnxruntime", "absent"]
    ours, reference, absent = report.results
    assert (ours.engine, ours.ratio) == ("leakyforge", 1.0)
    assert reference.ratio == pytest.approx(reference.median_ms / ours.median_ms)
    assert reference.error == 0.0
    assert 0 < ours.error < 1e-5
    assert ours.p10_ms <= ours.median_ms <= ours.p90_ms
    assert ours.memory_mb > 0
    assert absent.median_ms is None
    assert absent.reason == "no_such_module: not all of these can be imported"
    assert report.threads == 1
    assert report.peak_gflops > 0
    assert report.to_dict()["results"][0]["engine"] == "leakyforge"


def test_engine_that_fails_to_load_is_named(digits, only_onnxruntime, monkeypatch):
    broken = {**peers.PEERS, "no engine": ((), ())}
    monkeypatch.setattr(peers, "PEERS", broken)
    report = compare_peers(digits, threads=1, seconds=0.01)
    assert report.results[-1].reason == "KeyError: 'no engine'"


def test_time_must_be_positive(digits):
    with pytest.raises(InputError, match="seconds=0"):
        compare_peers(digits, seconds=0)


def test_engines_take_turns(monkeypatch):
    monkeypatch.setattr(peers, "_PAUSE_SECONDS", 0.0)
    order = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def turn(self, warm, counted):
            order.append(self.name)
            assert 0 < warm < counted
            return [1.0, 2.0]

    samples = interleave({"a": Fake("a"), "b": Fake("b")}, 1e-9)
    assert order == ["a", "b"] * 3
    assert samples == {"a": [1.0, 2.0] * 3, "b": [1.0, 2.0] * 3}


@pytest.mark.parametrize(
    ("actual", "desired", "error"),
    [
        ([[1.0, 2.0]], [[1.0, 4.0]], 0.5),
        ([[0.0]], [[0.0]], 0.0),
        ([[math.nan]], [[1.0]], math.inf),
        ([[1.0]], [[1.0, 1.0]], math.inf),
        ([], [[1.0]], math.inf),
    ],
)
def test_error_is_a_share_of_the_range(actual, desired, error):
    arrays = [[np.array(values, np.float32) for values in side] for side in (actual, desired)]
    assert output_error(*arrays) == error


@pytest.mark.parametrize(
    ("name", "options", "flops"),
    [
        ("mlp", {"hidden": 8, "batch": 3}, 2 * 3 * (784 * 8 + 8 * 8 + 8 * 10)),
        (
            "dcgan-generator",
            {"features": 1, "latent": 2},
            # Every input element meets every element of its kernels.
            2 * 16 * (2 * 8 + 16 * 8 * 4 + 64 * 4 * 2 + 256 * 2 + 1024 * 3),
        ),
        (
            "dcgan-discriminator",
            {"features": 1},
            2 * 16 * (1024 * 3 + 256 * 2 + 64 * 2 * 4 + 16 * 4 * 8 + 8),
        ),
    ],
)
def test_flops_of_a_model(name, options, flops):
    assert model_flops(build(name, **options)) == flops
