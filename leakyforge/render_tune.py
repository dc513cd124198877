"""What a search found, as tables for people."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

from leakyforge.render import new_table, stdout

if TYPE_CHECKING:
    from leakyforge.kernels.tuning.explain import Search
    from leakyforge.kernels.tuning.records import SummaryList
    from leakyforge.kernels.tuning.tune import LayerState, TuneReport


def layer_table(states: Iterable["LayerState"]) -> Table:
    """Layers during a search, or after it."""
    found = new_table(
        "Layers", "layer", "count", "trials", "rules ms", "best ms", "gain", "winner", "state",
        numbers=range(1, 6),
    )  # fmt: skip
    for state in states:
        rules = "-" if state.rules_ms is None else f"{state.rules_ms:.3f}"
        best = "-" if state.rules_ms is None else f"{state.best_ms:.3f}"
        winner = state.winner
        interval = "" if winner is None else f"{1 / winner.ratio:.2f} x"
        if winner is not None and winner.ratio < 1:
            interval += f" ({1 / winner.high:.2f} to {1 / winner.low:.2f})"
        found.add_row(
            state.tunable.words, str(state.tunable.count), str(len(state.ratios)), rules, best,
            f"{1 / state.best[1]:.2f} x", interval, state.finished,
        )  # fmt: skip
    return found


def print_tune(report: "TuneReport") -> None:
    """What a search found, and what is to be done with it."""
    console = stdout()
    console.print(layer_table(report.layers))
    decided = sum(state.winner is not None for state in report.layers)
    if report.interrupted:
        console.print("interrupted: the trials are kept; the same command goes on from here")
    console.print(
        f"rules reach {report.rules_share:.3f} of the speed that was found, geometric mean over "
        f"{decided} layers; records: {report.records}"
    )


def print_search(search: "Search") -> None:
    """The recorded search of one layer."""
    console = stdout()
    found = new_table("Candidates", "sizes", "status", "ms", "ratio to rules", numbers=(2, 3))
    for trial in search.best:
        found.add_row(
            _sizes(trial.config), trial.status,
            "-" if trial.milliseconds is None else f"{trial.milliseconds:.3f}",
            "-" if trial.ratio is None else f"{trial.ratio:.3f}",
        )  # fmt: skip
    console.print(f"{search.layer}: {search.trials} trials, {search.failed} without a time")
    console.print(found)
    winner = search.winner
    if winner is None:
        console.print("no winner yet: the search was ended before its last comparison")
        return
    console.print(f"winner: {_sizes(winner.config)}")
    speed = ""
    if search.gflops:
        speed = f"; {search.gflops:.1f} GFLOP/s computed"
        speed += "" if search.share is None else f", {search.share:.2f} of this machine's peak"
    console.print(
        f"{winner.milliseconds:.3f} ms, {winner.ratio:.3f} ({winner.low:.3f} to {winner.high:.3f}) "
        f"of the time of the rules' choice{speed}"
    )


def _sizes(config: str) -> str:
    """A kernel's sizes in short."""
    values = json.loads(config)
    name = values.pop("type").removesuffix("Config")
    return f"{name} " + " ".join(f"{key}={value}" for key, value in sorted(values.items()))


def print_records(summaries: "SummaryList") -> None:
    """Each layer's trials and winner."""
    found = new_table(
        "Tuning records", "layer", "target", "threads", "trials", "best ms", "worst ms", "winner",
        numbers=(2, 3, 4, 5, 6),
    )  # fmt: skip
    for each in summaries.rows:
        found.add_row(
            each.layer, each.target.partition(":")[0], str(each.threads), str(each.trials),
            "-" if each.best_ms is None else f"{each.best_ms:.3f}",
            "-" if each.worst_ms is None else f"{each.worst_ms:.3f}",
            "-" if each.winner_ratio is None else f"{1 / each.winner_ratio:.2f} x",
        )  # fmt: skip
    stdout().print(found)
