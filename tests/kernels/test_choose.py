"""The choice of a convolution's algorithm: estimates, measurements, and the numbers of each."""

import dataclasses
import math

import numpy as np
import pytest

from leakyforge.exporter import export
from leakyforge.kernels import choose, compile, measure, parse_target, pipeline
from leakyforge.kernels.algorithms import algorithms
from leakyforge.kernels.choice import Choice, Trial
from leakyforge.kernels.conv2d import Conv2dShape
from leakyforge.kernels.measure import Layer, Stopwatch
from leakyforge.runtime import check

HOST = parse_target("cpu")
# Names of all that can compute it: 77 MFLOP, large enough to be measured.
SHAPE = Conv2dShape(
    height=28, width=30, in_channels=80, out_channels=64, kernel=(3, 3), strides=(1, 1),
    dilation=(1, 1), padding=(1, 1, 1, 1), itemsize=4,
)  # fmt: skip


def layer_of(shape):
    inputs = ((1, shape.height, shape.width, shape.in_channels),)
    return Layer(shape, inputs, lambda tensor: tensor, copies=False)


def choose_for(shape, stopwatch, strict=False):
    return choose.choose(
        "a layer", layer_of(shape), shape.in_channels, target=HOST, strict=strict,
        stopwatch=stopwatch,
    )  # fmt: skip


@pytest.fixture
def times(monkeypatch):
    """Give a stopwatch that says what the test wants, by the index of the estimate."""

    def times(values):
        def seconds(self, layer, candidates):
            return values and [values.get(index, 1.0) for index in range(len(candidates))]

        monkeypatch.setattr(Stopwatch, "seconds", seconds)
        return Stopwatch(HOST, 0)

    return times


class TestChoice:
    def test_the_fastest_is_taken(self, times):
        algorithm, choice = choose_for(SHAPE, times({1: 0.5}))
        found, _ = algorithms(SHAPE, HOST, SHAPE.in_channels, strict=False)
        assert algorithm == found[1]
        assert choice.taken == 1
        assert choice.not_measured == ""
        assert choice.trials[1].milliseconds == 500
        assert choice.reasons().startswith("500.000 ms measured; ")
        assert f"{found[0].name} 2.00 x (estimated " in choice.reasons()

    @pytest.mark.parametrize(("seconds", "taken"), [(0.98, 0), (0.96, 1)])
    def test_the_estimate_stays_within_the_noise(self, times, seconds, taken):
        assert choose_for(SHAPE, times({1: seconds}))[1].taken == taken

    def test_a_schedule_that_fails_is_not_taken(self, times):
        assert choose_for(SHAPE, times({0: math.inf}))[1].taken == 1

    @pytest.mark.parametrize(
        ("stopwatch", "shape", "reason"),
        [
            ("no stopwatch here", SHAPE, "no stopwatch here"),
            (None, dataclasses.replace(SHAPE, height=8, width=8), "the layer is small"),
            (None, dataclasses.replace(SHAPE, kernel=(5, 5)), "no other estimate is near"),
        ],
    )
    def test_the_cost_model_decides_and_says_why(self, times, stopwatch, shape, reason):
        fastest = times({1: 0.5})
        algorithm, choice = choose_for(shape, fastest if stopwatch is None else stopwatch)
        assert choice.taken == 0
        assert choice.not_measured == reason
        assert all(trial.milliseconds is None for trial in choice.trials)
        found, _ = algorithms(shape, HOST, shape.in_channels, strict=False)
        assert algorithm == found[0]

    def test_a_busy_machine(self, times):
        choice = choose_for(SHAPE, times(None))[1]
        assert (choice.taken, choice.not_measured) == (0, "the machine was too busy")
        assert "not measured: the machine was too busy" in choice.reasons()

    def test_strict_takes_the_definition(self, times):
        algorithm, choice = choose_for(SHAPE, times({}), strict=True)
        assert algorithm.name == "direct"
        assert choice.reasons() == "precision is strict: no Winograd"

    def test_dot_is_not_mentioned_where_nobody_expects_it(self):
        _, refused = algorithms(SHAPE, HOST, SHAPE.in_channels, strict=False)
        assert refused == ()
        few = dataclasses.replace(SHAPE, in_channels=20, out_channels=4)
        _, refused = algorithms(few, HOST, 20, strict=False)
        lanes = HOST.lane_choices(4)[0]
        assert refused == (f"dot: its input channels are no multiple of {lanes}",)


