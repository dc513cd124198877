"""`check --bisect`: planted faults are found, named and reproduced; right artifacts pass."""

import importlib
import json
import zipfile

import numpy as np
import onnx
import pytest
import tvm
import tvm_ffi
from tvm import tirx

from leakyforge.cli import main
from leakyforge.errors import CompileError, InputError, ModelError
from leakyforge.exporter import export
from leakyforge.kernels import bisect as bisect_module
from leakyforge.kernels import compile, pipeline
from leakyforge.kernels.bisect import bisect
from leakyforge.runtime import check, read_manifest
from leakyforge.runtime.arrays import load_npz

# ONNX values and operators of the classifier's layers that have weights, in order.
LAYERS = {
    "leaky1": ["Conv", "LeakyRelu"],
    "pool2": ["Conv", "LeakyRelu", "MaxPool"],
    "pool3": ["Conv", "LeakyRelu", "MaxPool"],
    "logits": ["Gemm"],
}


@pytest.fixture
def planted(digits, rewrite, tmp_path):
    """The classifier with one of its packed weights changed."""

    def planted(value):
        (variant,) = read_manifest(digits).variants
        member = variant.weights[2 * list(LAYERS).index(value)].member
        with zipfile.ZipFile(digits) as archive:
            weights = np.frombuffer(archive.read(member), np.float32).copy()
        weights[0] += 0.01
        return rewrite(digits, tmp_path / "planted.lfa", parts={member: weights.tobytes()})

    return planted


def operators(row):
    return [node.split()[0] for node in row.nodes]


@pytest.mark.parametrize("value", LAYERS)
def test_a_wrong_weight_is_found_in_its_layer(planted, value):
    report = bisect(planted(value))
    assert not report
    assert report.fault.value == value
    assert operators(report.fault) == LAYERS[value]
    # Every other kernel is right, however wrong its inputs were in the run.
    assert [row.value for row in report.kernels if not row.passed] == [value]
    assert report.stage == "artifact"


def test_the_reproducer_is_the_faulty_layer_alone(planted, tmp_path):
    report = bisect(planted("pool2"), output=tmp_path / "alone.onnx")
    assert report.reproducer == str(tmp_path / "alone.onnx")
    model = onnx.load(report.reproducer)
    assert [node.op_type for node in model.graph.node] == LAYERS["pool2"]
    inputs = load_npz(tmp_path / "alone.npz")
    assert {name: array.shape for name, array in inputs.items()} == {"leaky1": (1, 16, 8, 8)}
    # The compiler is right, so what it makes of the reproducer passes.
    assert check(compile(report.reproducer), inputs=inputs)


def with_another_alpha(function):
    """A function of TensorIR whose slope 0.1 is 0.11."""
    alpha = np.float32(0.1)

    def other(constant, _):
        is_alpha = np.float32(float(constant.value)) == alpha
        return tirx.const(0.11, str(constant.ty.dtype)) if is_alpha else constant

    return tvm_ffi.structural_mutate(function, (tirx.FloatImm, other))


def in_every_function(module):
    functions = {
        name: with_another_alpha(function) if isinstance(function, tirx.PrimFunc) else function
        for name, function in module.functions.items()
    }
    return tvm.IRModule(functions, attrs=module.attrs)


@pytest.fixture(params=["unfused", "fused", "scheduled"])
def broken_stage(request, monkeypatch):
    """A compiler that takes another slope from one stage on."""
    if request.param == "scheduled":
        schedule_function = pipeline._schedule_function

        def wrong(*arguments):
            function, decision = schedule_function(*arguments)
            return with_another_alpha(function), decision

        monkeypatch.setattr(pipeline, "_schedule_function", wrong)
    else:
        fuse = pipeline.fuse

        def wrong(module, target):
            fused = fuse(module, target)
            config = tvm.transform.PassContext.current().config
            alone = "relax.FuseOps.max_depth" in config
            return fused if request.param == "fused" and alone else in_every_function(fused)

        monkeypatch.setattr(pipeline, "fuse", wrong)
    # It would refuse to write what it made.
    compiler = importlib.import_module("leakyforge.kernels.compile")
    monkeypatch.setattr(compiler, "record_parity", lambda _path, manifest, *_: manifest)
    return request.param


