"""Functions of numpy that compiled code calls: what TVM itself has only in its compiler."""

import functools
from typing import Any

import numpy as np

from leakyforge.runtime.suppression import non_max_suppression
from leakyforge.runtime.tensors import Array
from leakyforge.runtime.tvm_runtime import tvm_ffi
from leakyforge.runtime.vm_tensors import to_numpy, to_tvm


def nonzero(data: Any) -> Any:
    """ONNX operator NonZero: int64 indices [rank, number] of what is not 0, a scalar being [1]."""
    indices: Array = np.stack(np.atleast_1d(to_numpy(data)).nonzero()).astype(np.int64)
    return to_tvm(indices)


def shape_to_tensor(shape: Any) -> Any:
    """A shape of Relax as int64 [rank]."""
    return to_tvm(np.array([int(size) for size in shape], np.int64))


def select_boxes(boxes: Any, scores: Any, *amounts: Any) -> Any:
    """ONNX operator NonMaxSuppression (see `suppression`), its amounts being tensors."""
    most, limit, least, is_centre = (to_numpy(amount).item() for amount in amounts)
    places, values = (to_numpy(each).astype(np.float32, copy=False) for each in (boxes, scores))
    return to_tvm(non_max_suppression(places, values, most, limit, least, is_centre=is_centre))


# Names by which compiled code calls them.
HOST_FUNCTIONS = {
    "leakyforge.non_max_suppression": select_boxes,
    "leakyforge.nonzero": nonzero,
    "leakyforge.shape_to_tensor": shape_to_tensor,
}


@functools.cache
def register_host_functions() -> None:
    """Have compiled code find them."""
    for name, function in HOST_FUNCTIONS.items():
        tvm_ffi().register_global_func(name, function, override=True)
