"""ONNX operators RNN, GRU and LSTM, their steps unrolled.

https://onnx.ai/onnx/operators/onnx__LSTM.html, GRU and RNN give the formulas. Layout 0: data
[steps, batch, input], states [directions, batch, hidden], result [steps, directions, batch,
hidden]. The number of steps is known at compile time; sequences are all of full length.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from leakyforge.errors import ModelError
from leakyforge.kernels.onnx_ops.node import Node, dtype_of, static_shape

_Activation = Callable[[Any], Any]
_ACTIVATIONS: dict[str, _Activation] = {
    "Relu": relax.op.nn.relu,
    "Sigmoid": relax.op.sigmoid,
    "Tanh": relax.op.tanh,
}


class Cell:
    """One direction of a recurrent operator.

    Args:
        node: the operator.
        direction: index of the direction.
        gates: blocks of the hidden size in a weight.
        activations: of this direction, in ONNX's order.
    """

    def __init__(
        self, node: Node, direction: int, gates: int, activations: Sequence[_Activation]
    ) -> None:
        self._node = node
        self.gates = gates
        self.activations = activations
        self.hidden = int(node.attributes["hidden_size"])
        transposed = [self._part(node.input(place), direction) for place in (1, 2)]
        self.weight, self.recurrence = map(relax.op.permute_dims, transposed)
        bias = node.input(3)
        both = None if bias is None else self._part(bias, direction)
        width = gates * self.hidden
        self.bias_in = None if both is None else self.columns(both, 0, width)
        self.bias_state = None if both is None else self.columns(both, width, width)
        peepholes = node.input(7)
        self.peepholes = None if peepholes is None else self._part(peepholes, direction)

    def bind(self, value: relax.Expr) -> relax.Var:
        """Bind a value to a name, so that it is computed once."""
        return self._node.builder.emit(value)

    def _part(self, value: relax.Expr, direction: int) -> relax.Var:
        index = relax.const(np.array(direction), "int64")
        return self.bind(relax.op.take(value, index, axis=0))

    def columns(self, value: relax.Expr, start: int, count: int) -> relax.Var:
        """Some of the last axis."""
        return self.bind(relax.op.strided_slice(value, [-1], [start], [start + count]))

    def gate(self, value: relax.Expr, position: int) -> relax.Var:
        """The block of one gate."""
        return self.columns(value, position * self.hidden, self.hidden)

    def of_input(self, x: relax.Expr) -> relax.Var:
        """All gates' share of the input, with its bias."""
        return self.bind(_biased(relax.op.matmul(x, self.weight), self.bias_in))

    def of_state(self, h: relax.Expr) -> relax.Var:
        """All gates' share of the state, with its bias."""
        return self.bind(_biased(relax.op.matmul(h, self.recurrence), self.bias_state))

    def number(self, value: float, like: relax.Expr) -> relax.Expr:
        """A constant of a tensor's dtype."""
        return relax.const(value, dtype_of(like))


def _biased(value: relax.Expr, bias: relax.Expr | None) -> relax.Expr:
    return value if bias is None else relax.op.add(value, bias)


_Step = Callable[[Cell, Any, tuple[Any, ...]], tuple[Any, ...]]


def convert_rnn(node: Node) -> relax.Expr:
    """RNN: h = f(W x + R h + b)."""
    return _unroll(node, 1, ["Tanh"], _rnn_step, states=1)


