"""Values of an ONNX graph in one run, and the parts of the graph between them."""

from collections.abc import Collection, Mapping

import onnx

from leakyforge.errors import ModelError
from leakyforge.exporter.rounding import node_steps
from leakyforge.onnx_graph import PRODUCTS
from leakyforge.runtime.float64 import evaluate_float64
from leakyforge.runtime.reference import load_reference
from leakyforge.runtime.tensors import Array
from leakyforge.tolerance import UNIT_ROUNDOFF, Tolerance, tolerance


class OnnxValues:
    """A graph, and what ONNX Runtime without its optimisations computes for every value in it.

    Args:
        model: its nodes in order, as ONNX asks.
        feeds: an array for each input.

    Attributes:
        values: arrays by name, those of the inputs and of the weights too.

    Raises:
        ModelError: ONNX Runtime does not run the model.
    """

    def __init__(self, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> None:
        self._model = model
        self._producers = {name: node for node in model.graph.node for name in node.output if name}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        del watched.graph.output[:]
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._producers)
        reference = load_reference(watched, optimised=False)
        self._engine = reference.name
        self.values = {**reference.run(feeds), **feeds}
        self._shapes = {name: tuple(array.shape) for name, array in self.values.items()}
        self._shapes |= {name: tuple(tensor.dims) for name, tensor in self._weights.items()}

    def reachable(self, sources: Collection[str], products: int) -> list[str]:
        """Values that follow from the sources and weights with no more products than so many."""
        needed = {name: frozenset[str]() for name in (*sources, *self._weights, "")}
        follows = set(sources)
        found = []
        for node in self._model.graph.node:
            if not all(name in needed for name in node.input):
                continue
            above = frozenset[str]().union(*(needed[name] for name in node.input))
            # A kernel holds one of them at most.
            if node.op_type in PRODUCTS:
                above |= {node.output[0]}
            if len(above) > products:
                continue
            outputs = [name for name in node.output if name and name not in needed]
            needed |= dict.fromkeys(outputs, above)
            if follows.intersection(node.input):
                follows.update(outputs)
                found += outputs
        return found

    def nodes_between(self, sources: Collection[str], output: str) -> list[onnx.NodeProto]:
        """Nodes that compute an output out of the sources, in order."""
        pending, wanted = [output], set()
        while pending:
            name = pending.pop()
            node = self._producers.get(name)
            if name in sources or node is None or node.output[0] in wanted:
                continue
            wanted.add(node.output[0])
            pending += node.input
        return [node for node in self._model.graph.node if node.output[0] in wanted]

    def limits(self, sources: Collection[str], output: str, dtype: str) -> Tolerance:
        """Tolerance of the roundings between sources and an output that is computed in a dtype."""
        nodes = self.nodes_between(sources, output)
        dtypes = (dtype, str(self.values[output].dtype))
        return tolerance(
            max(dtypes, key=lambda each: UNIT_ROUNDOFF.get(each, 0.0)),
            sum(node_steps(node, self._shapes) for node in nodes),
            sum(node.op_type.endswith("QuantizeLinear") for node in nodes),
        )

    def exact(self, sources: Collection[str], output: str) -> tuple[Array, str]:
        """An output in float64 out of the sources' values, and what computed it.

        Where it cannot be evaluated in float64, ONNX Runtime's.
        """
        model, names = self.part(sources, output)
        try:
            (results,) = evaluate_float64(model, [{name: self.values[name] for name in names}])
        except ModelError:
            return self.values[output], self._engine
        return results[output], "float64"

    def part(self, sources: Collection[str], output: str) -> tuple[onnx.ModelProto, list[str]]:
        """The nodes between as a model of their own, and the names of its inputs."""
        nodes = self.nodes_between(sources, output)
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        inputs = [name for name in read if name in sources]
        graph = onnx.helper.make_graph(
            nodes,
            output,
            [self._info(name) for name in inputs],
            [self._info(output)],
            [self._weights[name] for name in read if name in self._weights],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )
        return model, inputs

    def _info(self, name: str) -> onnx.ValueInfoProto:
        array = self.values[name]
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        return onnx.helper.make_tensor_value_info(name, kind, array.shape)
