"""The product's own promise: `check` and `verify` pass what is right and see what is wrong."""

import shutil
import sys

import numpy as np
import onnx
import pytest

from leakyforge.errors import ArtifactFormatError, InputError, MissingDependencyError, ModelError
from leakyforge.runtime import check, read_artifact, verify
from leakyforge.runtime.reference import load_reference, random_feeds
from leakyforge.runtime.tensors import TensorSpec

# Two outputs, so that a report can name the wrong one.
ALPHAS = (
    "two (float[2,8] x) => (float[2,8] right, float[2,8] leaky)"
    "{{ right = Neg(x) leaky = LeakyRelu <alpha = {alpha}> (x) }}"
)


@pytest.fixture(scope="module")
def wrong_alpha(build, rewrite, tmp_path_factory):
    """An artifact with alpha 0.25 that says it was compiled from the model with alpha 0.2."""
    right = build(ALPHAS.format(alpha=0.2))
    manifest = read_artifact(right).manifest
    path = tmp_path_factory.mktemp("wrong") / "wrong.lfa"
    return rewrite(
        build(ALPHAS.format(alpha=0.25)),
        path,
        onnx_sha256=manifest.onnx_sha256,
        onnx_path=manifest.onnx_path,
    )


class TestCheck:
    def test_digits(self, digits):
        report = check(digits)
        assert report
        assert report.samples == 4
        assert report.seed == 0
        assert {row.output for row in report.outputs} == {"logits"}
        names = [row.reference for row in report.outputs]
        assert len(names) == 2
        assert "not optimised" in names[1]
        assert "not" not in names[0]
        assert all(row.atol <= 1e-4 * row.range for row in report.outputs)
        assert len(report.leaky_relus) == 3
        assert all(row.alpha == pytest.approx(0.1) for row in report.leaky_relus)
        assert not report.never_negative

    def test_symbolic(self, symbolic_conv):
        report = check(symbolic_conv, samples=5)
        assert report
        assert {row.output for row in report.outputs} == {"wide", "mean"}

    def test_seed(self, conv):
        assert check(conv, seed=3).to_dict() == check(conv, seed=3).to_dict()
        assert check(conv, seed=3).leaky_relus != check(conv, seed=4).leaky_relus

    def test_given_inputs(self, digits):
        report = check(digits, inputs={"image": np.ones((1, 1, 8, 8), np.float32)})
        assert report
        assert report.samples == 1
        assert report.seed is None

    def test_given_inputs_that_do_not_fit(self, digits):
        with pytest.raises(InputError, match="1x1x8x9, the model takes 1x1x8x8"):
            check(digits, inputs={"image": np.ones((1, 1, 8, 9), np.float32)})

    @pytest.mark.parametrize("samples", [0, -1])
    def test_no_samples(self, digits, samples):
        with pytest.raises(InputError, match=f"samples={samples}"):
            check(digits, samples=samples)

    def test_wrong_alpha(self, wrong_alpha):
        report = check(wrong_alpha)
        assert not report
        failed = {row.output for row in report.outputs if not row.passed}
        passed = {row.output for row in report.outputs if row.passed}
        assert failed == {"leaky"}
        assert passed == {"right"}
        worst = next(row for row in report.outputs if not row.passed)
        assert worst.max_rel == pytest.approx(0.25, rel=1e-5)

    def test_wrong_alpha_in_the_middle_of_a_network(self, build, rewrite, digits, tmp_path):
        model = onnx.load(digits.with_suffix(".onnx"))
        (second,) = (node for node in model.graph.node if node.name == "leaky2")
        second.attribute[0].f = 0.101
        manifest = read_artifact(digits).manifest
        path = rewrite(
            build(model),
            tmp_path / "wrong.lfa",
            onnx_sha256=manifest.onnx_sha256,
            onnx_path=manifest.onnx_path,
        )
        assert not check(path)

    @pytest.mark.parametrize("operator", ["Relu", "Abs"])
    def test_alpha_that_was_not_tested(self, build, operator):
        artifact = build(
            f"late (float[4,4] x) => (float[4,4] y, float[4,4] z)"
            f"{{ positive = {operator}(x) y = LeakyRelu <alpha = 0.3> (positive)"
            f" z = LeakyRelu(x) }}"
        )
        report = check(artifact)
        assert report
        (untested,) = report.never_negative
        assert untested.node == "y"
        assert untested.alpha == pytest.approx(0.3)
        tested = next(row for row in report.leaky_relus if row.node == "z")
        assert 0.3 < tested.share < 0.7
        assert tested.alpha == pytest.approx(0.01)

    def test_shares_by_hand(self, build):
        artifact = build(
            "shares (float[4] x) => (float[4] y, float[4] z, float[4] c)"
            "<float[4] w = {1.0, -1.0, 0.0, 2.0}>"
            "{ n = Neg(x) y = LeakyRelu(x) z = LeakyRelu(n) c = LeakyRelu(w) }"
        )
        report = check(artifact, inputs={"x": np.array([-1, -2, -0.0, 3], np.float32)})
        shares = {row.node: row.share for row in report.leaky_relus}
        assert shares == {"y": 0.5, "z": 0.25, "c": 0.25}

    def test_no_leaky_relu(self, build):
        report = check(build("plain (float[3] x) => (float[3] y) { y = Neg(x) }"))
        assert report
        assert report.leaky_relus == ()

    def test_bfloat16_has_another_reference(self, build):
        report = check(
            build("f (bfloat16[8] x) => (bfloat16[8] y) { y = LeakyRelu <alpha = 0.5> (x) }")
        )
        assert report
        (row,) = report.outputs
        assert "reference evaluator" in row.reference


