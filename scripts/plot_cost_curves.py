"""Trains the notebook's three runs and plots their costs, as read back from the event files.

python scripts/plot_cost_curves.py [docs/cost_curves.png]
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crossent import cli
from crossent.train import command
from crossent.training import train

# Colours that people with any colour vision tell apart (Okabe and Ito), and lines that a grey print tells apart.
RUNS = {
    "notebook_low_level": ("#56B4E9", "-", "low level: one-hot × log(softmax)"),
    "notebook_cross_entropy": ("#D55E00", (0, (3, 4)), "cross_entropy: the same to the last digit"),
    "notebook_module": ("#009E73", "-", "module: a bias a class, default initialisation"),
}


def curve(experiment: str) -> tuple[list[int], list[float]]:
    """Steps and costs of one run."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        with contextlib.chdir(folder):
            overrides = [f"experiment={experiment}", f"hydra.run.dir={directory}"]
            if cli.run(command(train), overrides) != 0:
                raise SystemExit(f"{experiment} failed")
        events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
        events.Reload()
        points = events.Scalars("train/cost")
        return [point.step for point in points], [point.value for point in points]


def main() -> None:
    """Writes the picture."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/cost_curves.png")
    curves = {name: curve(name) for name in RUNS}
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name, (colour, line, label) in RUNS.items():
        axes.plot(*curves[name], color=colour, linestyle=line, label=label, linewidth=2)
    axes.set(xlabel="optimiser step", ylabel="train/cost", xlim=(0, 1000), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
