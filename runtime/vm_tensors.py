"""Numpy arrays and TVM's tensors over the same memory."""

from typing import Any

import numpy as np

from leakyforge.runtime.tensors import Array, numpy_dtype
from leakyforge.runtime.tvm_runtime import tvm_ffi

# Of as many bytes as a type that only ml_dtypes has.
_BITS = {1: "uint8", 2: "uint16"}


def to_tvm(array: Array) -> Any:
    """A TVM tensor over an aligned array's memory."""
    ffi = tvm_ffi()
    # Numpy's DLPack has no types of ml_dtypes, such as bfloat16 and float8.
    is_foreign = array.dtype.isbuiltin != 1
    if array.size and not is_foreign:
        return ffi.from_dlpack(array)
    # Numpy's strides of an empty array are not those of a compact one, a view's are.
    bits = ffi.from_dlpack(array.view(_BITS[array.dtype.itemsize]) if is_foreign else array)
    return _retyped(bits, str(array.dtype))


def to_numpy(tensor: Any) -> Array:
    """A numpy array over a tensor's memory."""
    try:
        return np.from_dlpack(tensor)
    except (RuntimeError, BufferError):
        # Numpy takes no bfloat16 or float8, which ml_dtypes adds to it.
        dtype = numpy_dtype(str(tensor.dtype))
        return np.from_dlpack(_retyped(tensor, _BITS[dtype.itemsize])).view(dtype)


def _retyped(tensor: Any, dtype: str) -> Any:
    """The same memory as another dtype of the same size."""
    ffi = tvm_ffi()
    view = ffi.get_global_func("runtime.TVMTensorCreateView")
    return view(tensor, ffi.Shape(tensor.shape), ffi.dtype(dtype), 0)
