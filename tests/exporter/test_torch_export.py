"""Export of torch modules by both of torch's exporters."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from leakyforge.errors import ExportError
from leakyforge.exporter import check, export

torch = pytest.importorskip(
    "torch", reason="exporting torch modules needs torch: pip install 'leakyforge[torch]'"
)

BOTH = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.LeakyReLU(0.1),
        torch.nn.Dropout(0.5),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 4 * 4, 5),
        torch.nn.LeakyReLU(0.3),
    )


def image(batch=2):
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Branch(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


class Two(torch.nn.Module):
    def forward(self, left, right):
        leaky = torch.nn.functional.leaky_relu
        return leaky(left + right, 0.2), leaky(left - right, 1.5)


class OnlyInEvaluation(torch.nn.Module):
    def forward(self, x):
        return x if self.training else torch.nn.functional.leaky_relu(x, 0.1)


class IgnoresOne(torch.nn.Module):
    def forward(self, x, unused):
        return x + 1


def dims(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def compare(path, module, *tensors):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    outputs = session.run(None, dict(zip(names, (t.numpy() for t in tensors), strict=True)))
    with torch.no_grad():
        expected = module(*tensors)
    for actual, desired in zip(
        outputs, expected if isinstance(expected, tuple) else (expected,), strict=True
    ):
        desired = desired.numpy()
        # Sums of at most 128 float32 products in any order: 128 * 2**-24 of the range.
        atol = 128 * 2.0**-24 * max(1.0, np.abs(desired).max())
        np.testing.assert_allclose(actual, desired, rtol=0, atol=atol)


@BOTH
def test_same_outputs_as_torch(dynamo, tmp_path):
    module = network()
    path = export(module, tmp_path / "m.onnx", example_inputs=image(), dynamo=dynamo)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert [node.op_type for node in model.graph.node].count("LeakyRelu") == 2
    assert [value.name for value in model.graph.input] == ["input"]
    assert model.graph.value_info
    compare(path, module.eval(), image())


@BOTH
@pytest.mark.parametrize("example_batch", [1, 2])
def test_symbolic_batch(dynamo, example_batch, tmp_path):
    module = network()
    path = export(
        module,
        tmp_path / "m.onnx",
        example_inputs=image(example_batch),
        dynamo=dynamo,
        batch="N",
        input_names=["image"],
        output_names=["scores"],
    )
    graph = onnx.load(path).graph
    assert {v.name: dims(v) for v in (*graph.input, *graph.output)} == {
        "image": ["N", 3, 8, 8],
        "scores": ["N", 5],
    }
    for batch in (1, 3):
        compare(path, module.eval(), image(batch))


@BOTH
def test_two_inputs_and_two_outputs(dynamo, tmp_path):
    tensors = (image(), image().flip(0))
    path = export(
        Two(), tmp_path / "m.onnx", example_inputs=tensors, dynamo=dynamo, output_names=["a", "b"]
    )
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["left", "right"]
    assert [value.name for value in graph.output] == ["a", "b"]
    compare(path, Two(), *tensors)


@pytest.mark.parametrize(
    ("dynamo", "opset"), [(True, 18), (True, 21), (True, 23), (False, 13), (False, 16), (False, 20)]
)
def test_opset_in_the_file_is_the_one_asked_for(dynamo, opset, tmp_path):
    module = network()
    path = export(module, tmp_path / "m.onnx", example_inputs=image(), dynamo=dynamo, opset=opset)
    assert [entry.version for entry in onnx.load(path).opset_import] == [opset]
    compare(path, module.eval(), image())


@pytest.mark.parametrize(
    ("dynamo", "opset", "message"),
    [(True, 17, "opset 18 and later, not 17"), (False, 21, "opset 20 and earlier, not 21")],
)
def test_opset_that_the_exporter_does_not_write(dynamo, opset, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export(network(), tmp_path / "m.onnx", example_inputs=image(), dynamo=dynamo, opset=opset)


@BOTH
def test_modes_of_the_module_stay(dynamo, tmp_path):
    module = network()
    module[1].eval()
    before = [part.training for part in module.modules()]
    export(module, tmp_path / "m.onnx", example_inputs=image(), dynamo=dynamo)
    assert [part.training for part in module.modules()] == before


@BOTH
def test_evaluation_mode_is_exported(dynamo, tmp_path):
    module = OnlyInEvaluation().train()
    path = export(module, tmp_path / "m.onnx", example_inputs=image(), dynamo=dynamo)
    assert module.training
    assert [node.op_type for node in onnx.load(path).graph.node] == ["LeakyRelu"]


# In a process of its own, since pytest takes over the streams that torch's loggers write to.
SILENT = """
import sys, torch
from leakyforge.errors import ExportError
from leakyforge.exporter import export

class Branch(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1

for dynamo in (True, False):
    for module in (torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LeakyReLU()), Branch()):
        try:
            export(module, sys.argv[1], example_inputs=torch.ones(2, 3), dynamo=dynamo)
        except ExportError:
            assert isinstance(module, Branch)
"""


def test_nothing_is_printed_or_warned(tmp_path):
    command = [sys.executable, "-W", "always", "-c", SILENT, str(tmp_path / "m.onnx")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@BOTH
def test_no_paths_of_this_machine_in_the_file(dynamo, tmp_path):
    path = export(Two(), tmp_path / "m.onnx", example_inputs=(image(), image()), dynamo=dynamo)
    assert str(Path(__file__).parent).encode() not in path.read_bytes()


@BOTH
def test_data_dependent_control_flow(dynamo, tmp_path):
    with pytest.raises(ExportError, match="Branch") as caught:
        export(Branch(), tmp_path / "m.onnx", example_inputs=image(), dynamo=dynamo)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@BOTH
def test_module_that_does_not_run_on_its_inputs(dynamo, tmp_path):
    with pytest.raises(ExportError, match=r"refuses torch module Linear: RuntimeError") as caught:
        export(torch.nn.Linear(7, 2), tmp_path / "m.onnx", example_inputs=image(), dynamo=dynamo)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_checks_of_torchs_own_modules_are_no_refusal(tmp_path):
    module = torch.nn.InstanceNorm2d(3)
    path = export(module, tmp_path / "m.onnx", example_inputs=image(), dynamo=False, batch="N")
    compare(path, module, image(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs example_inputs"),
        ({"example_inputs": np.zeros((2, 3))}, "example_inputs .* are a ndarray"),
        ({"example_inputs": ([1.0],)}, "example_inputs .* are a tuple"),
        ({"example_inputs": image(), "input_names": ["a", "b"]}, "1 example_inputs and 2 input"),
        ({"example_inputs": image(), "output_names": ["a", "b"]}, "output"),
        ({"example_inputs": image(), "batch": 4}, "batch=4 cannot be set for a torch module"),
        ({"example_inputs": image(), "batch": "4"}, "batch='4' is not a name"),
        ({"example_inputs": image(), "size": 320}, "takes no option size"),
    ],
)
def test_invalid_options(options, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export(torch.nn.LeakyReLU(), tmp_path / "m.onnx", dynamo=False, **options)


def test_unused_input_that_the_exporter_drops(tmp_path):
    with pytest.raises(ExportError, match=r"inputs x instead of x, unused"):
        export(IgnoresOne(), tmp_path / "m.onnx", example_inputs=(image(), image()), dynamo=False)


def test_module_over_the_limit_is_refused_before_the_export(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "MAX_BYTES", 1000)
    with pytest.raises(ExportError, match="at most 2 GiB"):
        export(network(), tmp_path / "m.onnx", example_inputs=image())
