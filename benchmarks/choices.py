"""How good the cost model is: what it chooses for each convolution, and what measurement chooses.

python -m benchmarks.choices                    every model of `python -m benchmarks`
python -m benchmarks.choices --only yolo

Compiles each model for this machine. The last line is the geometric mean, over all layers that were
measured, of the speed of the cost model's choice as a share of the fastest one's.
"""

import statistics
import tempfile
from pathlib import Path

import click

from benchmarks.__main__ import models
from leakyforge import compile
from leakyforge.kernels import LayerReport


@click.command()
@click.option("--only", multiple=True, help="Models whose name contains this.")
def main(only: tuple[str, ...]) -> None:
    """Print what the cost model and what measurement choose for each convolution."""
    shares = []
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
        for name, model, _ in models(Path(folder)):
            if only and not any(part.lower() in name.lower() for part in only):
                continue
            click.echo(name)
            reports: list[LayerReport] = []
            compile(model, output=Path(folder) / "model.lfa", on_layer=reports.append)
            # Layers of the same sizes have one kernel.
            for report in {report.kernel: report for report in reversed(reports)}.values():
                shares += _print_row(report)
    if shares:
        mean = statistics.geometric_mean(shares)
        click.echo(f"{len(shares)} layers measured; the cost model's choice has {mean:.3f} of the "
                   "speed of the fastest, by the geometric mean")  # fmt: skip


def _print_row(report: LayerReport) -> list[float]:
    """Print a layer that had a choice; the speed of the cost model's, none if not measured."""
    choice = report.choice
    if choice is None or len(choice.trials) < 2:
        return []
    estimated = choice.trials[0]
    times = {trial.algorithm: trial.milliseconds for trial in choice.trials if trial.milliseconds}
    if not times:
        click.echo(f"  {choice.layer}: {estimated.algorithm}; not measured: {choice.not_measured}")
        return []
    fastest = min(times, key=lambda algorithm: times[algorithm])
    share = times[fastest] / times[estimated.algorithm]
    figures = ", ".join(f"{algorithm} {time:.3f}" for algorithm, time in times.items())
    click.echo(
        f"  {choice.layer}: estimated {estimated.algorithm}, fastest {fastest} ({share:.2f}); "
        f"ms: {figures}"
    )
    return [share]


if __name__ == "__main__":
    main()