def _rnn_step(cell: Cell, x: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
    (h,) = states
    (f,) = cell.activations
    return (cell.bind(f(relax.op.add(cell.of_input(x), cell.of_state(h)))),)


def convert_gru(node: Node) -> relax.Expr:
    """GRU: gates z, r and the hidden one, where the state is reset before or after its product."""
    after = bool(node.attributes.get("linear_before_reset", 0))

    def step(cell: Cell, x: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
        (h,) = states
        f, g = cell.activations
        inputs, recurrent = cell.of_input(x), cell.of_state(h)
        z = cell.bind(f(relax.op.add(cell.gate(inputs, 0), cell.gate(recurrent, 0))))
        r = cell.bind(f(relax.op.add(cell.gate(inputs, 1), cell.gate(recurrent, 1))))
        if after:
            reset = relax.op.multiply(r, cell.gate(recurrent, 2))
        else:
            reset = cell.gate(cell.of_state(cell.bind(relax.op.multiply(r, h))), 2)
        candidate = cell.bind(g(relax.op.add(cell.gate(inputs, 2), reset)))
        kept = relax.op.multiply(z, h)
        rest = relax.op.subtract(cell.number(1, h), z)
        return (cell.bind(relax.op.add(relax.op.multiply(rest, candidate), kept)),)

    return _unroll(node, 3, ["Sigmoid", "Tanh"], step, states=1)


def convert_lstm(node: Node) -> relax.Expr:
    """LSTM: gates i, o, f and the cell's, with peepholes from the cell."""
    if node.attributes.get("input_forget", 0):
        raise ModelError("LSTM: input_forget is not supported")
    return _unroll(node, 4, ["Sigmoid", "Tanh", "Tanh"], _lstm_step, states=2)


def _lstm_step(cell: Cell, x: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
    h, c = states
    f, g, last = cell.activations
    total = cell.bind(relax.op.add(cell.of_input(x), cell.of_state(h)))

    def gate(position: int, peephole: int, memory: Any) -> Any:
        value = cell.gate(total, position)
        if cell.peepholes is not None:
            weight = cell.gate(cell.peepholes, peephole)
            value = relax.op.add(value, relax.op.multiply(weight, memory))
        return cell.bind(f(value))

    i, forget = gate(0, 0, c), gate(2, 2, c)
    update = relax.op.multiply(i, g(cell.gate(total, 3)))
    c = cell.bind(relax.op.add(relax.op.multiply(forget, c), update))
    o = gate(1, 1, c)
    return cell.bind(relax.op.multiply(o, last(c))), c


def _unroll(node: Node, gates: int, defaults: list[str], step: _Step, states: int) -> relax.Expr:
    """All steps of all directions; results are Y and the last states."""
    if "clip" in node.attributes:
        raise ModelError(f"{node.operator}: clip is not supported")
    batch_first = bool(node.attributes.get("layout", 0))
    data = node.input(0)
    if batch_first:
        data = node.builder.emit(relax.op.permute_dims(data, [1, 0, 2]))
    steps, batch, _ = static_shape(data, node.operator)
    _check_lengths(node, steps)
    direction = node.text("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    names = [name.decode() for name in node.attributes.get("activations", ())] or defaults * count
    unknown = sorted(set(names) - _ACTIVATIONS.keys())
    if unknown:
        raise ModelError(f"{node.operator}: activation {unknown[0]} is not supported")
    every: list[list[Any]] = []
    last: list[tuple[Any, ...]] = []
    for index in range(count):
        chosen = names[index * len(defaults) : (index + 1) * len(defaults)]
        cell = Cell(node, index, gates, [_ACTIVATIONS[name] for name in chosen])
        current = _initial(node, cell, index, batch, states, batch_first)
        backward = direction == "reverse" or index == 1
        results = [None] * steps
        for place in reversed(range(steps)) if backward else range(steps):
            x = relax.op.take(data, relax.const(np.array(place), "int64"), axis=0)
            current = step(cell, cell.bind(x), current)
            results[place] = current[0]
        every.append(results)
        last.append(current)
    # [steps, directions, batch, hidden]
    whole = _stack([_stack([part[place] for part in every]) for place in range(steps)])
    ends = [_stack([part[state] for part in last]) for state in range(states)]
    if batch_first:
        whole = relax.op.permute_dims(whole, [2, 0, 1, 3])
        ends = [relax.op.permute_dims(end, [1, 0, 2]) for end in ends]
    outputs = [node.builder.emit(value) for value in (whole, *ends)]
    return relax.Tuple(outputs)


def _stack(values: list[Any]) -> relax.Expr:
    return relax.op.concat([relax.op.expand_dims(value, 0) for value in values], axis=0)


def _initial(
    node: Node, cell: Cell, direction: int, batch: int, states: int, batch_first: bool
) -> tuple[Any, ...]:
    """The states before the first step: given, or zeros."""
    values = []
    for state in range(states):
        given = node.input(5 + state)
        if given is None:
            zeros = np.zeros((batch, cell.hidden), dtype_of(node.input(0)))
            values.append(relax.const(zeros, dtype_of(node.input(0))))
        else:
            index = relax.const(np.array(direction), "int64")
            values.append(cell.bind(relax.op.take(given, index, axis=1 if batch_first else 0)))
    return tuple(values)


def _check_lengths(node: Node, steps: int) -> None:
    lengths = node.constant(4, "sequence_lens")
    if lengths is not None and any(int(length) != steps for length in lengths):
        raise ModelError(f"{node.operator}: sequences shorter than the data are not supported")