def test_the_stage_is_named(broken_stage, tmp_path):
    artifact = compile(export("digits", tmp_path / "digits.onnx"))
    assert not check(artifact)
    report = bisect(artifact)
    assert report.stage == broken_stage
    assert operators(report.fault) == ["Conv", "LeakyRelu"]
    wrong = {row.value for row in report.kernels if not row.passed}
    assert wrong == {"leaky1", "pool2", "pool3"}
    # The reproducer shows the same, alone.
    inputs = load_npz(tmp_path / "digits-fault.npz")
    assert not check(compile(report.reproducer), inputs=inputs)


def test_a_fault_in_one_of_two_kernels_of_a_layer(parse, rewrite, tmp_path):
    """A transposed convolution is a product and a shuffle, of which ONNX knows the result only."""
    model = parse(
        "up (float[1,8,6,6] x) => (float[1,4,12,12] z) {"
        " y = ConvTranspose <strides = [2,2], pads = [1,1,1,1]> (x, w)"
        " z = LeakyRelu <alpha = 0.2> (y) }"
    )
    weight = np.random.default_rng(3).standard_normal((8, 4, 4, 4)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "up.onnx")
    artifact = compile(tmp_path / "up.onnx")
    right = bisect(artifact)
    assert right
    assert [row.value for row in right.kernels if row.error is not None] == ["z", "x"]
    (variant,) = read_manifest(artifact).variants
    spec = variant.weights[0]
    parts = {spec.member: np.zeros(spec.shape, np.float32).tobytes()}
    report = bisect(rewrite(artifact, tmp_path / "wrong.lfa", parts=parts))
    assert report.fault.value == "z"
    # The first kernel is a change of layout.
    kernels = [kernel.name for kernel in variant.kernels[1:]]
    assert [*report.fault.parts, report.fault.kernel.name] == kernels


def test_right_artifacts_pass(digits, conv, symbolic_conv, leaky):
    for artifact in (digits, conv, symbolic_conv, leaky):
        report = bisect(artifact)
        assert report, artifact
        assert report.fault is None
        assert report.reproducer is None
        assert not list(artifact.parent.glob("*-fault.*"))


def test_every_kernel_of_the_classifier_is_judged(digits):
    report = bisect(digits)
    (variant,) = read_manifest(digits).variants
    assert {row.kernel.name for row in report.kernels} == {each.name for each in variant.kernels}
    assert all(row.error is not None for row in report.kernels)
    needed = [row.needed for row in report.kernels]
    assert needed == sorted(needed, reverse=True)
    assert 0 < needed[0] <= 1


def test_command_line(planted, tmp_path, capsys):
    path = planted("pool3")
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(path), "--bisect"])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "stage: artifact" in printed
    assert "MaxPool pool3, 1x4x4x32 -> 1x2x2x32" in printed
    assert printed.endswith("bisect: FAIL\n")
    assert (tmp_path / "planted-fault.onnx").is_file()
    assert (tmp_path / "planted-fault.npz").is_file()


def test_the_kernel_is_named_where_its_stage_cannot_be(planted, monkeypatch, capsys):
    def fails(*_):
        raise CompileError("TVM fails on stage 'fused': out of luck")

    monkeypatch.setattr(bisect_module, "first_wrong_stage", fails)
    with pytest.raises(SystemExit):
        main(["check", str(planted("leaky1")), "--bisect"])
    printed = capsys.readouterr().out
    assert "LeakyRelu leaky1" in printed
    assert "stage: not known: TVM fails on stage 'fused': out of luck" in printed
    assert "reproducer: " in printed


def test_json(digits, capsys):
    main(["check", str(digits), "--bisect", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["kernels"][0]["error"]["reference"] == "float64"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bisect", "--device", "pocl"], "leave out --device"),
        (["--bisect", "--float64"], "leave out --device, --float64, --family and --html"),
        (["--reproducer", "a.onnx"], "--reproducer is what --bisect writes"),
    ],
)
def test_wrong_usage(digits, arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(digits), *arguments])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_errors(digits, leaky, tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        bisect(digits, output=tmp_path / "absent" / "fault.onnx")
    with pytest.raises(ModelError, match="is not the file"):
        bisect(digits, leaky.with_suffix(".onnx"))
    with pytest.raises(InputError, match="unknown input 'picture'"):
        bisect(digits, inputs={"picture": np.zeros((1, 1, 8, 8), np.float32)})
