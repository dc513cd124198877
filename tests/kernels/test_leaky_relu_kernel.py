"""LeakyRelu and its gradient on numpy arrays: to the last bit, whatever the shape and memory."""

import functools
import itertools
import warnings

import ml_dtypes
import numpy as np
import pytest
import tvm

from leakyforge.errors import CompileError, InputError, TargetError
from leakyforge.kernels import LeakyReluKernel, parse_target
from leakyforge.kernels.flat import PARALLEL_BYTES, flat_function
from leakyforge.kernels.leaky_relu import leaky_relu_element, leaky_relu_gradient_element
from leakyforge.runtime import cpu

ALPHAS = [-0.5, -0.0, 0.0, 0.01, 0.05, 0.2, 1.0, 1.5]
DTYPES = {
    "float16": (np.dtype(np.float16), np.uint16),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), np.uint16),
    "float32": (np.dtype(np.float32), np.uint32),
    "float64": (np.dtype(np.float64), np.uint64),
}
# For tests that reach the streaming stores in a moment.
STREAMING_BYTES = 1 << 20


def kernel(alpha, dtype="float32", threads=None):
    # As numbers, 0.0 and -0.0 are the same key.
    return compiled(str(alpha), dtype, threads)


@functools.cache
def compiled(alpha, dtype, threads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "last_level_cache", lambda: STREAMING_BYTES)
        return LeakyReluKernel(float(alpha), dtype, threads=threads)


def wide(x, alpha):
    """The operand and alpha in the dtype of the computation."""
    x = x if x.dtype == np.float64 else x.astype(np.float32)
    return x, x.dtype.type(alpha)


def numpy_forward(x, alpha):
    operand, slope = wide(x, alpha)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.where(operand >= 0, operand, operand * slope).astype(x.dtype)


def numpy_gradient(x, dy, alpha):
    operand, slope = wide(dy, alpha)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.where(x > 0, operand, operand * slope).astype(x.dtype)


def assert_same_bits(actual, desired):
    """Equal bit patterns; NaN is NaN whatever its payload."""
    assert actual.shape == desired.shape
    assert actual.dtype == desired.dtype
    unsigned = np.dtype(f"u{actual.dtype.itemsize}")
    bits = [np.ascontiguousarray(array).view(unsigned) for array in (actual, desired)]
    with np.errstate(invalid="ignore"):
        both_nan = np.isnan(actual.astype(np.float64)) & np.isnan(desired.astype(np.float64))
    wrong = (bits[0] != bits[1]) & ~both_nan
    assert not wrong.any(), f"{actual[wrong][:5]} instead of {desired[wrong][:5]}"


def corners(dtype):
    info = ml_dtypes.finfo(dtype)
    values = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan]
    values += [info.max, info.min, info.tiny, -info.tiny]
    values += [info.smallest_subnormal, -info.smallest_subnormal, -3 * info.smallest_subnormal]
    return np.array(values, dtype)


def values(size, dtype, seed=0):
    """Normally distributed values, half of them below zero."""
    return np.random.default_rng(seed).standard_normal(size).astype(dtype)


def pairs(dtype):
    """Every corner with every corner, values of every bit pattern, and normal ones."""
    special = np.array(list(itertools.product(corners(dtype), repeat=2)), dtype)
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 256, 8192 * dtype.itemsize, dtype=np.uint8).view(dtype)
    normal = values(8192, dtype)
    both = np.concatenate([special, bits.reshape(-1, 2), normal.reshape(-1, 2)])
    return both[:, 0].copy(), both[:, 1].copy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_equal_to_numpy_to_the_last_bit(dtype, alpha):
    x, dy = pairs(DTYPES[dtype][0])
    assert_same_bits(kernel(alpha, dtype).forward(x), numpy_forward(x, alpha))
    assert_same_bits(kernel(alpha, dtype).gradient(x, dy), numpy_gradient(x, dy, alpha))


def test_every_bfloat16_and_every_float16():
    every = np.arange(1 << 16, dtype=np.uint16)
    for dtype in ("float16", "bfloat16"):
        x = every.view(DTYPES[dtype][0])
        assert_same_bits(kernel(0.05, dtype).forward(x), numpy_forward(x, 0.05))


