"""Operations of each kernel, of the definition and of the algorithm."""

import numpy as np
import onnx
import pytest

from leakyforge import compile
from leakyforge.onnx_graph import model_flops
from leakyforge.runtime import read_manifest


@pytest.fixture
def kernels(build, parse, tmp_path):
    """The records of a graph that has one weight of the given shape, and the model's operations."""

    def kernels(text, weight, measure=True):
        model = parse(text)
        array = np.random.default_rng(0).standard_normal(weight).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
        path = build(model) if measure else compile(model, measure=False, output=tmp_path / "m.lfa")
        (variant,) = read_manifest(path).variants
        return variant.kernels, model_flops(model)

    return kernels


def conv(image, result, attributes="pads = [1,1,1,1]"):
    return layer("Conv", image, result, attributes)


def transposed(image, result, attributes):
    return layer("ConvTranspose", image, result, attributes)


def layer(operator, image, result, attributes):
    return (
        f"layer (float[{image}] x) => (float[{result}] y)"
        f" {{ c = {operator} <{attributes}> (x, w) y = LeakyRelu <alpha = 0.2> (c) }}"
    )


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        (conv("1,3,13,11", "1,5,13,11"), (5, 3, 3, 3)),
        (conv("2,3,9,9", "2,7,5,5", "pads = [1,1,1,1], strides = [2,2]"), (7, 3, 3, 3)),
        (conv("1,3,17", "1,5,17", "pads = [1,1]"), (5, 3, 3)),
        # Its lanes run along the input channels.
        (conv("1,64,6,6", "1,1,6,6"), (1, 64, 3, 3)),
        # Grouped: TVM's own loops.
        (conv("1,4,8,8", "1,4,8,8", "pads = [1,1,1,1], group = 4"), (4, 1, 3, 3)),
        # Its phases are wider than its input; its stride divides the kernel, and does not.
        (transposed("1,3,4,4", "1,5,8,8", "pads = [1,1,1,1], strides = [2,2]"), (3, 5, 4, 4)),
        (transposed("1,3,4,4", "1,5,9,9", "strides = [2,2]"), (3, 5, 3, 3)),
        ("product (float[5,33] x) => (float[5,19] y) { y = MatMul (x, w) }", (33, 19)),
    ],
    ids=[
        "conv",
        "strided",
        "one dimension",
        "few channels",
        "grouped",
        "transposed",
        "odd",
        "product",
    ],
)
def test_definition_counts_as_the_model_does(kernels, text, weight):
    records, flops = kernels(text, weight)
    assert flops > 0
    assert sum(record.flops for record in records) == flops
    direct = [record for record in records if record.algorithm in ("direct", "dot")]
    assert all(record.computed >= record.flops for record in direct)


def test_winograd_computes_fewer(kernels):
    records, flops = kernels(conv("1,64,32,32", "1,64,32,32"), (64, 64, 3, 3))
    (record,) = [record for record in records if record.flops > 0]
    assert record.algorithm.startswith("F(")
    assert record.output == "c"
    assert record.flops == flops == 2 * 32 * 32 * 64 * 64 * 9
    # F(2, 3) and F(4, 3) need 16 / 36 and 36 / 144 of the products, and whole tiles some more.
    assert flops / 4 <= record.computed < flops


def test_strassen_computes_seven_eighths(kernels):
    text = "product (float[64,512] x) => (float[64,512] y) { y = MatMul (x, w) }"
    # By the estimate, which a measurement may overrule.
    (record,), flops = kernels(text, (512, 512), measure=False)
    assert record.algorithm == "Strassen"
    assert record.flops == flops
    # The last of its column tiles may be cut.
    assert flops * 7 / 8 <= record.computed < flops


def test_others_have_none(kernels):
    records, _ = kernels(
        "pool (float[1,3,8,8] x) => (float[1,3,4,4] y)"
        " { a = Add (x, w) y = AveragePool <kernel_shape = [2,2], strides = [2,2]> (a) }",
        (1, 3, 8, 8),
    )
    assert records
    assert {(record.flops, record.computed) for record in records} == {(0, 0)}
