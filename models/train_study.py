"""Training of the study's networks on the digits, and what is observed in them.

Stochastic gradient descent with momentum on the cross-entropy, the rate falling to 0 along half a
cosine. An activation's first rate is the one out of `RATES` whose networks classify held-out
images of the training set best: one rate for all would favour some activation. The test images take
no part in it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from leakyforge.models.activations import Activation, Values
from leakyforge.models.digits_data import DigitsSplit
from leakyforge.models.study_network import Labels, StudyNetwork

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
BATCH = 32
MOMENTUM = 0.9
# Of the networks that choose a rate; those of the study are trained with seeds from 0 on.
_RATE_SEEDS = (1000, 1001, 1002)
# Of the training images, the share that chooses a rate.
_HELD_OUT = 0.25

# A derivative below it passes on next to nothing: that of LeakyReLU 0.01 below zero is counted,
# that of LeakyReLU 0.05 is not.
SATURATED = 0.02


def train(
    network: StudyNetwork, images: Values, labels: Labels, *, epochs: int, rate: float, seed: int
) -> None:
    """Train a network in place; equal arguments give equal parameters on one machine.

    Args:
        network: the network.
        images: [images, 64].
        labels: [images].
        epochs: passes over the images.
        rate: the first learning rate.
        seed: of the order of the images.
    """
    generator = np.random.default_rng(seed)
    velocity: dict[str, Any] = dict.fromkeys(network.parameters, 0.0)
    steps = epochs * math.ceil(len(images) / BATCH)
    step = 0
    for _ in range(epochs):
        order = generator.permutation(len(images))
        for start in range(0, len(images), BATCH):
            rows = order[start : start + BATCH]
            now = rate * (1 + math.cos(math.pi * step / steps)) / 2
            trace = network.forward(images[rows], training=True)
            for name, gradient in network.gradients(trace, labels[rows]).items():
                velocity[name] = MOMENTUM * velocity[name] - now * gradient
                network.parameters[name] += velocity[name]
            step += 1


def choose_rate(activation: Activation, depth: int, split: DigitsSplit, *, epochs: int) -> float:
    """The rate out of `RATES` that gives the best mean accuracy on held-out training images.

    The smallest one of those that are equally good. A network that diverges is one that guesses.
    """
    images = flat(split.train_images)
    train_count = round(len(images) * (1 - _HELD_OUT))
    training, held_out = np.split(images, [train_count])
    training_labels, held_out_labels = np.split(split.train_labels, [train_count])

    def accuracy(rate: float) -> float:
        total = 0.0
        for seed in _RATE_SEEDS:
            network = StudyNetwork(activation, depth, seed)
            with np.errstate(over="ignore", invalid="ignore"):
                train(network, training, training_labels, epochs=epochs, rate=rate, seed=seed)
                total += network.accuracy(held_out, held_out_labels)
        return total

    return max(RATES, key=accuracy)


@dataclass(frozen=True)
class Observations:
    """What the hidden layers of a network do on some images.

    Attributes:
        dead: share of units whose derivative is exactly 0 on every image: they learn nothing more.
        never_positive: share of units that are at or below 0 before the activation on every image.
        saturated: share of derivatives below `SATURATED`, over units and images.
        gradient_norms: Euclidean norm of the gradient of the mean cross-entropy by the weights of
            each dense layer, from the image to the logits.
    """

    dead: float
    never_positive: float
    saturated: float
    gradient_norms: tuple[float, ...]


def observe(network: StudyNetwork, images: Values, labels: Labels) -> Observations:
    """Run a network on images, at inference, and say what its hidden layers do."""
    trace = network.forward(images)
    gradients = network.gradients(trace, labels)
    derivatives = np.stack(network.derivatives(trace))
    return Observations(
        dead=float((derivatives == 0).all(axis=1).mean()),
        never_positive=float((np.stack(trace.before) <= 0).all(axis=1).mean()),
        saturated=float((derivatives < SATURATED).mean()),
        gradient_norms=tuple(
            float(np.linalg.norm(gradients[f"{layer}.weight"])) for layer in network.layers
        ),
    )


def flat(images: Values) -> Values:
    """Images as rows of pixels."""
    return images.reshape(len(images), -1)
