"""`leakyforge study`: a small one from end to end, its statistics, its report's conclusions."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest

from leakyforge import cli
from leakyforge.errors import ExportError, InputError, MissingDependencyError, ParityError
from leakyforge.intervals import estimate, paired, regression_slope, student_quantile
from leakyforge.models.activations import ACTIVATIONS, LEAKY_RELUS, RELU
from leakyforge.models.study_network import StudyNetwork
from leakyforge.study import Arm, Run, Study, run_study, stages
from leakyforge.study_conclusions import conclusions, difference, noise, slope_effect
from leakyforge.study_files import FIGURE, NUMBERS, REPORT, check_folder, write_study
from leakyforge.study_report import markdown

SMALL = {"epochs": 2, "activations": (RELU, LEAKY_RELUS[1]), "depths": (1,), "latency_seconds": 0.1}


@pytest.fixture(scope="module")
def small():
    """Two seeds of ReLU and LeakyReLU 0.05 with one hidden layer."""
    pytest.importorskip("sklearn", reason="the digits data need scikit-learn")
    return run_study(seeds=2, **SMALL)


class TestRun:
    def test_every_network_learns_and_is_the_artifact(self, small):
        assert [arm.activation for arm in small.arms] == ["ReLU", "LeakyReLU 0.05"]
        assert [arm.operator for arm in small.arms] == ["Relu", "LeakyRelu"]
        for arm in small.arms:
            assert [run.seed for run in arm.runs] == [0, 1]
            assert 0 < arm.p10_ms <= arm.median_ms <= arm.p90_ms
            for run in arm.runs:
                assert 0.5 < run.accuracy <= 1
                assert 0 <= run.parity <= 1
                # The hidden layer and the logits.
                assert len(run.first_gradients) == len(run.last_gradients) == 2

    def test_repeats(self, small):
        again = run_study(seeds=1, **SMALL)
        assert [arm.runs[0] for arm in again.arms] == [arm.runs[0] for arm in small.arms]

    def test_files(self, small, tmp_path):
        pytest.importorskip("matplotlib", reason="figures need matplotlib")
        check_folder(tmp_path)
        assert write_study(small, tmp_path) == tmp_path / REPORT
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["activations.png", "study.json", "study.md", "study.png"]
        assert Study.from_dict(json.loads((tmp_path / NUMBERS).read_text())) == small
        assert (tmp_path / REPORT).read_text() == markdown(small)
        assert (tmp_path / FIGURE).read_bytes().startswith(b"\x89PNG")

    def test_another_network_in_the_artifact_is_found(self, monkeypatch):
        def to_onnx(self, batch):
            return to_onnx.original(StudyNetwork(self.activation, self.depth, 7), batch)

        to_onnx.original = StudyNetwork.to_onnx
        monkeypatch.setattr(StudyNetwork, "to_onnx", to_onnx)
        with pytest.raises(ParityError, match=r"ReLU, 1 layers: accuracy .* when trained, .* comp"):
            run_study(seeds=1, **SMALL)

    def test_refused(self):
        with pytest.raises(InputError, match="seeds=0"):
            run_study(seeds=0)
        with pytest.raises(InputError, match="ReLU is not among"):
            run_study(activations=LEAKY_RELUS)

    def test_stages(self):
        assert stages((2,)) == [*(f"{each.name}, 2 layers" for each in ACTIVATIONS), "latency"]


class TestCommand:
    def test_writes_what_was_found(self, small, tmp_path, monkeypatch, capsys):
        pytest.importorskip("matplotlib", reason="figures need matplotlib")
        given = {}

        def run_study(**options):
            given.update(options)
            return small

        monkeypatch.setattr("leakyforge.study.run_study", run_study)
        cli.main(["study", "-o", str(tmp_path), "--seeds", "2", "--epochs", "3"])
        assert (given["seeds"], given["epochs"]) == (2, 3)
        assert capsys.readouterr().out == f"wrote {tmp_path / REPORT}\n"

    def test_folder_that_is_absent(self, tmp_path):
        pytest.importorskip("matplotlib", reason="figures need matplotlib")
        with pytest.raises(ExportError, match="is not a folder; create it first"):
            check_folder(tmp_path / "absent")

    def test_without_matplotlib(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'leakyforge\[peers\]'"):
            check_folder(tmp_path)


class TestStatistics:
    @pytest.mark.parametrize(
        ("freedom", "quantile"),
        [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (29, 2.0452), (100, 1.9840)],
    )
    def test_quantile(self, freedom, quantile):
        """Of tables, such as NIST's Engineering Statistics Handbook, 1.3.6.7.2."""
        assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-4)

    def test_interval(self):
        result = estimate([1.0, 2.0, 3.0])
        half = 4.3027 / math.sqrt(3)
        assert dataclasses.astuple(result) == pytest.approx((2, 2 - half, 2 + half), abs=1e-4)
        assert result.sign == 0
        assert (estimate([1.0, 1.1]).sign, estimate([-1.0, -1.1]).sign) == (1, -1)

    def test_one_value_has_no_interval(self):
        assert dataclasses.astuple(estimate([3.0])) == (3, -math.inf, math.inf)

    def test_pairs_take_out_what_they_share(self):
        assert paired([1.1, 5.1, 9.1], [1, 5, 9]).sign == 1
        assert estimate([1.1, 5.1, 9.1]).sign == 0

    def test_regression(self):
        assert regression_slope([0, 1, 3], [2, 4, 8]) == pytest.approx(2)


