"""Training curves as a picture."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_losses(metrics: Path, picture: Path) -> None:
    """Draw the losses and accuracies of a `metrics.jsonl` against the step, side by side."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    if not lines:
        return
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for key in (key for key in lines[0] if key.endswith(name)):
            label = "training" if key == name else key.removesuffix(f"_{name}") + " (held out)"
            axes.plot([line["step"] for line in lines], [line[key] for line in lines], label=label)
        axes.set(xlabel="step", ylabel=f"{name} on the target tokens")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(picture, dpi=100)
