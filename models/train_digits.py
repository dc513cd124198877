"""Train the digits classifier and write its weights: `python -m leakyforge.models.train_digits`.

Needs torch and scikit-learn. The seed is fixed and torch runs on one thread, so that the same
versions on the same machine write the same file.
"""

import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from leakyforge.errors import MissingDependencyError
from leakyforge.models.digits import ALPHA, WEIGHTS
from leakyforge.models.digits_data import DigitsSplit, digits_split

SEED = 0
EPOCHS = 40
BATCH = 64
PEAK_LEARNING_RATE = 0.01


def train(data: DigitsSplit) -> tuple[dict[str, np.ndarray[Any, Any]], float]:
    """Return trained float32 weights by name, and the accuracy on the held-out images (0 to 1).

    Raises:
        MissingDependencyError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "training needs torch; pip install 'leakyforge[torch]'"
        ) from error
    torch.manual_seed(SEED)
    torch.set_num_threads(1)

    network = _network(torch.nn)
    images = torch.from_numpy(data.train_images)
    labels = torch.from_numpy(data.train_labels)
    steps = -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * steps
    )
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()

    network.eval()
    with torch.no_grad():
        answers = network(torch.from_numpy(data.test_images)).argmax(1).numpy()
    accuracy = float((answers == data.test_labels).mean())
    parameters = network.state_dict().items()
    # Batch normalization also counts its batches, which only training needs.
    weights = {
        name: value.numpy() for name, value in parameters if "num_batches_tracked" not in name
    }
    return weights, accuracy


def write_weights(path: Path, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write the weights as an .npz file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **weights)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    """Train, report the accuracy and write the weights next to this file."""
    weights, accuracy = train(digits_split())
    write_weights(WEIGHTS, weights)
    size = WEIGHTS.stat().st_size
    sys.stdout.write(f"test accuracy {accuracy:.4f}; wrote {WEIGHTS} ({size} bytes)\n")


def _network(nn: Any) -> Any:
    """The layers of `leakyforge.models.digits`, under the same names."""
    layers: OrderedDict[str, Any] = OrderedDict()
    for number, (inputs, outputs) in enumerate(((1, 16), (16, 32), (32, 32)), start=1):
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
        layers[f"leaky{number}"] = nn.LeakyReLU(ALPHA)
        if number > 1:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["logits"] = nn.Linear(32 * 2 * 2, 10)
    return nn.Sequential(layers)


if __name__ == "__main__":
    main()
