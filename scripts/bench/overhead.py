"""What Lightning costs: the notebook's 1001 steps through crossent-train against the notebook's plain loop.

Both train the notebook's `cross_entropy` run in one process, in turns, and print medians and ratios. The time of
crossent is that of ``Trainer.fit``, with TensorBoard and checkpoints on; the plain loop has neither.

    python scripts/bench/overhead.py [--repeats 5] [--json FILE]
"""

import argparse
import contextlib
import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from crossent import cli
from crossent.data.toy import Toy
from crossent.train import command
from crossent.training import train

STEPS = 1001


def plain_loop() -> float:
    """Seconds of the notebook's loop, as it stands there, its printing of every 100th cost included."""
    table = Toy().load()
    features = table.all_features()
    weight = torch.zeros((4, 3), requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.1)
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        for step in range(STEPS):
            cost = F.cross_entropy(features.matmul(weight) + bias, table.targets)
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
            if step % 100 == 0:
                print(f"{step:4d}/{STEPS} cost: {cost.item():.6f}")
    return time.perf_counter() - started


def crossent(log_every: int) -> float:
    """Seconds of ``Trainer.fit`` for the same run."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        overrides = [
            "experiment=notebook_cross_entropy",
            f"trainer.log_every_n_steps={log_every}",
            f"hydra.run.dir={directory}",
        ]
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
            if cli.run(command(train), overrides) != 0:
                raise RuntimeError("the run failed")
        return float(json.loads((directory / "metrics.json").read_text())["seconds"])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    cases: dict[str, Callable[[], float]] = {
        "plain loop": plain_loop,
        "crossent, log_every_n_steps=100": lambda: crossent(100),
        "crossent, log_every_n_steps=1": lambda: crossent(1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(options.repeats + 1):
        for name, measure in cases.items():
            taken = measure()
            if turn:  # the first turn warms up
                seconds[name].append(taken)
    base = statistics.median(seconds["plain loop"])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {STEPS} steps")
    print(f"{'':34}{'median':>9}{'min':>9}{'max':>9}{'ratio':>8}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:34}{median:9.4f}{min(times):9.4f}{max(times):9.4f}{median / base:8.2f}")
    if options.json:
        options.json.write_text(json.dumps(seconds, indent=2) + "\n")


if __name__ == "__main__":
    main()
