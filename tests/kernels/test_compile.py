"""Whole models through `compile`: shapes, names, targets, and agreement with ONNX Runtime."""

import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from leakyforge.errors import (
    ArtifactCpuError,
    ArtifactError,
    ArtifactIsDirectoryError,
    CompileError,
    ModelError,
    ParityError,
    ShapeError,
    TargetError,
    UnsupportedOperatorError,
)
from leakyforge.exporter import export
from leakyforge.kernels import STAGES, compile, parse_target
from leakyforge.kernels.target import FAT
from leakyforge.runtime import Session, check, cpu, read_artifact, read_manifest, verify
from leakyforge.runtime.cpu import host_features
from leakyforge.runtime.reference import Reference


def onnxruntime_outputs(model, feeds):
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, feeds)


def assert_close(actual, desired, roundings):
    """Within six times the root of the number of roundings, as in `leakyforge.tolerance`."""
    assert actual.shape == desired.shape
    assert actual.dtype == desired.dtype
    extent = np.max(np.abs(desired), initial=0.0)
    atol = 6 * np.sqrt(roundings) * 2.0**-24 * extent
    np.testing.assert_allclose(actual, desired, rtol=2.0**-23, atol=atol)


@pytest.fixture(scope="module")
def several(parse):
    """Three inputs and three outputs, among them an input itself; one dtype is an integer."""
    return parse(
        "several (float[2,3] b, float[2,3] a, int64[2] indices) =>"
        " (float[2,3] total, float[2,3] a, int64[2] next, float[2,3] leaky)"
        " { total = Add (b, a) leaky = LeakyRelu <alpha = 0.3> (total)"
        " one = Constant <value = int64[1] {1}> () next = Add (indices, one) }"
    )


@pytest.fixture(scope="module")
def network(parse):
    """Convolution, BatchNormalization, LeakyRelu, pooling and a product, of any batch."""
    model = parse(
        "network (float[batch,3,9,11] image) => (float[batch,7] scores)"
        " { c = Conv <pads = [1,1,1,1]> (image, kernel)"
        " n = BatchNormalization (c, scale, shift, mean, var)"
        " l = LeakyRelu <alpha = 0.1> (n)"
        " p = GlobalAveragePool (l) f = Flatten (p)"
        " scores = Gemm <transB = 1> (f, matrix, offset) }"
    )
    generator = np.random.default_rng(3)
    shapes = {
        "kernel": (5, 3, 3, 3), "scale": (5,), "shift": (5,), "mean": (5,), "matrix": (7, 5),
        "offset": (7,),
    }  # fmt: skip
    weights = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    weights["var"] = generator.random(5) + 0.5
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()
    )
    return model


@pytest.fixture(scope="module")
def network_file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "network.onnx"
    onnx.save(network, path)
    return path


@pytest.fixture(scope="module")
def symbolic(network_file):
    """The network with its batch left symbolic."""
    return compile(network_file)


def images(batch):
    return np.random.default_rng(batch).standard_normal((batch, 3, 9, 11)).astype(np.float32)


