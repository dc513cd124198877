"""Measures the table in docs/benchmark.md: compiles each model and times it beside the peers.

python -m benchmarks                        everything, about ten minutes
python -m benchmarks --only mlp --seconds 5
python -m benchmarks --render               the table and the plot again, without measuring

PyTorch takes gigabytes, and is timed where it has been installed by `leakyforge bench MODEL --peer
torch` or can be imported.
"""

import datetime
import json
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from leakyforge import compile, export
from leakyforge.runtime.benchmark import OURS
from leakyforge.runtime.engines import REFERENCE
from leakyforge.runtime.peers import compare_peers

DOCS = Path(__file__).parent.parent / "docs"
EMBEDDING = Path(__file__).parent.parent.parent / "shared" / "models" / "embedding_model.onnx"

# Name in the table: model of the zoo, its options, thread counts.
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "YOLOv3-tiny 416": ("yolov3-tiny", {"size": 416, "opset": 17}, (2, 1)),
    "RRDBNet, 6 blocks, 64x64": ("rrdbnet", {"blocks": 6, "opset": 17}, (2, 1)),
    "HiFi-GAN V2, 64 frames": ("hifigan", {"version": 2}, (2,)),
    "DCGAN discriminator": ("dcgan-discriminator", {}, (2,)),
    "DCGAN generator": ("dcgan-generator", {}, (2,)),
    "MLP, batch 1": ("mlp", {"batch": 1}, (2,)),
    "MLP, batch 64": ("mlp", {"batch": 64}, (2,)),
}

# The engines that a model is measured by, and what the row of a model has to reach: the ratio to
# the reference, and to the best of all three.
RIVALS = (REFERENCE, "openvino", "mnn")
BARS: dict[str, tuple[float, float]] = {
    "YOLOv3-tiny 416": (1.7, 1.4),
    "RRDBNet, 6 blocks, 64x64": (2.5, 1.2),
    "HiFi-GAN V2, 64 frames": (1.6, 1.3),
    "DCGAN discriminator": (1.3, 1.2),
    "speech embedding": (1.8, 1.15),
    "MLP, batch 1": (1.1, 1.05),
    "MLP, batch 64": (1.1, 1.05),
}


@click.command()
@click.option("--only", multiple=True, help="Measure models whose name contains this.")
@click.option("--seconds", type=float, default=15.0, show_default=True, help="For each row.")
@click.option("--render", is_flag=True, help="Write table and plot from docs/benchmark.json.")
def main(only: tuple[str, ...], seconds: float, render: bool) -> None:
    """Measure the project's models beside other engines and write docs/benchmark.*."""
    store = DOCS / "benchmark.json"
    rows: dict[str, Any] = json.loads(store.read_text()) if store.is_file() else {}
    if not render:
        with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
            for name, model, threads in models(Path(folder)):
                if only and not any(part.lower() in name.lower() for part in only):
                    continue
                rows |= _measure(name, model, threads, seconds)
                store.write_text(json.dumps(rows, indent=1) + "\n")
    (DOCS / "benchmark.md").write_text(markdown(rows))
    plot(rows, DOCS / "benchmark.png")
    click.echo(f"wrote {DOCS}/benchmark.md and benchmark.png")


def models(folder: Path) -> list[tuple[str, Path, tuple[int, ...]]]:
    """Name, ONNX file and thread counts of every model."""
    models = []
    for index, (name, (model, options, threads)) in enumerate(MODELS.items()):
        models.append((name, export(model, folder / f"{index}.onnx", **options), threads))
    if EMBEDDING.is_file():
        models.append(("speech embedding", EMBEDDING, (2,)))
    return models


