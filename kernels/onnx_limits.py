"""What is refused of an ONNX model before anything is computed: sizes that no machine can take.

A few hundred bytes can describe values of exabytes, functions that call one another 2**40 times, or
a graph that takes hours to compile.
"""

import math
import os
import resource
from collections import Counter
from collections.abc import Iterable, Iterator

import onnx

from leakyforge.errors import ModelError
from leakyforge.onnx_graph import element_bytes, light_copy, subgraphs

# Passes look at every node for every other: 5000 take three minutes on two cores.
MOST_NODES = 5000
# A chain of two operands each becomes of it, or a kernel of so many arguments.
MOST_INPUTS = 256
# Numpy's arrays have no more axes, and TVM's loops are as deep.
MOST_AXES = 32
# ONNX's inference of shapes follows the elements of such an input one by one, as they may be sizes.
MOST_FOLLOWED = 2**24
_ELEMENT_TYPES = frozenset(onnx.TensorProto.DataType.values())


def check_graph(proto: onnx.ModelProto, where: str) -> None:
    """Refuse types that ONNX does not have, outputs of one name, and what is too large.

    Args:
        proto: not checked yet.
        where: what errors call it.

    Raises:
        ModelError: names the value, the node or the size.
    """
    graph = proto.graph
    for tensor in graph.initializer:
        if tensor.data_type not in _ELEMENT_TYPES:
            raise ModelError(
                f"weight {tensor.name!r} of {where} is of type {tensor.data_type}, which ONNX does "
                "not have; export the model again"
            )
        if any(size < 0 for size in tensor.dims):
            raise ModelError(f"weight {tensor.name!r} of {where} has a negative size; {_AGAIN}")
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type.elem_type
        if value.type.HasField("tensor_type") and kind not in _ELEMENT_TYPES:
            raise ModelError(f"{value.name!r} of {where} is of type {kind}, which ONNX does not "
                             f"have; {_AGAIN}")  # fmt: skip
    twice = [name for name, count in Counter(each.name for each in graph.output).items()
             if count > 1]  # fmt: skip
    if twice:
        raise ModelError(f"{where} has the output {twice[0]!r} twice; {_AGAIN}")
    _check_values(graph, where)
    for value in graph.input:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if len(sizes) == 1 and sizes[0] > MOST_FOLLOWED and _is_integer(value):
            raise ModelError(
                f"{value.name!r} of {where} has {sizes[0]} integers along one axis, and up to "
                f"{MOST_FOLLOWED} are compiled; reshape it to two axes"
            )
    nodes = _count_nodes(proto)
    if nodes > MOST_NODES:
        raise ModelError(
            f"{where} has {_count(nodes)} nodes with those of its functions, and up to "
            f"{MOST_NODES} are compiled; cut the model into parts"
        )
    for node in graph.node:
        if len(node.input) > MOST_INPUTS:
            raise ModelError(
                f"operator {node.op_type} (node {node.name or ', '.join(node.output)!r}) of "
                f"{where} has {len(node.input)} inputs, and up to {MOST_INPUTS} are compiled; "
                "make it of several"
            )


def _is_integer(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type.elem_type
    return kind in (onnx.TensorProto.INT32, onnx.TensorProto.INT64)


def check_sizes(proto: onnx.ModelProto, where: str) -> None:
    """Refuse values that no array of this machine holds.

    Args:
        proto: passed ONNX's checker.
        where: what errors call it.

    Raises:
        ModelError: names the value, its shape and what there is.
    """
    inferred = onnx.shape_inference.infer_shapes(light_copy(proto), data_prop=True)
    _check_values(inferred.graph, where)


def _check_values(graph: onnx.GraphProto, where: str) -> None:
    """Refuse declared or inferred shapes that no array of this machine has."""
    memory = usable_memory()
    for name, kind, sizes in _shapes(graph):
        text = "x".join(map(str, sizes[:8])) + ("..." if len(sizes) > 8 else "")
        if len(sizes) > MOST_AXES:
            raise ModelError(f"{name!r} of {where} has {len(sizes)} axes ({text}), and up to "
                             f"{MOST_AXES} are compiled; reshape it")  # fmt: skip
        if any(size < 0 for size in sizes):
            raise ModelError(f"{name!r} of {where} has a negative size: {text}; {_AGAIN}")
        size = element_bytes(math.prod(sizes), kind)
        if size > memory:
            raise ModelError(
                f"{name!r} of {where} takes {_gibibytes(size)} ({text}), and there are "
                f"{_gibibytes(memory)} of memory; correct its shape, or compile on a larger machine"
            )


def usable_memory() -> int:
    """Bytes of memory that this process may have at most."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return physical if limit == resource.RLIM_INFINITY else min(physical, limit)


_AGAIN = "export the model again"


def _count_nodes(proto: onnx.ModelProto) -> int:
    """Nodes of the graph and of its subgraphs, with every call of a function as its body.

    Functions that call themselves count as one: ONNX's checker refuses them.
    """
    functions = {(each.domain, each.name): each for each in proto.functions}
    counted: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            key = node.domain, node.op_type
            if key in functions and key not in counted:
                counted[key] = 1
                counted[key] = count(functions[key].node)
            total += counted.get(key, 1)
            for graph in subgraphs(node):
                total += count(graph.node)
        return total

    try:
        return count(proto.graph.node)
    except RecursionError:
        return MOST_NODES + 1


def _shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, int, list[int]]]:
    """Name, element type and known sizes of every value; a symbol counts as 1."""
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            yield (
                value.name,
                tensor.elem_type,
                [dim.dim_value if dim.HasField("dim_value") else 1 for dim in tensor.shape.dim],
            )
    for weight in graph.initializer:
        yield weight.name, weight.data_type, list(weight.dims)


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def _count(number: int) -> str:
    return str(number) if number < 10**9 else f"{number:.1e}"
