"""The models that leakyforge can build by name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import onnx

from leakyforge.errors import ExportError
from leakyforge.models.dcgan import dcgan_discriminator, dcgan_generator
from leakyforge.models.digits import digits
from leakyforge.models.hifigan import hifigan
from leakyforge.models.melgan import melgan
from leakyforge.models.mlp import mlp
from leakyforge.models.pix2pix import patchgan, pix2pix_unet
from leakyforge.models.resnet18 import resnet18
from leakyforge.models.rrdbnet import rrdbnet
from leakyforge.models.small_cnn import small_cnn
from leakyforge.models.speech_embedding import speech_embedding
from leakyforge.models.vits import vits
from leakyforge.models.yolov2_tiny import yolov2_tiny
from leakyforge.models.yolov3 import yolov3
from leakyforge.models.yolov3_tiny import yolov3_tiny


@dataclass(frozen=True)
class ZooModel:
    """A builder, which takes keyword options and returns an ONNX model, and what it builds."""

    builder: Callable[..., onnx.ModelProto]
    description: str

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that the builder takes."""
        return tuple(inspect.signature(self.builder).parameters)


ZOO: Mapping[str, ZooModel] = MappingProxyType(
    {
        "yolov2-tiny": ZooModel(
            yolov2_tiny, "YOLOv2-tiny detector, 416 x 416, random weights, 8 LeakyRelu"
        ),
        "yolov3": ZooModel(
            yolov3, "YOLOv3 detector (Darknet-53), 416 x 416, random weights, 72 LeakyRelu"
        ),
        "yolov3-tiny": ZooModel(
            yolov3_tiny, "YOLOv3-tiny detector, 416 x 416, random weights, 11 LeakyRelu"
        ),
        "digits": ZooModel(digits, "classifier of 8 x 8 handwritten digits, trained, 3 LeakyRelu"),
        "rrdbnet": ZooModel(
            rrdbnet, "ESRGAN generator, 64 x 64 to 256 x 256, random weights, 23 blocks"
        ),
        "hifigan": ZooModel(hifigan, "HiFi-GAN generator V2, 64 mel frames, random weights"),
        "melgan": ZooModel(melgan, "MelGAN generator, 64 mel frames, random weights, 29 LeakyRelu"),
        "dcgan-discriminator": ZooModel(
            dcgan_discriminator, "DCGAN discriminator, 64 x 64, random weights, 4 LeakyRelu"
        ),
        "dcgan-generator": ZooModel(
            dcgan_generator, "DCGAN generator, 64 x 64, random weights, 4 LeakyRelu"
        ),
        "pix2pix-unet": ZooModel(
            pix2pix_unet, "pix2pix U-Net generator, 256 x 256, random weights, 7 LeakyRelu"
        ),
        "patchgan": ZooModel(
            patchgan, "pix2pix discriminator of patches, 256 x 256, random weights, 4 LeakyRelu"
        ),
        "speech-embedding": ZooModel(
            speech_embedding, "speech embedding of 76 mel frames, random weights, 19 LeakyRelu"
        ),
        "resnet18": ZooModel(
            resnet18, "ResNet-18 with LeakyRelu or ReLU, 224 x 224, random weights"
        ),
        "small-cnn": ZooModel(small_cnn, "classifier of 32 x 32 images, random weights"),
        "vits": ZooModel(
            vits, "voice of Piper's kind, of any length, random weights; needs compile --fallback"
        ),
        "mlp": ZooModel(mlp, "perceptron 784-512-512-10, random weights, 2 LeakyRelu"),
    }
)


def build(name: str, /, **options: Any) -> onnx.ModelProto:
    """Build the model called `name` with the options of its builder.

    Raises:
        ExportError: The name or an option is unknown, or the value of an option is out of range.
    """
    if name not in ZOO:
        raise ExportError(f"no model is called {name!r}; the zoo has {', '.join(sorted(ZOO))}")
    model = ZOO[name]
    unknown = sorted(set(options) - set(model.options))
    if unknown:
        raise ExportError(
            f"{name} has no option {', '.join(unknown)}; its options are {', '.join(model.options)}"
        )
    return model.builder(**options)
