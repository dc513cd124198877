"""What a tuning record is about: a layer's sizes, without names or weights."""

import dataclasses
import hashlib
import json
from typing import Any

from leakyforge.kernels.algorithms import Config
from leakyforge.kernels.conv2d import Conv2dConfig
from leakyforge.kernels.conv2d_dot import DotConfig
from leakyforge.kernels.depthwise import DepthwiseConfig
from leakyforge.kernels.grouped import GroupedConfig
from leakyforge.kernels.measure import Layer
from leakyforge.kernels.strassen import StrassenConfig
from leakyforge.kernels.winograd import WinogradConfig
from leakyforge.kernels.winograd1d import Winograd1dConfig

_CONFIGS: dict[str, type[Any]] = {
    each.__name__: each
    for each in (
        Conv2dConfig, DotConfig, DepthwiseConfig, GroupedConfig, WinogradConfig, Winograd1dConfig,
        StrassenConfig,
    )
}  # fmt: skip


def workload_key(layer: Layer, granule: int, *, strict: bool) -> str:
    """Hash of what a kernel's time depends on, but for the machine: equal for equal layers.

    Args:
        layer: the convolution and what it reads; the sizes of its inputs say how they are read.
        granule: input channels that lie together in memory.
        strict: whether only the sums of the definition may be taken.
    """
    shape = dataclasses.asdict(layer.shape)
    if not layer.shape.is_product:
        # Records of convolutions are older than those of products.
        del shape["is_product"]
    sizes = {
        "shape": shape,
        "inputs": layer.inputs,
        "copies": layer.copies,
        "granule": granule,
        "strict": strict,
    }
    return hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()[:16]


def config_to_json(config: Config) -> str:
    """Sizes of a kernel, with the name of their type."""
    return json.dumps({"type": type(config).__name__, **dataclasses.asdict(config)}, sort_keys=True)


def config_from_json(text: str) -> Config:
    """The reverse.

    Raises:
        ValueError: no type of such a name, or sizes that it does not take.
    """
    values = json.loads(text)
    try:
        config: Config = _CONFIGS[values.pop("type")](**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"sizes of an unknown kernel: {error}") from error
    return config