class TestSymbolicBatch:
    def test_the_artifact_lies_beside_the_model_and_keeps_the_symbol(self, symbolic, network_file):
        assert symbolic == network_file.with_suffix(".lfa")
        session = Session(symbolic)
        assert [spec.shape for spec in session.get_inputs()] == [("batch", 3, 9, 11)]
        (output,) = session.get_outputs()
        assert output.shape[1] == 7
        assert isinstance(output.shape[0], str)

    @pytest.mark.parametrize("batch", [1, 2, 3, 7, 16])
    def test_every_batch(self, symbolic, network, batch):
        feeds = {"image": images(batch)}
        (actual,) = Session(symbolic).run(None, feeds)
        assert_close(actual, onnxruntime_outputs(network, feeds)[0], roundings=27 + 99 + 5)

    def test_one_session_takes_batches_in_turn(self, symbolic, network):
        session = Session(symbolic)
        for batch in (4, 1, 5):
            feeds = {"image": images(batch)}
            (actual,) = session.run(None, feeds)
            assert_close(actual, onnxruntime_outputs(network, feeds)[0], roundings=27 + 99 + 5)

    def test_check(self, symbolic):
        assert check(symbolic, samples=2)

    def test_fixed(self, network_file, network, tmp_path):
        path = compile(network_file, shapes={"image": (3, 3, 9, 11)}, output=tmp_path / "3.lfa")
        session = Session(path)
        assert [spec.shape for spec in session.get_inputs()] == [(3, 3, 9, 11)]
        assert [spec.shape for spec in session.get_outputs()] == [(3, 7)]
        feeds = {"image": images(3)}
        (actual,) = session.run(None, feeds)
        assert_close(actual, onnxruntime_outputs(network, feeds)[0], roundings=27 + 99 + 5)
        assert check(path, samples=1)

    def test_wrong_shape(self, network_file, tmp_path):
        with pytest.raises(ShapeError, match="shape 3x3x9x10 does not fit input 'image'"):
            compile(network_file, shapes={"image": (3, 3, 9, 10)}, output=tmp_path / "no.lfa")
        assert not list(tmp_path.iterdir())


class TestNames:
    @pytest.fixture(scope="class")
    def artifact(self, build, several):
        return build(several)

    @pytest.fixture(scope="class")
    def feeds(self):
        generator = np.random.default_rng(5)
        return {
            "a": generator.standard_normal((2, 3)).astype(np.float32),
            "b": generator.standard_normal((2, 3)).astype(np.float32),
            "indices": np.array([4, -2]),
        }

    def test_several_inputs_and_outputs(self, artifact, several, feeds):
        session = Session(artifact)
        assert [spec.name for spec in session.get_inputs()] == ["b", "a", "indices"]
        assert [spec.name for spec in session.get_outputs()] == ["total", "a", "next", "leaky"]
        assert [spec.type for spec in session.get_outputs()][2] == "tensor(int64)"
        desired = onnxruntime_outputs(several, feeds)
        for actual, expected in zip(session.run(None, feeds), desired, strict=True):
            np.testing.assert_array_equal(actual, expected, strict=True)

    def test_output_that_is_an_input_is_a_copy(self, artifact, feeds):
        (same,) = Session(artifact).run(["a"], feeds)
        np.testing.assert_array_equal(same, feeds["a"])
        assert not np.shares_memory(same, feeds["a"])

    def test_check(self, artifact):
        assert check(artifact, samples=2)

    def test_model_that_only_passes_its_input_on(self, build, parse):
        session = Session(build(parse("g (float[2,3] x) => (float[2,3] y) { y = Identity (x) }")))
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        (same,) = session.run(None, {"x": values})
        np.testing.assert_array_equal(same, values)

    def test_output_that_is_a_constant(self, build, parse):
        model = parse(
            "g (float[2] x) => (float[2] y, float[3] c)"
            " { y = Neg (x) c = Constant <value = float[3] {1, 2, 3}> () }"
        )
        _, constant = Session(build(model)).run(None, {"x": np.float32([1, 2])})
        np.testing.assert_array_equal(constant, np.float32([1, 2, 3]))

    def test_initializers_that_are_also_inputs(self, build, parse):
        """IR version 3 wanted every weight among the inputs: they are constants all the same."""
        model = parse(
            "old (float[2,3] w, float[1,2] x, float[3] b) => (float[1,3] y)"
            " { p = MatMul (x, w) s = Add (p, b) y = LeakyRelu <alpha = 0.2> (s) }"
        )
        model.ir_version = 3
        model.opset_import[0].version = 8
        generator = np.random.default_rng(0)
        for name, shape in (("w", (2, 3)), ("b", (3,))):
            value = generator.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        session = Session(build(model))
        assert [spec.name for spec in session.get_inputs()] == ["x"]
        feeds = {"x": np.float32([[1, -2]])}
        (actual,) = session.run(None, feeds)
        assert_close(actual, onnxruntime_outputs(model, feeds)[0], roundings=3)


