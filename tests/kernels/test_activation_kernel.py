"""Activations and their gradients on numpy arrays: against numpy, finite differences and torch."""

import functools

import ml_dtypes
import numpy as np
import pytest

from leakyforge.errors import CompileError, InputError
from leakyforge.kernels import ActivationKernel, LeakyReluKernel, PReluKernel, RReluKernel

# In units of the last place of float32, the bounds of `elementary`; of the gradients, exp's 3 ULP
# count three times at most (e and (1 + e)^2), and 5 roundings come to them.
ULP = {"sigmoid": 5, "tanh": 8, "relu": 0}
GRADIENT_ULP = {"sigmoid": 14, "tanh": 14, "relu": 0}
LARGE = [20.0, -20.0, 88.0, -88.0, 1e4, -1e4, 3e38, -3e38]
POINTS = np.concatenate([np.random.default_rng(0).normal(0, 3, 10_007), np.array(LARGE)])


def sigmoid(x):
    power = np.exp(-np.abs(x))
    return np.where(x < 0, power, 1) / (1 + power)


def bell(x):
    power = np.exp(-np.abs(x))
    return power / (1 + power) ** 2


FORWARD = {"sigmoid": sigmoid, "tanh": np.tanh, "relu": lambda x: np.where(x < 0, 0, x)}
DERIVATIVE = {
    "sigmoid": bell,
    "tanh": lambda x: 4 * bell(2 * x),
    "relu": lambda x: np.where(x <= 0, 0.0, 1.0),
}


@functools.cache
def kernel(name, dtype="float32"):
    return PReluKernel(dtype) if name == "prelu" else ActivationKernel(name, dtype)


def ulps(actual, desired):
    """The largest distance in units of the last place of the desired values."""
    smallest = np.finfo(actual.dtype).smallest_normal
    unit = np.spacing(np.maximum(np.abs(desired), smallest).astype(actual.dtype))
    return float((np.abs(actual - desired) / unit).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ULP)
def test_forward_and_gradient_against_numpy(name, dtype):
    x = POINTS.astype(dtype)
    dy = np.random.default_rng(1).normal(size=x.size).astype(dtype)
    # In float64 numpy is a witness of the same precision, with roundings of its own.
    wide = x.astype(np.longdouble)
    assert ulps(kernel(name, dtype).forward(x), FORWARD[name](wide)) <= ULP[name]
    desired = dy * DERIVATIVE[name](wide)
    assert ulps(kernel(name, dtype).gradient(x, dy), desired) <= GRADIENT_ULP[name]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ULP)
def test_16_bits_are_rounded_once(name, dtype):
    """Half an ULP of the dtype, and a hundredth for the computation in float32."""
    numpy_type = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    x = np.linspace(-9, 9, 4099).astype(numpy_type)
    dy = np.linspace(1, 2, 4099).astype(numpy_type)
    wide, wide_dy = x.astype(np.float64), dy.astype(np.float64)
    info = ml_dtypes.finfo(dtype)
    for actual, desired in [
        (kernel(name, dtype).forward(x), FORWARD[name](wide)),
        (kernel(name, dtype).gradient(x, dy), wide_dy * DERIVATIVE[name](wide)),
    ]:
        bound = np.maximum(np.abs(desired), float(info.tiny)) * float(info.eps) * 0.51
        assert np.all(np.abs(actual.astype(np.float64) - desired) <= bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "forward", "derivative"),
    [
        ("sigmoid", [0.5, 0.5, 1.0, 0.0, np.nan, 1.0, 0.0], [0.25, 0.25, 0, 0, np.nan, 0, 0]),
        ("tanh", [0.0, -0.0, 1.0, -1.0, np.nan, 1.0, -1.0], [1, 1, 0, 0, np.nan, 0, 0]),
        ("relu", [0.0, -0.0, np.inf, 0.0, np.nan, 1e9, 0.0], [0, 0, 1, 0, 1, 1, 0]),
    ],
)
def test_special_points(name, dtype, forward, derivative):
    # More than a block, and a rest.
    x = np.tile(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e9, -1e9], dtype), 31)
    actual = kernel(name, dtype).forward(x)
    desired = np.tile(np.array(forward, dtype), 31)
    np.testing.assert_array_equal(actual, desired)
    zero = desired == 0
    np.testing.assert_array_equal(np.signbit(actual[zero]), np.signbit(desired[zero]))
    gradient = kernel(name, dtype).gradient(x, np.ones_like(x))
    np.testing.assert_array_equal(gradient, np.tile(np.array(derivative, dtype), 31))


