"""Where a model is from, in the `metadata_props` of its file.

Keys, all texts:

| key | value |
|---|---|
| `leakyforge.version` | version that wrote the file |
| `leakyforge.source.kind` | `zoo`, `onnx`, `torch module`, `TorchScript`, `torch.export`, ... |
| `leakyforge.source.name` | of the zoo model, the class or the file |
| `leakyforge.source.framework` | framework and version; absent where there is none |
| `leakyforge.source.sha256` | of the file that was read, absent where there was none |
| `leakyforge.weights.sha256` | of the file of weights, absent where there was none |
| `leakyforge.dtype` | `float16` or `int8` where it was converted, after it was compared |
| `leakyforge.verified` | what it was compared with, or that there was nothing to compare with |
| `leakyforge.error.OUTPUT` | largest absolute difference from the framework |
| `leakyforge.tolerance.OUTPUT` | absolute tolerance that applied there |
"""

from collections.abc import Iterable

import onnx

from leakyforge.exporter.source import Source
from leakyforge.exporter.verify import SEED, OutputError
from leakyforge.pins import installed_version

_OURS = ("version", "verified", "dtype", "source.", "weights.", "error.", "tolerance.")


def stamp(
    model: onnx.ModelProto, source: Source, errors: Iterable[OutputError], dtype: str = "float32"
) -> None:
    """Replace what the model's metadata say about its origin; other entries stay."""
    facts = {
        "version": installed_version("leakyforge") or "unknown",
        "source.kind": source.kind,
        "source.name": source.name,
    }
    if source.framework is None:
        facts["verified"] = f"{source.kind}: nothing to compare with"
    else:
        facts["source.framework"] = source.framework.name
        facts["verified"] = f"{source.framework.name} and ONNX Runtime, seed {SEED}"
    facts |= {f"{role}.sha256": digest for role, digest in source.files.items()}
    if dtype != "float32":
        facts["dtype"] = dtype
    for row in errors:
        facts[f"error.{row.output}"] = f"{row.error:.3g}"
        facts[f"tolerance.{row.output}"] = f"{row.tolerance:.3g}"
    ours = tuple(f"leakyforge.{prefix}" for prefix in _OURS)
    kept = {
        entry.key: entry.value for entry in model.metadata_props if not entry.key.startswith(ours)
    }
    onnx.helper.set_model_props(
        model, kept | {f"leakyforge.{key}": value for key, value in facts.items()}
    )
