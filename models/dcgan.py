"""DCGAN: generator and discriminator of images of 64 x 64.

Source: Radford et al., "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", arXiv:1511.06434, section 3; convolutions without bias, as in PyTorch's
example. The paper's generator has ReLU, which is alpha = 0 here.
"""

import onnx

from leakyforge.models.graph import GraphBuilder
from leakyforge.models.options import DEFAULT_OPSET, checked_batch, checked_float, checked_int
from leakyforge.models.random_weights import RandomWeights

SIZE = 64
COLORS = 3
# Multiples of `features` from 4 x 4 to 32 x 32.
_MULTIPLES = (8, 4, 2, 1)


def dcgan_discriminator(
    *,
    features: int = 64,
    alpha: float = 0.2,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build the discriminator with random weights.

    Input `image`: [batch, 3, 64, 64] float32 in [0, 1]. Output `real`: [batch, 1, 1, 1] float32,
    the probability that the image is real.

    Args:
        features: Channels of the first convolution.
        alpha: Slope of every LeakyRelu below zero.
        batch: Number of images, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    features = checked_int("features", features, minimum=1)
    batch = checked_batch(batch)
    graph, weights = GraphBuilder(), RandomWeights(alpha=alpha, seed=seed)
    x, inputs = "image", COLORS
    for number, multiple in enumerate(reversed(_MULTIPLES), start=1):
        outputs = multiple * features
        weight = weights.kernel(outputs, inputs, 4, 4, inputs=16 * inputs)
        x = graph.conv(x, weight, name=f"conv{number}", stride=2, pad=1)
        if number > 1:
            x = graph.batch_norm(x, *weights.norm(outputs), name=f"norm{number}")
        x = graph.leaky_relu(x, name=f"leaky{number}", alpha=checked_float("alpha", alpha))
        inputs = outputs
    x = graph.conv(x, weights.kernel(1, inputs, 4, 4, inputs=16 * inputs), name="score")
    graph.sigmoid(x, name="real")
    return graph.build(
        "dcgan-discriminator",
        inputs={"image": (batch, COLORS, SIZE, SIZE)},
        outputs={"real": (batch, 1, 1, 1)},
        opset=opset,
        metadata={"leakyforge.input_range.image": "0,1"},
    )


def dcgan_generator(
    *,
    features: int = 64,
    latent: int = 100,
    alpha: float = 0.2,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build the generator with random weights.

    Input `latent`: [batch, latent, 1, 1] float32 in [0, 1]. Output `image`: [batch, 3, 64, 64]
    float32 in [-1, 1].

    Args:
        features: Channels before the last transposed convolution.
        latent: Length of the input.
        alpha: Slope of every LeakyRelu below zero.
        batch: Number of images, or the name of a symbolic dimension.
        seed: Of the weights; the same seed gives the same weights.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    features = checked_int("features", features, minimum=1)
    latent = checked_int("latent", latent, minimum=1)
    batch = checked_batch(batch)
    graph, weights = GraphBuilder(), RandomWeights(alpha=alpha, seed=seed)
    x, inputs = "latent", latent
    for number, multiple in enumerate(_MULTIPLES, start=1):
        outputs = multiple * features
        # From 1 x 1 every output has one product for each input, later four.
        weight = weights.kernel(inputs, outputs, 4, 4, inputs=inputs * (1 if number == 1 else 4))
        stride, pad = (1, 0) if number == 1 else (2, 1)
        x = graph.conv_transpose(x, weight, name=f"conv{number}", stride=stride, pad=pad)
        x = graph.batch_norm(x, *weights.norm(outputs), name=f"norm{number}")
        x = graph.leaky_relu(x, name=f"leaky{number}", alpha=checked_float("alpha", alpha))
        inputs = outputs
    weight = weights.kernel(inputs, COLORS, 4, 4, inputs=4 * inputs)
    x = graph.conv_transpose(x, weight, name="colors", stride=2, pad=1)
    graph.tanh(x, name="image")
    return graph.build(
        "dcgan-generator",
        inputs={"latent": (batch, latent, 1, 1)},
        outputs={"image": (batch, COLORS, SIZE, SIZE)},
        opset=opset,
        metadata={"leakyforge.input_range.latent": "0,1"},
    )