@pytest.mark.parametrize("name", ULP)
def test_gradient_against_central_differences(name):
    """A step of h leaves h^2 / 6 of the third derivative, and the roundings divided by h."""
    x = np.random.default_rng(0).normal(0, 3, 4001)
    step = 1e-5
    x = x[np.abs(x) > step]
    run = kernel(name, "float64")
    slope = (run.forward(x + step) - run.forward(x - step)) / (2 * step)
    # Of tanh the third derivative is at most 2; libm and x +- h are within 3 roundings each.
    truncation = step**2 / 6 * 2
    roundoff = 6 * np.finfo(np.float64).eps * np.abs(x).max() / (2 * step)
    actual = run.gradient(x, np.ones_like(x))
    np.testing.assert_allclose(actual, slope, rtol=0, atol=truncation + roundoff)


def corners():
    """Special points and normal values as x, and a gradient behind them."""
    x = np.concatenate([[0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30], POINTS])
    return x, np.random.default_rng(1).normal(size=x.size)


def torch_gradient(function, dy, *operands):
    """The value of a torch function and its gradients by the operands."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    leaves = [torch.from_numpy(operand.copy()).requires_grad_() for operand in operands]
    y = function(torch, *leaves)
    y.backward(torch.from_numpy(dy))
    return y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ULP)
def test_gradient_against_torch(name, dtype):
    x, dy = (values.astype(dtype) for values in corners())
    forward, gradient = torch_gradient(lambda torch, leaf: getattr(torch, name)(leaf), dy, x)
    run = kernel(name, dtype)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(run.forward(x), forward, rtol=8 * eps, atol=8 * eps)
    # Torch takes dy * (1 - y * y), which is off by a rounding of 1, not of the result.
    atol = 8 * eps * np.abs(dy).max()
    np.testing.assert_allclose(run.gradient(x, dy), gradient, rtol=16 * eps, atol=atol)


class TestPRelu:
    shape = (3, 5, 7, 11)
    slope = np.array([-0.5, 0.0, 0.05, 0.25, 1.5]).reshape(5, 1, 1)

    def values(self, dtype, seed):
        return np.random.default_rng(seed).normal(size=self.shape).astype(dtype)

    def numpy_prelu(self, x, slope, dy):
        """Forward and both gradients, the second one not summed."""
        return (
            np.where(x >= 0, x, x * slope),
            np.where(x > 0, dy, dy * slope),
            np.where(x > 0, x.dtype.type(0), x * dy),
        )

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_equal_to_numpy(self, dtype):
        x, dy, slope = self.values(dtype, 0), self.values(dtype, 1), self.slope.astype(dtype)
        forward, gradient, products = self.numpy_prelu(x, slope, dy)
        run = kernel("prelu", dtype)
        np.testing.assert_array_equal(run.forward(x, slope), forward)
        np.testing.assert_array_equal(run.gradient(x, slope, dy), gradient)
        desired = products.sum(axis=(0, 2, 3), dtype=np.float64, keepdims=True)[0]
        actual = run.slope_gradient(x, slope, dy)
        assert (actual.shape, actual.dtype) == (slope.shape, slope.dtype)
        # The sums are in another order.
        bound = np.finfo(dtype).eps * np.abs(products).sum()
        np.testing.assert_allclose(actual, desired, rtol=0, atol=bound)

    @pytest.mark.parametrize("shape", [(), (1,), (11,), (5, 1, 1), (3, 1, 1, 1), (3, 5, 7, 11)])
    def test_slope_gradient_has_the_shape_of_the_slope(self, shape):
        x, dy = self.values("float64", 0), self.values("float64", 1)
        slope = np.full(shape, 0.25)
        actual = kernel("prelu", "float64").slope_gradient(x, slope, dy)
        assert actual.shape == shape
        np.testing.assert_allclose(actual.sum(), np.where(x > 0, 0, x * dy).sum(), rtol=1e-12)

    def test_gradients_against_central_differences(self):
        """The loss is the sum of dy * y: linear in the slope, in pieces linear in x."""
        x, dy = self.values("float64", 0), self.values("float64", 1)
        step = 1e-6
        x = np.where(np.abs(x) > step, x, 1.0)
        run = kernel("prelu", "float64")
        # Of x + h, of y and of their difference; a sum of 231 products adds as many.
        roundoff = 4 * np.finfo(np.float64).eps * np.abs(x).max() * np.abs(dy).max() / step
        slope_x = dy * (run.forward(x + step, self.slope) - run.forward(x - step, self.slope))
        actual = run.gradient(x, self.slope, dy)
        np.testing.assert_allclose(actual, slope_x / (2 * step), rtol=0, atol=roundoff)
        change = dy * (run.forward(x, self.slope + step) - run.forward(x, self.slope - step))
        by_slope = change.sum(axis=(0, 2, 3)).reshape(5, 1, 1) / (2 * step)
        actual = run.slope_gradient(x, self.slope, dy)
        np.testing.assert_allclose(actual, by_slope, rtol=0, atol=231 * roundoff)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_against_torch(self, dtype):
        x, dy, slope = self.values(dtype, 0), self.values(dtype, 1), self.slope.astype(dtype)
        x.ravel()[:6] = [0.0, -0.0, np.inf, 1e30, -1e30, -1.0]
        forward, gradient, by_slope = torch_gradient(
            lambda torch, leaf, weight: torch.nn.functional.prelu(leaf, weight.ravel()),
            dy, x, slope,
        )  # fmt: skip
        run = kernel("prelu", dtype)
        np.testing.assert_array_equal(run.forward(x, slope), forward)
        np.testing.assert_array_equal(run.gradient(x, slope, dy), gradient)
        rtol = 231 * np.finfo(dtype).eps
        np.testing.assert_allclose(run.slope_gradient(x, slope, dy), by_slope, rtol=rtol)

    def test_special_points(self):
        x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3e38, -3e38], np.float32)
        slope, ones = np.float32(0.25), np.ones_like(x)
        forward = kernel("prelu").forward(x, slope)
        desired = np.array([0, -0.0, np.inf, -np.inf, np.nan, x[5], x[6] / 4], np.float32)
        np.testing.assert_array_equal(forward, desired)
        np.testing.assert_array_equal(np.signbit(forward[:2]), [False, True])
        gradient = kernel("prelu").gradient(x, slope, ones)
        np.testing.assert_array_equal(gradient, [0.25, 0.25, 1, 0.25, 0.25, 1, 0.25])
        each = kernel("prelu").slope_gradient(x, np.full_like(x, 0.25), ones)
        np.testing.assert_array_equal(each, [0, -0.0, 0, -np.inf, np.nan, 0, x[6]])

    def test_slope_that_does_not_broadcast(self):
        x = self.values("float32", 0)
        for call in (kernel("prelu").forward, kernel("prelu").slope_gradient):
            arguments = (x,) if call == kernel("prelu").slope_gradient else ()
            with pytest.raises(InputError, match="slope of 5 does not broadcast to an x of 3x5x7"):
                call(x, np.zeros(5, np.float32), *arguments)

    def test_slope_of_another_dtype(self):
        with pytest.raises(InputError, match="float64 3x5x7x11 was given to a kernel of float32"):
            kernel("prelu").forward(self.values("float32", 0), self.slope)


class TestRRelu:
    @pytest.fixture(scope="class")
    def rrelu(self):
        return RReluKernel()

    def test_inference_is_leaky_relu_with_the_mean_slope(self, rrelu):
        x = POINTS.astype(np.float32)
        mean = LeakyReluKernel((1 / 8 + 1 / 3) / 2)
        np.testing.assert_array_equal(rrelu.inference.forward(x), mean.forward(x))
        np.testing.assert_array_equal(rrelu.inference.gradient(x, x), mean.gradient(x, x))

    def test_training_takes_drawn_slopes(self, rrelu):
        x = np.random.default_rng(0).normal(size=(401, 10)).astype(np.float32)
        slopes = rrelu.draw(x.shape, np.random.default_rng(1))
        assert slopes.dtype == np.float32
        assert 1 / 8 <= slopes.min() < 0.13
        assert 0.33 < slopes.max() <= 1 / 3 + 1e-7
        np.testing.assert_allclose(slopes.mean(), 11 / 48, atol=5e-3)
        forward = rrelu.training.forward(x, slopes)
        np.testing.assert_array_equal(forward, np.where(x >= 0, x, x * slopes))
        gradient = rrelu.training.gradient(x, slopes, np.ones_like(x))
        np.testing.assert_array_equal(gradient, np.where(x > 0, 1, slopes))

    def test_against_torch_at_inference(self, rrelu):
        x, dy = (values.astype(np.float32) for values in corners())
        forward, gradient = torch_gradient(
            lambda torch, leaf: torch.nn.functional.rrelu(leaf, training=False), dy, x
        )
        np.testing.assert_array_equal(rrelu.inference.forward(x), forward)
        np.testing.assert_array_equal(rrelu.inference.gradient(x, dy), gradient)

    @pytest.mark.parametrize("bounds", [(0.3, 0.2), (-0.1, 0.2), (float("nan"), 1)])
    def test_bounds_out_of_order(self, bounds):
        with pytest.raises(CompileError, match="not in order"):
            RReluKernel(*bounds)


def test_unknown_activation():
    with pytest.raises(CompileError, match="'gelu'; use one of sigmoid, tanh, relu"):
        ActivationKernel("gelu")