class TestAlgorithms:
    SHAPES = (
        SHAPE,
        dataclasses.replace(SHAPE, in_channels=64, out_channels=4),
        dataclasses.replace(SHAPE, kernel=(4, 4), strides=(2, 2)),
        dataclasses.replace(SHAPE, kernel=(2, 2), out_channels=100),
    )

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4"])
    def test_packed_shape_is_that_of_packed_weights(self, shape, target):
        found, _ = algorithms(shape, parse_target(target), shape.in_channels, strict=False)
        weight = np.zeros((shape.out_channels, *shape.kernel, shape.in_channels), np.float32)
        for each in found:
            assert each.pack(weight, shape).shape == each.packed_shape(shape), each

    @pytest.mark.parametrize("shape", SHAPES)
    def test_names_tell_them_apart(self, shape):
        found, _ = algorithms(shape, HOST, shape.in_channels, strict=False)
        assert len({each.name for each in found}) == len(found)

    def test_estimates_are_in_order(self):
        found, _ = algorithms(SHAPE, HOST, SHAPE.in_channels, strict=False)
        cycles = [each.cycles for each in found]
        assert cycles == sorted(cycles)


class TestStopwatch:
    @pytest.fixture
    def calls(self, monkeypatch):
        """Timings that were asked for, instead of timing."""
        calls = []

        def count(layer, candidates, target, between):
            calls.append(target.num_cores)
            return [1.0] * len(candidates)

        monkeypatch.setattr(measure, "_measured", {})
        monkeypatch.setattr(measure, "_time", count)
        return calls

    def test_measures_a_layer_once(self, calls):
        found, _ = algorithms(SHAPE, HOST, SHAPE.in_channels, strict=False)
        for _ in range(3):
            assert Stopwatch(HOST, 10).seconds(layer_of(SHAPE), found) == [1.0] * len(found)
        assert len(calls) == 1

    def test_measures_again_what_differs(self, calls):
        found, _ = algorithms(SHAPE, HOST, SHAPE.in_channels, strict=False)
        stopwatch = Stopwatch(HOST, 10)
        stopwatch.seconds(layer_of(SHAPE), found)
        stopwatch.seconds(layer_of(dataclasses.replace(SHAPE, width=31)), found)
        Stopwatch(dataclasses.replace(HOST, num_cores=7), 10).seconds(layer_of(SHAPE), found)
        Stopwatch(HOST, 20).seconds(layer_of(SHAPE), found)
        assert calls == [HOST.num_cores, HOST.num_cores, 7, HOST.num_cores]

    def test_runs_every_kernel(self, monkeypatch):
        """On a busy machine too: any time is certain here."""
        monkeypatch.setattr(measure, "_measured", {})
        monkeypatch.setattr(measure, "NOISE", math.inf)
        shape = dataclasses.replace(SHAPE, height=9, width=10, in_channels=32)
        found, _ = algorithms(shape, HOST, 32, strict=False)
        times = Stopwatch(HOST, 1 << 20).seconds(layer_of(shape), found)
        assert len(times) == len(found)
        assert all(0 < each < 1 for each in times)

    def test_compares_within_turns_where_nothing_repeats(self):
        # What slows the machine for some turns slows all algorithms.
        turns = {0: [2.0, 4.0, 2.0, 4.0, 3.0], 2: [1.0, 2.0, 1.2, 2.0, 1.5]}
        assert measure._paired(turns, 3) == [3.0, math.inf, 1.5]

    def test_gives_up_where_turns_do_not_agree(self):
        turns = {0: [2.0, 2.0, 2.0, 2.0, 2.0], 1: [1.0, 1.0, 1.0, 3.0, 3.0]}
        assert measure._paired(turns, 2) is None

    def test_gives_up_after_too_few_turns(self):
        assert measure._paired({0: [2.0, 2.0], 1: [1.0, 1.0]}, 2) is None