class TestOutput:
    def test_model_in_memory_needs_one(self, several, tmp_path):
        with pytest.raises(ModelError, match="a model in memory needs output="):
            compile(several)
        path = compile(several, output=str(tmp_path / "m.lfa"))
        assert path == tmp_path / "m.lfa"
        manifest = read_artifact(path).manifest
        assert (manifest.model, manifest.onnx_path) == ("several", None)
        with pytest.raises(ModelError, match="compiled from a model in memory"):
            check(path)

    def test_two_compilations_give_the_same_bytes(self, network_file, tmp_path):
        """Of a fixed shape: TVM computes symbolic sizes in the order of addresses."""
        shapes = {"image": (2, 3, 9, 11)}
        first, again = (
            compile(network_file, shapes=shapes, output=tmp_path / f"{name}.lfa")
            for name in ("first", "again")
        )
        assert again.read_bytes() == first.read_bytes()

    def test_seed_draws_other_reference_inputs(self, network_file, symbolic, tmp_path):
        other = compile(network_file, output=tmp_path / "other.lfa", seed=1)
        first, second = (read_artifact(path).reference_inputs for path in (symbolic, other))
        assert not np.array_equal(first["image"], second["image"])
        assert verify(other)

    def test_stages_are_told_in_order(self, several, tmp_path):
        told = []
        compile(several, output=tmp_path / "m.lfa", on_stage=told.append)
        assert tuple(told) == STAGES

    def test_folder_that_does_not_exist(self, several, tmp_path):
        with pytest.raises(ArtifactError, match="is not a folder"):
            compile(several, output=tmp_path / "no" / "m.lfa")

    def test_directory(self, several, tmp_path):
        with pytest.raises(ArtifactIsDirectoryError):
            compile(several, output=tmp_path)

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            (
                "g (float[2] x) => (float[2] y) { y = RandomUniformLike (x) }",
                UnsupportedOperatorError,
            ),
            ("g (float[2] x) => (float[3] y) { y = Relu (x) }", ModelError),
        ],
    )
    def test_refused_model_leaves_what_was_there(self, parse, tmp_path, text, error):
        path = tmp_path / "m.lfa"
        path.write_text("precious")
        with pytest.raises(error):
            compile(parse(text), output=path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["m.lfa"]
        assert path.read_text() == "precious"

    def test_unknown_target_is_refused_before_the_model_is_read(self, tmp_path):
        with pytest.raises(TargetError):
            compile(tmp_path / "no.onnx", "cpu:none")

    @pytest.mark.parametrize("text", ["0", "0,1,2", "low,high", ""])
    def test_range_that_is_none(self, several, tmp_path, text):
        model = onnx.ModelProto()
        model.CopyFrom(several)
        onnx.helper.set_model_props(model, {"leakyforge.input_range.a": text})
        with pytest.raises(ModelError, match=r"input_range\.a=.*is not LOW,HIGH"):
            compile(model, output=tmp_path / "m.lfa")

    def test_range_of_an_input_reaches_the_artifact(self, several, tmp_path):
        model = onnx.ModelProto()
        model.CopyFrom(several)
        onnx.helper.set_model_props(model, {"leakyforge.input_range.a": "5,6.5"})
        artifact = read_artifact(compile(model, output=tmp_path / "m.lfa"))
        ranges = {spec.name: (spec.low, spec.high) for spec in artifact.manifest.inputs}
        assert ranges == {"a": (5.0, 6.5), "b": (None, None), "indices": (None, None)}
        assert (artifact.reference_inputs["a"] >= 5).all()
        assert (artifact.reference_inputs["a"] < 6.5).all()


class TestTargets:
    @pytest.mark.skipif(
        not {"avx2", "fma", "bmi2"} <= host_features(), reason="this CPU is older than x86-64-v3"
    )
    def test_x86_64_v3_runs_here(self, network_file, network, tmp_path):
        path = compile(network_file, "cpu:x86-64-v3", output=tmp_path / "v3.lfa")
        variant = read_artifact(path).variant
        assert variant.name == "x86-64-v3"
        assert "avx2" in variant.features
        assert not any(name.startswith("avx512") for name in variant.features)
        assert verify(path)
        assert check(path, samples=1)

    def test_the_oldest_x86_64_runs_everywhere(self, several, tmp_path):
        path = compile(several, "cpu:x86-64", output=tmp_path / "v1.lfa")
        assert set(read_artifact(path).variant.features) <= {"cmov", "sse", "sse2"}
        assert verify(path)

    def test_host_features_are_written_down(self, symbolic):
        assert set(read_artifact(symbolic).variant.features) == host_features()


# By this machine's instruction set, a target of the other one.
FOREIGN = {"x86_64": ("cpu:cortex-a72", "aarch64"), "aarch64": ("cpu:x86-64-v3", "x86_64")}
# Of the ELF header (System V ABI, e_machine).
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


class TestOtherInstructionSet:
    """What this machine compiles and cannot run."""

    @pytest.fixture(scope="class")
    def foreign(self, network_file, tmp_path_factory):
        target, machine = FOREIGN[cpu.machine()]
        path = tmp_path_factory.mktemp("foreign") / "foreign.lfa"
        return compile(network_file, target, output=path), machine

    def test_library_is_for_it(self, foreign):
        path, machine = foreign
        manifest = read_manifest(path)
        assert manifest.machine == machine
        with zipfile.ZipFile(path) as archive:
            library = archive.read(manifest.variants[0].library)
        assert library[:4] == b"\x7fELF"
        assert int.from_bytes(library[18:20], "little") == ELF_MACHINES[machine]

    def test_library_without_kernels_is_for_it(self, parse, tmp_path):
        """TVM asks the linker's side for the triple where no kernel tells it."""
        target, machine = FOREIGN[cpu.machine()]
        model = parse("g (float[3] x) => (float[3] y) { y = Identity (x) }")
        path = compile(model, target, output=tmp_path / "m.lfa")
        with zipfile.ZipFile(path) as archive:
            library = archive.read(read_manifest(path).variants[0].library)
        assert int.from_bytes(library[18:20], "little") == ELF_MACHINES[machine]

    def test_parity_is_not_run_and_says_why(self, foreign):
        path, machine = foreign
        record = read_manifest(path).variants[0].parity
        assert (record.result, record.cpu) == ("not run", cpu.model_name())
        assert record.lacks == (f"instruction set {machine}",)

    def test_session_refuses_it(self, foreign):
        path, machine = foreign
        message = f"artifact {path} is for {machine}, this machine is {cpu.machine()}"
        with pytest.raises(ArtifactCpuError, match=message):
            Session(path)


class TestFat:
    @pytest.fixture(scope="class")
    def fat(self, network_file, tmp_path_factory):
        path = tmp_path_factory.mktemp("fat") / "fat.lfa"
        return compile(network_file, "cpu:fat", output=path)

    def test_variants(self, fat):
        variants = read_manifest(fat).variants
        assert tuple(variant.name for variant in variants) == FAT
        assert "avx512f" in variants[0].features
        assert "avx2" in variants[1].features
        assert set(variants[2].features) <= {"cmov", "sse", "sse2"}

    @pytest.mark.parametrize("name", FAT)
    def test_each_agrees_with_onnxruntime(self, fat, network, name):
        variant = next(each for each in read_manifest(fat).variants if each.name == name)
        missing = set(variant.features) - host_features()
        for feature in ("avx512f", "avx2", *missing):
            if feature in missing:
                pytest.skip(f"this CPU lacks {feature}")
        for batch in (1, 4):
            feeds = {"image": images(batch)}
            (actual,) = Session(fat, variant=name).run(None, feeds)
            assert_close(actual, onnxruntime_outputs(network, feeds)[0], roundings=27 + 99 + 5)

    def test_two_compilations_give_the_same_bytes(self, network_file, tmp_path):
        """Of a fixed shape: TVM computes symbolic sizes in the order of addresses."""
        shapes = {"image": (2, 3, 9, 11)}
        first, again = (
            compile(network_file, "cpu:fat", shapes=shapes, output=tmp_path / f"{name}.lfa")
            for name in ("first", "again")
        )
        assert again.read_bytes() == first.read_bytes()

    def test_stages_and_decisions_come_for_each_variant(self, several, tmp_path):
        told, decisions = [], []
        compile(
            several, "cpu:fat", output=tmp_path / "m.lfa",
            on_stage=told.append, on_decision=decisions.append,
        )  # fmt: skip
        first, last = STAGES.index("fuse"), STAGES.index("link") + 1
        assert tuple(told) == (*STAGES[:first], *STAGES[first:last] * 3, *STAGES[last:])
        assert tuple(dict.fromkeys(decision.target for decision in decisions)) == FAT


class TestParityRecord:
    def test_what_it_says(self, symbolic):
        artifact = read_artifact(symbolic)
        record = artifact.variant.parity
        assert (record.result, record.cpu, record.lacks) == ("pass", cpu.model_name(), ())
        (row,) = verify(symbolic).outputs
        (output,) = record.outputs
        assert output.output == "scores"
        assert output.error == pytest.approx(row.max_abs / row.range)
        assert output.tolerance == pytest.approx(row.atol / row.range)
        assert 0 < output.used == row.needed <= 1

    def test_each_variant_has_its_own(self, network_file, tmp_path, monkeypatch):
        few = frozenset({"cmov", "sse", "sse2"})
        monkeypatch.setattr(cpu, "host_features", lambda: few)
        path = compile(network_file, "cpu:fat", output=tmp_path / "m.lfa")
        best, middle, least = (variant.parity for variant in read_manifest(path).variants)
        assert least.result == "pass"
        assert [output.output for output in least.outputs] == ["scores"]
        assert (best.result, middle.result) == ("not run", "not run")
        assert "avx512f" in best.lacks
        assert "avx2" in middle.lacks
        assert best.outputs == middle.outputs == ()

    def test_output_of_zeros(self, parse, tmp_path):
        path = compile(
            parse("g (float[3] x) => (float[3] y) { y = Sub (x, x) }"), output=tmp_path / "m.lfa"
        )
        (output,) = read_artifact(path).variant.parity.outputs
        assert (output.error, output.used) == (0, 0)

    def wrong_reference(self, monkeypatch, change):
        module = sys.modules["leakyforge.kernels.compile"]
        right = module.load_reference

        def load(proto):
            reference = right(proto)

            def run(names, feeds):
                return [change(array) for array in reference.run(feeds).values()]

            return Reference(reference.name, reference.names, run)

        monkeypatch.setattr(module, "load_reference", load)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda array: array * np.float32(1.001), [" of its range, the tolerance is "]),
            (lambda array: array[:-1], ["shape 2x7 instead of 1x7"]),
        ],
        ids=["values", "shape"],
    )
    @pytest.mark.parametrize("target", ["cpu", "cpu:fat"])
    def test_a_variant_that_differs_is_not_written(
        self, network_file, tmp_path, monkeypatch, target, change, words
    ):
        self.wrong_reference(monkeypatch, change)
        path = tmp_path / "m.lfa"
        path.write_text("precious")
        with pytest.raises(ParityError) as caught:
            compile(network_file, target, output=path)
        name = read_name(target)
        for word in (*words, f"{path} is not written: output 'scores' of variant {name} differs"):
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
        assert path.read_text() == "precious"
        assert [entry.name for entry in tmp_path.iterdir()] == ["m.lfa"]


