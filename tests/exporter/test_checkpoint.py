"""Weights from files into the graphs of zoo models."""

import os
import pickle

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from leakyforge.errors import ExportError, MissingDependencyError
from leakyforge.exporter import export
from leakyforge.exporter.checkpoint import _places
from leakyforge.models import ZOO, build

torch = pytest.importorskip("torch", reason="torch is not installed")

SMALL = {"zoo": "dcgan-discriminator", "features": 2}
_TORCH_NAMES = {"scale": "weight", "mean": "running_mean", "var": "running_var"}


def initializers(model):
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def weights(model):
    """The weights of a zoo model under torch's names, without constants."""
    found = {}
    for name, array in initializers(model).items():
        node, _, part = name.rpartition(".")
        if part not in ("factor", "scales"):
            found[f"{node}.{_TORCH_NAMES.get(part, part)}"] = torch.from_numpy(array.copy())
    return found


@pytest.fixture
def discriminator():
    """Weights that are not those of the default seed."""
    return weights(build("dcgan-discriminator", features=2, seed=7))


@pytest.mark.parametrize("zoo", ["digits", "mlp", "rrdbnet", "dcgan-generator", "yolov3-tiny"])
def test_every_weight_of_the_file_is_in_the_graph(zoo, tmp_path):
    small = {
        "mlp": {"hidden": 8}, "rrdbnet": {"blocks": 1, "features": 4}, "yolov3-tiny": {"size": 32},
        "dcgan-generator": {"features": 2},
    }.get(zoo, {})  # fmt: skip
    given = {
        name: tensor if tensor.ndim == 0 else tensor.flip(0) + 1
        for name, tensor in weights(build(zoo, **small)).items()
    }
    torch.save(given, tmp_path / "w.pth")
    path = export(tmp_path / "w.pth", tmp_path / "m.onnx", zoo=zoo, **small)
    found = weights(onnx.load(path))
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in given)


@pytest.mark.parametrize("zoo", sorted(ZOO))
def test_every_learned_initializer_has_a_name_in_a_file(zoo):
    model = build(zoo)
    learned = {
        each.name
        for each in model.graph.initializer
        if each.name.rpartition(".")[2] in ("weight", "bias", "scale", "mean", "var")
    }
    places = dict(_places(model))
    assert set(places.values()) == learned
    assert len(places) == len(learned)


def test_state_dict_of_a_torch_module(tmp_path):
    module = torch.nn.Sequential()
    for number, (inputs, outputs) in enumerate(((3, 2), (2, 4), (4, 8), (8, 16)), start=1):
        layer = torch.nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        module.add_module(f"conv{number}", layer)
        if number > 1:
            module.add_module(f"norm{number}", torch.nn.BatchNorm2d(outputs))
        module.add_module(f"leaky{number}", torch.nn.LeakyReLU(0.2))
    module.add_module("score", torch.nn.Conv2d(16, 1, 4, bias=False))
    module.add_module("real", torch.nn.Sigmoid())
    module(torch.randn(4, 3, 64, 64))  # gives the normalizations statistics
    assert "norm2.num_batches_tracked" in module.state_dict()
    torch.save({"epoch": 3, "model": module.state_dict()}, tmp_path / "w.pt")
    path = export(tmp_path / "w.pt", tmp_path / "m.onnx", batch=2, **SMALL)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = torch.randn(2, 3, 64, 64)
    (actual,) = session.run(None, {"image": image.numpy()})
    with torch.no_grad():
        desired = module.eval()(image).numpy()
    # Roundings on the way: the lengths of all sums, 16 * (3 + 2 + 4 + 8 + 16); values up to 1.
    np.testing.assert_allclose(actual, desired, rtol=0, atol=6 * np.sqrt(528) * 2.0**-24)


def test_metadata(discriminator, tmp_path):
    import hashlib

    torch.save(discriminator, tmp_path / "w.pth")
    path = export(tmp_path / "w.pth", tmp_path / "m.onnx", **SMALL)
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    assert facts["leakyforge.source.sha256"] == digest
    assert facts["leakyforge.source.kind"] == "state dict for zoo model dcgan-discriminator"
    assert facts["leakyforge.source.name"] == "w.pth"
    assert "nothing to compare with" in facts["leakyforge.verified"]
    assert facts["leakyforge.input_range.image"] == "0,1"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_becomes_float32(dtype, discriminator, tmp_path):
    torch.save({name: t.to(dtype) for name, t in discriminator.items()}, tmp_path / "w.pth")
    path = export(tmp_path / "w.pth", tmp_path / "m.onnx", **SMALL)
    actual = weights(onnx.load(path))
    for name, tensor in discriminator.items():
        assert torch.equal(actual[name], tensor.to(dtype).float())