def study(accuracies, latencies=(1.0, 1.0, 1.1)):
    """A study of ReLU, LeakyReLU 0.1 and LeakyReLU 0.2 with these accuracies of each seed."""
    arms = [
        Arm(
            activation=name,
            kind="rectifier",
            slope=slope,
            operator="LeakyRelu" if slope else "Relu",
            depth=2,
            rate=0.01,
            runs=tuple(
                Run(seed, accuracy, 0.1, 0.0 if slope else 0.25, 0.25, 0.5, (1, 2, 3), (1, 2, 3))
                for seed, accuracy in enumerate(series)
            ),
            median_ms=latency,
            p10_ms=latency,
            p90_ms=latency,
        )
        for (name, slope), series, latency in zip(
            [("ReLU", 0.0), ("LeakyReLU 0.1", 0.1), ("LeakyReLU 0.2", 0.2)],
            accuracies, latencies, strict=True,
        )
    ]  # fmt: skip
    return Study("a CPU", "2026-01-01", 3, 100, 50, 32, (0.01, 0.1), 0.02, 1, tuple(arms))


BASE = (0.90, 0.92, 0.91)


def shifted(*points):
    """Accuracies of three arms: those of `BASE` and so many points more, not quite evenly."""
    wobble = (0.0, 0.001, -0.001)
    return [
        BASE
        if index == 0
        else tuple(a + shift / 100 + w for a, w in zip(BASE, wobble, strict=True))
        for index, shift in enumerate((0, *points))
    ]


class TestReport:
    @pytest.mark.parametrize(
        ("points", "verdict"),
        [
            ((2, 3), "always beats ReLU: here it does."),
            ((2, 0), "always beats ReLU: shown for some slopes only."),
            ((0, 0), "always beats ReLU: the data do not show it."),
            ((2, -3), "always beats ReLU: the data contradict it."),
        ],
    )
    def test_always_better(self, points, verdict):
        assert verdict in conclusions(study(shifted(*points)))[0]

    @pytest.mark.parametrize(
        ("points", "verdict"),
        [
            ((1, 2), "higher alpha is better: here it is."),
            ((0, 0), "higher alpha is better: the data do not show it."),
            ((-1, -2), "higher alpha is better: the data contradict it."),
        ],
    )
    def test_higher_is_better(self, points, verdict):
        assert verdict in conclusions(study(shifted(*points)))[1]

    def test_numbers_behind_the_verdicts(self):
        given = study(shifted(1, 2))
        assert difference(given, given.arms[2]).mean == pytest.approx(0.02)
        assert slope_effect(given, 2).mean == pytest.approx(0.1)
        text = conclusions(given)[0]
        assert "above ReLU for alpha 0.1, 0.2; LeakyReLU was better in 6 of 6 pairs" in text

    def test_noise_is_the_range_of_equal_code(self):
        given = study(shifted(0, 0), latencies=(2.0, 1.9, 2.2))
        assert noise(given, 2) == pytest.approx((0.95, 1.1))
        assert "0.95 to 1.10, a range that holds 1" in conclusions(given)[5]

    def test_tables(self):
        text = markdown(study(shifted(1, 2)))
        assert "| ReLU | 0.01 | 91.00 ± 1.00 | - | reference |" in text
        assert "| LeakyReLU 0.2 | 0.01 | 93.00 ± 1.05 | +2.00 [+1.75, +2.25] | higher |" in text
        assert "| LeakyReLU 0.1 | LeakyRelu | 1000 | 1000 to 1000 | 1.00 |" in text
        assert "2 intervals of 95 % each: where nothing differed, 0.1 of them" in text

    def test_one_seed_shows_nothing(self):
        one = study([series[:1] for series in shifted(2, 3)])
        assert "the data do not show it" in conclusions(one)[0]
        text = markdown(one)
        assert "One seed has no spread" in text
        assert "| LeakyReLU 0.2 | 0.01 | 93.00 | +3.00 | no difference shown |" in text


def test_committed_report_is_that_of_the_committed_numbers():
    docs = Path(__file__).parent.parent.parent / "docs"
    numbers = json.loads((docs / NUMBERS).read_text())
    assert (docs / REPORT).read_text() == markdown(Study.from_dict(numbers))