class TestWhichOnnxFile:
    def test_another_file(self, digits, conv):
        other = conv.with_suffix(".onnx")
        with pytest.raises(ModelError, match="is not the file that artifact") as caught:
            check(digits, other)
        assert str(other) in str(caught.value)
        assert str(digits) in str(caught.value)
        assert "--onnx FILE" in str(caught.value)

    def test_moved_together(self, leaky, rewrite, tmp_path):
        path = rewrite(leaky, tmp_path / "m.lfa", onnx_path="/nowhere/model.onnx")
        with pytest.raises(ModelError, match=r"model\.onnx does not exist; .* --onnx FILE"):
            check(path)
        shutil.copy(leaky.with_suffix(".onnx"), tmp_path / "model.onnx")
        assert check(path)

    def test_given(self, leaky, rewrite, tmp_path):
        path = rewrite(leaky, tmp_path / "m.lfa", onnx_path=None)
        with pytest.raises(ModelError, match="in memory; give a file with --onnx FILE"):
            check(path)
        assert check(path, leaky.with_suffix(".onnx"))

    def test_edited_since(self, leaky, rewrite, tmp_path):
        model = tmp_path / "model.onnx"
        model.write_bytes(leaky.with_suffix(".onnx").read_bytes() + b"\x00")
        path = rewrite(leaky, tmp_path / "m.lfa", onnx_path=str(model))
        with pytest.raises(ModelError):
            check(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "does not exist"), (b"text, not ONNX", "not an ONNX file"), (b"", "not the file")],
    )
    def test_unusable(self, leaky, tmp_path, content, message):
        file = tmp_path / "broken.onnx"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            check(leaky, file)

    @pytest.mark.parametrize("name", ["model.json", "model.textproto", "model.onnxtxt", "model"])
    def test_name_says_nothing_of_the_content(self, leaky, tmp_path, name):
        file = tmp_path / name
        shutil.copy(leaky.with_suffix(".onnx"), file)
        assert check(leaky, file)
        file.write_text("neither JSON nor ONNX {")
        with pytest.raises(ModelError, match="not an ONNX file"):
            check(leaky, file)

    def test_external_data_are_part_of_it(self, tmp_path):
        from leakyforge.kernels import compile

        weight = onnx.numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
        model = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 18]>'
            "f (float[2,3] x) => (float[2,3] y) { y = MatMul(x, w) }"
        )
        model.graph.initializer.append(weight)
        path = tmp_path / "m.onnx"
        onnx.save_model(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
        artifact = compile(path)
        assert check(artifact)
        (tmp_path / "w.bin").write_bytes(np.full((3, 3), 2, np.float32).tobytes())
        with pytest.raises(ModelError, match="SHA-256 differs"):
            check(artifact)
        (tmp_path / "w.bin").unlink()
        with pytest.raises(ModelError, match="external data"):
            check(artifact)


class TestVerify:
    @pytest.mark.parametrize("name", ["digits", "conv", "symbolic_conv", "leaky"])
    def test_passes(self, request, name):
        report = verify(request.getfixturevalue(name))
        assert report
        assert report.samples == 1
        assert report.outputs[0].reference.startswith("stored: onnxruntime")

    def test_altered_reference_outputs(self, conv, rewrite, tmp_path):
        outputs = dict(read_artifact(conv).reference_outputs)
        outputs["mean"] = outputs["mean"] + np.float32(0.01)
        report = verify(rewrite(conv, tmp_path / "m.lfa", reference_outputs=outputs))
        assert not report
        assert [row.output for row in report.outputs if not row.passed] == ["mean"]

    def test_reference_outputs_of_another_shape(self, leaky, rewrite, tmp_path):
        outputs = {"y": np.zeros((3, 2), np.float32)}
        path = rewrite(leaky, tmp_path / "m.lfa", reference_outputs=outputs)
        with pytest.raises(ArtifactFormatError, match="'y' is float32 3x2 instead of float32 2x3"):
            verify(path)

    def test_other_weights(self, conv, rewrite, tmp_path):
        weight = read_artifact(conv).variant.weights[0]
        ones = {weight.member: np.ones(weight.shape, weight.dtype).tobytes()}
        assert not verify(rewrite(conv, tmp_path / "m.lfa", parts=ones))


class TestRandomFeeds:
    SPECS = (
        TensorSpec("normal", (1000,), "float32"),
        TensorSpec("range", (1000,), "float32", low=-3.0, high=5.0),
        TensorSpec("half", (100,), "float16"),
        TensorSpec("brain", (100,), "bfloat16"),
        TensorSpec("double", (100,), "float64"),
        TensorSpec("index", (1000,), "int64"),
        TensorSpec("ranged index", (1000,), "int32", low=2.0, high=5.0),
        TensorSpec("bool", (1000,), "bool"),
    )

    def test_dtypes_and_shapes(self):
        feeds = random_feeds(self.SPECS, 0)
        assert [str(array.dtype) for array in feeds.values()] == [spec.dtype for spec in self.SPECS]
        assert [array.shape for array in feeds.values()] == [spec.shape for spec in self.SPECS]

    def test_seeded(self):
        first, again, other = (random_feeds(self.SPECS, seed) for seed in (1, 1, 2))
        for name, array in first.items():
            np.testing.assert_array_equal(array, again[name])
            assert not np.array_equal(array, other[name])

    def test_ranges(self):
        feeds = random_feeds(self.SPECS, 0)
        assert 0.4 < np.mean(feeds["normal"] < 0) < 0.6
        assert np.max(np.abs(feeds["normal"])) > 2
        assert -3 <= feeds["range"].min() < -2.9
        assert 4.9 < feeds["range"].max() <= 5
        assert set(feeds["index"]) == set(range(10))
        assert set(feeds["ranged index"]) == {2, 3, 4}
        assert 0.4 < np.mean(feeds["bool"]) < 0.6

    def test_symbols(self):
        specs = [TensorSpec("a", ("N", 3, "M"), "float32"), TensorSpec("b", ("N",), "float32")]
        feeds = random_feeds(specs, 0, {"N": 5})
        assert feeds["a"].shape == (5, 3, 2)
        assert feeds["b"].shape == (5,)

    def test_rank_0(self):
        (array,) = random_feeds([TensorSpec("a", (), "float32")], 0).values()
        assert isinstance(array, np.ndarray)
        assert array.shape == ()

    @pytest.mark.parametrize("dtype", ["complex64", "object", "str"])
    def test_dtype_that_cannot_be_drawn(self, dtype):
        with pytest.raises(InputError, match=f"'a' of dtype {dtype} cannot be drawn"):
            random_feeds([TensorSpec("a", (2,), dtype)], 0)

    def test_range_of_whole_numbers(self):
        spec = TensorSpec("a", (1000,), "int64", low=-1.5, high=1.5)
        assert set(random_feeds([spec], 0)["a"]) == {-1, 0, 1}
        with pytest.raises(InputError, match="holds no int64"):
            random_feeds([TensorSpec("a", (2,), "int64", low=0.2, high=0.9)], 0)

    @pytest.mark.parametrize(("low", "high"), [(3, 3), (5, 2), (float("nan"), 1), (0, np.inf)])
    @pytest.mark.parametrize("dtype", ["float32", "int64"])
    def test_range_without_values(self, dtype, low, high):
        with pytest.raises(InputError, match=r"'a' .*range"):
            random_feeds([TensorSpec("a", (2,), dtype, low=low, high=high)], 0)


class TestReference:
    def test_neither_engine_takes_the_model(self, parse):
        proto = parse("f (float[2] x) => (float[2] y) { y = com.acme.Foo(x) }")
        with pytest.raises(ModelError, match="ONNX Runtime refuses the model") as caught:
            load_reference(proto)
        assert "\n" not in str(caught.value)

    def test_engine_fails_while_running(self, parse):
        model = load_reference(parse("f (float[2] x) => (float[2] y) { y = Neg(x) }"))
        with pytest.raises(ModelError, match="cannot run the model") as caught:
            model.run({"x": np.zeros(3, np.float32)})
        assert "\n" not in str(caught.value)

    def test_without_onnxruntime(self, parse, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingDependencyError, match="pip install onnxruntime"):
            load_reference(parse("f (float[2] x) => (float[2] y) { y = Neg(x) }"))
