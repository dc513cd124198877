"""Benchmark beside other engines: the report, errors, and what could not be timed."""

import math

import numpy as np
import pytest

from leakyforge.errors import EngineError, InputError
from leakyforge.models import build
from leakyforge.onnx_graph import model_flops
from leakyforge.runtime import engines, peers
from leakyforge.runtime.engines import Peer, Worker
from leakyforge.runtime.peers import compare_peers, output_error


@pytest.fixture
def only_onnxruntime(monkeypatch):
    """No engine but ONNX Runtime, and one that cannot be had."""
    known = {"onnxruntime": engines.PEERS["onnxruntime"], "absent": Peer(("no_such_module",))}
    monkeypatch.setattr(engines, "PEERS", known)


@pytest.fixture
def workers(monkeypatch):
    """Every worker that is made; those named in `fail` do not load, or compute zeros."""
    made = []

    class Recorded(Worker):
        fail = None
        wrong = None

        def __init__(self, engine, *arguments):
            if engine == Recorded.fail:
                raise EngineError("out of order")
            super().__init__(engine, *arguments)
            if engine == Recorded.wrong:
                self.outputs = [np.zeros_like(array) for array in self.outputs]
            made.append(self)

    Recorded.made = made
    monkeypatch.setattr(peers, "Worker", Recorded)
    yield Recorded
    assert [worker.engine for worker in made if worker.process.poll() is None] == []


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
    assert report.compile_seconds is None
    assert report.to_dict()["results"][0]["engine"] == "leakyforge"


def test_engine_that_fails_to_load_is_named(digits, only_onnxruntime, monkeypatch):
    monkeypatch.setattr(engines, "PEERS", {**engines.PEERS, "no engine": Peer(())})
    report = compare_peers(digits, threads=1, seconds=0.01)
    assert report.results[-1].reason == "KeyError: 'no engine'"


def test_engine_that_computes_something_else_is_not_timed(digits, only_onnxruntime, monkeypatch):
    # It has no outputs at all.
    monkeypatch.setattr(engines, "PEERS", {**engines.PEERS, "copy": Peer(())})
    report = compare_peers(digits, threads=1, seconds=0.01)
    assert report.results[-1].reason == "its outputs differ: inf of the range"
    assert report.results[-1].median_ms is None


@pytest.mark.parametrize("kind", ["fail", "wrong"])
@pytest.mark.parametrize(
    ("engine", "loaded"),
    [("leakyforge", ["leakyforge"]), ("onnxruntime", ["leakyforge", "onnxruntime"])],
)
def test_what_is_needed_is_tried_before_the_others(
    digits, only_onnxruntime, workers, engine, loaded, kind
):
    setattr(workers, kind, engine)
    seen = []
    with pytest.raises(EngineError, match="does not run the model"):
        compare_peers(digits, threads=1, seconds=0.01, on_engine=seen.append)
    assert seen == (loaded if kind == "fail" else ["leakyforge", "onnxruntime"])


def test_few_calls_have_no_negative_times(digits, only_onnxruntime, monkeypatch):
    times = {"leakyforge": [1.0, 9.0], "onnxruntime": [1.0, 2.0], "peak": [1.0]}
    monkeypatch.setattr(peers, "interleave", lambda _workers, _seconds: times)
    ours = compare_peers(digits, threads=1, seconds=0.01).results[0]
    assert 1e3 <= ours.p10_ms <= ours.median_ms <= ours.p90_ms <= 9e3


def test_no_process_is_left_behind(digits, only_onnxruntime, workers, monkeypatch):
    def fail(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(peers, "interleave", fail)
    with pytest.raises(KeyboardInterrupt):
        compare_peers(digits, threads=1, seconds=0.01)
    assert [worker.engine for worker in workers.made] == ["leakyforge", "onnxruntime"]


def test_named_engines(digits, only_onnxruntime):
    seen = []
    compare_peers(
        digits, threads=1, seconds=0.01, names=["onnxruntime"], on_engine=seen.append,
    )  # fmt: skip
    assert seen == ["leakyforge", "onnxruntime"]


def test_compile_time_is_reported(digits, only_onnxruntime):
    report = compare_peers(digits, threads=1, seconds=0.01, compile_seconds=1.5)
    assert report.to_dict()["compile_seconds"] == 1.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seconds": 0}, "seconds=0"),
        ({"threads": 4096}, "threads=4096"),
        ({"threads": 0}, "threads=0"),
        ({"names": ["tflite"]}, "unknown engine 'tflite'; give one of: onnxruntime, openvino"),
    ],
)
def test_bad_arguments_start_no_engine(digits, workers, arguments, words):
    with pytest.raises(InputError, match=words):
        compare_peers(digits, **arguments)
    assert workers.made == []


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
