"""Acceptance by family: measures that are known by hand, their bounds, and real artifacts."""

import json

import numpy as np
import pytest

from leakyforge import options
from leakyforge.cli import main
from leakyforge.errors import InputError
from leakyforge.exporter import export
from leakyforge.kernels import compile
from leakyforge.runtime import acceptance, check, yolo
from leakyforge.runtime.acceptance import FAMILIES, Samples, accept
from leakyforge.runtime.suppression import overlap
from leakyforge.runtime.tensors import TensorSpec


def samples(ours, theirs, steps=100, inputs=()):
    ours, theirs = (np.asarray(each, np.float32) for each in (ours, theirs))
    spec = TensorSpec("y", theirs.shape, "float32", rounding_steps=steps)
    return Samples(inputs, [spec], [{"y": ours}], [{"y": theirs}])


def measure(family, *arguments, **options):
    return {row.measure: row for row in accept(family, samples(*arguments, **options))}


class TestClassifier:
    def test_another_class(self):
        row = measure("classifier", [[1, 2], [2, 1]], [[1, 2], [1, 2]])["top-1 agreement"]
        assert row.value == 0.5
        assert not row.passed

    def test_classes_as_good(self):
        # 6 sqrt(100) 2^-24 of the range, and two roundings, on either side.
        limit = (60 + 2) * 2.0**-24
        for gap, passed in ((1.5 * limit, True), (3 * limit, False)):
            theirs = [[1.0 - gap, 1.0]]
            row = measure("classifier", [[1.0, 1.0 - gap]], theirs)["top-1 agreement"]
            assert row.passed == passed

    def test_one_class(self):
        with pytest.raises(InputError, match="several classes"):
            measure("classifier", [[1]], [[1]])
        with pytest.raises(InputError, match="batch of scores"):
            measure("classifier", [1, 2], [1, 2])


class TestSuperResolution:
    def test_known_noise(self):
        picture = np.linspace(0.1, 0.8, 48).reshape(1, 3, 4, 4)
        for noise, decibels in ((1e-3, 60.0), (2e-3, 53.979)):
            rows = measure("super-resolution", picture + noise, picture)
            assert rows["PSNR in dB"].value == pytest.approx(decibels, abs=1e-3)
            assert rows["PSNR in dB"].passed == (decibels > 58.9)

    def test_rounding_to_8_bits(self):
        middle = np.full((1, 1, 2, 2), 100.4999 / 255)
        near = measure("super-resolution", np.full_like(middle, 100.5001 / 255), middle)
        assert near["largest change in 8 bits"].value == 1.0
        assert near["largest change in 8 bits"].passed
        far = measure("super-resolution", middle + 2 / 255, middle)
        assert far["largest change in 8 bits"].value == 2.0
        assert not far["largest change in 8 bits"].passed

    def test_equal(self):
        picture = np.full((1, 3, 2, 2), 0.5)
        rows = measure("super-resolution", picture, picture)
        assert rows["PSNR in dB"].value == np.inf
        assert all(row.passed for row in rows.values())

    def test_nothing_to_see(self):
        picture = np.full((1, 3, 2, 2), 7.0)
        with pytest.raises(InputError, match="between 0 and 1"):
            measure("super-resolution", picture, picture)
        with pytest.raises(InputError, match="pictures, NxCxHxW"):
            measure("super-resolution", [[0.5]], [[0.5]])