def sizes(dtype):
    """Around vectors and blocks, primes, and across the thresholds."""
    itemsize = DTYPES[dtype][0].itemsize
    lanes = parse_target("cpu").vector_bits // 8 // itemsize
    around = [n + d for n in (lanes, 4 * lanes, 8 * lanes) for d in (-1, 0, 1)]
    parallel, streaming = (limit // 2 // itemsize for limit in (PARALLEL_BYTES, STREAMING_BYTES))
    return [0, 1, 2, 3, 7, 997, *around, parallel - 1, parallel + 1, streaming + 13, 1_000_003]


@pytest.mark.parametrize("threads", [1, None])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size_at_every_address(dtype, threads):
    numpy_type = DTYPES[dtype][0]
    for size in sizes(dtype):
        for offset in (0, 1, 5):
            memory = [values(size + offset, numpy_type, seed)[offset:] for seed in (0, 1)]
            out = np.full(size + 2 * offset, 7, numpy_type)
            place = out[offset : offset + size]
            run = kernel(0.2, dtype, threads)
            assert run.forward(memory[0], place) is place
            assert_same_bits(place, numpy_forward(memory[0], 0.2))
            run.gradient(*memory, place)
            assert_same_bits(place, numpy_gradient(*memory, 0.2))
            # Nothing beside it was written.
            assert np.all(out[:offset] == 7)
            assert np.all(out[offset + size :] == 7)


@pytest.mark.parametrize("shape", [(), (7,), (7, 13, 3), (2, 0, 3), (1, 3, 52, 52)])
def test_every_shape(shape):
    x, dy = (np.asarray(values(shape, np.float32, seed)) for seed in (0, 1))
    assert_same_bits(kernel(0.2).forward(x), numpy_forward(x, 0.2))
    assert_same_bits(kernel(0.2).gradient(x, dy), numpy_gradient(x, dy, 0.2))


class TestMemory:
    x = values((60, 50), np.float32)
    dy = values((60, 50), np.float32, 1)

    @pytest.mark.parametrize(
        "view",
        [
            lambda a: a.T,
            lambda a: a[::-1],
            lambda a: a[:, ::3],
            lambda a: np.broadcast_to(a[0], (60, 50)),
            np.asfortranarray,
        ],
        ids=["transposed", "reversed", "strided", "broadcast", "fortran"],
    )
    def test_not_contiguous(self, view):
        x, dy = view(self.x), view(self.dy)
        out = np.empty(x.shape, np.float32)
        assert_same_bits(kernel(0.2).forward(x), numpy_forward(x, 0.2))
        assert_same_bits(kernel(0.2).gradient(x, dy, out), numpy_gradient(x, dy, 0.2))

    def test_not_contiguous_output(self):
        out = np.zeros((60, 100), np.float32)
        assert kernel(0.2).forward(self.x, out[:, ::2]).base is out
        assert_same_bits(out[:, ::2], numpy_forward(self.x, 0.2))
        assert not out[:, 1::2].any()

    def test_not_aligned_to_its_elements(self):
        raw = np.zeros(self.x.nbytes + 1, np.uint8)
        odd = raw[1:].view(np.float32).reshape(self.x.shape)
        odd[...] = self.x
        assert not odd.flags.aligned
        assert_same_bits(kernel(0.2).forward(odd), numpy_forward(self.x, 0.2))
        kernel(0.2).gradient(self.x, self.dy, odd)
        assert_same_bits(odd, numpy_gradient(self.x, self.dy, 0.2))

    def test_read_only_input(self):
        x = self.x.copy()
        x.flags.writeable = False
        assert_same_bits(kernel(0.2).forward(x), numpy_forward(x, 0.2))

    @pytest.mark.parametrize("size", [1001, STREAMING_BYTES])
    def test_in_place(self, size):
        x, dy = values(size, np.float32), values(size, np.float32, 1)
        for target in range(2):
            arrays = [x.copy(), dy.copy()]
            kernel(0.2).gradient(*arrays, arrays[target])
            assert_same_bits(arrays[target], numpy_gradient(x, dy, 0.2))
        again = x.copy()
        assert kernel(0.2).forward(again, again) is again
        assert_same_bits(again, numpy_forward(x, 0.2))

    @pytest.mark.parametrize("shift", [-17, -1, 1, 17])
    def test_output_overlaps_input(self, shift):
        memory = values(2000, np.float32)
        x = memory[100:1100]
        out = memory[100 + shift : 1100 + shift]
        desired = numpy_forward(x, -0.5)
        assert_same_bits(kernel(-0.5).forward(x, out), desired)


@pytest.mark.parametrize("alpha", [-0.5, 0.01, 1.5])
def test_gradient_is_the_slope_of_the_forward_function(alpha):
    """A central difference of a straight line has the rounding errors of its points only."""
    x = values(1000, np.float64)
    step = 1e-6
    x = x[np.abs(x) > step]
    run = kernel(alpha, "float64")
    slope = (run.forward(x + step) - run.forward(x - step)) / (2 * step)
    roundoff = np.finfo(np.float64).eps / 2
    # Of x + step and x - step, their products with alpha, and the difference.
    bound = 5 * roundoff * np.abs(x).max() * max(1.0, abs(alpha)) / (2 * step)
    actual = run.gradient(x, np.ones_like(x))
    np.testing.assert_allclose(actual, slope, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_equal_to_torch(dtype, alpha):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, dy = pairs(DTYPES[dtype][0])
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    y = torch.nn.functional.leaky_relu(leaf, alpha)
    y.backward(torch.from_numpy(dy))
    run = kernel(alpha, dtype)
    assert_same_bits(run.gradient(x, dy), leaf.grad.numpy())
    forward, theirs = run.forward(x), y.detach().numpy()
    # At 0 torch takes the product with alpha, ONNX the operand: the sign may differ.
    assert_same_bits(np.where(x == 0, 0, forward), np.where(x == 0, 0, theirs))


@pytest.mark.parametrize(
    ("target", "register", "stream"),
    [
        ("cpu:x86-64-v4", "zmm", "vmovntps"),
        ("cpu:x86-64-v3", "ymm", "vmovntps"),
        ("cpu:x86-64", "xmm", "movntps"),
    ],
)
def test_code_is_vector_instructions(target, register, stream):
    cpu_target = parse_target(target)
    for element, inputs in [
        (leaky_relu_element, ["x"]),
        (leaky_relu_gradient_element, ["x", "dy"]),
    ]:
        definition = functools.partial(element, alpha=0.2)
        function = flat_function("flat", definition, inputs, "float32", cpu_target, 1 << 20)
        library = tvm.compile(tvm.IRModule({"flat": function}), cpu_target.tvm)
        assembly = library.mod.inspect_source("asm").splitlines()
        lines = [line.split() for line in assembly if f"%{register}" in line]
        multiplied = [line for line in lines if line[0].removeprefix("v") == "mulps"]
        streamed = [line for line in lines if line[0] == stream]
        assert len(multiplied) >= 3 * 8 // len(inputs)
        assert len(streamed) >= 8 // len(inputs)
        # In each thread, before it says that it is done.
        assert any(line.strip() == "sfence" for line in assembly)


class TestErrors:
    x = values((2, 3), np.float32)

    def test_unknown_dtype(self):
        with pytest.raises(CompileError, match="no dtype 'int8'; use one of float16"):
            LeakyReluKernel(0.2, "int8")

    @pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e300])
    def test_alpha_is_not_finite(self, alpha):
        with pytest.raises(CompileError, match="not a finite number in float32"):
            LeakyReluKernel(alpha)

    def test_target_of_another_machine(self, monkeypatch):
        monkeypatch.setattr(cpu, "host_features", lambda: frozenset({"sse2"}))
        with pytest.raises(TargetError, match=r"this machine lacks: .*avx2"):
            LeakyReluKernel(0.2, target="cpu:x86-64-v3")

    def test_threads(self):
        with pytest.raises(InputError, match="threads=0"):
            LeakyReluKernel(0.2, threads=0)

    def test_other_dtype(self):
        with pytest.raises(InputError, match="float64 2x3 was given to a kernel of float32"):
            kernel(0.2).forward(self.x.astype(np.float64))
        with pytest.raises(InputError, match="float16 2x3 was given"):
            kernel(0.2).forward(self.x, np.empty((2, 3), np.float16))

    def test_other_byte_order(self):
        with pytest.raises(InputError, match=">f4 2x3 was given"):
            kernel(0.2).forward(self.x.astype(">f4"))

    def test_other_shape(self):
        with pytest.raises(InputError, match=r"float32 3x2 was given .* for an x of 2x3"):
            kernel(0.2).forward(self.x, np.empty((3, 2), np.float32))
        with pytest.raises(InputError, match=r"float32 6 was given .* for an x of 2x3"):
            kernel(0.2).gradient(self.x, self.x.ravel())

    def test_read_only_output(self):
        out = np.zeros((2, 3), np.float32)
        out.flags.writeable = False
        with pytest.raises(InputError, match="out is read-only"):
            kernel(0.2).forward(self.x, out)
        assert not out.any()
