"""TorchScript and torch.export programs, from memory and from files."""

import contextlib
import io
import json
import os
import pickle
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest

from leakyforge.errors import ExportError
from leakyforge.exporter import export

torch = pytest.importorskip("torch", reason="torch is not installed")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x, y):
        return torch.nn.functional.leaky_relu(self.linear(x) - y, 0.2)


def net():
    torch.manual_seed(0)
    return Net().eval()


def inputs(batch=2):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, size, generator=generator) for size in (4, 3))


SHAPES = {"x": (2, 4), "y": (2, 3)}


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def compare(path, batch=2):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    tensors = inputs(batch)
    (actual,) = session.run(None, dict(zip(names, (t.numpy() for t in tensors), strict=True)))
    desired = net()(*tensors).detach().numpy()
    # Sums of 4 products, a bias and a difference in float32.
    atol = 6 * 2.0**-24 * np.abs(desired).max()
    np.testing.assert_allclose(actual, desired, rtol=0, atol=atol)


def scripted():
    return torch.jit.script(net())


def traced():
    return torch.jit.trace(net(), inputs())


def frozen():
    return torch.jit.freeze(scripted())


@pytest.fixture
def program():
    return torch.export.export(net(), inputs())


@pytest.mark.parametrize("make", [scripted, traced, frozen])
def test_torchscript_object_and_file(make, tmp_path):
    module = make()
    path = export(module, tmp_path / "object.onnx", example_inputs=inputs())
    compare(path)
    assert metadata(path)["leakyforge.source.kind"] == "TorchScript"
    torch.jit.save(module, tmp_path / "m.pt")
    path = export(tmp_path / "m.pt", tmp_path / "file.onnx", input_shapes=SHAPES, batch="N")
    for batch in (1, 2, 5):
        compare(path, batch)
    assert [value.name for value in onnx.load(path).graph.input] == ["x", "y"]


def test_shapes_by_name_work_for_a_module_too(tmp_path):
    compare(export(net(), tmp_path / "m.onnx", input_shapes=dict(reversed(SHAPES.items()))))


def test_shapes_take_the_dtype_of_the_parameters(tmp_path):
    path = export(net().double(), tmp_path / "m.onnx", input_shapes=SHAPES)
    (x, _) = onnx.load(path).graph.input
    assert x.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"TorchScript Net needs example_inputs or input_shapes.*--input-shape x=1x3"),
        ({"input_shapes": SHAPES, "example_inputs": inputs()}, "one of the two"),
        ({"input_shapes": {"z": (1, 2)}}, "has the inputs x, y, not z"),
        ({"input_shapes": {"x": (2, 5), "y": (2, 3)}}, "refuses TorchScript Net"),
        ({"input_shapes": SHAPES, "opset": 21}, r"opset 20 and earlier, not 21; use opset=20$"),
        ({"input_shapes": SHAPES, "zoo": "mlp"}, "TorchScript takes no option zoo"),
        ({"input_shapes": SHAPES, "batch": 2}, "batch=2 cannot be set for TorchScript"),
    ],
)
def test_options_of_torchscript(options, message, tmp_path):
    torch.jit.save(scripted(), tmp_path / "m.pt")
    with pytest.raises(ExportError, match=message):
        export(tmp_path / "m.pt", tmp_path / "m.onnx", **options)
    assert [each.name for each in tmp_path.iterdir()] == ["m.pt"]


def test_truncated_torchscript(tmp_path):
    torch.jit.save(scripted(), tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ExportError, match=r"m\.pt is truncated"):
        export(tmp_path / "m.pt", tmp_path / "m.onnx", input_shapes=SHAPES)
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/constants.pkl", b"")
    with pytest.raises(ExportError, match=r"m\.pt is truncated or is not TorchScript"):
        export(tmp_path / "m.pt", tmp_path / "m.onnx", input_shapes=SHAPES)


def test_program_object_and_file(program, tmp_path):
    compare(export(program, tmp_path / "object.onnx"))
    torch.export.save(program, tmp_path / "m.pt2")
    path = export(tmp_path / "m.pt2", tmp_path / "file.onnx", opset=20)
    compare(path)
    assert onnx.load(path).opset_import[0].version == 20
    facts = metadata(path)
    assert facts["leakyforge.source.kind"] == "torch.export program"
    assert facts["leakyforge.source.name"] == "m.pt2"
    assert facts["leakyforge.source.framework"] == f"torch {torch.__version__}"


def test_program_with_a_symbolic_batch(tmp_path):
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(net(), inputs(), dynamic_shapes=({0: batch}, {0: batch}))
    path = export(program, tmp_path / "m.onnx")
    for size in (2, 5):
        compare(path, size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "opset 18 and later for a program, not 17"),
        ({"batch": "N"}, "torch.export program takes no option batch"),
        ({"example_inputs": "x"}, "example_inputs of torch.export program"),
    ],
)
def test_options_of_a_program(program, options, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export(program, tmp_path / "m.onnx", **options)


def test_program_with_keyword_arguments(tmp_path):
    x, y = inputs()
    program = torch.export.export(net(), (x,), {"y": y})
    with pytest.raises(ExportError, match="keyword arguments y"):
        export(program, tmp_path / "m.onnx")


@pytest.mark.parametrize("data", [b"", b"not a program"])
def test_file_that_is_no_program(data, tmp_path):
    (tmp_path / "m.pt2").write_bytes(data)
    with pytest.raises(ExportError, match=r"m\.pt2 is truncated or is no program") as caught:
        export(tmp_path / "m.pt2", tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickled(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def trap_in_inputs(name, data, trap):
    return pickled(((trap,), {})) if "sample_inputs" in name else data


def trap_in_weights(name, data, trap):
    if name.endswith("model_weights_config.json"):
        config = json.loads(data)
        for entry in config["config"].values():
            entry["use_pickle"] = True
        return json.dumps(config).encode()
    return pickled(trap) if "/weights/weight_" in name else data


def trap_in_constants(name, data, trap):
    if name.endswith("model_constants_config.json"):
        entry = {
            "path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None,
        }  # fmt: skip
        return json.dumps({"config": {"c": entry}}).encode()
    return data


@pytest.mark.parametrize("change", [trap_in_inputs, trap_in_weights, trap_in_constants])
def test_pickles_in_a_program_are_refused(change, program, tmp_path):
    """torch.export.load alone unpickles all of these."""
    trap = Trap(tmp_path / "trapped")
    torch.export.save(program, tmp_path / "whole.pt2")
    writer = torch._C.PyTorchFileWriter(str(tmp_path / "m.pt2"))
    with zipfile.ZipFile(tmp_path / "whole.pt2") as archive:
        for member in archive.namelist():
            name = member.split("/", 1)[1]
            if name in ("byteorder", ".data/serialization_id", ".data/version", "version"):
                continue
            data = change(name, archive.read(member), trap)
            writer.write_record(name, data, len(data))
    if change is trap_in_constants:
        data = pickle.dumps(trap)
        writer.write_record("data/constants/opaque_obj_0", data, len(data))
    writer.write_end_of_file()
    before = os.environ.copy()
    with pytest.raises(ExportError, match="holds pickled objects, and unpickling runs code"):
        export(tmp_path / "m.pt2", tmp_path / "m.onnx")
    assert dict(os.environ) == dict(before)
    assert not trap.path.exists()
    # The trap works: what torch does with the object afterwards is of no interest.
    with contextlib.suppress(Exception):
        torch.export.load(tmp_path / "m.pt2")
    assert trap.path.exists()
