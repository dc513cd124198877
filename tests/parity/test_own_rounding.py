"""What is lost to rounding, beside ONNX Runtime's own loss; and the bound, from the algorithms."""

import json
import zipfile

import numpy as np
import pytest

from leakyforge.cli import main
from leakyforge.errors import ModelError
from leakyforge.kernels import strassen, winograd, winograd1d
from leakyforge.kernels.cook_toom import cook_toom
from leakyforge.runtime import check, float64, read_manifest
from leakyforge.runtime.own_rounding import FACTOR, compare_roundings
from leakyforge.runtime.tensors import TensorSpec

SPEC = TensorSpec("y", (4,), "float32")
UNIT = 2.0**-24


def row(ours, theirs, exact, spec=SPEC):
    dtype = np.float32 if spec.dtype == "float32" else np.float64
    arrays = [{"y": np.asarray(values, dtype)} for values in (ours, theirs)]
    (found,) = compare_roundings(
        [spec], [arrays[0]], [arrays[1]], [{"y": np.asarray(exact, np.float64)}], "them", "cpu"
    )
    return found


def test_ratio_of_the_losses():
    exact = [1.0, -1.0, 1.0, -1.0]
    found = row([1.25, -1.0, 1.0, -1.25], [1.0, -1.0, 1.125, -1.0], exact)
    assert found.ours == pytest.approx(np.sqrt(2 * 0.25**2 / 4))
    assert found.theirs == pytest.approx(np.sqrt(0.125**2 / 4))
    assert found.ratio == pytest.approx(2 * np.sqrt(2))
    assert found.passed
    assert (found.output, found.reference, found.variant) == ("y", "them", "cpu")


def test_the_bound_itself_passes():
    exact = np.ones(4)
    spec = TensorSpec("y", (4,), "float64")
    assert row(exact + FACTOR * 2.0**-20, exact + 2.0**-20, exact, spec).passed
    assert not row(exact + FACTOR * 2.0**-19, exact + 2.0**-20, exact, spec).passed


def test_a_reference_without_loss_is_taken_to_round_once():
    exact = np.ones(4)
    found = row([1.0, 1.0, 1.0, 1.0 + 4 * UNIT], exact, exact)
    assert found.theirs == 0.0
    assert found.ratio == pytest.approx(4 * UNIT / 2 / UNIT)
    assert row(np.zeros(4), np.zeros(4), np.zeros(4)).ratio == 0.0
    assert row([0.0, 0.0, 0.0, 1.0], np.zeros(4), np.zeros(4)).ratio == np.inf


def test_nan_infinity_and_shape():
    exact = [1.0, np.nan, np.inf, 2.0]
    assert row(exact, exact, exact).ratio == 0.0
    assert row([np.nan, np.nan, np.inf, 2.0], exact, exact).ratio == np.inf
    assert row([1.0, 2.0], exact, exact).ratio == np.inf


def test_integers_are_left_out():
    values = [{"y": np.arange(4)}]
    assert compare_roundings([TensorSpec("y", (4,), "int64")], values, values, values, "", "") == []


def amplification(outputs, kernel):
    """Root mean square over the results of F(outputs, kernel) in one dimension."""
    transform = cook_toom(outputs, kernel)
    norms = (transform.kernel**2).sum(axis=1) * (transform.input**2).sum(axis=1)
    return np.sqrt((transform.output**2 @ norms).mean() / kernel)


def test_the_factor_covers_every_algorithm():
    square = [
        amplification(outputs, kernel) ** 2
        for kernel, choices in winograd._OUTPUTS.items()
        for outputs in choices
    ]
    line = [amplification(*sizes) for sizes in winograd1d._WHOLE.values()]
    # Seven products of sums of quarters, whose terms are half as many as the definition's.
    terms = (strassen._LEFT**2).sum(axis=1) * (strassen._RIGHT**2).sum(axis=1)
    seven = np.sqrt((strassen._RESULT**2 @ terms).mean() / 2)
    assert max(square) == pytest.approx(6.94, abs=0.01)
    assert max(*square, *line, seven) < FACTOR <= 1.2 * max(square)


def test_digits(digits):
    report = check(digits, float64=True)
    assert report
    assert [each.output for each in report.roundings] == ["logits"] * 2
    assert all(0 < each.theirs < 1e-5 for each in report.roundings)
    assert all(0 < each.ratio <= FACTOR for each in report.roundings)
    assert check(digits).roundings == ()


def test_every_variant_has_its_own(fat):
    report = check(fat, variant="all", float64=True)
    names = {each.variant for each in report.roundings}
    assert names == {each.variant for each in report.outputs}


@pytest.fixture
def careless(digits, rewrite, tmp_path):
    """The classifier with the weights of its last layer a little off: within the tolerance."""
    (variant,) = read_manifest(digits).variants
    member = variant.weights[6].member
    with zipfile.ZipFile(digits) as archive:
        weights = np.frombuffer(archive.read(member), np.float32)
    parts = {member: (weights * np.float32(1 + 4e-6)).tobytes()}
    return rewrite(digits, tmp_path / "careless.lfa", parts=parts)


def test_a_loss_within_the_tolerance_is_seen(careless):
    assert check(careless)
    report = check(careless, float64=True)
    assert not report
    assert all(each.passed for each in report.outputs)
    assert all(each.ratio > FACTOR for each in report.roundings)


def test_command_line(careless, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(careless), "--float64"])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "times the rounding of onnxruntime" in printed
    assert "(bound 8): FAIL" in printed
    with pytest.raises(SystemExit):
        main(["check", str(careless), "--float64", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert not report["passed"]
    assert report["roundings"][0]["bound"] == FACTOR


def test_float64_that_contradicts_the_reference_is_no_witness(digits, monkeypatch):
    evaluate = float64.evaluate_float64

    def wrong(proto, feeds):
        return [{name: 1.5 * each for name, each in out.items()} for out in evaluate(proto, feeds)]

    monkeypatch.setattr(float64, "evaluate_float64", wrong)
    with pytest.raises(ModelError, match=r"from that in float64.*check without --float64"):
        check(digits, float64=True)
