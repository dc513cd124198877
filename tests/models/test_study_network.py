"""The study's network: gradients, training, its ONNX twin, and what is observed."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from leakyforge.models.activations import ACTIVATIONS, LEAKY_RELUS, RELU, RRELU_BOUNDS
from leakyforge.models.study_network import StudyNetwork
from leakyforge.models.train_study import SATURATED, choose_rate, flat, observe, train

DEPTH = 3
NAMES = [activation.name for activation in ACTIVATIONS]
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS, ids=NAMES)


@pytest.fixture(scope="module")
def split():
    pytest.importorskip("sklearn", reason="the digits data need scikit-learn")
    from leakyforge.models.digits_data import digits_split

    return digits_split()


def random_images(count, dtype=np.float64):
    generator = np.random.default_rng(5)
    return generator.random((count, 64)).astype(dtype), generator.integers(0, 10, count)


def loss(network, images, labels):
    """Mean cross-entropy, by its definition."""
    logits = network.forward(images).logits
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(labels)), labels]
    return float((np.log(np.exp(shifted).sum(axis=1)) - chosen).mean())


@every_activation
def test_gradients_against_central_differences(activation):
    """In float64: h^2 of the third derivative, and the roundings of the loss divided by h."""
    network = StudyNetwork(activation, DEPTH, 0, width=8, dtype=np.float64)
    images, labels = random_images(20)
    gradients = network.gradients(network.forward(images), labels)
    assert gradients.keys() == network.parameters.keys()
    generator = np.random.default_rng(3)
    step = 1e-6
    for name, parameter in network.parameters.items():
        direction = generator.choice([-1.0, 1.0], parameter.shape)
        values = []
        for sign in (1, -1):
            network.parameters[name] = parameter + sign * step * direction
            values.append(loss(network, images, labels))
        network.parameters[name] = parameter
        desired = (values[0] - values[1]) / (2 * step)
        actual = float((gradients[name] * direction).sum())
        assert actual == pytest.approx(desired, rel=1e-6, abs=1e-8), name


@every_activation
def test_derivative_against_central_differences(activation):
    x = np.random.default_rng(0).normal(0, 3, 1000)
    step = 1e-5
    x = x[np.abs(x) > step]
    rise = activation.value(x + step, activation.slope) - activation.value(
        x - step, activation.slope
    )
    actual = activation.derivative(x, activation.slope)
    np.testing.assert_allclose(actual, rise / (2 * step), rtol=0, atol=1e-9)


@every_activation
def test_onnx_computes_what_the_network_computes(activation):
    images, _ = random_images(7, np.float32)
    network = StudyNetwork(activation, DEPTH, 0)
    # Slopes that differ from unit to unit.
    for name, slope in network.parameters.items():
        if name.endswith(".slope"):
            slope += np.linspace(-0.2, 0.2, slope.size, dtype=np.float32)
    model = network.to_onnx("N")
    onnx.checker.check_model(model, full_check=True)
    (logits,) = ReferenceEvaluator(model).run(None, {"image": images})
    np.testing.assert_allclose(logits, network.forward(images).logits, rtol=1e-4, atol=1e-5)


def test_operators():
    operators = {
        activation.name: StudyNetwork(activation, 1, 0).to_onnx(1).graph.node[1].op_type
        for activation in ACTIVATIONS
    }
    assert operators == {
        "sigmoid": "Sigmoid", "tanh": "Tanh", "ReLU": "Relu", "PReLU": "PRelu",
        "RReLU": "LeakyRelu", **{activation.name: "LeakyRelu" for activation in LEAKY_RELUS},
    }  # fmt: skip


@every_activation
def test_values_keep_their_order_of_magnitude(activation):
    """What the gains are for; a sigmoid is between 0 and 1 whatever they are."""
    images = np.random.default_rng(0).normal(size=(500, 64))
    trace = StudyNetwork(activation, 10, 0, width=256, dtype=np.float64).forward(images)
    assert 0.2 < trace.before[-1].std() / trace.before[0].std() < 2


def test_rrelu_draws_slopes_in_training_only():
    network = StudyNetwork(ACTIVATIONS[-1], DEPTH, 0)
    images, _ = random_images(50, np.float32)
    drawn = network.forward(images, training=True).slopes[0]
    assert drawn.shape == (50, 32)
    assert RRELU_BOUNDS[0] <= drawn.min() < drawn.max() <= np.float32(RRELU_BOUNDS[1])
    assert network.forward(images).slopes[0] == sum(RRELU_BOUNDS) / 2


@every_activation
def test_training_learns_and_repeats(activation, split):
    images, networks = flat(split.train_images), []
    for _ in range(2):
        network = StudyNetwork(activation, 1, 0)
        train(network, images, split.train_labels, epochs=2, rate=0.1, seed=0)
        networks.append(network)
    assert networks[0].accuracy(images, split.train_labels) > 0.5
    for name, value in networks[0].parameters.items():
        np.testing.assert_array_equal(value, networks[1].parameters[name])


def test_rate_of_a_shallow_relu_network_is_none_of_those_that_fail(split):
    few = split._replace(
        train_images=split.train_images[:400], train_labels=split.train_labels[:400]
    )
    assert choose_rate(RELU, 1, few, epochs=2) > 0.003


class TestObservations:
    def network(self, activation):
        """One hidden layer: unit 0 is always at -1, unit 1 at +1, the others at both."""
        network = StudyNetwork(activation, 1, 0, width=4, dtype=np.float64)
        network.parameters["dense1.weight"][:2] = 0
        network.parameters["dense1.weight"][2:] = np.eye(64)[:2] * 2
        network.parameters["dense1.bias"][:] = [-1, 1, -1, -1]
        return network

    images = np.array([[0.0, 1.0], [1.0, 0.0]] * 2) @ np.eye(64)[:2]
    labels = np.array([0, 1, 2, 3])

    @pytest.mark.parametrize(
        ("slope", "dead", "saturated"), [(0, 1 / 4, 1 / 2), (0.01, 0, 1 / 2), (0.05, 0, 0)]
    )
    def test_rectifiers(self, slope, dead, saturated):
        activation = dataclasses.replace(RELU, slope=slope)
        seen = observe(self.network(activation), self.images, self.labels)
        assert (seen.dead, seen.never_positive, seen.saturated) == (dead, 1 / 4, saturated)

    def test_gradient_norms_are_those_of_the_weights(self):
        network = self.network(RELU)
        gradients = network.gradients(network.forward(self.images), self.labels)
        seen = observe(network, self.images, self.labels)
        desired = [np.sqrt((gradients[f"{k}.weight"] ** 2).sum()) for k in ("dense1", "logits")]
        np.testing.assert_allclose(seen.gradient_norms, desired)

    def test_far_from_zero_tanh_is_saturated(self):
        network = self.network(ACTIVATIONS[1])
        network.parameters["dense1.bias"] *= 10
        assert 4 / np.cosh(16) ** 2 < SATURATED
        assert observe(network, self.images, self.labels).saturated == 1