def read_name(target):
    """The variant of a target that is compared first."""
    if target == "cpu":
        return parse_target("cpu").name
    runs = [name for name in FAT if parse_target(f"cpu:{name}").features <= host_features()]
    return runs[0]


class TestDigits:
    def test_same_answers_as_onnxruntime_on_the_test_images(self, tmp_path):
        pytest.importorskip("sklearn", reason="the digits data need scikit-learn")
        from leakyforge.models.digits_data import digits_split

        split = digits_split()
        path = export("digits", tmp_path / "digits.onnx", batch="N")
        feeds = {"image": split.test_images}
        (actual,) = Session(compile(path)).run(None, feeds)
        (desired,) = onnxruntime_outputs(path, feeds)
        assert_close(actual, desired, roundings=9 + 144 + 288 + 128)
        np.testing.assert_array_equal(actual.argmax(1), desired.argmax(1))
        assert (actual.argmax(1) == split.test_labels).mean() >= 0.97


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("batch", [None, "N"], ids=["fixed", "symbolic"])
def test_torch_module(dynamo, batch, tmp_path):
    torch = pytest.importorskip(
        "torch", reason="exporting torch modules needs torch: pip install 'leakyforge[torch]'"
    )
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.ZeroPad2d((0, 1, 0, 1)),
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.LeakyReLU(0.1),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 6, 3, stride=2, bias=False),
        torch.nn.LeakyReLU(1.5),
        torch.nn.Flatten(),
        torch.nn.Linear(6, 5),
        torch.nn.LeakyReLU(-0.3),
    ).eval()
    example = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    path = export(module, tmp_path / "m.onnx", example_inputs=example, dynamo=dynamo, batch=batch)
    artifact = compile(path)
    report = check(artifact, samples=2)
    assert report
    assert sorted(row.alpha for row in report.leaky_relus) == pytest.approx([-0.3, 0.1, 1.5])
    assert not report.never_negative

    session = Session(artifact)
    (spec,) = session.get_inputs()
    (actual,) = session.run(None, {spec.name: example.numpy()})
    with torch.no_grad():
        desired = module(example).numpy()
    assert_close(actual, desired, roundings=27 + 72 + 6)


