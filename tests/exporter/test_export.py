"""Export of zoo models and ONNX models: the file, every opset, and every refusal."""

import hashlib
import importlib.util
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, parser

from leakyforge.errors import ExportError, MissingDependencyError
from leakyforge.exporter import check, export
from leakyforge.models import build

SMALL = {"yolov3-tiny": {"size": 64}, "digits": {}}


def graph_model(*nodes, opset=18, inputs=("x",), dtype=TensorProto.FLOAT, **graph):
    values = [helper.make_tensor_value_info(name, dtype, [2, 3]) for name in inputs]
    outputs = [helper.make_tensor_value_info("y", dtype, None)]
    return helper.make_model(
        helper.make_graph(list(nodes), "small", values, outputs, **graph),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


def leaky(x="x", y="y", **attributes):
    return helper.make_node("LeakyRelu", [x], [y], "leaky", **attributes)


def run(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    return session.run(None, {value.name: np.random.default_rng(0).random(value.shape, np.float32)})


@pytest.fixture(scope="module", params=sorted(SMALL))
def reference(request, tmp_path_factory):
    path = export(
        request.param, tmp_path_factory.mktemp("reference") / "m.onnx", **SMALL[request.param]
    )
    return request.param, run(path)


@pytest.mark.parametrize("opset", range(13, 24))
def test_every_opset_computes_the_same(reference, opset, tmp_path):
    name, desired = reference
    path = export(name, tmp_path / "m.onnx", opset=opset, **SMALL[name])
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    for actual, expected in zip(run(path), desired, strict=True):
        # The same float32 operations; a kernel may only sum in another order.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", sorted(SMALL))
def test_file_carries_the_shape_of_every_tensor(name, tmp_path):
    model = onnx.load(export(name, tmp_path / "m.onnx", batch="N", **SMALL[name]))
    values = [*model.graph.value_info, *model.graph.output]
    assert {value.name for value in values} == {node.output[0] for node in model.graph.node}
    for value in values:
        batch, *others = value.type.tensor_type.shape.dim
        assert batch.dim_param == "N", value.name
        assert all(dim.dim_value > 0 for dim in others), value.name
    assert model.metadata_props


def test_default_is_opset_18_and_the_path_comes_back(tmp_path):
    path = export("digits", str(tmp_path / "m.onnx"))
    assert path == tmp_path / "m.onnx"
    assert onnx.load(path).opset_import[0].version == 18
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_onnx_model_keeps_its_opset_and_gains_shapes(tmp_path):
    model = graph_model(leaky(y="h"), leaky("h"), opset=15)
    for opset in (None, 15):
        written = onnx.load(export(model, tmp_path / "m.onnx", opset=opset))
        assert written.opset_import[0].version == 15
        for value in (*written.graph.value_info, *written.graph.output):
            assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [2, 3]
    assert not model.graph.value_info


def test_onnx_model_at_another_opset(tmp_path):
    for before, asked, after in ((15, 18, 18), (18, 15, 15), (9, None, 13), (9, 23, 23)):
        path = export(graph_model(leaky(), opset=before), tmp_path / "m.onnx", opset=asked)
        assert onnx.load(path).opset_import[0].version == after


def test_simplify(tmp_path):
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2,3] x) => (float[2,3] y) <float a = {0.1}> { s = Mul(a, x) y = Max(s, x) }"""
    )
    for simplify, operators in ((False, ["Mul", "Max"]), (True, ["LeakyRelu"])):
        written = onnx.load(export(model, tmp_path / "m.onnx", simplify=simplify))
        assert [node.op_type for node in written.graph.node] == operators


def test_dtype(tmp_path):
    kinds = {"float16": TensorProto.FLOAT16, "int8": TensorProto.FLOAT}
    for dtype, kind in kinds.items():
        written = onnx.load(export("mlp", tmp_path / "m.onnx", dtype=dtype, hidden=8))
        assert written.graph.input[0].type.tensor_type.elem_type == kind
        operators = {node.op_type for node in written.graph.node}
        assert ("QuantizeLinear" in operators) == (dtype == "int8")
        facts = {entry.key: entry.value for entry in written.metadata_props}
        assert facts["leakyforge.dtype"] == dtype


def test_unknown_dtype(tmp_path):
    with pytest.raises(ExportError, match="dtype='int4' is unknown; use float32, float16, int8"):
        export("mlp", tmp_path / "m.onnx", dtype="int4")


@pytest.mark.parametrize("opset", [12, 24, 0, "18", 18.0, True])
def test_opset_out_of_range(opset, tmp_path):
    with pytest.raises(ExportError, match=r"^opset="):
        export("digits", tmp_path / "m.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graph_model(leaky(), opset=5), "is at opset 5, and opsets 6 to 28 are read"),
        (
            graph_model(helper.make_node("Foo", ["x"], ["y"], domain="com.acme")),
            "node 'y' of model 'small' is com.acme.Foo, and only operators of ai.onnx",
        ),
        (
            graph_model(helper.make_node("Gelu", ["x"], ["y"], "g")),
            "node 'g' of model 'small' is Gelu, which opset 18 of ai.onnx lacks",
        ),
        (graph_model(leaky(beta=1.0)), "model 'small' is not valid ONNX: Unrecognized attribute"),
        (graph_model(leaky("z")), "model 'small' is not valid ONNX"),
        (graph_model(leaky(), dtype=TensorProto.INT64), "unsupported type: tensor.int64"),
        (graph_model(helper.make_node("MatMul", ["x", "x"], ["y"])), "Incompatible dimensions"),
        (onnx.ModelProto(), "imports 0 versions of ai.onnx"),
    ],
)
def test_invalid_onnx_model(model, message, tmp_path):
    with pytest.raises(ExportError, match=message) as caught:
        export(model, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_custom_operator_in_a_subgraph(tmp_path):
    y = helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 3])
    branch = helper.make_graph(
        [helper.make_node("Foo", ["x"], ["z"], "foo", domain="com.acme")], "branch", [], [y]
    )
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(ExportError, match=r"node 'foo'.*com.acme.Foo"):
        export(graph_model(node, initializer=[condition]), tmp_path / "m.onnx")


def test_weights_in_another_file(tmp_path):
    weight = onnx.numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    model = graph_model(helper.make_node("MatMul", ["x", "w"], ["y"]), initializer=[weight])
    path = tmp_path / "outside.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ExportError, match=r"weight 'w' .* is in another file.*onnx\.load"):
        export(onnx.load(path, load_external_data=False), tmp_path / "m.onnx")
    export(onnx.load(path), tmp_path / "m.onnx")


def test_model_over_the_limit_of_protobuf(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "MAX_BYTES", 1000)
    with pytest.raises(ExportError, match="at most 2 GiB"):
        export("digits", tmp_path / "m.onnx")


@pytest.mark.parametrize("model", [None, 3, b"digits", np.zeros(3), object()])
def test_unsupported_type(model, tmp_path):
    with pytest.raises(ExportError, match=f"cannot export a .*{type(model).__name__}; give"):
        export(model, tmp_path / "m.onnx")


def test_options_that_do_not_apply(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(ExportError, match=r"zoo model takes no option dynamo, example_inputs"):
        export("digits", path, example_inputs=np.zeros(3), dynamo=False)
    with pytest.raises(ExportError, match=r"onnx.ModelProto takes no option batch, size"):
        export(build("digits"), path, batch=2, size=3)
    with pytest.raises(ExportError, match=r"digits has no option size"):
        export("digits", path, size=3)
    with pytest.raises(ExportError, match=r"no model is called 'alexnet'"):
        export("alexnet", path)


def test_torch_not_installed(tmp_path, monkeypatch):
    module = type("Module", (), {"__module__": "torch.nn.modules.module"})()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'leakyforge\[torch\]'"):
        export(module, tmp_path / "m.onnx", example_inputs=np.zeros(3))


def test_path_that_cannot_be_written(tmp_path):
    with pytest.raises(ExportError, match="is a directory"):
        export("digits", tmp_path)
    with pytest.raises(ExportError, match="missing is not a folder; create it"):
        export("digits", tmp_path / "missing" / "m.onnx")
    with pytest.raises(ExportError, match="not a regular file"):
        export("digits", os.devnull)


def test_failure_keeps_the_existing_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")
    with pytest.raises(ExportError):
        export(graph_model(leaky("z")), path)

    def full_disk(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(ExportError, match=r"cannot write .*m\.onnx: No space left"):
            export("digits", path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    export("digits", path)
    assert onnx.load(path).graph.name == "digits"
    assert list(tmp_path.iterdir()) == [path]


def test_import_loads_neither_torch_nor_the_compiler():
    code = "import sys, leakyforge.exporter; print(sorted({'torch', 'tvm'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_onnx_file(tmp_path):
    export("digits", tmp_path / "a.onnx")
    path = export(tmp_path / "a.onnx", tmp_path / "b.onnx")
    a, b = onnx.load(tmp_path / "a.onnx"), onnx.load(path)
    assert a.graph == b.graph
    facts = {entry.key: entry.value for entry in b.metadata_props}
    digest = hashlib.sha256((tmp_path / "a.onnx").read_bytes()).hexdigest()
    assert facts == {
        "leakyforge.input_range.image": "0,1",
        "leakyforge.version": facts["leakyforge.version"],
        "leakyforge.source.kind": "onnx",
        "leakyforge.source.name": "a.onnx",
        "leakyforge.source.sha256": digest,
        "leakyforge.verified": "onnx: nothing to compare with",
    }
    # Over itself, by a path in a str.
    export(str(path), path)
    assert onnx.load(path).graph == a.graph


def test_onnx_file_with_external_data(tmp_path):
    weight = onnx.numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    model = graph_model(helper.make_node("MatMul", ["x", "w"], ["y"]), initializer=[weight])
    source = tmp_path / "outside.onnx"
    onnx.save_model(model, source, save_as_external_data=True, location="w.bin", size_threshold=0)
    path = export(source, tmp_path / "m.onnx")
    (found,) = onnx.load(path, load_external_data=False).graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(found), np.ones((3, 3)))
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ExportError, match=r"external data of .*outside\.onnx cannot be read"):
        export(source, tmp_path / "m.onnx")


def test_truncated_onnx_file(tmp_path):
    data = export("digits", tmp_path / "a.onnx").read_bytes()
    (tmp_path / "a.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ExportError, match=r"a\.onnx is not an ONNX file or is truncated"):
        export(tmp_path / "a.onnx", tmp_path / "b.onnx")


def test_metadata_of_a_zoo_model(tmp_path):
    model = onnx.load(export("mlp", tmp_path / "m.onnx", hidden=8))
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["leakyforge.source.kind"] == "zoo"
    assert facts["leakyforge.source.name"] == "mlp"
    assert facts["leakyforge.verified"] == "zoo: nothing to compare with"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.onnx", "does not exist"),
        ("absent/folder", "does not exist"),
        ("notes.txt", "cannot tell by its name what .*notes.txt is; give .onnx, .pt"),
        ("net.cfg", r"holds no weights; give their file with weights=FILE \(--weights FILE\)"),
    ],
)
def test_paths_that_are_no_model(name, message, tmp_path):
    for existing in ("notes.txt", "net.cfg"):
        (tmp_path / existing).write_text("[net]\n")
    for given in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises(ExportError, match=message):
            export(given, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_zoo_model_wins_over_a_file_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlp").mkdir()
    export("mlp", "m.onnx", hidden=8)


@pytest.mark.skipif(
    importlib.util.find_spec("leakyforge.models.darknet") is None,
    reason="leakyforge.models.darknet is not there yet",
)
def test_darknet(tmp_path):
    (tmp_path / "net.cfg").write_text(
        "[net]\nchannels=1\nheight=4\nwidth=4\n"
        "[convolutional]\nfilters=2\nsize=3\nstride=1\npad=1\nactivation=leaky\n"
    )
    header, weights = np.array([0, 2, 0, 0, 0], np.int32), np.ones(2 + 2 * 9, np.float32)
    (tmp_path / "net.weights").write_bytes(header.tobytes() + weights.tobytes())
    path = export(
        tmp_path / "net.cfg", tmp_path / "m.onnx", weights=tmp_path / "net.weights", batch=2
    )
    model = onnx.load(path)
    assert [node.op_type for node in model.graph.node] == ["Conv", "LeakyRelu"]
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["leakyforge.source.kind"] == "darknet"
    digest = hashlib.sha256((tmp_path / "net.weights").read_bytes()).hexdigest()
    assert facts["leakyforge.weights.sha256"] == digest
