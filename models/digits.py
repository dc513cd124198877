"""A small classifier of handwritten digits, with trained weights.

Three convolutions, each with batch normalization and LeakyRelu, and one fully connected layer.
`leakyforge.models.train_digits` made the weights in `digits.npz`.
"""

from pathlib import Path

import numpy as np
import onnx

from leakyforge.models.graph import Array, GraphBuilder
from leakyforge.models.options import DEFAULT_OPSET, checked_batch

# A property of the trained weights, and so no option of the builder.
ALPHA = 0.1
WEIGHTS = Path(__file__).with_name("digits.npz")


def digits(*, batch: int | str = 1, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """Build the classifier.

    Input `image`: [batch, 1, 8, 8] float32, the pixels of scikit-learn's digits divided by 16, so
    in [0, 1]. Output `logits`: [batch, 10] float32, one per digit.

    Args:
        batch: Number of images, or the name of a symbolic dimension.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    batch = checked_batch(batch)
    with np.load(WEIGHTS, allow_pickle=False) as archive:
        weights = dict(archive)

    graph = GraphBuilder()
    x = _block(graph, "image", 1, weights)
    x = _block(graph, x, 2, weights)
    x = graph.max_pool(x, name="pool2", size=2, stride=2)
    x = _block(graph, x, 3, weights)
    x = graph.max_pool(x, name="pool3", size=2, stride=2)
    x = graph.flatten(x, name="flatten")
    graph.gemm(x, weights["logits.weight"], weights["logits.bias"], name="logits")
    return graph.build(
        "digits",
        inputs={"image": (batch, 1, 8, 8)},
        outputs={"logits": (batch, 10)},
        opset=opset,
        # The parity check draws its inputs from this range.
        metadata={"leakyforge.input_range.image": "0,1"},
    )


def _block(graph: GraphBuilder, x: str, number: int, weights: dict[str, Array]) -> str:
    """3 x 3 convolution, batch normalization, LeakyRelu; height and width stay."""
    x = graph.conv(x, weights[f"conv{number}.weight"], name=f"conv{number}", pad=1)
    norm = f"norm{number}"
    x = graph.batch_norm(
        x,
        scale=weights[f"{norm}.weight"],
        bias=weights[f"{norm}.bias"],
        mean=weights[f"{norm}.running_mean"],
        var=weights[f"{norm}.running_var"],
        name=norm,
    )
    return graph.leaky_relu(x, name=f"leaky{number}", alpha=ALPHA)
