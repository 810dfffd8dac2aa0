"""What checkpoints cost: a run that saves every 100 steps against the same run that saves only at its end.

Of mini-batches of digits, whose state is small and written at once, and of a head with a million classes, whose state
is copied and written beside the training. Both runs go through ``crossent-train`` in a process of their own, in turns;
the time is that of ``Trainer.fit``.

    python scripts/bench/checkpoints.py [--repeats 5] [--steps 200]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import in_turns, table

DIGITS = ["data=digits", "data.batch_size=128", "data.val_fraction=0", "optimizer=adam", "trainer.max_steps=5000"]
MILLION = [
    "data=synthetic",
    "data.rows=512",
    "data.features=64",
    "data.classes=1000000",
    "data.batch_size=64",
    "data.val_fraction=0",
    "trainer.enable_progress_bar=false",
]


def fit(*overrides: str) -> float:
    """Seconds of ``Trainer.fit``."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        command = [sys.executable, "-m", "crossent.train", *overrides, f"hydra.run.dir={directory}"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        return float(json.loads((directory / "metrics.json").read_text())["seconds"])


def main() -> None:
    """Prints a table for each head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="of the head with a million classes")
    options = parser.parse_args()
    never = ["callbacks.checkpoint.every_minutes=null", "callbacks.checkpoint.every_n_steps=null"]
    often = ["callbacks.checkpoint.every_minutes=null", "callbacks.checkpoint.every_n_steps=100"]
    heads = {
        "digits, 128 rows a step, adam, 5000 steps": DIGITS,
        f"1,000,000 classes x 64, 64 rows a step, sgd, {options.steps} steps": [
            *MILLION,
            f"trainer.max_steps={options.steps}",
        ],
    }
    for title, overrides in heads.items():
        cases = {
            "saves at the end": lambda overrides=overrides: fit(*overrides, *never),
            "saves every 100 steps": lambda overrides=overrides: fit(*overrides, *often),
        }
        table(title, in_turns(cases, options.repeats), "saves at the end")


if __name__ == "__main__":
    main()