def test_all_that_does_not_fit_is_named_in_one_error(discriminator, tmp_path):
    given = dict(discriminator)
    del given["norm2.running_var"]
    given["conv1.weight"] = torch.zeros(2, 3, 3, 3)
    given["score.weight"] = given["score.weight"].to(torch.int32)
    given["extra.weight"] = torch.zeros(1)
    torch.save(given, tmp_path / "w.pth")
    with pytest.raises(ExportError, match=r"w\.pth does not fit zoo model") as caught:
        export(tmp_path / "w.pth", tmp_path / "m.onnx", **SMALL)
    for problem in (
        "norm2.running_var is missing",
        "extra.weight is not in the model",
        "conv1.weight is 2x3x3x3 and should be 2x3x4x4",
        "score.weight is int32 and should be floating point",
    ):
        assert problem in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()


def test_weights_without_their_network(discriminator, tmp_path):
    torch.save(discriminator, tmp_path / "w.pth")
    with pytest.raises(ExportError, match=r"weights without their network.*--zoo NAME.*digits"):
        export(tmp_path / "w.pth", tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="no model is called 'alexnet'"):
        export(tmp_path / "w.pth", tmp_path / "m.onnx", zoo="alexnet")
    with pytest.raises(ExportError, match="mlp has no option size"):
        export(tmp_path / "w.pth", tmp_path / "m.onnx", zoo="mlp", size=3)
    with pytest.raises(ExportError, match="file of weights takes no option dynamo"):
        export(tmp_path / "w.pth", tmp_path / "m.onnx", zoo="mlp", dynamo=False)


def test_weights_of_a_zoo_model_are_given_as_the_source(tmp_path):
    with pytest.raises(ExportError, match="give that file as the model, with zoo='digits'"):
        export("digits", tmp_path / "m.onnx", weights="w.pth")


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(zipped, tmp_path):
    trap = tmp_path / "trapped"
    torch.save({"w": Trap(trap)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ExportError, match="holds pickled Python objects, and unpickling runs code"):
        export(tmp_path / "w.pth", tmp_path / "m.onnx", **SMALL)
    assert not trap.exists()
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert trap.exists()


def test_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "m.pt")
    with pytest.raises(ExportError, match=r"pickled Python objects.*save module\.state_dict\(\)"):
        export(tmp_path / "m.pt", tmp_path / "m.onnx")


@pytest.mark.parametrize("ending", [".pkl", ".pickle", ".joblib"])
def test_pickles_are_refused_by_name(ending, tmp_path):
    path = tmp_path / f"model{ending}"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(ExportError, match="is a pickle, and unpickling runs the code in it"):
        export(path, tmp_path / "m.onnx")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0, 0.3, 0.9])
def test_truncated_checkpoint(part, zipped, discriminator, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(discriminator, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ExportError, match=r"w\.pth is truncated or is not a torch"):
        export(path, tmp_path / "m.onnx", **SMALL)


@pytest.mark.parametrize("value", [{}, 3, {"a": 1}, torch.zeros(2)])
def test_file_without_one_dict_of_tensors(value, tmp_path):
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(ExportError, match="holds 0 dicts of tensors"):
        export(tmp_path / "w.pth", tmp_path / "m.onnx", **SMALL)


class TestSafetensors:
    @pytest.fixture(autouse=True)
    def safetensors(self):
        return pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

    def test_same_file_as_from_a_state_dict(self, safetensors, discriminator, tmp_path):
        safetensors.save_file(discriminator, tmp_path / "w.safetensors")
        torch.save(discriminator, tmp_path / "w.pth")
        graphs = [
            onnx.load(export(tmp_path / name, tmp_path / "m.onnx", **SMALL)).graph
            for name in ("w.safetensors", "w.pth")
        ]
        assert graphs[0] == graphs[1]

    def test_half_precision(self, safetensors, discriminator, tmp_path):
        for dtype in (torch.float16, torch.bfloat16):
            halves = {name: tensor.to(dtype) for name, tensor in discriminator.items()}
            safetensors.save_file(halves, tmp_path / "w.safetensors")
            path = export(tmp_path / "w.safetensors", tmp_path / "m.onnx", **SMALL)
            assert torch.equal(
                weights(onnx.load(path))["conv1.weight"], halves["conv1.weight"].float()
            )

    @pytest.mark.parametrize("part", [0, 0.01, 0.9])
    def test_truncated(self, part, safetensors, discriminator, tmp_path):
        path = tmp_path / "w.safetensors"
        safetensors.save_file(discriminator, path)
        data = path.read_bytes()
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(ExportError, match=r"w\.safetensors is not a safetensors file"):
            export(path, tmp_path / "m.onnx", **SMALL)


def test_safetensors_not_installed(tmp_path, monkeypatch):
    import sys

    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingDependencyError, match="pip install safetensors"):
        export(tmp_path / "w.safetensors", tmp_path / "m.onnx", **SMALL)
