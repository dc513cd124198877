"""Zoo models against independent definitions in torch, with the same weights."""

import numpy as np
import onnxruntime
import pytest
from onnx import numpy_helper

from leakyforge.errors import ExportError
from leakyforge.models import build
from leakyforge.tolerance import LAMBDA

torch = pytest.importorskip("torch", reason="torch is not installed")
functional = torch.nn.functional


class Weights:
    """Initializers of a model as torch tensors."""

    def __init__(self, model):
        self._tensors = {
            each.name: torch.from_numpy(numpy_helper.to_array(each).copy())
            for each in model.graph.initializer
        }

    def __getitem__(self, name):
        return self._tensors[name]

    def conv(self, x, name, **options):
        call = functional.conv1d if self[f"{name}.weight"].ndim == 3 else functional.conv2d
        return call(x, self[f"{name}.weight"], self._tensors.get(f"{name}.bias"), **options)

    def norm(self, x, name):
        parts = [self[f"{name}.{part}"] for part in ("mean", "var", "scale", "bias")]
        return functional.batch_norm(x, *parts)


def leaky(x, alpha):
    return functional.leaky_relu(x, alpha)


def mlp(w, x):
    for number in (1, 2):
        x = leaky(functional.linear(x, w[f"dense{number}.weight"], w[f"dense{number}.bias"]), 0.1)
    return functional.linear(x, w["logits.weight"], w["logits.bias"])


def rrdbnet(w, x):
    first = x = w.conv(x, "first", padding=1)
    block = x
    for dense in (1, 2, 3):
        name, parts = f"block0_dense{dense}", [block]
        for number in (1, 2, 3, 4):
            y = w.conv(torch.cat(parts, 1), f"{name}_conv{number}", padding=1)
            parts.append(leaky(y, 0.2))
        block = block + 0.2 * w.conv(torch.cat(parts, 1), f"{name}_conv5", padding=1)
    x = first + w.conv(x + 0.2 * block, "trunk", padding=1)
    for number in (1, 2):
        x = torch.nn.Upsample(scale_factor=2, mode="nearest")(x)
        x = leaky(w.conv(x, f"up{number}", padding=1), 0.2)
    return w.conv(leaky(w.conv(x, "high", padding=1), 0.2), "large", padding=1)


def hifigan(rates, kernels, chains):
    def network(w, x):
        x = w.conv(x, "pre", padding=3)
        for stage, rate in enumerate(rates):
            x = functional.conv_transpose1d(
                leaky(x, 0.1), w[f"up{stage}.weight"], w[f"up{stage}.bias"],
                stride=rate, padding=rate // 2,
            )  # fmt: skip
            fields = []
            for kernel, blocks in zip(kernels, chains, strict=True):
                y = x
                for number, chain in enumerate(blocks, 1):
                    z = y
                    for step, dilation in enumerate(chain, 1):
                        name = f"stage{stage}_kernel{kernel}_conv{number}_{step}"
                        z = w.conv(leaky(z, 0.1), name, padding="same", dilation=dilation)
                    y = y + z
                fields.append(y)
            x = torch.stack(fields).mean(0)
        return torch.tanh(w.conv(leaky(x, 0.01), "post", padding=3))

    return network


def discriminator(w, x):
    for number in (1, 2, 3, 4):
        x = w.conv(x, f"conv{number}", stride=2, padding=1)
        x = leaky(x if number == 1 else w.norm(x, f"norm{number}"), 0.2)
    return torch.sigmoid(w.conv(x, "score"))


def generator(w, x):
    for number in (1, 2, 3, 4):
        stride, padding = (1, 0) if number == 1 else (2, 1)
        weight = w[f"conv{number}.weight"]
        x = functional.conv_transpose2d(x, weight, stride=stride, padding=padding)
        x = leaky(w.norm(x, f"norm{number}"), 0.2)
    return torch.tanh(functional.conv_transpose2d(x, w["colors.weight"], stride=2, padding=1))


TYPE_1 = [((1, 1), (3, 1), (5, 1))] * 3
# Roundings on the way to the output: the lengths of all sums above it, added up.
CASES = {
    "mlp": ("mlp", {"hidden": 24}, mlp, 784 + 24 + 24),
    "rrdbnet": (
        "rrdbnet", {"blocks": 1, "features": 16, "growth": 8, "height": 6, "width": 10}, rrdbnet,
        9 * (3 + 3 * (16 + 24 + 32 + 40 + 48) + 5 * 16),
    ),
    "hifigan_1": (
        "hifigan", {"version": 1, "frames": 2}, hifigan((8, 8, 2, 2), (3, 7, 11), TYPE_1),
        7 * 80 + 21 * 6 * (256 + 128 + 64 + 32) + 2 * (512 + 256 + 128 + 64) + 7 * 32,
    ),
    "hifigan_2": (
        "hifigan", {"version": 2, "frames": 3}, hifigan((8, 8, 2, 2), (3, 7, 11), TYPE_1),
        7 * 80 + 21 * 6 * (64 + 32 + 16 + 8) + 2 * (128 + 64 + 32 + 16) + 7 * 8,
    ),
    "hifigan_3": (
        "hifigan", {"version": 3, "frames": 3},
        hifigan((8, 8, 4), (3, 5, 7), [((1,), (2,)), ((2,), (6,)), ((3,), (12,))]),
        7 * 80 + 15 * 2 * (128 + 64 + 32) + 2 * (256 + 128 + 64) + 7 * 32,
    ),
    "discriminator": (
        "dcgan-discriminator", {"features": 8}, discriminator, 16 * (3 + 8 + 16 + 32 + 64)
    ),
    "generator": ("dcgan-generator", {"features": 8}, generator, 100 + 4 * (64 + 32 + 16 + 8)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "options", "network", "roundings"), CASES.values(), ids=CASES)
def test_equals_torch(name, options, network, roundings):
    model = build(name, batch=2, **options)
    (value,) = model.graph.input
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    data = np.random.default_rng(0).random(shape, np.float32)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (actual,) = session.run(None, {value.name: data})
    with torch.inference_mode():
        desired = network(Weights(model), torch.from_numpy(data)).numpy()
    assert actual.shape == desired.shape
    assert np.ptp(desired) > 0
    atol = LAMBDA * np.sqrt(roundings) * 2.0**-24 * np.abs(desired).max()
    np.testing.assert_allclose(actual, desired, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hifigan", {"version": 4}),
        ("hifigan", {"frames": 0}),
        ("rrdbnet", {"blocks": 0}),
        ("rrdbnet", {"width": 1.5}),
        ("mlp", {"hidden": -1}),
        ("mlp", {"seed": -1}),
        ("dcgan-generator", {"latent": 0}),
        ("dcgan-discriminator", {"features": 0}),
        ("dcgan-discriminator", {"alpha": "0.2"}),
    ],
)
def test_options_out_of_range_are_named(name, options):
    ((option, value),) = options.items()
    with pytest.raises(ExportError, match=f"^{option}={value!r}"):
        build(name, **options)
