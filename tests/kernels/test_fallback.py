"""`compile --fallback onnxruntime`: artifacts whose stages two engines run in turns."""

import dataclasses
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from leakyforge.errors import (
    ArtifactFormatError,
    CompileError,
    InputError,
    MissingDependencyError,
    UnsupportedOperatorError,
)
from leakyforge.kernels import compile
from leakyforge.kernels.bisect import bisect
from leakyforge.models import build as build_zoo
from leakyforge.render import print_manifest
from leakyforge.runtime import Session, check, read_manifest, verify
from leakyforge.runtime.manifest import CompiledStage, OnnxStage

# Two branches from x, an operator that is not supported between convolutions, a result whose shape
# depends on values, and a Loop whose body reads the result of a compiled stage.
_MIDDLE = """middle (float[1,16,24,24] x, bool up) =>
    (float[1,16,24,24] y, int64[2,found] places, float[1,16,24,24] z)
{
    a = Conv <pads = [1,1,1,1]> (x, kernel1)
    left = LeakyRelu <alpha = 0.2> (a)
    b = Conv <pads = [1,1,1,1]> (x, kernel2)
    right = LeakyRelu <alpha = 0.1> (b)
    row = ReduceMax <keepdims = 0> (left, axes)
    places = NonZero (row)
    shape = Shape (places)
    one = Constant <value = int64 {1}> ()
    count = Gather (shape, one)
    scale = Cast <to = 1> (count)
    scaled = Div (left, scale)
    c = Conv <pads = [1,1,1,1]> (scaled, kernel3)
    y = Add (c, right)
    z = If (up) <
        then_branch = yes () => (float[1,16,24,24] t) {
            t = Loop (trip, up, right) <body = loop (int64 i, bool k, float[1,16,24,24] s)
                => (bool k1, float[1,16,24,24] s1) { k1 = Identity (k) s1 = Sub (s, left) }> },
        else_branch = no () => (float[1,16,24,24] e) { e = Neg (left) }>
}"""


@pytest.fixture(scope="module")
def middle_model(parse):
    generator = np.random.default_rng(5)
    model = parse(_MIDDLE)
    weights = {
        name: (generator.standard_normal((16, 16, 3, 3)) / 12).astype(np.float32)
        for name in ("kernel1", "kernel2", "kernel3")
    }
    weights |= {"axes": np.array([0, 1]), "trip": np.array(3)}
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    return model


@pytest.fixture(scope="module")
def middle(middle_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("middle") / "middle.onnx"
    onnx.save(middle_model, path)
    return compile(path, measure=False, fallback="onnxruntime")


def test_the_error_names_the_fallback(middle_model, tmp_path):
    with pytest.raises(UnsupportedOperatorError, match=r"Loop .*--fallback onnxruntime"):
        compile(middle_model, output=tmp_path / "x.lfa")


def test_stages_and_what_they_hand_over(middle):
    first, second, third = read_manifest(middle).variants[0].stages
    assert isinstance(first, CompiledStage)
    assert first.inputs == ("x",)
    assert set(first.outputs) == {"left", "right", "row"}
    assert first.weights >= 2
    assert isinstance(second, OnnxStage)
    assert {"places", "z"} <= set(second.outputs)
    reasons = {node.split()[0]: reason for node, reason in second.nodes.items()}
    assert "If" in reasons
    assert reasons["If"] == "operator Loop is not supported by the compiler"
    assert reasons["NonZero"]
    assert isinstance(third, CompiledStage)
    assert third.outputs == ("y",)


@pytest.mark.parametrize("up", [True, False])
def test_outputs_are_those_of_onnxruntime(middle, middle_model, up):
    generator = np.random.default_rng(1)
    feeds = {
        "x": generator.standard_normal((1, 16, 24, 24)).astype(np.float32),
        "up": np.array(up),
    }
    y, places, z = Session(middle).run(None, feeds)
    reference = onnxruntime.InferenceSession(middle_model.SerializeToString())
    desired = reference.run(None, feeds)
    np.testing.assert_array_equal(places, desired[1])
    for ours, theirs in ((y, desired[0]), (z, desired[2])):
        # Two sums of 144 products, as in `leakyforge.tolerance`.
        atol = 6 * np.sqrt(2 * 144) * 2.0**-24 * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=2.0**-22, atol=atol)


def test_check_and_verify(middle):
    report = check(middle, samples=2)
    assert report
    assert [row.share > 0 for row in report.leaky_relus] == [True, True]
    assert verify(middle)


def test_kernels_of_all_stages_can_be_observed(middle):
    session, called = Session(middle), []
    session.instrument(lambda _function, name, before, *_: called.append(name) if before else None)
    session.run(None, {"x": np.ones((1, 16, 24, 24), np.float32), "up": np.array(False)})
    (variant,) = read_manifest(middle).variants
    layers = [kernel for kernel in variant.kernels if kernel.output in ("a", "b", "c")]
    assert len(layers) == 3
    assert {kernel.name for kernel in layers} <= set(called)


