"""What starting costs: a wrong override against PyTorch's import, a whole run against the imports that it needs.

Whole processes, in turns; prints medians and ratios. The run is the toy set's 1001 steps, of the installed command.

    python scripts/bench/startup.py [--repeats 5] [--json FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = {
    "import torch": [sys.executable, "-c", "import torch"],
    "a wrong override": [sys.executable, "-m", "crossent.train", "optimzer.lr=1"],
    "--help": [sys.executable, "-m", "crossent.train", "--help"],
    "import torch, lightning, torchmetrics, hydra, tensorboard": [
        sys.executable,
        "-c",
        "import torch, lightning, torchmetrics, hydra, tensorboard",
    ],
    "crossent-train": [sys.executable, "-m", "crossent.train"],
}
AGAINST = {"a wrong override": 0, "--help": 0, "crossent-train": 3}


def seconds(command: list[str], folder: str) -> float:
    """Wall time of a process."""
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - started


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.repeats + 1):
            for name, command in CASES.items():
                measured = seconds(command, folder)
                if turn:  # the first turn warms up
                    taken[name].append(measured)
    print(f"{'':60}{'median':>8}{'min':>8}{'max':>8}{'ratio':>7}")
    for name, times in taken.items():
        row = f"{name:60}{statistics.median(times):8.2f}{min(times):8.2f}{max(times):8.2f}"
        if name in AGAINST:
            base = list(CASES)[AGAINST[name]]
            row += f"{statistics.median(times) / statistics.median(taken[base]):7.2f}"
        print(row)
    if options.json:
        options.json.write_text(json.dumps(taken, indent=2) + "\n")


if __name__ == "__main__":
    main()
