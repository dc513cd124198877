"""The layers of a model that can be tuned."""

import functools
from dataclasses import dataclass, replace

from leakyforge.kernels.algorithms import Algorithm
from leakyforge.kernels.choice import Choice
from leakyforge.kernels.choose import choose
from leakyforge.kernels.half import add_up_in_float32
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.legalize import Choose, lower_constant_weights
from leakyforge.kernels.measure import MOST_BETWEEN, Layer
from leakyforge.kernels.onnx_model import fix_shapes, fold, load_onnx
from leakyforge.kernels.pipeline import choose_layout
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.tuning.workload import workload_key


@dataclass(frozen=True)
class Tunable:
    """A layer of a model that can be tuned.

    Attributes:
        words: the layer in words.
        workload: its hash; layers of equal sizes have one in common.
        layer: the convolution and what it reads.
        granule: input channels that lie together in memory.
        strict: whether only the sums of the definition may be taken.
        count: layers of the model that it stands for.
        between: bytes that the model touches between two runs of one of its layers, up to
            `MOST_BETWEEN`.
        rules: what is taken without tuning, by the cost model.
    """

    words: str
    workload: str
    layer: Layer
    granule: int
    strict: bool
    count: int
    between: int
    rules: Algorithm


def tunable_layers(
    source: str,
    target: CpuTarget,
    shapes: dict[str, tuple[int, ...]],
    *,
    strict: bool,
) -> list[Tunable]:
    """The convolutions and products of an ONNX file, each size once, in the order of the model.

    Args:
        source: path of the file.
        target: the CPU.
        shapes: of inputs whose dimensions are symbolic.
        strict: keep to the sums of the definition.

    Raises:
        ModelError: the model cannot be read, checked or imported (see its subclasses).
        ShapeError: a shape does not fit.
    """
    found: dict[str, list[Tunable]] = {}

    def chooser(touched: int) -> Choose:
        by_rules = functools.partial(choose, target=target, strict=strict, stopwatch="not asked")

        def collect(words: str, layer: Layer, granule: int) -> tuple[Algorithm, Choice]:
            algorithm, choice = by_rules(words, layer, granule)
            key = workload_key(layer, granule, strict=strict)
            between = min(touched, MOST_BETWEEN)
            tunable = Tunable(words, key, layer, granule, strict, 1, between, algorithm)
            found.setdefault(key, []).append(tunable)
            return algorithm, choice

        return collect

    proto = fix_shapes(load_onnx(source).proto, shapes)
    module = choose_layout(import_onnx(add_up_in_float32(fold(proto))))
    lower_constant_weights(module, target, strict=strict, chooser=chooser)
    return [replace(layers[0], count=len(layers)) for layers in found.values()]