def test_inspect_shows_the_border(middle, capsys):
    print_manifest(str(middle), read_manifest(middle))
    shown = capsys.readouterr().out
    assert "ONNX Runtime" in shown
    assert "NonZero" in shown
    assert "operator Loop is not supported" in " ".join(shown.split())


def test_what_needs_a_model_compiled_as_a_whole_refuses(middle):
    with pytest.raises(InputError, match="runs in stages"):
        bisect(middle)


def test_without_onnxruntime_the_error_says_what_to_install(middle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime"):
        Session(middle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": ("nowhere",)}, "no stage gives 'nowhere'"),
        ({"outputs": ("left",)}, "no stage gives"),
        ({"weights": 99}, "another number of weights"),
    ],
)
def test_stages_that_do_not_fit_are_refused(middle, tmp_path, rewrite, change, words):
    first, *others = read_manifest(middle).variants[0].stages
    changed = (dataclasses.replace(first, **change), *others)
    path = rewrite(middle, tmp_path / "changed.lfa", variant={"stages": changed})
    with pytest.raises(ArtifactFormatError, match=words):
        read_manifest(path)


def test_a_model_that_compiles_is_compiled_as_a_whole(leaky, tmp_path):
    path = compile(
        leaky.with_suffix(".onnx"), output=tmp_path / "whole.lfa", fallback="onnxruntime"
    )
    assert read_manifest(path).variants[0].stages == ()


def test_a_model_of_which_nothing_pays_runs_all_the_same(parse, tmp_path):
    model = parse(
        "small (float[n] x) => (float[m] unique, int64[2] size)"
        " { l = LeakyRelu (x) unique = Unique (l)"
        " s = Shape (unique) one = Constant <value = int64[1] {1}> () size = Concat <axis = 0>"
        " (s, one) }"
    )
    path = compile(model, output=tmp_path / "small.lfa", fallback="onnxruntime")
    (variant,) = read_manifest(path).variants
    assert [type(stage) for stage in variant.stages] == [OnnxStage]
    assert variant.library == ""
    session = Session(path)
    unique, size = session.run(None, {"x": np.array([2, -1, 2], np.float32)})
    np.testing.assert_array_equal(unique, np.array([-0.01, 2], np.float32))
    np.testing.assert_array_equal(size, [2, 1])
    with pytest.raises(InputError, match="has no kernels"):
        session.instrument(None)


@pytest.mark.parametrize("target", ["cpu:fat", "opencl"])
def test_other_targets_refuse_by_name(leaky, tmp_path, target):
    with pytest.raises(CompileError, match=f"the target is {target}"):
        compile(
            leaky.with_suffix(".onnx"), target, output=tmp_path / "x.lfa", fallback="onnxruntime"
        )
    with pytest.raises(CompileError, match="unknown fallback 'tflite'"):
        compile(leaky.with_suffix(".onnx"), output=tmp_path / "x.lfa", fallback="tflite")


def test_given_inputs_are_the_reference(leaky, tmp_path):
    x = np.full((2, 3), -7, np.float32)
    path = compile(leaky.with_suffix(".onnx"), output=tmp_path / "given.lfa", inputs={"x": x})
    assert "given inputs" in read_manifest(path).reference
    assert verify(path)
    with pytest.raises(InputError, match="'x' has shape"):
        compile(leaky.with_suffix(".onnx"), output=path, inputs={"x": x[0]})


def test_a_voice_of_any_length(tmp_path):
    model = build_zoo("vits", hidden=16, layers=1, channels=8)
    path = tmp_path / "voice.onnx"
    onnx.save(model, path)
    artifact = compile(path, measure=False, fallback="onnxruntime")
    assert check(artifact, samples=2)
    stages = read_manifest(artifact).variants[0].stages
    kinds = {kind: [] for kind in (CompiledStage, OnnxStage)}
    for stage in stages:
        kinds[type(stage)] += [node.split()[0] for node in stage.nodes]
    # As many as a Piper voice has, all of them compiled.
    assert kinds[CompiledStage].count("LeakyRelu") == 16
    assert {"Conv", "ConvTranspose", "MatMul", "Softmax"}.isdisjoint(kinds[OnnxStage])
    assert "RandomNormalLike" in kinds[OnnxStage]
    assert {"NonZero", "ScatterND"} <= set(kinds[CompiledStage])
    session = Session(artifact)
    reference = onnxruntime.InferenceSession(str(path))
    lengths = set()
    for count in (2, 9):
        # Without noise.
        feeds = {
            "input": np.arange(count)[None] * 5, "input_lengths": np.array([count]),
            "scales": np.array([0, 1, 0], np.float32),
        }  # fmt: skip
        (ours,), (theirs,) = session.run(None, feeds), reference.run(None, feeds)
        lengths.add(ours.shape[2])
        assert ours.shape[:2] == (1, 1)
        # Hundreds of sums on the way: the tolerance of the whole, as the artifact states it.
        (spec,) = session.get_outputs()
        atol = min(6 * np.sqrt(spec.rounding_steps) * 2.0**-24, 1e-4) * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
    assert len(lengths) == 2
