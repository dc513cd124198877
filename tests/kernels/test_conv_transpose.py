"""Convolutions of one dimension and transposed ones against ONNX Runtime."""

import functools

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from leakyforge.kernels import Decision, compile, parse_target
from leakyforge.kernels.algorithms import prefers_products
from leakyforge.kernels.conv_transpose import (
    TransposedShape,
    add_products,
    phase_weights,
    product_weights,
)
from leakyforge.kernels.schedules import match_elementwise
from leakyforge.runtime import Session
from leakyforge.runtime.parity import compare
from leakyforge.runtime.reference import load_reference
from leakyforge.tolerance import tolerance

# Operator, input after its batch, output channels, kernel, other attributes.
CASES = {
    "conv1d": ("Conv", (16, 50), 24, (7,), {"pads": (3, 3)}),
    "conv1d_dilated": ("Conv", (8, 41), 16, (3,), {"pads": (5, 5), "dilations": (5,)}),
    "conv1d_strided": ("Conv", (5, 37), 7, (4,), {"pads": (1, 0), "strides": (3,)}),
    "conv1d_one_channel": ("Conv", (32, 64), 1, (7,), {"pads": (3, 3)}),
    "conv1d_grouped": ("Conv", (8, 20), 8, (3,), {"pads": (1, 1), "group": 2}),
    "hifi_gan": ("ConvTranspose", (16, 10), 8, (16,), {"pads": (4, 4), "strides": (8,)}),
    "hifi_gan_last": ("ConvTranspose", (8, 33), 4, (4,), {"pads": (1, 1), "strides": (2,)}),
    "odd_kernel_1d": ("ConvTranspose", (6, 9), 5, (7,), {"pads": (2, 1), "strides": (3,)}),
    "dcgan": ("ConvTranspose", (32, 4, 4), 16, (4, 4), {"pads": (1,) * 4, "strides": (2, 2)}),
    "dcgan_first": ("ConvTranspose", (20, 1, 1), 32, (4, 4), {}),
    "dcgan_last": ("ConvTranspose", (16, 9, 7), 3, (4, 4), {"pads": (1,) * 4, "strides": (2, 2)}),
    "wide_phases": ("ConvTranspose", (64, 8, 8), 32, (6, 6), {"pads": (2,) * 4, "strides": (2, 2)}),
    "unequal": ("ConvTranspose", (8, 5, 6), 8, (3, 3), {"pads": (1, 0, 1, 2), "strides": (2, 3)}),
    "small_kernel": ("ConvTranspose", (8, 5, 6), 8, (2, 1), {"strides": (3, 2)}),
    "output_padding": (
        "ConvTranspose", (8, 5, 6), 8, (3, 3),
        {"pads": (1,) * 4, "strides": (2, 2), "output_padding": (1, 1)},
    ),
    "large_pads": ("ConvTranspose", (8, 9, 9), 8, (5, 5), {"pads": (4,) * 4, "strides": (2, 2)}),
    "dilated": ("ConvTranspose", (8, 5, 6), 8, (3, 3), {"strides": (2, 2), "dilations": (2, 2)}),
    "grouped": ("ConvTranspose", (8, 5, 6), 4, (4, 4), {"strides": (2, 2), "group": 2}),
}  # fmt: skip


