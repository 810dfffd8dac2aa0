"""Compares runs on several processes with the same run on one: weights, objective, and time.

For every loss and optimiser, on standardised rows in ragged batches, the last of which leaves processes without a row.
Exits with 1 if a difference is above its limit.

    python scripts/bench/ranks.py [--steps 200] [--ranks 2 3] [--losses focal hinge …]
"""

import argparse
import contextlib
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crossent import cli, train
from crossent.losses import LOSSES

#: Of 512 training rows, batches of 73 leave one of a single row.
ROWS = ["data=breast_cancer", "data.standardize=true", "data.val_fraction=0.1", "data.batch_size=73"]


@dataclass(frozen=True)
class Case:
    """An optimiser in a precision.

    Attributes:
        name: in the table.
        overrides: that choose it.
        weights: the largest difference in weights that is allowed; None: only the objective is compared.
        objective: the largest difference in the objective.
    """

    name: str
    overrides: list[str]
    weights: float | None
    objective: float


_LBFGS = ["optimizer=lbfgs", "model.l2=0.01", "data.batch_size=full"]
CASES = [
    Case("sgd, float32", ["optimizer=sgd", "accelerator.precision=32-true"], 1e-6, 1e-6),
    Case("sgd, float64", ["optimizer=sgd", "accelerator.precision=64-true"], 1e-12, 1e-12),
    Case("adam, float64", ["optimizer=adam", "optimizer.lr=0.01", "accelerator.precision=64-true"], 1e-9, 1e-9),
    Case(
        "lbfgs, float64",
        ["optimizer=lbfgs", "model.l2=0.01", "data.batch_size=full", "accelerator.precision=64-true"],
        1e-8,
        1e-8,
    ),
    Case(
        "lbfgs, float32",
        ["optimizer=lbfgs", "model.l2=0.01", "data.batch_size=full", "accelerator.precision=32-true"],
        None,
        1e-6,
    ),
]


@dataclass(frozen=True)
class Result:
    """What a run ends with."""

    state: dict[str, Tensor]
    objective: float


def run(folder: Path, overrides: list[str]) -> Result:
    """Trains in a directory of its own.

    Raises:
        RuntimeError: it has failed.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.run(
            train.command(train._task),
            [*overrides, f"hydra.run.dir={folder}", "logger=none", "hydra/job_logging=disabled"],
        )
    if code != 0:
        raise RuntimeError(said.getvalue())
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    points = stored["callbacks"]["LastCheckpoint"]["points"]
    return Result(stored["state_dict"], sum(points[tag][1] for tag in ("train/cost", "train/penalty") if tag in points))


def largest_difference(one: Result, other: Result) -> float:
    """Of all weights, as a share of the largest of them, or of 1."""
    return max(
        float((one.state[key] - other.state[key]).abs().max() / one.state[key].abs().max().clamp(min=1))
        for key in one.state
    )


def main() -> int:
    """Prints a row a loss and optimiser."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--losses", nargs="+", default=[str(kind.__struct_config__.tag) for kind in LOSSES])
    chosen = parser.parse_args()
    missed = 0
    print(
        f"{'loss':28}{'optimiser':16}"
        + "".join(f"{f'ddp {ranks}: weights':>16}{'objective':>11}" for ranks in chosen.ranks)
    )
    with tempfile.TemporaryDirectory() as scratch:
        for loss in chosen.losses:
            for case in CASES:
                base = Path(scratch) / f"{loss} {case.name}".replace(",", "")
                common = [
                    *ROWS,
                    f"loss={loss}",
                    *case.overrides,
                    f"trainer.max_steps={chosen.steps}",
                    "trainer.log_every_n_steps=1",
                    "callbacks.early_stopping.patience=null",
                ]
                if loss == "hinge" and "lbfgs" in case.name:
                    common.append("loss.p=2")  # LBFGS is for smooth losses: at a kink the last bit decides the way
                alone = run(base / "1", [*common, "accelerator=cpu"])
                cells = ""
                for ranks in chosen.ranks:
                    shared = run(base / str(ranks), [*common, "accelerator=ddp_cpu", f"accelerator.devices={ranks}"])
                    weights, objective = largest_difference(alone, shared), abs(alone.objective - shared.objective)
                    wrong = objective > case.objective or (case.weights is not None and weights > case.weights)
                    missed += wrong
                    cells += f"{weights:16.1e}{objective:11.1e}{' MISSED' if wrong else ''}"
                print(f"{loss:28}{case.name:16}{cells}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
