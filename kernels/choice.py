"""What was chosen for a convolution and why: a note that travels with its kernel."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from tvm import s_tir

# Attribute of a convolution's block, beside its configuration; the value is a `Choice` in JSON.
CHOICE = "leakyforge.choice"


@dataclass(frozen=True)
class Trial:
    """An algorithm that could compute a layer.

    Attributes:
        algorithm: in words, such as `F(4, 3)`.
        estimate: its estimated time, as a multiple of the least estimate.
        milliseconds: its measured time, None where it was not measured.
    """

    algorithm: str
    estimate: float
    milliseconds: float | None = None


@dataclass(frozen=True)
class Choice:
    """The algorithm of a layer, and those that were not taken.

    Attributes:
        layer: the layer in words.
        algorithm: the one that was taken, with its sizes.
        taken: index of its trial.
        trials: all that could compute the layer, by their estimates.
        not_measured: why the estimates decided; empty where measurements did.
        refused: why others cannot compute the layer.
        record: the tuning record that decided, in words; empty where none did.
    """

    layer: str
    algorithm: str
    taken: int
    trials: tuple[Trial, ...]
    not_measured: str
    refused: tuple[str, ...]
    record: str = ""

    def note(self) -> dict[str, str]:
        """The attribute of the block."""
        return {CHOICE: json.dumps(asdict(self))}

    def reasons(self) -> str:
        """Why it was taken and the others were not, in words."""
        ours = self.trials[self.taken]
        others = [trial for trial in self.trials if trial is not ours]
        parts = [self.record] if self.record else []
        parts += [] if ours.milliseconds is None else [f"{ours.milliseconds:.3f} ms measured"]
        parts += [_beside(trial, ours) for trial in others]
        if others and self.not_measured:
            parts.append(f"not measured: {self.not_measured}")
        return "; ".join((*parts, *self.refused))


def _beside(trial: Trial, ours: Trial) -> str:
    """One that was not taken, as a multiple of the one that was."""
    estimate = f"estimated {trial.estimate / ours.estimate:.2f} x"
    if trial.milliseconds is None or ours.milliseconds is None:
        return f"{trial.algorithm} {estimate}"
    return f"{trial.algorithm} {trial.milliseconds / ours.milliseconds:.2f} x ({estimate})"


def read_choice(schedule: s_tir.Schedule, block: str) -> Choice:
    """The note that a block carries."""
    text = schedule.get(schedule.get_sblock(block)).annotations[CHOICE]
    values: dict[str, Any] = json.loads(str(text))
    values["trials"] = tuple(Trial(**trial) for trial in values["trials"])
    values["refused"] = tuple(values["refused"])
    return Choice(**values)
