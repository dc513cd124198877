"""Cutting an ONNX graph into stages: what is compiled, and what ONNX Runtime runs.

1. Every node is of one kind: compiled, or refused, with the reason.
2. A stage takes every node of its kind whose inputs are there, as early as it can; the kinds take
   turns. So no two stages wait for each other, and there are as few as the path with the most
   changes of kind has: with the better of the two kinds first, none fewer can do.
3. Compiled nodes that hang together and do less than `LEAST_FLOPS` in convolutions and products
   are refused too, and the graph is cut again: a crossing takes about 10 us, in which two cores
   do 1 MFLOP, and where there is no such work ONNX Runtime is as fast as we are. A convolution or
   product of symbolic sizes is kept, since its work is not known.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from onnxscript import ir

from leakyforge.errors import ModelError
from leakyforge.kernels.importer import operator, unsupported_operators
from leakyforge.kernels.packed import PACKED_TYPES
from leakyforge.kernels.symbolic_sizes import name_sizes
from leakyforge.onnx_graph import (
    PRODUCTS,
    is_large,
    light_copy,
    node_flops,
    nodes_within,
    subgraphs,
    value_shapes,
)

LEAST_FLOPS = 1_000_000
_TOO_SMALL = "too little work for crossing the border"
# Why a node is not compiled, by its key.
Refusals = dict[str, str]


@dataclass(frozen=True)
class Part:
    """A stage as a model of its own.

    Attributes:
        nodes: in the order of the graph.
        compiled: whether it is compiled; else ONNX Runtime runs it.
        model: the nodes, with their weights; inputs and outputs have the graph's names.
    """

    nodes: tuple[onnx.NodeProto, ...]
    compiled: bool
    model: onnx.ModelProto


class Graph:
    """A model to be cut.

    Args:
        model: checked and simplified.

    Attributes:
        nodes: each after those that it reads.
        types: of all values but weights, as far as ONNX infers them.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        lifted = ir.from_proto(model)
        # Each stage then takes the constants that it reads.
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(lifted)
        self._model = ir.to_proto(lifted)
        graph = self._model.graph
        self.nodes: Sequence[onnx.NodeProto] = graph.node
        self._reads = {key(node): reads(node) for node in graph.node}
        self._readers: dict[str, set[str]] = {}
        for reader, names in self._reads.items():
            for name in names:
                self._readers.setdefault(name, set()).add(reader)
        self._results = {value.name for value in graph.output}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        light = light_copy(self._model)
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
        self.types = {
            value.name: value
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
            if value.name not in self._weights
        }
        name_sizes(self.types, light)
        self._shapes = value_shapes(self._model)

    def refusals(self) -> Refusals:
        """Nodes that cannot be compiled, as far as that can be seen without trying."""
        found = {key(node): self._refusal(node) for node in self.nodes}
        return {name: reason for name, reason in found.items() if reason}

    def _refusal(self, node: onnx.NodeProto) -> str:
        """Why a node cannot be compiled, else empty."""
        inner = (each for graph in subgraphs(node) for each in nodes_within(graph))
        lacking = unsupported_operators({operator(each) for each in (node, *inner)})
        if lacking:
            return f"operator {lacking[0]} is not supported by the compiler"
        for name in (*self._reads[key(node)], *filter(None, node.output)):
            if name in self._weights:
                continue
            kind = self.types[name].type if name in self.types else onnx.TypeProto()
            dtype = kind.tensor_type.elem_type
            if dtype in (*PACKED_TYPES, onnx.TensorProto.STRING):
                return f"type {onnx.TensorProto.DataType.Name(dtype)} is not supported"
            if not kind.tensor_type.HasField("shape"):
                return "the rank of an input or output is not known"
        return ""

    def cut(self, refused: Refusals) -> list[Part]:
        """The stages in their order; islands that are too small are added to `refused`."""
        while True:
            stages = self._stages(refused)
            islands = [
                island
                for compiled, nodes in stages
                if compiled and len(stages) > 1
                for island in self._islands(nodes)
                if not self._pays(island)
            ]
            if not islands:
                return [Part(tuple(nodes), kind, self.part(nodes)) for kind, nodes in stages]
            refused |= {key(node): _TOO_SMALL for island in islands for node in island}

    def _stages(self, refused: Mapping[str, str]) -> list[tuple[bool, list[onnx.NodeProto]]]:
        """Whether each stage is compiled, and its nodes: the shorter way to take turns."""
        return min((self._turns(refused, first) for first in (True, False)), key=len)

    def _turns(
        self, refused: Mapping[str, str], first: bool
    ) -> list[tuple[bool, list[onnx.NodeProto]]]:
        """Stages that take turns, the first one compiled or not."""
        turns: dict[str, int] = {}
        stages: list[tuple[bool, list[onnx.NodeProto]]] = []
        for node in self.nodes:
            turn = max((turns.get(name, 0) for name in self._reads[key(node)]), default=0)
            if (turn % 2 == 0) != ((key(node) not in refused) == first):
                turn += 1
            turns |= dict.fromkeys(node.output, turn)
            while len(stages) <= turn:
                stages.append(((len(stages) % 2 == 0) == first, []))
            stages[turn][1].append(node)
        return [stage for stage in stages if stage[1]]

    def _islands(self, nodes: Sequence[onnx.NodeProto]) -> list[list[onnx.NodeProto]]:
        """Groups of nodes that no value connects which one of the nodes computes."""
        above = {name: key(node) for node in nodes for name in node.output}
        leader = {key(node): key(node) for node in nodes}

        def find(name: str) -> str:
            while leader[name] != name:
                name = leader[name]
            return name

        for node in nodes:
            for name in self._reads[key(node)]:
                if name in above:
                    leader[find(above[name])] = find(key(node))
        groups: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            groups.setdefault(find(key(node)), []).append(node)
        return list(groups.values())

    def _pays(self, nodes: Sequence[onnx.NodeProto]) -> bool:
        """Whether nodes do enough to be worth a crossing of the border."""
        products = [node for node in nodes if node.op_type in PRODUCTS]
        if any(self._is_symbolic(name) for node in products for name in reads(node)):
            return True
        return sum(node_flops(node, self._shapes) for node in products) >= LEAST_FLOPS

    def _is_symbolic(self, name: str) -> bool:
        """Whether a value has a size that is not known."""
        return name in self.types and not all(
            dim.HasField("dim_value") for dim in self.types[name].type.tensor_type.shape.dim
        )

    def part(
        self, nodes: Sequence[onnx.NodeProto], outputs: Collection[str] | None = None
    ) -> onnx.ModelProto:
        """Nodes as a model of their own.

        Args:
            nodes: in the order of the graph.
            outputs: of the model; by default the values that other nodes or the caller read.

        Raises:
            ModelError: its weights are more than 2 GiB.
        """
        mine = {key(node) for node in nodes}
        made = dict.fromkeys(name for node in nodes for name in node.output if name)
        read = dict.fromkeys(name for node in nodes for name in self._reads[key(node)])
        if outputs is None:
            outputs = [
                name
                for name in made
                if name in self._results or not self._readers.get(name, mine) <= mine
            ]
        graph = onnx.helper.make_graph(
            nodes,
            self._model.graph.name,
            [self._info(name) for name in read if name not in made and name not in self._weights],
            [self._info(name) for name in outputs],
            [self._weights[name] for name in read if name in self._weights],
            value_info=[self._info(name) for name in made if name not in outputs],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )
        if is_large(model):
            raise ModelError(
                f"a stage of graph {graph.name!r} has more than 2 GiB of weights, which an "
                "artifact of several stages does not take; compile the model without --fallback"
            )
        return model

    def _info(self, name: str) -> onnx.ValueInfoProto:
        return self.types.get(name, onnx.ValueInfoProto(name=name))


def key(node: onnx.NodeProto) -> str:
    """What a node is known by: its first output that is there."""
    name: str = next(filter(None, node.output))
    return name


def label(node: onnx.NodeProto) -> str:
    """A node as reports name it: operator and name."""
    return f"{operator(node)} {node.name or key(node)}"


def reads(node: onnx.NodeProto) -> list[str]:
    """Values that a node reads, once each, those that its subgraphs take from around it too."""
    inner = [name for graph in subgraphs(node) for name in _captured(graph)]
    return list(dict.fromkeys([*filter(None, node.input), *inner]))


def _captured(graph: onnx.GraphProto) -> Iterator[str]:
    """Values of the graphs around it that a subgraph reads."""
    own = {value.name for value in (*graph.input, *graph.initializer)}
    for node in graph.node:
        yield from (name for name in reads(node) if name not in own)
        own.update(node.output)
    yield from (value.name for value in graph.output if value.name not in own)
