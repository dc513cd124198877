"""The layers of a model that can be tuned."""

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import tvm

from leakyforge.kernels.algorithms import Algorithm
from leakyforge.kernels.choice import Choice
from leakyforge.kernels.choose import choose
from leakyforge.kernels.cpu_code import tvm_errors
from leakyforge.kernels.flops import product_flops
from leakyforge.kernels.half import add_up_in_float32
from leakyforge.kernels.importer import import_onnx
from leakyforge.kernels.legalize import Choose, lower_constant_weights
from leakyforge.kernels.measure import (
    MOST_BETWEEN,
    Layer,
    Spec,
    build_kernel,
    define_kernel,
    output_shape,
)
from leakyforge.kernels.onnx_model import fix_shapes, fold, load_onnx
from leakyforge.kernels.pipeline import choose_layout, fuse
from leakyforge.kernels.target import CpuTarget
from leakyforge.kernels.tuning import reference
from leakyforge.kernels.tuning.fused import fused_kernels
from leakyforge.kernels.tuning.space import SizesSpace, candidates
from leakyforge.kernels.tuning.tunable import Array, Tunable
from leakyforge.kernels.tuning.workload import config_from_json, config_to_json, workload_key


@dataclass(frozen=True)
class Convolution(Tunable):
    """A convolution or a product of matrices, whose sizes our schedules leave open.

    Attributes:
        layer: the convolution and what it reads.
        granule: input channels that lie together in memory.
        strict: whether only the sums of the definition may be taken.
        rules: what is taken without tuning, by the cost model.
    """

    layer: Layer
    granule: int
    strict: bool
    rules: Algorithm

    @property
    def rules_config(self) -> str:
        """The cost model's choice."""
        return config_to_json(self.rules.config)

    @property
    def inputs(self) -> list[Spec]:
        """What the convolution reads."""
        return self.layer.specs

    @property
    def output(self) -> Spec:
        """What the convolution writes."""
        return output_shape(self.layer), self.layer.dtype

    def space(self, target: CpuTarget, seed: int) -> SizesSpace | None:
        """Other sizes; None where there are none."""
        every = candidates(self.layer.shape, target, self.granule, strict=self.strict)
        others = [each.config for each in every if each.config != self.rules.config]
        source = random.Random(f"{seed} {self.workload}")
        return SizesSpace(list(map(config_to_json, others)), source) if others else None

    def build(self, config: str, target: CpuTarget) -> tuple[tvm.runtime.Module, list[Array]]:
        """The kernel, and the weights as it takes them."""
        algorithm = Algorithm(config_from_json(config), 0.0)
        packed = algorithm.pack(self._weights(), self.layer.shape)
        return build_kernel(self.layer, algorithm, target), [packed]

    def desired(self, inputs: Sequence[Array]) -> Array:
        """The result by numpy in float64, of standard normal weights."""
        data = reference.read_input(self.layer, inputs)
        return reference.convolve(data, self._weights(), self.layer.shape)

    def roundings(self) -> int:
        """Of the definition's sum."""
        return math.prod(self.layer.shape.kernel) * self.layer.shape.in_channels

    def computed_flops(self, config: str) -> int:
        """Of the algorithm."""
        algorithm = Algorithm(config_from_json(config), 0.0)
        return product_flops(define_kernel(self.layer, algorithm))[1]

    def _weights(self) -> Array:
        return reference.random_weights(self.layer.shape, seed=1)


def tunable_layers(
    source: str,
    target: CpuTarget,
    shapes: dict[str, tuple[int, ...]],
    *,
    strict: bool,
) -> list[Tunable]:
    """The layers of an ONNX file that can be tuned, each size once.

    Convolutions and products come first, then what MetaSchedule may schedule, in the order of the
    model each.

    Args:
        source: path of the file.
        target: the CPU.
        shapes: of inputs whose dimensions are symbolic.
        strict: keep to the sums of the definition.

    Raises:
        ModelError: the model cannot be read, checked or imported (see its subclasses).
        ShapeError: a shape does not fit.
        CompileError: TVM fails on the graph.
    """
    found: dict[str, list[Convolution]] = {}

    def chooser(touched: int) -> Choose:
        by_rules = functools.partial(choose, target=target, strict=strict, stopwatch="not asked")

        def collect(words: str, layer: Layer, granule: int) -> tuple[Algorithm, Choice]:
            algorithm, choice = by_rules(words, layer, granule)
            key = workload_key(layer, granule, strict=strict)
            between = min(touched, MOST_BETWEEN)
            tunable = Convolution(words, key, 1, between, layer, granule, strict, algorithm)
            found.setdefault(key, []).append(tunable)
            return algorithm, choice

        return collect

    proto = fix_shapes(load_onnx(source).proto, shapes)
    module = import_onnx(add_up_in_float32(fold(proto)))
    with tvm_errors(module):
        lowered = lower_constant_weights(
            choose_layout(module), target, strict=strict, chooser=chooser
        )
        fused = fuse(lowered, target.tvm)
    convolutions = [replace(layers[0], count=len(layers)) for layers in found.values()]
    return [*convolutions, *fused_kernels(fused)]