def model(name, batch):
    operator, size, channels, kernel, attributes = CASES[name]
    group = attributes.get("group", 1)
    shape = (channels, size[0] // group) if operator == "Conv" else (size[0], channels // group)
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((*shape, *kernel)) / np.sqrt(size[0])
    bias = generator.standard_normal(channels)
    nodes = [
        helper.make_node(operator, ["x", "w", "b"], ["c"], kernel_shape=kernel, **attributes),
        helper.make_node("LeakyRelu", ["c"], ["y"], alpha=0.1),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, *size))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (None,) * (len(size) + 1))],
        [
            numpy_helper.from_array(weight.astype(np.float32), "w"),
            numpy_helper.from_array(bias.astype(np.float32), "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("batch", [1, 2, "N"])
@pytest.mark.parametrize("name", list(CASES))
def test_equal_to_onnxruntime(tmp_path, name, batch):
    proto = model(name, batch)
    session = Session(compile(proto, output=tmp_path / "m.lfa"))
    (spec,) = session.get_outputs()
    shape = (3 if batch == "N" else batch, *CASES[name][1])
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    (actual,) = session.run(None, {"x": values})
    desired = load_reference(proto).run({"x": values})["y"]
    limits = tolerance(spec.dtype, spec.rounding_steps)
    row = compare("y", actual, desired, limits, "onnxruntime")
    assert row.passed, row


@pytest.mark.parametrize("name", ["conv1d", "conv1d_dilated", "hifi_gan", "dcgan", "unequal"])
def test_scheduled_by_our_rules(tmp_path, name):
    decisions: list[Decision] = []
    compile(model(name, 1), output=tmp_path / "m.lfa", on_decision=decisions.append)
    rules = {decision.function: decision.rule for decision in decisions}
    assert {"conv2d", "winograd1d"} & set(rules.values())
    assert None not in rules.values()


def test_phases_of_a_kernel_that_the_stride_does_not_divide():
    shape = TransposedShape(
        height=1, width=4, in_channels=1, out_channels=1, kernel=(1, 3), strides=(1, 2),
        padding=(0, 0), out_height=1, out_width=9, itemsize=4,
    )  # fmt: skip
    weight = np.array([1, 2, 3], np.float32).reshape(1, 1, 3, 1)
    # Phase 0 takes r = 0 and 2, phase 1 takes r = 1; later inputs first.
    assert phase_weights(weight, shape)[:, 0, :, 0].tolist() == [[3, 1], [0, 2]]
    assert shape.taps == (1, 2)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (4, 4), (5, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 3)])
def test_products_add_up_to_the_definition(run_kernel, kernel, strides):
    height, width, channels = 4, 5, 8
    (top, left), (rows, columns) = (kernel[0] // 2, kernel[1] // 3), kernel
    full = ((height - 1) * strides[0] + rows, (width - 1) * strides[1] + columns)
    # One row less than the padding leaves, and one column more, as output_padding adds.
    out_height, out_width = full[0] - 2 * top - (full[0] - 2 * top > 1), full[1] - left
    shape = TransposedShape(
        height, width, 16, channels, kernel, strides, (top, left), out_height, out_width, 4
    )
    generator = np.random.default_rng(0)
    data = generator.standard_normal((2, height, width, 16)).astype(np.float32)
    weight = generator.standard_normal((16, rows, columns, channels)).astype(np.float32)
    products = data @ product_weights(weight)[:, 0, 0].T
    actual = run_kernel(
        functools.partial(add_products, shape=shape, rank=4),
        lambda schedule: match_elementwise(schedule, parse_target("cpu")),
        [products],
    )
    scattered = np.zeros((2, *full, channels))
    for y in range(height):
        for x in range(width):
            block = np.einsum("nk,krsc->nrsc", data[:, y, x].astype(np.float64), weight)
            first, second = y * strides[0], x * strides[1]
            scattered[:, first : first + rows, second : second + columns] += block
    desired = scattered[:, top : top + out_height, left : left + out_width]
    limits = tolerance("float32", 16 * rows * columns)
    np.testing.assert_allclose(
        actual, desired, rtol=0, atol=limits.range_share * np.abs(desired).max()
    )


@pytest.mark.parametrize(
    ("size", "channels", "products"), [(1, (100, 512), True), (4, (512, 256), True),
                                       (64, (64, 32), False)],
)  # fmt: skip
def test_small_inputs_are_multiplied_pixel_by_pixel(size, channels, products):
    """The phases of a small input are mostly border, or all of it."""
    out = 2 * size if size > 1 else 4
    stride, pad = (2, 1) if size > 1 else (1, 0)
    shape = TransposedShape(
        size, size, *channels, (4, 4), (stride, stride), (pad, pad), out, out, 4
    )
    assert prefers_products(shape, parse_target("cpu:znver4"), strict=False) is products