class TestVocoder:
    @pytest.mark.parametrize(("decibels", "passed"), [(0.4, True), (0.6, False), (-0.6, False)])
    def test_louder(self, decibels, passed):
        sound = np.random.default_rng(1).standard_normal((1, 1, 4096))
        (row,) = measure("vocoder", sound * 10 ** (decibels / 20), sound).values()
        assert row.value == pytest.approx(abs(decibels), abs=1e-4)
        assert row.passed == passed

    def test_bands_have_equal_areas_and_follow_the_scale(self):
        bands = acceptance._mel_bands()
        assert bands.shape == (80, 513)
        width = acceptance._RATE / acceptance._WINDOW
        # The narrowest bands are few frequencies wide: their areas are sums of few terms.
        np.testing.assert_allclose(bands.sum(axis=1)[40:] * width, 1.0, atol=0.02)
        peaks = bands.argmax(axis=1) * width
        assert np.all(np.diff(peaks) > 0)
        assert peaks[-1] < 8000 < peaks[-1] + 400

    def test_a_tone_is_in_its_band(self):
        tone = np.sin(2 * np.pi * 3000 * np.arange(4096) / acceptance._RATE)
        band = acceptance._log_mel(tone)[0].argmax()
        peak = acceptance._mel_bands()[band].argmax() * acceptance._RATE / acceptance._WINDOW
        assert abs(peak - 3000) < 150

    def test_too_short(self):
        with pytest.raises(InputError, match="at least 1024 samples"):
            measure("vocoder", [[0.0] * 100], [[0.0] * 100])


# Two heads of three anchors and two classes over a picture of 64 x 64.
PICTURE = TensorSpec("x", (1, 3, 64, 64), "float32")
HEADS = [TensorSpec("large", (1, 21, 2, 2), "float32", rounding_steps=100),
         TensorSpec("small", (1, 21, 4, 4), "float32", rounding_steps=100)]  # fmt: skip


def heads(**boxes):
    """Raw heads without boxes, but for (head, anchor, row, column): (x, y, w, h, object, a, b)."""
    values = {spec.name: np.zeros((1, 3, 7, *spec.shape[2:]), np.float32) for spec in HEADS}
    for each in values.values():
        each[:, :, 4] = -20.0
    for name, entries in boxes.items():
        for (anchor, row, column), entry in entries.items():
            values[name][0, anchor, :, row, column] = entry
    return {name: each.reshape(1, 21, *each.shape[-2:]) for name, each in values.items()}


BOX = (0.5, -0.5, 0.1, 0.2, 3.0, 4.0, -4.0)


def boxes(ours, theirs):
    return {row.measure: row for row in accept("yolo", Samples([PICTURE], HEADS, [ours], [theirs]))}


