"""What a search has to know of a layer: its candidates, how each is built, and what is right."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import tvm

from leakyforge.kernels.measure import Spec
from leakyforge.kernels.target import CpuTarget

Array = npt.NDArray[Any]


class Space(Protocol):
    """The candidates of a layer, in the order in which a search tries them."""

    def next(self, ratios: Mapping[str, float]) -> str | None:
        """A candidate, in JSON, that was not given before; None where all were.

        Args:
            ratios: time of each that was measured, as a multiple of that of the rules' choice.
        """


@dataclass(frozen=True)
class Tunable(ABC):
    """A layer of a model that can be tuned.

    Attributes:
        words: the layer in words.
        workload: its hash; layers of equal sizes have one in common.
        count: layers of the model that it stands for.
        between: bytes that the model touches between two runs of one of its layers, up to
            `measure.MOST_BETWEEN`.
    """

    words: str
    workload: str
    count: int
    between: int

    @property
    @abstractmethod
    def rules_config(self) -> str:
        """What is taken without tuning, in JSON."""

    @property
    @abstractmethod
    def inputs(self) -> Sequence[Spec]:
        """The tensors that other layers write for it."""

    @property
    @abstractmethod
    def output(self) -> Spec:
        """The tensor that it writes."""

    @abstractmethod
    def space(self, target: CpuTarget, seed: int) -> Space | None:
        """What competes with the rules' choice; None where nothing does."""

    @abstractmethod
    def build(self, config: str, target: CpuTarget) -> tuple[tvm.runtime.Module, list[Array]]:
        """A candidate's kernel `main`, and what it takes between the inputs and the output.

        Raises:
            RuntimeError: the schedule does not take these sizes, or TVM fails.
            ValueError: the candidate is none of this layer.
        """

    @abstractmethod
    def desired(self, inputs: Sequence[Array]) -> Array:
        """The result for these inputs, by the definition."""

    @abstractmethod
    def roundings(self) -> int:
        """Roundings above an element of the result, for its tolerance."""

    @abstractmethod
    def computed_flops(self, config: str) -> int:
        """Floating-point operations of a candidate's products, 0 where it has none."""
