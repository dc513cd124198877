"""What a convolution reads: joined and repeated tensors without a copy of their own."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from leakyforge.exporter.simplify import simplify
from leakyforge.kernels import compile, parse_target
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.pipeline import choose_layout, legalize_and_fuse
from leakyforge.runtime import check

HOST = parse_target("cpu")
RESIZE = {
    "mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor",
}  # fmt: skip


def model(widths, kernel=3, repeats=(1, 2), batch=1, **resize):
    """Tensors of several widths, the first one upsampled, joined, convolved, LeakyRelu."""
    generator = np.random.default_rng(0)
    nodes, weights, inputs, parts = [], [], [], []
    rows, columns = repeats
    for index, width in enumerate(widths):
        small = index == 0 and len(widths) > 1
        size = (6 // rows, 8 // columns) if small else (6, 8)
        shape = [batch, width, *size]
        inputs.append(helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, shape))
        # Behind a convolution, tensors have their channels last.
        square = generator.standard_normal((width, width, 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(square / np.float32(np.sqrt(width)), f"w{index}"))
        nodes.append(helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"c{index}"]))
        parts.append(f"c{index}")
        if small:
            scales = np.array([1, 1, rows, columns], np.float32)
            weights.append(numpy_helper.from_array(scales, "scales"))
            nodes.append(
                helper.make_node("Resize", ["c0", "", "scales"], ["up"], **{**RESIZE, **resize})
            )
            parts[-1] = "up"
    weight = generator.standard_normal((16, sum(widths), kernel, kernel)).astype(np.float32)
    weights.append(numpy_helper.from_array(weight / np.float32(np.sqrt(weight[0].size)), "w"))
    nodes += [
        helper.make_node("Concat", parts, ["j"], axis=1),
        helper.make_node("Conv", ["j", "w"], ["c"], pads=[kernel // 2] * 4),
        helper.make_node("LeakyRelu", ["c"], ["y"], alpha=0.2),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 16, 6, 8])
    graph = helper.make_graph(nodes, "joined", inputs, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def kernels(proto):
    """Names of the functions that a model becomes."""
    module = legalize_and_fuse(choose_layout(import_onnx(simplify(proto))), HOST)
    return sorted(str(name.name_hint) for name in module.get_global_vars())


@pytest.mark.parametrize(
    ("widths", "options"),
    [
        ((16, 32), {}),
        ((16, 16, 48), {"repeats": (2, 2)}),
        ((16, 32), {"kernel": 1}),
        ((3, 5), {}),
        ((7, 9, 1), {"kernel": 1, "repeats": (3, 1)}),
        ((16, 32), {"batch": 2}),
        ((16, 32), {"batch": "N"}),
        ((16, 32), {"nearest_mode": "ceil", "repeats": (2, 2)}),
        ((16, 32), {"mode": "linear", "repeats": (2, 2)}),
    ],
)
def test_equals_onnx_runtime(tmp_path, widths, options):
    import onnx

    path = tmp_path / "model.onnx"
    onnx.save(model(widths, **options), path)
    report = check(compile(path, "cpu"))
    assert report, report


def test_joined_and_repeated_tensors_have_no_kernel():
    found = kernels(model((16, 32), repeats=(2, 2)))
    assert not any("concat" in name or "resize" in name for name in found), found


def test_other_resizes_keep_theirs():
    found = kernels(model((16, 32), repeats=(2, 2), mode="linear"))
    assert any("resize" in name for name in found), found
    assert not any("concat" in name for name in found), found


def image_model(channels, batch=1, pads=1):
    """One convolution, whose input is the model's, with its channels first."""
    generator = np.random.default_rng(1)
    weight = generator.standard_normal((8, channels, 3, 3)).astype(np.float32)
    size = 4 + 2 * pads
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"], pads=[pads] * 4),
         helper.make_node("LeakyRelu", ["c"], ["y"], alpha=0.2)],
        "image",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8, size, size])],
        [numpy_helper.from_array(weight / np.float32(3 * np.sqrt(channels)), "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("channels", "batch", "pads"), [(3, 1, 1), (3, 2, 0), (4, "N", 1), (1, 1, 0)]
)
def test_planes_of_an_image_are_read_by_the_padding(tmp_path, channels, batch, pads):
    import onnx

    proto = image_model(channels, batch, pads)
    # One transposition is left: the output's.
    assert sum("transpose" in name for name in kernels(proto)) == 1
    onnx.save(proto, tmp_path / "image.onnx")
    report = check(compile(tmp_path / "image.onnx", "cpu"))
    assert report, report


def test_many_planes_are_transposed_first():
    assert sum("transpose" in name for name in kernels(image_model(5))) == 2
