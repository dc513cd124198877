"""Profile of a run: its rows are the kernels that were compiled, and what it computes from them."""

import numpy as np
import onnx
import pytest

from leakyforge.errors import InputError
from leakyforge.onnx_graph import model_flops
from leakyforge.runtime import Session, profile, profiler, read_manifest
from leakyforge.runtime.manifest import Kernel


@pytest.fixture(scope="module")
def report(digits):
    return profile(digits, threads=1, seconds=0.01)


def test_rows_are_the_compiled_kernels_in_their_order(report, digits):
    (variant,) = read_manifest(digits).variants
    names = [kernel.name for kernel in variant.kernels]
    assert [row.kernel for row in report.kernels] == names
    assert [row.algorithm for row in report.kernels] == [
        kernel.algorithm for kernel in variant.kernels
    ]
    assert "elementwise" in {row.algorithm for row in report.kernels}
    outputs = [row.output for row in report.kernels if row.flops > 0]
    assert outputs == ["norm1", "norm2", "norm3", "logits"]


def test_operations_are_those_of_the_model(report, digits):
    assert report.flops == model_flops(onnx.load(digits.with_suffix(".onnx")))
    assert report.flops == sum(row.flops for row in report.kernels)
    assert report.computed == sum(row.computed for row in report.kernels)
    assert all(row.computed >= row.flops for row in report.kernels if row.algorithm == "direct")


def test_shapes_and_bytes(report):
    first = report.kernels[0]
    assert first.shapes == "1x1x8x8 -> 1x8x8x16"
    # Input, weights, bias and output.
    assert first.bytes_moved == 4 * (64 + 9 * 16 + 16 + 64 * 16)
    assert report.bytes_moved == sum(row.bytes_moved for row in report.kernels)


def test_times_add_up(report):
    assert report.run_ms > 0
    assert report.runs > 0
    assert all(row.median_ms > 0 for row in report.kernels)
    assert report.kernels_ms == pytest.approx(sum(row.median_ms for row in report.kernels))
    assert report.kernels_ms + report.between_ms == pytest.approx(report.run_ms)
    shares = sum(row.share for row in report.kernels)
    assert shares == pytest.approx(report.kernels_ms / report.run_ms)


def test_rates_and_bound(report):
    assert report.peak_gflops > 0
    assert report.copy_gb_per_second > 0
    for row in report.kernels:
        seconds = row.median_ms / 1e3
        assert row.gflops_per_second == pytest.approx(row.flops / seconds / 1e9)
        assert row.gb_per_second == pytest.approx(row.bytes_moved / seconds / 1e9)
        assert row.peak_share == pytest.approx(row.computed / seconds / 1e9 / report.peak_gflops)
        assert row.copy_share == pytest.approx(row.gb_per_second / report.copy_gb_per_second)
        at_peak = row.computed / report.peak_gflops
        at_bandwidth = row.bytes_moved / report.copy_gb_per_second
        assert row.bound == ("compute" if at_peak >= at_bandwidth else "memory")


def test_symbolic_batch_is_one(symbolic_conv):
    report = profile(symbolic_conv, threads=1, seconds=0.01)
    assert report.flops == model_flops(onnx.load(symbolic_conv.with_suffix(".onnx")))
    assert any(row.shapes.startswith("1x") for row in report.kernels)


def test_variant(fat):
    assert profile(fat, threads=1, seconds=0.01, variant="x86-64").variant == "x86-64"


@pytest.mark.parametrize(
    ("arguments", "words"), [({"seconds": 0}, "seconds=0"), ({"threads": 4096}, "threads=4096")]
)
def test_bad_arguments(digits, arguments, words):
    with pytest.raises(InputError, match=words):
        profile(digits, **arguments)


def test_records_of_a_branch_that_was_not_taken_are_left_out():
    calls = profiler._Calls(Recorded(), lambda: None)
    names = ["vm.builtin.null_value", "first", "vm.builtin.null_value", "same", "last"]
    calls.calls = [profiler._Call(name, "1", 4) for name in names]
    calls.times = [[1e-6, 5e-6, 1e-6, 3e-6, 1e-6], [1e-6, 7e-6, 1e-6, 3e-6, 1e-6]]
    records = [
        Kernel(name, None, "pool", flops, flops)
        for flops, name in enumerate(["first", "then", "same", "last"], 1)
    ]
    found = [(record.flops, call.name, seconds) for record, call, seconds in calls.kernels(records)]
    # The builtin's microsecond is that of the instrument.
    assert found == [
        (1, "first", pytest.approx(5e-6)),
        (3, "same", pytest.approx(2e-6)),
        (4, "last", profiler._CLOCK_SECONDS),
    ]


class Recorded:
    """A session whose instrument is never called."""

    def instrument(self, _hook):
        pass


def test_instrument_is_called_around_each_function_until_it_is_taken_away(leaky):
    session = Session(leaky, threads=1)
    feeds = {"x": np.ones((2, 3), np.float32)}
    seen = []
    session.instrument(lambda _function, name, before, result, *_: seen.append((name, before)))
    session.run(None, feeds)
    session.instrument(None)
    count = len(seen)
    assert [before for _, before in seen] == [True, False] * (count // 2)
    assert sum(name == "leaky_relu" for name, _ in seen) == 2
    session.run(None, feeds)
    assert len(seen) == count