def test_yolov3_tiny_at_320(tmp_path):
    artifact = compile(export("yolov3-tiny", tmp_path / "yolo.onnx", size=320))
    report = check(artifact, samples=1)
    assert report
    assert len(report.leaky_relus) == 11
    assert not report.never_negative
    assert {spec.shape for spec in Session(artifact).get_outputs()} == {
        (1, 255, 10, 10),
        (1, 255, 20, 20),
    }


class TestPrecision:
    def test_strict_takes_no_winograd(self, tmp_path):
        model = export("rrdbnet", tmp_path / "m.onnx", blocks=1, height=16, width=16)
        rules = {}
        for precision in ("default", "strict"):
            decisions = []
            artifact = compile(
                model, output=tmp_path / f"{precision}.lfa", precision=precision,
                on_decision=decisions.append,
            )  # fmt: skip
            assert check(artifact)
            rules[precision] = {decision.rule for decision in decisions}
            refused = [decision.refused.get("winograd") for decision in decisions]
        assert "winograd" in rules["default"]
        assert "winograd" not in rules["strict"]
        assert "precision is strict: no Winograd" in refused

    def test_unknown_one_is_refused(self, tmp_path):
        model = export("digits", tmp_path / "digits.onnx")
        with pytest.raises(CompileError, match="unknown precision 'high'; use default or strict"):
            compile(model, precision="high")
        assert not (tmp_path / "digits.lfa").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hifigan", {"version": 2, "frames": 4}),
        ("hifigan", {"version": 3, "frames": 2}),
        ("rrdbnet", {"blocks": 1, "height": 9, "width": 14, "batch": "N"}),
        ("dcgan-discriminator", {}),
        ("dcgan-generator", {"batch": 2}),
        ("mlp", {"batch": 7}),
        ("yolov2-tiny", {"size": 64, "features": 4, "classes": 2, "batch": "N"}),
        ("yolov3", {"size": 32, "features": 4, "classes": 2}),
        ("melgan", {"frames": 5, "features": 4}),
        ("pix2pix-unet", {"size": 32, "depth": 4, "features": 8}),
        ("patchgan", {"size": 45, "features": 8}),
        ("speech-embedding", {"frames": 84, "features": 8}),
        ("resnet18", {"size": 33, "features": 8, "classes": 10}),
        ("resnet18", {"size": 32, "features": 4, "classes": 3, "activation": "relu"}),
        ("small-cnn", {"size": 24, "features": 4}),
    ],
)
def test_zoo_models_agree_with_onnx_runtime(tmp_path, name, options):
    report = check(compile(export(name, tmp_path / "model.onnx", **options)))
    assert report, report
