"""Verified export: what differs from its framework is not written."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from leakyforge.errors import ExportError, MissingDependencyError
from leakyforge.exporter import export
from leakyforge.exporter.check import checked_model
from leakyforge.exporter.provenance import stamp
from leakyforge.exporter.source import Framework, Source
from leakyforge.exporter.verify import OutputError, verify

WEIGHT = np.random.default_rng(3).standard_normal((4, 3)).astype(np.float32)


def model(batch="N", dtype=TensorProto.FLOAT):
    """LeakyRelu(x @ WEIGHT): 4 roundings."""
    weight = numpy_helper.from_array(WEIGHT.astype(helper.tensor_dtype_to_np_dtype(dtype)), "w")
    return checked_model(
        helper.make_model(
            helper.make_graph(
                [
                    helper.make_node("MatMul", ["x", "w"], ["h"]),
                    helper.make_node("LeakyRelu", ["h"], ["y"], alpha=0.1),
                ],
                "small",
                [helper.make_tensor_value_info("x", dtype, [batch, 4])],
                [helper.make_tensor_value_info("y", dtype, [batch, 3])],
                [weight],
            ),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=8,
        )
    )


def leaky(x):
    return np.where(x >= 0, x, np.float32(0.1) * x).astype(np.float32)


def source(compute=lambda x: leaky(x @ WEIGHT), **options):
    example = np.zeros((2, 4), np.float32)
    framework = Framework("numpy 2", lambda inputs: [compute(*inputs)], (example,), **options)
    return Source(onnx.ModelProto(), "function", "f", framework)


def test_equal_outputs_pass_and_leave_their_figures():
    (row,) = verify(source(), model())
    assert row.output == "y"
    assert 0 <= row.error <= row.tolerance < 1e-5


@pytest.mark.parametrize(("fixed", "batches"), [(False, [1, 3]), (True, [2, 2])])
def test_symbolic_batch_takes_two_sizes_unless_it_is_fixed(fixed, batches):
    seen = []

    def compute(x):
        seen.append(x)
        return leaky(x @ WEIGHT)

    verify(source(compute, sizes_fixed=fixed), model())
    assert [len(x) for x in seen] == batches
    assert not np.array_equal(seen[0][0], seen[1][0])
    assert min(x.min() for x in seen) < 0


def test_inputs_are_the_same_each_time():
    seen = []
    for _ in range(2):
        verify(source(lambda x: (seen.append(x), leaky(x @ WEIGHT))[1]), model())
    assert np.array_equal(seen[0], seen[2])
    assert np.array_equal(seen[1], seen[3])


@pytest.mark.parametrize("factor", [1 - 1e-5, 1.1, np.nan, np.inf])
def test_difference_names_output_error_place_and_tolerance(factor):
    def compute(x):
        y = leaky(x @ WEIGHT)
        y[0, 1] *= np.float32(factor)
        return y

    with pytest.raises(
        ExportError,
        match=r"output 'y' of function f differs between numpy 2 and ONNX Runtime by \S+ at "
        r"\[0, 1\], tolerance \S+ \(float32, 4 roundings.*nothing was written",
    ):
        verify(source(compute), model())


def test_one_rounding_more_is_no_difference():
    verify(source(lambda x: np.nextafter(leaky(x @ WEIGHT), np.float32(9))), model())


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda x: leaky(x @ WEIGHT).astype(np.float64), r"float64 \[1, 3\] in .*float32 \[1, 3\]"),
        (lambda x: leaky(x @ WEIGHT).ravel(), r"float32 \[3\] in .* float32 \[1, 3\] as ONNX"),
        (lambda x: 1 / 0, "function f does not run in numpy 2 on inputs of shape 1x4: division"),
    ],
)
def test_other_refusals(compute, message):
    with pytest.raises(ExportError, match=message):
        verify(source(compute), model())


def test_count_of_outputs():
    framework = Framework("numpy 2", lambda inputs: [], (np.zeros((2, 4), np.float32),))
    with pytest.raises(ExportError, match="has 0 outputs in numpy 2 and 1 as ONNX"):
        verify(Source(onnx.ModelProto(), "function", "f", framework), model())


def test_integers_are_the_examples_own_values():
    proto = checked_model(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 18]> g (float[5] table, int64[N] at)'
            " => (float[N] y) { y = Gather (table, at) }"
        )
    )
    examples = (np.zeros(5, np.float32), np.array([4, 2], np.int64))
    framework = Framework("numpy 2", lambda inputs: [inputs[0][inputs[1]]], examples)
    assert verify(Source(proto, "function", "f", framework), proto)[0].error == 0


def test_attributes_of_a_float64_model_are_float32():
    proto = model(dtype=TensorProto.DOUBLE)
    example = np.zeros((2, 4))

    def compute(alpha):
        def run(inputs):
            y = inputs[0] @ WEIGHT.astype(np.float64)
            return [np.where(y >= 0, y, alpha * y)]

        return Source(proto, "function", "f", Framework("numpy 2", run, (example,)))

    (row,) = verify(compute(0.1), proto)
    assert 1e-12 < row.error < row.tolerance
    with pytest.raises(ExportError, match="differs"):
        verify(compute(0.1001), proto)


def test_onnxruntime_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime"):
        verify(source(), model())


def test_stamp_replaces_what_was_said_before_and_keeps_the_rest():
    proto = model()
    before = {
        "leakyforge.input_range.x": "0,1",
        "leakyforge.error.old": "1",
        "leakyforge.source.sha256": "1",
        "author": "a",
    }
    onnx.helper.set_model_props(proto, before)
    stamp(proto, source(), [OutputError("y", 1e-7, 2e-6)])
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert facts.pop("leakyforge.version")
    assert facts == {
        "leakyforge.input_range.x": "0,1",
        "author": "a",
        "leakyforge.source.kind": "function",
        "leakyforge.source.name": "f",
        "leakyforge.source.framework": "numpy 2",
        "leakyforge.verified": "numpy 2 and ONNX Runtime, seed 0",
        "leakyforge.error.y": "1e-07",
        "leakyforge.tolerance.y": "2e-06",
    }


class TestTorch:
    @pytest.fixture(autouse=True)
    def torch(self):
        return pytest.importorskip("torch", reason="torch is not installed")

    @pytest.mark.parametrize("dynamo", [True, False])
    def test_random_output_is_refused_and_nothing_is_written(self, torch, dynamo, tmp_path):
        class Random(torch.nn.Module):
            def forward(self, x):
                return torch.nn.functional.leaky_relu(x + torch.rand(2, 3), 0.1)

        path = tmp_path / "m.onnx"
        path.write_bytes(b"before")
        with pytest.raises(ExportError, match="of torch module Random differs between torch"):
            export(Random(), path, example_inputs=torch.zeros(2, 3), dynamo=dynamo)
        assert path.read_bytes() == b"before"
        assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]

    def test_module_with_state(self, torch, tmp_path):
        class Counts(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.calls = 0

            def forward(self, x):
                self.calls += 1
                return x + self.calls

        with pytest.raises(ExportError, match="of torch module Counts differs"):
            export(Counts(), tmp_path / "m.onnx", example_inputs=torch.zeros(2, 3), dynamo=False)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
    def test_other_dtypes(self, torch, dtype, tmp_path):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LeakyReLU(0.1))
        module = module.to(getattr(torch, dtype))
        path = export(module, tmp_path / "m.onnx", input_shapes={"input": (2, 4)})
        facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert facts["leakyforge.source.kind"] == "torch module"
        (tolerance,) = (facts[key] for key in facts if key.startswith("leakyforge.tolerance."))
        assert float(tolerance) > 0