class TestCompile:
    @pytest.fixture
    def model(self, tmp_path):
        """Its residual blocks and last layers are large enough to be measured."""
        return export("rrdbnet", tmp_path / "model.onnx", blocks=1, height=32, width=32)

    def reports(self, model, *arguments, **options):
        reports = []
        compile(model, *arguments, on_layer=reports.append, **options)
        return [report for report in reports if report.choice is not None]

    @pytest.fixture
    def no_timing(self, monkeypatch):
        """Fail where a kernel is timed."""

        def fail(*_):
            raise AssertionError("a kernel was timed")

        monkeypatch.setattr(measure, "_time", fail)

    @pytest.mark.parametrize("target", ["cpu:x86-64-v3", "cpu:fat", '{"kind": "llvm"}'])
    def test_other_targets_take_the_cost_model(self, model, no_timing, target):
        reports = self.reports(model, target)
        several = [report.choice for report in reports if len(report.choice.trials) > 1]
        assert several
        assert {choice.not_measured for choice in several} == {
            f"the target is {target}, not cpu, this machine"
        }

    def test_without_measuring_equal_inputs_give_equal_bytes(self, model, no_timing, tmp_path):
        first, second = (
            compile(model, output=tmp_path / name, measure=False) for name in ("a.lfa", "b.lfa")
        )
        assert first.read_bytes() == second.read_bytes()

    def test_this_machine_is_measured(self, model, monkeypatch):
        asked = []

        def slowest_first(layer, candidates, target, between):
            asked.append(between)
            return [1.0 / (1 + index) for index in range(len(candidates))]

        monkeypatch.setattr(measure, "_measured", {})
        monkeypatch.setattr(measure, "_time", slowest_first)
        reports = self.reports(model)
        taken = {report.choice.taken for report in reports if not report.choice.not_measured}
        assert max(taken) > 0
        # All weights, and at least the image that the last layer writes.
        assert min(asked) > 3 * 128 * 128 * 4
        assert check(model.with_suffix(".lfa"))


@pytest.mark.parametrize(
    "name",
    ["direct", "dot", *(f"F({m}, 3){b}" for m in (2, 4) for b in ("", " in blocks"))],
)
@pytest.mark.parametrize("model", ["rrdbnet"])
def test_every_algorithm_agrees_with_onnx_runtime(tmp_path, monkeypatch, model, name):
    """Concatenated and repeated inputs, additions and LeakyRelu behind them."""
    used = forced(monkeypatch, name)
    path = export(model, tmp_path / "model.onnx", blocks=1, height=13, width=18)
    assert check(compile(path))
    assert name in used


@pytest.mark.parametrize("name", [f"F({m}, 2){b}" for m in (2, 3, 4) for b in ("", " in blocks")])
@pytest.mark.parametrize("model", ["dcgan-generator", "dcgan-discriminator"])
def test_every_tile_of_2x2_agrees_with_onnx_runtime(tmp_path, monkeypatch, model, name):
    used = forced(monkeypatch, name)
    assert check(compile(export(model, tmp_path / "model.onnx")))
    assert name in used


def forced(monkeypatch, name):
    """Take an algorithm wherever it can compute a layer; gives the names of what was taken."""
    used = set()

    def choose_named(words, layer, granule, *, target, strict, stopwatch, lookup):
        found, refused = algorithms(layer.shape, target, granule, strict=strict)
        algorithm = next((each for each in found if each.name == name), found[0])
        used.add(algorithm.name)
        trials = (Trial(algorithm.name, 1.0),)
        return algorithm, Choice(words, str(algorithm), 0, trials, "", refused)

    monkeypatch.setattr(pipeline, "choose", choose_named)
    return used