def _measure(name: str, model: Path, threads: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Compile one model and time it at each number of threads."""
    with tempfile.TemporaryDirectory(prefix="leakyforge-") as folder:
        start = time.perf_counter()
        artifact = compile(model, "cpu", output=Path(folder) / "model.lfa")
        compiled = time.perf_counter() - start
        rows = {}
        for count in threads:
            click.echo(f"{name}, {count} threads", err=True)
            report = compare_peers(
                artifact, model, threads=count, seconds=seconds, compile_seconds=compiled
            )
            rows[f"{name}, {count} thread{'s' if count > 1 else ''}"] = {
                **report.to_dict(),
                "date": datetime.date.today().isoformat(),
                "leakyforge": metadata.version("leakyforge"),
            }
        return rows


def markdown(rows: dict[str, Any]) -> str:
    """The tables: ratios of every row, then the figures behind them."""
    engines = list(
        dict.fromkeys(each["engine"] for row in rows.values() for each in row["results"])
    )
    peers = [engine for engine in engines if engine != OURS]
    lines = [
        "# Benchmark",
        "",
        "Written by `python -m benchmarks`; float32, batch 1 unless stated, the same inputs and "
        "number of threads for every engine, each in a process of its own; outputs compared with "
        "ONNX Runtime's before any time is taken, then turns of 30 ms with pauses, medians.",
        "A ratio is the engine's time divided by ours: above 1, leakyforge is faster. Only ratios "
        "within a row mean anything on another machine.",
        f"Best is the least ratio of {', '.join(RIVALS)}; the bars are what a row has to reach "
        f"against {REFERENCE}, and against the best.",
        "",
        "| model | " + " | ".join(peers) + " | best | bars | reached |",
        "|---|" + "---|" * (len(peers) + 3),
    ]
    for name, row in rows.items():
        ratios = {each["engine"]: each["ratio"] for each in row["results"]}
        cells = [f"{ratios[peer]:.2f}" if ratios.get(peer) else "-" for peer in peers]
        cells += bar_cells(name.rpartition(", ")[0], ratios)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "![Ratios](benchmark.png)", "", "## Figures", ""]
    lines += [
        "The error is the largest difference from ONNX Runtime as a share of the output's range. "
        "The roofline is the share of the peak that the operations of the model's definition "
        "reach: Winograd, which needs fewer, may exceed 1. The peak is a product of matrices by "
        "ONNX Runtime in the same run. Memory is what loading and running added.",
    ]
    for name, row in rows.items():
        lines += [
            "",
            f"### {name}",
            "",
            f"{row['cpu']}, {row['date']}; {row['flops'] / 1e9:.3g} GFLOP, peak "
            f"{row['peak_gflops']:.0f} GFLOP/s; compiled in {row['compile_seconds']:.1f} s.",
            "",
            "| engine | median ms | p10 | p90 | ratio | error | roofline | memory MB | load s |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for each in row["results"]:
            if each["median_ms"] is None:
                lines.append(f"| {each['engine']} | not timed: {each['reason']} |" + " |" * 7)
                continue
            lines.append(
                f"| {each['engine']} {each['version']} | {each['median_ms']:.3f} "
                f"| {each['p10_ms']:.3f} | {each['p90_ms']:.3f} | {each['ratio']:.2f} "
                f"| {each['error']:.1e} | {each['roofline']:.2f} | {each['memory_mb']:.0f} "
                f"| {each['load_seconds']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def bar_cells(model: str, ratios: dict[str, float | None]) -> list[str]:
    """Ratio to the best rival, the bars of a model, and whether they are reached."""
    rivals = [ratio for ratio in map(ratios.get, RIVALS) if ratio is not None]
    reference = ratios.get(REFERENCE)
    if reference is None:
        return ["-", "-", "-"]
    best = min(rivals)
    if model not in BARS:
        return [f"{best:.2f}", "-", "-"]
    bars = BARS[model]
    reached = reference >= bars[0] and best >= bars[1]
    return [f"{best:.2f}", f"{bars[0]:g} / {bars[1]:g}", "yes" if reached else "no"]


def plot(rows: dict[str, Any], path: Path) -> None:
    """Bars of the ratios, a line where an engine is as fast as ours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = sorted(
        {
            each["engine"]
            for row in rows.values()
            for each in row["results"]
            if each["ratio"] is not None and each["engine"] != OURS
        }
    )
    figure, axes = plt.subplots(figsize=(10, 1 + 0.6 * len(rows)), layout="constrained")
    height = 0.8 / max(1, len(timed))
    for index, engine in enumerate(timed):
        ratios = [
            next((e["ratio"] or 0 for e in row["results"] if e["engine"] == engine), 0)
            for row in rows.values()
        ]
        places = [place + index * height for place in range(len(rows))]
        axes.barh(places, ratios, height, label=engine)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(rows))], list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("time of the engine / time of leakyforge")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
