"""LogSoftmax with one logarithm for each row: TVM's definition takes one for every element.

    y[r, k] = x[r, k] - maximum[r] - log(sum over k of exp(x[r, k] - maximum[r]))

Reads and writes the tensor once where a row fits the cache; see `reduction` for the loops.
"""

from tvm import ir, relax, te


def log_softmax(x: te.Tensor, axis: int) -> te.Tensor:
    """LogSoftmax of any shape along one axis, counted from the front."""
    rows = [size for position, size in enumerate(x.shape) if position != axis]

    def element(tensor: te.Tensor, row: tuple[ir.Expr, ...], k: ir.Expr) -> ir.Expr:
        return tensor(*row[:axis], k, *row[axis:])

    def row_of(index: tuple[ir.Expr, ...]) -> tuple[ir.Expr, ...]:
        return (*index[:axis], *index[axis + 1 :])

    k = te.reduce_axis((0, x.shape[axis]), "k")
    maximum = te.compute(rows, lambda *row: te.max(element(x, row, k), axis=k), name="maximum")
    k = te.reduce_axis((0, x.shape[axis]), "k")
    power = te.compute(
        x.shape, lambda *index: te.exp(x(*index) - maximum(*row_of(index))), name="power"
    )
    total = te.compute(rows, lambda *row: te.sum(element(power, row, k), axis=k), name="total")
    logarithm = te.compute(rows, lambda *row: te.log(total(*row)), name="logarithm")
    return te.compute(
        x.shape,
        lambda *index: x(*index) - maximum(*row_of(index)) - logarithm(*row_of(index)),
        name="log_softmax",
    )


def legalize_log_softmax(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `relax.nn.log_softmax` to the definition above (for `relax.transform.LegalizeOps`)."""
    axis = int(call.attrs.axis) % call.args[0].ty.ndim
    return builder.call_te(log_softmax, call.args[0], axis)
