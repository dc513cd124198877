"""Converters of ours where ONNX's own cases do not look: limits, defaults, other scales."""

import numpy as np
import onnx
import pytest

from leakyforge.errors import CompileError, ModelError
from leakyforge.kernels import backend
from leakyforge.kernels.compile import compile as compile_model
from leakyforge.kernels.compile import compile_in_memory
from leakyforge.opsets import NEWEST
from leakyforge.runtime.reference import onnxruntime_session


def parse(text, opset=21):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')


def ours(proto, *arrays):
    (result,) = backend.prepare(proto).run(list(arrays))
    return result


def reference(proto, *arrays):
    names = [value.name for value in proto.graph.input]
    session = onnxruntime_session(proto)
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_powers_of_integers(dtype):
    name = np.dtype(dtype).name
    proto = parse(f"f ({name}[b,1] x, {name}[e] y) => ({name}[b,e] z) {{ z = Pow (x, y) }}")
    bases = np.array([-3, -2, -1, 0, 1, 2, 3, 7], dtype)
    exponents = np.array([0, 1, 2, 3, 5, 11, 31, 62, 63, 64, 127], dtype)
    actual = ours(proto, bases[:, None], exponents)
    bits = 8 * dtype().itemsize
    for row, base in zip(actual, bases.tolist(), strict=True):
        for value, exponent in zip(row.tolist(), exponents.tolist(), strict=True):
            assert (base**exponent - value) % 2**bits == 0
    beyond = ours(proto, bases[1:6, None], np.array([128, 1001], dtype))
    np.testing.assert_array_equal(beyond, [[0, 0], [1, -1], [0, 0], [1, 1], [0, 0]])
    with np.errstate(divide="ignore"):
        negative = ours(proto, bases[:, None], np.array([-1, -2], dtype))
    # 1 / x and 1 / x**2, of which all but those of 1 and -1 are rounded to 0.
    np.testing.assert_array_equal(negative[np.abs(bases) == 1], [[-1, 1], [1, 1]])
    assert not negative[np.abs(bases) > 1].any()


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int8, np.int64])
def test_shifts_beyond_the_bits(direction, dtype):
    info = np.iinfo(dtype)
    name = np.dtype(dtype).name
    proto = parse(
        f"f ({name}[n] x, {name}[n] y) => ({name}[n] z) "
        f'{{ z = BitShift <direction = "{direction}"> (x, y) }}',
        NEWEST,
    )
    numbers = [value for value in (info.min, -2, 1, 5, info.max) if value >= info.min]
    amounts = [value for value in (-1, 0, 1, info.bits - 1, info.bits) if value >= info.min]
    x, y = (
        each.ravel() for each in np.meshgrid(np.array(numbers, dtype), np.array(amounts, dtype))
    )
    desired = []
    for number, amount in zip(x.tolist(), y.tolist(), strict=True):
        # By a negative amount, ONNX has all bits go.
        places = amount if 0 <= amount < info.bits else info.bits
        shifted = number >> places if direction == "RIGHT" else number << places
        desired.append((shifted - int(info.min)) % 2**info.bits + int(info.min))
    np.testing.assert_array_equal(ours(proto, x, y), np.array(desired, dtype))


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "output_half_pixel"])
def test_regions_at_another_scale(mode, coordinates):
    proto = parse(
        "f (float[2,3,12,10] x, float[4,4] r, int64[4] b) => (float[4,3,2,3] y) { y = RoiAlign "
        f'<mode = "{mode}", coordinate_transformation_mode = "{coordinates}", output_height = 2, '
        "output_width = 3, sampling_ratio = 2, spatial_scale = 0.25> (x, r, b) }"
    )
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 3, 12, 10)).astype(np.float32)
    corners = generator.uniform(0, 16, (4, 2))
    regions = np.concatenate([corners, corners + generator.uniform(2, 24, (4, 2))], 1)
    arrays = x, regions.astype(np.float32), np.array([0, 1, 1, 0])
    # Two points a bin and axis of values of up to 4, their weights from coordinates of up to 12.
    desired = reference(proto, *arrays)
    np.testing.assert_allclose(ours(proto, *arrays), desired, atol=4 * 4 * 12 * 2**-22)


def test_maxima_need_a_number_of_samples():
    proto = parse(
        "f (float[1,1,4,4] x, float[1,4] r, int64[1] b) => (float[1,1,1,1] y) "
        '{ y = RoiAlign <mode = "max"> (x, r, b) }'
    )
    with pytest.raises(ModelError, match="RoiAlign: sampling_ratio 0"):
        compile_in_memory(proto)


BOXES = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0.5, 1, 1], [5, 5, 6, 6]]], np.float32)
SCORES = np.array([[[0.9, -0.5, 0.2, 0.1]]], np.float32)


@pytest.mark.parametrize(
    ("weights", "arguments"),
    [
        ("", ""),
        ("<int64 k = {0}>", ", k"),
        ("<int64 k = {4}>", ", k"),
        ("<int64 k = {2}>", ", k"),
        ("<int64 k = {1000}, float t = {0.6}>", ", k, t"),
        # Exactly the overlap of the second and third box with the first.
        ("<int64 k = {4}, float t = {0.5}>", ", k, t"),
        ("<int64 k = {4}, float t = {0.6}, float s = {0.15}>", ", k, t, s"),
    ],
)
def test_suppression(weights, arguments):
    proto = parse(
        f"f (float[1,4,4] b, float[1,1,4] p) => (int64[n,3] y) {weights} "
        f"{{ y = NonMaxSuppression (b, p{arguments}) }}"
    )
    desired = reference(proto, BOXES, SCORES)
    np.testing.assert_array_equal(ours(proto, BOXES, SCORES), desired)


def test_boxes_behind_other_operators_and_before_them():
    proto = parse(
        "f (float[4,5] x) => (float[n] y) "
        "{ r = LeakyRelu <alpha = 0.1> (x) z = NonZero (r) t = Transpose <perm = [1, 0]> (z) "
        "  y = GatherND (r, t) }"
    )
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    x[1:3] = 0
    np.testing.assert_array_equal(ours(proto, x), reference(proto, x))


def test_devices_have_no_results_of_unknown_size(tmp_path):
    proto = parse("f (float[2,3] x) => (int64[2,n] y) { y = NonZero (x) }")
    with pytest.raises(CompileError, match=r"nonzero cannot be run .*take a CPU target"):
        compile_model(proto, "opencl", output=tmp_path / "m.lfa")
    assert not list(tmp_path.iterdir())


def test_what_only_the_compiler_computes_is_refused():
    proto = parse("f (float[6] x) => (float[n] y) { y = Unique (x) }")
    with pytest.raises(CompileError, match=r"^the model calls relax\.run\.unique, .*--fallback"):
        compile_in_memory(proto)
