"""The reference: seeded inputs, and what ONNX Runtime makes of them.

onnx and onnxruntime are imported when they are first used: a machine that only runs artifacts
needs neither.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leakyforge.errors import InputError, MissingDependencyError, ModelError
from leakyforge.onnx_graph import RANGE_PROPERTY, external_copy, is_large
from leakyforge.runtime.tensors import Array, TensorSpec, numpy_dtype

# onnx.TensorProto.BFLOAT16; onnx itself is not imported here.
_BFLOAT16 = 16


def random_feeds(
    specs: Sequence[TensorSpec], seed: int, symbols: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Seeded inputs in the range that the model expects.

    Floating-point inputs are uniform in [low, high) where the model says so, else standard normal:
    values from [0, 1) alone would never enter the negative branch of a first LeakyRelu. Integers
    are uniform in [0, 10) by default, booleans are even.

    Args:
        specs: the inputs.
        seed: of numpy's generator.
        symbols: size of each symbolic dimension, 2 where not given.

    Raises:
        InputError: an input of a dtype that cannot be drawn, or a range without a value.
    """
    generator = np.random.default_rng(seed)
    sizes = dict(symbols or {})
    feeds = {}
    for spec in specs:
        shape = tuple(dim if isinstance(dim, int) else sizes.get(dim, 2) for dim in spec.shape)
        dtype = numpy_dtype(spec.dtype)
        values: Array
        if spec.dtype == "bool":
            values = generator.integers(0, 2, shape)
        elif dtype.kind in "iu":
            low, high = _range(spec, whole=True) or (0, 10)
            values = generator.integers(int(low), int(high), shape)
        elif dtype.kind == "f" or spec.dtype == "bfloat16":
            extent = _range(spec)
            if extent is None:
                values = np.asarray(generator.standard_normal(shape))
            else:
                values = np.asarray(generator.uniform(*extent, shape))
        else:
            raise InputError(
                f"input {spec.name!r} of dtype {spec.dtype} cannot be drawn; use --inputs"
            )
        feeds[spec.name] = np.asarray(values).astype(dtype)
    return feeds


def _range(spec: TensorSpec, *, whole: bool = False) -> tuple[float, float] | None:
    """The range [low, high) that the model says, of whole numbers or any; None without one."""
    if spec.low is None or spec.high is None:
        return None
    low, high = spec.low, spec.high
    usable = math.isfinite(high - low) and low < high
    if whole and usable:
        low, high = math.ceil(low), math.ceil(high)
        usable = low < high
    if not usable:
        raise InputError(
            f"input {spec.name!r} has the range [{spec.low:g}, {spec.high:g}) in the model's "
            f"metadata, which holds no {spec.dtype}; correct {RANGE_PROPERTY}{spec.name}"
        )
    return low, high


@dataclass
class Reference:
    """A model loaded by an engine other than ours.

    Attributes:
        name: engine, version and setting, for reports.
        names: its outputs.
    """

    name: str
    names: list[str]
    _run: Any

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name.

        Raises:
            ModelError: the engine fails on these inputs.
        """
        try:
            results = self._run(self.names, dict(feeds))
        except Exception as error:
            raise ModelError(f"{self.name} cannot run the model: {one_line(error)}") from error
        return dict(zip(self.names, (np.asarray(result) for result in results), strict=True))


def onnxruntime_session(proto: Any, *, optimised: bool = True, threads: int | None = None) -> Any:
    """An ONNX Runtime session on the CPU over a model in memory.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "onnxruntime, the parity reference, is not installed; run: pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    # Products with weights of 4 bits: by default, it rounds the other factor to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    if is_large(proto):
        from onnx import numpy_helper

        proto, weights = external_copy(proto, "in memory")
        # The values refer to the arrays: both have to live until the session has copied them.
        arrays = [numpy_helper.to_array(tensor) for tensor in weights]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays]
        options.add_external_initializers([tensor.name for tensor in weights], values)
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def load_reference(proto: Any, *, optimised: bool = True) -> Reference:
    """ONNX Runtime on a model, or ONNX's own evaluator where ONNX Runtime lacks the type.

    Raises:
        MissingDependencyError: onnx or onnxruntime is not installed.
        ModelError: neither takes the model.
    """
    names = [value.name for value in proto.graph.output]
    if _takes_bfloat16(proto):
        return _evaluator(proto, names, ModelError("its Python API cannot be fed bfloat16"))
    try:
        session = onnxruntime_session(proto, optimised=optimised)
    except MissingDependencyError:
        raise
    except Exception as refused:  # noqa: BLE001 - its errors have no common base
        return _evaluator(proto, names, refused)
    import onnxruntime

    how = "optimised" if optimised else "not optimised"
    return Reference(f"onnxruntime {onnxruntime.__version__}, {how}", names, session.run)


def _takes_bfloat16(proto: Any) -> bool:
    """Whether an input or an output is bfloat16."""
    values = (*proto.graph.input, *proto.graph.output)
    return any(value.type.tensor_type.elem_type == _BFLOAT16 for value in values)


def _evaluator(proto: Any, names: list[str], refused: Exception) -> Reference:
    """ONNX's reference evaluator, slow and complete in its types."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(proto)
    except Exception as error:
        raise ModelError(f"ONNX Runtime refuses the model: {one_line(refused)}") from error
    return Reference(f"onnx {onnx.__version__} reference evaluator", names, evaluator.run)


def one_line(error: Exception) -> str:
    """An error's message on one line of bounded length."""
    return " ".join(str(error).split())[:400] or type(error).__name__
