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


def digits(w, x):
    for number in (1, 2, 3):
        x = leaky(w.norm(w.conv(x, f"conv{number}", padding=1), f"norm{number}"), 0.1)
        if number > 1:
            x = functional.max_pool2d(x, 2)
    return functional.linear(x.flatten(1), w["logits.weight"], w["logits.bias"])


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


def darknet_block(w, x, layer, stride=1):
    size = w[f"layer{layer}_conv.weight"].shape[-1]
    x = w.conv(x, f"layer{layer}_conv", stride=stride, padding=size // 2)
    return leaky(w.norm(x, f"layer{layer}_norm"), 0.1)


def tiny_trunk(w, x):
    """Layers 0 to 12 of both tiny networks; layer 8 too."""
    for layer in (0, 2, 4, 6, 8, 10):
        x = darknet_block(w, x, layer)
        if layer == 8:
            fine = x
        if layer < 10:
            x = functional.max_pool2d(x, 2)
    x = functional.pad(x, (0, 1, 0, 1), value=-torch.inf)
    return darknet_block(w, functional.max_pool2d(x, 2, stride=1), 12), fine


def yolov2_tiny(w, x):
    x, _ = tiny_trunk(w, x)
    return w.conv(darknet_block(w, x, 13), "head")


def yolov3_tiny(w, x):
    x, fine = tiny_trunk(w, x)
    coarse = darknet_block(w, x, 13)
    large = w.conv(darknet_block(w, coarse, 14), "head_large")
    x = torch.nn.Upsample(scale_factor=2)(darknet_block(w, coarse, 18))
    small = w.conv(darknet_block(w, torch.cat([x, fine], 1), 21), "head_small")
    return large, small


def yolov3(w, x):
    x, layer, stages = darknet_block(w, x, 0), 1, []
    for blocks in (1, 2, 8, 8, 4):
        x = darknet_block(w, x, layer, stride=2)
        for block in range(blocks):
            first = layer + 1 + 3 * block
            x = x + darknet_block(w, darknet_block(w, x, first), first + 1)
        layer += 1 + 3 * blocks
        stages.append(x)
    heads = []
    for head, first, finer in (("large", 75, 3), ("medium", 87, 2), ("small", 99, None)):
        for number in range(5):
            x = darknet_block(w, x, first + number)
        heads.append(w.conv(darknet_block(w, x, first + 5), f"head_{head}"))
        if finer is not None:
            x = torch.nn.Upsample(scale_factor=2)(darknet_block(w, x, first + 9))
            x = torch.cat([x, stages[finer]], 1)
    return tuple(heads)


def melgan(w, x):
    def conv(x, name, padding=0, dilation=1):
        x = functional.pad(x, (padding, padding), mode="reflect")
        return w.conv(x, name, dilation=dilation)

    x = conv(x, "pre", 3)
    for stage, rate in enumerate((8, 8, 2, 2)):
        x = functional.conv_transpose1d(
            leaky(x, 0.2), w[f"up{stage}.weight"], w[f"up{stage}.bias"],
            stride=rate, padding=rate // 2,
        )  # fmt: skip
        for dilation in (1, 3, 9):
            name = f"stage{stage}_dilation{dilation}"
            y = conv(leaky(x, 0.2), f"{name}_conv1", dilation, dilation)
            x = conv(x, f"{name}_shortcut") + conv(leaky(y, 0.2), f"{name}_conv2")
    return torch.tanh(conv(leaky(x, 0.2), "post", 3))


def instance_norm(w, x, name):
    return functional.instance_norm(x, weight=w[f"{name}.scale"], bias=w[f"{name}.bias"])


def pix2pix_unet(w, x):
    def level(x, depth):
        """What the authors' program nests: a block around all deeper ones."""
        y = w.conv(x if depth == 1 else leaky(x, 0.2), f"down{depth}", stride=2, padding=1)
        if 1 < depth < 4:
            y = instance_norm(w, y, f"down{depth}_norm")
        if depth < 4:
            y = torch.cat([y, level(y, depth + 1)], 1)
        weight, bias = w[f"up{depth}.weight"], None if depth > 1 else w["up1.bias"]
        y = functional.conv_transpose2d(torch.relu(y), weight, bias, stride=2, padding=1)
        return torch.tanh(y) if depth == 1 else instance_norm(w, y, f"up{depth}_norm")

    return level(x, 1)


def patchgan(w, x):
    x = leaky(w.conv(x, "conv1", stride=2, padding=1), 0.2)
    for number, stride in ((2, 2), (3, 2), (4, 1)):
        x = w.conv(x, f"conv{number}", stride=stride, padding=1)
        x = leaky(instance_norm(w, x, f"conv{number}_norm"), 0.2)
    return w.conv(x, "scores", padding=1)


def speech_embedding(w, x):
    def block(x, name):
        padding = (0, w[f"{name}.weight"].shape[-1] // 2)
        return leaky(w.conv(x, name, padding=padding), 0.2).clamp(min=-0.4)

    x = block(x, "first")
    for stage, (pairs, pool) in enumerate([(1, 2), (2, (1, 2)), (2, 2), (2, (1, 2)), (2, 2)]):
        for pair in range(1, pairs + 1):
            for axis in ("mels", "frames"):
                x = block(x, f"stage{stage}_pair{pair}_{axis}")
        x = functional.max_pool2d(x, pool)
    return w.conv(x, "embedding")


def resnet18(activation):
    def network(w, x):
        x = activation(w.norm(w.conv(x, "first", stride=2, padding=3), "first_norm"))
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(4):
            for block in range(2):
                name = f"stage{stage}_block{block}"
                stride = 2 if stage > 0 and block == 0 else 1
                y = w.conv(x, f"{name}_conv1", stride=stride, padding=1)
                y = activation(w.norm(y, f"{name}_conv1_norm"))
                y = w.norm(w.conv(y, f"{name}_conv2", padding=1), f"{name}_conv2_norm")
                if stride == 2:
                    x = w.conv(x, f"{name}_shortcut", stride=2)
                    x = w.norm(x, f"{name}_shortcut_norm")
                x = activation(x + y)
        return functional.linear(x.mean((2, 3)), w["logits.weight"], w["logits.bias"])

    return network


def small_cnn(w, x):
    for number in (1, 2, 3):
        x = functional.max_pool2d(leaky(w.conv(x, f"conv{number}", padding=1), 0.1), 2)
    x = leaky(functional.linear(x.flatten(1), w["dense.weight"], w["dense.bias"]), 0.1)
    return functional.linear(x, w["logits.weight"], w["logits.bias"])


YOLO = {"size": 64, "features": 4, "classes": 2}
# Sums of the tiny networks down to layer 12, with 4 features.
TINY = 9 * (3 + 4 * (1 + 2 + 4 + 8 + 16 + 32))
# Those of a block of Darknet-53 with 4 features, from the image to 1/2, 1/4, ... of it.
DARKNET_53 = 27 + sum(
    9 * channels // 2 + blocks * (channels + 9 * channels // 2)
    for channels, blocks in ((8, 1), (16, 2), (32, 8), (64, 8), (128, 4))
)
TYPE_1 = [((1, 1), (3, 1), (5, 1))] * 3
# Roundings on the way to the output: the lengths of all sums above it, added up.
CASES = {
    "digits": ("digits", {}, digits, 9 * (1 + 16 + 32) + 128),
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
    "yolov2_tiny": ("yolov2-tiny", YOLO, yolov2_tiny, TINY + 9 * (128 + 256) + 128),
    "yolov3_tiny": (
        "yolov3-tiny", YOLO, yolov3_tiny, TINY + 9 * 128 + 256 + 64 + 9 * 96 + 64,
    ),
    "yolov3": (
        "yolov3", YOLO, yolov3,
        DARKNET_53 + sum(10 * 3 * channels for channels in (64, 32, 16)) + 4 * (96 + 48),
    ),
    "melgan": (
        "melgan", {"frames": 4, "features": 4}, melgan,
        7 * 80 + 2 * (64 + 32 + 16 + 8) + 3 * 5 * (32 + 16 + 8 + 4) + 7 * 4,
    ),
    "pix2pix_unet": (
        "pix2pix-unet", {"size": 64, "depth": 4, "features": 8}, pix2pix_unet,
        16 * (3 + 8 + 16 + 32) + 4 * (64 + 64 + 32 + 16),
    ),
    "patchgan": (
        "patchgan", {"size": 45, "features": 8}, patchgan, 16 * (6 + 8 + 16 + 32 + 64)
    ),
    "patchgan_smallest": (
        "patchgan", {"size": 24, "features": 8}, patchgan, 16 * (6 + 8 + 16 + 32 + 64)
    ),
    "speech_embedding": (
        "speech-embedding", {"frames": 93, "features": 8}, speech_embedding,
        9 + 3 * (8 * 2 + 8 + 16 * 3 + 16 + 24 * 3 + 24 + 32 * 3 + 32 * 4 + 32),
    ),
    "resnet18": (
        "resnet18", {"size": 50, "features": 8, "classes": 7}, resnet18(lambda x: leaky(x, 0.01)),
        49 * 3 + 9 * (4 * 8 + 4 * 16 + 4 * 32 + 4 * 64) + 64,
    ),
    "resnet18_relu": (
        "resnet18", {"size": 32, "features": 8, "classes": 7, "activation": "relu"},
        resnet18(torch.relu), 49 * 3 + 9 * (4 * 8 + 4 * 16 + 4 * 32 + 4 * 64) + 64,
    ),
    "small_cnn": (
        "small-cnn", {"size": 24, "features": 4}, small_cnn, 9 * (3 + 4 + 8) + 9 * 16 + 32
    ),
}  # fmt: skip


def results(model, network):
    """Outputs of a model in ONNX Runtime and of its twin in torch, on the same input, in pairs."""
    (value,) = model.graph.input
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    data = np.random.default_rng(0).random(shape, np.float32)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    outputs = session.run(None, {value.name: data})
    with torch.inference_mode():
        references = network(Weights(model), torch.from_numpy(data))
    if isinstance(references, torch.Tensor):
        references = (references,)
    return list(zip(outputs, [each.numpy() for each in references], strict=True))


@pytest.mark.parametrize(("name", "options", "network", "roundings"), CASES.values(), ids=CASES)
def test_equals_torch(name, options, network, roundings):
    for actual, desired in results(build(name, batch=2, **options), network):
        assert actual.shape == desired.shape
        assert 0.02 < desired.std() < 10
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
        ("yolov2-tiny", {"size": 100}),
        ("yolov2-tiny", {"features": 0}),
        ("yolov3", {"classes": 0}),
        ("yolov3", {"size": 16}),
        ("yolov3", {"alpha": float("inf")}),
        ("melgan", {"frames": 3}),
        ("melgan", {"features": 0}),
        ("pix2pix-unet", {"size": 128}),
        ("pix2pix-unet", {"depth": 1}),
        ("pix2pix-unet", {"depth": 17}),
        ("patchgan", {"size": 23}),
        ("patchgan", {"features": 0}),
        ("speech-embedding", {"frames": 75}),
        ("resnet18", {"activation": "tanh"}),
        ("resnet18", {"size": 0}),
        ("resnet18", {"alpha": None}),
        ("small-cnn", {"size": 12}),
        ("small-cnn", {"classes": True}),
    ],
)
def test_options_out_of_range_are_named(name, options):
    ((option, value),) = options.items()
    with pytest.raises(ExportError, match=f"^{option}={value!r}"):
        build(name, **options)
