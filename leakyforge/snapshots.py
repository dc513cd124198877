"""Snapshots of parity: how exact a model was, in a file beside the tests that watch it.

    {"model.onnx": {"cpu": {"logits": {"error": 1.1e-06, "tolerance": 8.54e-06}}}}

Both are shares of the output's range, the largest over variants and references. The tolerance
follows from the model alone, so it may not grow. The error depends on the algorithms as well, and
another processor may take others: it may be FACTOR times the snapshot's, the bound that
`runtime.own_rounding` derives for them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leakyforge.errors import InputError
from leakyforge.files import atomic_file
from leakyforge.tolerance import QUANTISED_ROUNDOFF

if TYPE_CHECKING:
    from leakyforge.runtime import ParityReport
    from leakyforge.runtime.parity import OutputParity

NAME = "leakyforge-snapshots.json"


@dataclass(frozen=True)
class Snapshot:
    """How exact an output was.

    Attributes:
        error: largest absolute difference as a share of the reference's range, one rounding of the
            output at least: what is less is luck.
        tolerance: what was allowed, as a share of the range.
    """

    error: float
    tolerance: float

    def __or__(self, other: "Snapshot") -> "Snapshot":
        """The less exact of both."""
        return Snapshot(max(self.error, other.error), max(self.tolerance, other.tolerance))


Outputs = Mapping[str, Snapshot]


def observe(report: "ParityReport") -> Outputs:
    """A snapshot of each output of a report that passed."""
    outputs: dict[str, Snapshot] = {}
    for row in report.outputs:
        snapshot = _snapshot(row)
        outputs[row.output] = outputs.get(row.output, snapshot) | snapshot
    return outputs


def _snapshot(row: "OutputParity") -> Snapshot:
    """Figures of three digits: enough for a bound, and a file that people read."""
    extent = row.range or 1.0
    rounding = row.rtol / 2
    if row.rtol == 0.0 and row.atol > 0.0:
        # Only where there are roundings to 8 bits (see `tolerance`).
        rounding = QUANTISED_ROUNDOFF
    error = max(row.max_abs / extent, rounding)
    return Snapshot(float(f"{error:.3g}"), float(f"{row.atol / extent:.3g}"))


def read(folder: Path, model: str, target: str) -> Outputs:
    """The snapshots of a model for a target; none where none were taken.

    Raises:
        InputError: the file in the folder is damaged.
    """
    return _load(folder / NAME).get(model, {}).get(target, {})


def write(folder: Path, model: str, target: str, outputs: Outputs) -> None:
    """Put the snapshots of a model for a target in the place of older ones.

    Raises:
        InputError: the file in the folder is damaged or cannot be written; it is left as it was.
    """
    path = folder / NAME
    models = _load(path)
    models.setdefault(model, {})[target] = outputs
    plain = {
        model: {
            target: {name: asdict(snapshot) for name, snapshot in outputs.items()}
            for target, outputs in targets.items()
        }
        for model, targets in models.items()
    }
    try:
        with atomic_file(path) as stream:
            stream.write(json.dumps(plain, indent=1, sort_keys=True).encode() + b"\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def less_exact(seen: Outputs, kept: Outputs) -> list[str]:
    """What is less exact than its snapshot, a line each; an output without one is not judged."""
    from leakyforge.runtime.own_rounding import FACTOR

    lines = []
    for name in seen.keys() & kept.keys():
        now, before = seen[name], kept[name]
        if now.error > FACTOR * before.error:
            lines.append(
                f"output {name}: error {now.error:.2e} of its range, more than {FACTOR:g} times "
                f"the {before.error:.2e} of the snapshot"
            )
        if now.tolerance > before.tolerance:
            lines.append(
                f"output {name}: tolerance {now.tolerance:.2e} of its range, more than the "
                f"{before.tolerance:.2e} of the snapshot"
            )
    return sorted(lines)


def _load(path: Path) -> dict[str, dict[str, Outputs]]:
    """All snapshots of a file by model and target; none where there is no file."""
    try:
        models = json.loads(path.read_bytes())
        return {
            model: {
                target: {name: Snapshot(**fields) for name, fields in outputs.items()}
                for target, outputs in targets.items()
            }
            for model, targets in models.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}; restore it, or delete it and take new snapshots with "
            "--leakyforge-update-snapshots"
        ) from error