class TestYolo:
    def test_decoding(self):
        found = yolo.find_heads([PICTURE], HEADS)
        # The finest cells have the smallest anchors, and stand first.
        assert [head.output for head in found] == [1, 0]
        assert found[0].anchors[0] == (10 / 16, 14 / 16)
        decoded = yolo.decode(found[0], heads(small={(1, 2, 3): BOX})["small"][0])
        row = int(decoded.scores[:, 0].argmax())
        sigmoid = 1 / (1 + np.exp(-np.array(BOX, np.float64)))
        left, top, right, bottom = decoded.corners[row]
        assert (left + right) / 2 == pytest.approx((3 + sigmoid[0]) / 4)
        assert (top + bottom) / 2 == pytest.approx((2 + sigmoid[1]) / 4)
        assert right - left == pytest.approx(23 / 64 * np.exp(0.1))
        assert bottom - top == pytest.approx(27 / 64 * np.exp(0.2))
        np.testing.assert_allclose(decoded.scores[row], sigmoid[4] * sigmoid[5:], rtol=1e-6)

    def test_softmax_of_version_2(self):
        spec = TensorSpec("y", (1, 35, 2, 2), "float32")
        (head,) = yolo.find_heads([PICTURE], [spec])
        assert head.softmax
        decoded = yolo.decode(head, np.zeros((35, 2, 2)))
        np.testing.assert_allclose(decoded.scores, 0.25)

    def test_overlap(self):
        unit = np.array([0.0, 0.0, 2.0, 2.0])
        assert overlap(unit, np.array([1.0, 1.0, 3.0, 3.0])) == pytest.approx(1 / 7)
        assert overlap(unit, np.array([5.0, 5.0, 6.0, 6.0])) == 0.0

    def test_suppression_keeps_the_best_of_each_class(self):
        corners = np.array([[0, 0, 2, 2], [0, 0, 2, 2.1], [0, 0, 2, 2], [5, 5, 6, 6]], float)
        scores = np.array([[0.5, 0.1], [0.6, 0.1], [0.1, 0.5], [0.2, 0.1]])
        assert yolo.suppress(yolo.Boxes(corners, corners[:, 2:], scores)).tolist() == [1, 2]

    def test_equal(self):
        rows = boxes(heads(large={(0, 1, 1): BOX}), heads(large={(0, 1, 1): BOX}))
        assert all(row.passed for row in rows.values())
        assert rows["IoU of a box, worst"].value == pytest.approx(1.0)
        assert rows["difference of a score, worst"].value == 0.0

    def test_a_box_that_is_missing_and_one_too_many(self):
        theirs = heads(large={(0, 1, 1): BOX, (0, 0, 0): BOX})
        ours = heads(large={(0, 1, 1): BOX, (1, 1, 0): (0.5, 0, 0, 0, 3.0, -4.0, 4.0)})
        row = boxes(ours, theirs)["boxes found after suppression"]
        assert row.value == pytest.approx(2 / 4)
        assert not row.passed

    def test_a_box_beside_the_threshold_is_left_out(self):
        weak = (0.5, -0.5, 0.1, 0.2, -1.09861, 20.0, -20.0)
        theirs = heads(large={(0, 1, 1): BOX, (0, 0, 0): weak})
        gone = (*weak[:4], -1.09862, *weak[5:])
        ours = heads(large={(0, 1, 1): BOX, (0, 0, 0): gone})
        assert boxes(ours, theirs)["boxes found after suppression"].passed

    @pytest.mark.parametrize(
        ("index", "name"),
        [
            (0, "IoU of a box, worst"),
            (2, "IoU of a box, worst"),
            (4, "difference of a score, worst"),
        ],
    )
    def test_a_value_that_differs(self, index, name):
        """As much as the tolerance allows passes, 20 times as much does not."""
        box = (0.5, -0.5, 0.1, 0.2, 1.0, 4.0, -4.0)
        # 6 sqrt(100) 2^-24 of the range, which is 20, and two roundings.
        limit = (60 + 2) * 2.0**-24 * 20
        for times, passed in ((1, True), (20, False)):
            changed = list(box)
            changed[index] += times * limit
            rows = boxes(heads(large={(0, 1, 1): changed}), heads(large={(0, 1, 1): box}))
            assert rows[name].passed == passed

    @pytest.mark.parametrize(
        ("specs", "words"),
        [
            ([TensorSpec("y", (1, 84, 8400), "float32")], "a head of family yolo"),
            ([TensorSpec("y", (1, 22, 2, 2), "float32")] * 2, "3 times 5 values"),
            ([HEADS[0]] * 4, "not 4 outputs"),
        ],
    )
    def test_other_outputs(self, specs, words):
        with pytest.raises(InputError, match=words):
            yolo.find_heads([PICTURE], specs)

    def test_no_box(self):
        with pytest.raises(InputError, match="no box beyond doubt"):
            boxes(heads(), heads())


def test_command_line_knows_every_family():
    assert tuple(FAMILIES) == options.FAMILIES


def test_unknown_family():
    with pytest.raises(InputError, match="unknown family 'gan'; use one of yolo"):
        accept("gan", samples([[1, 2]], [[1, 2]]))


@pytest.mark.parametrize(
    ("model", "settings", "family"),
    [
        ("yolov3-tiny", {"size": 96, "features": 4, "classes": 3}, "yolo"),
        ("yolov2-tiny", {"size": 96, "features": 4, "classes": 3}, "yolo"),
        ("hifigan", {"frames": 8}, "vocoder"),
        ("rrdbnet", {"blocks": 1, "height": 16, "width": 16}, "super-resolution"),
    ],
)
def test_zoo(model, settings, family, tmp_path):
    artifact = compile(export(model, tmp_path / "model.onnx", **settings))
    report = check(artifact, samples=1, family=family)
    assert report
    assert report.acceptance
    assert {row.variant for row in report.acceptance} == {row.variant for row in report.outputs}


def test_command_line(digits, capsys):
    main(["check", str(digits), "--family", "classifier", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert [row["value"] for row in report["acceptance"]] == [1.0, 1.0]
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(digits), "--family", "vocoder"])
    assert stopped.value.code == 2
    assert "sound of at least 1024 samples" in capsys.readouterr().err
