"""What Lightning costs: runs through crossent-train against the same work written by hand, without Lightning.

- ``notebook``: the notebook's 1001 steps of its `cross_entropy` run, against the notebook's plain loop, which has
  neither TensorBoard nor checkpoints; and, with a point a step, against that loop with TensorBoard's SummaryWriter.
- ``epochs``: 100,000 × 64 rows of 10 classes in batches of 128, with a validation each epoch, against a loop over the
  same rows, and against a plain LightningModule with a DataLoader and ``self.log``.
- ``ranks``: the same by two processes that share every batch, against DistributedDataParallel by hand.

In turns; medians and ratios. The time of crossent is that of ``Trainer.fit``, and that of a loop begins when its data
are there and, with two processes, both have met.

    python scripts/bench/overhead.py [--parts notebook epochs ranks] [--epochs 10] [--repeats 5] [--json FILE]
"""

import argparse
import contextlib
import io
import json
import logging
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from crossent import cli
from crossent.data.toy import Toy
from crossent.train import command
from crossent.training import train

STEPS = 1001
ROWS, COLUMNS, CLASSES, BATCH, RANKS = 100_000, 64, 10, 128, 2
PARTS = ("notebook", "epochs", "ranks")
SETTINGS = (("cross_entropy", "sgd"), ("focal", "sgd"), ("cross_entropy", "adam"))
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "adam": partial(torch.optim.Adam, lr=0.01),
}


def plain_loop(*, points: bool = False) -> float:
    """Seconds of the notebook's loop, as it stands there, its printing of every 100th cost included."""
    table = Toy().load()
    features = table.all_features()
    weight = torch.zeros((4, 3), requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        writer = SummaryWriter(folder) if points else None
        started = time.perf_counter()
        for step in range(STEPS):
            cost = F.cross_entropy(features.matmul(weight) + bias, table.targets)
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
            if writer is not None:
                writer.add_scalar("train/cost", cost.item(), step)
            if step % 100 == 0:
                print(f"{step:4d}/{STEPS} cost: {cost.item():.6f}")
        if writer is not None:
            writer.close()
        return time.perf_counter() - started


def crossent(*overrides: str) -> float:
    """Seconds of ``Trainer.fit``."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
            if cli.run(command(train), [*overrides, f"hydra.run.dir={directory}"]) != 0:
                raise RuntimeError("the run failed")
        return float(json.loads((directory / "metrics.json").read_text())["seconds"])


def drawn() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and validation rows."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(ROWS + ROWS // 10, COLUMNS, generator=generator)
    logits = features @ torch.randn(COLUMNS, CLASSES, generator=generator) / 4
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return features[:ROWS], targets[:ROWS], features[ROWS:], targets[ROWS:]


def cost_of(loss: str, logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cost, as one writes it."""
    if loss == "cross_entropy":
        return F.cross_entropy(logits, targets)
    nll = F.cross_entropy(logits, targets, reduction="none")
    return ((1 - torch.exp(-nll)) ** 2 * nll).mean()


def by_hand(
    rows: tuple[Tensor, ...], loss: str, optimizer: str, epochs: int, *, rank: int = 0, ranks: int = 1
) -> float:
    """Seconds of a loop over shuffled batches, with a validation an epoch; or of a rank's part of it."""
    features, targets, val_features, val_targets = rows
    linear = torch.nn.Linear(COLUMNS, CLASSES)
    model = linear if ranks == 1 else DistributedDataParallel(linear)
    update = OPTIMIZERS[optimizer](model.parameters())
    started = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch))
        for begin in range(0, ROWS, BATCH):
            some = order[begin + rank : begin + BATCH : ranks]
            cost = cost_of(loss, model(features[some]), targets[some])
            update.zero_grad()
            cost.backward()
            update.step()
        with torch.no_grad():
            logits = linear(val_features[rank::ranks])
            cost = cost_of(loss, logits, val_targets[rank::ranks])
            accuracy = (logits.argmax(1) == val_targets[rank::ranks]).float().mean()
            if ranks > 1:
                distributed.all_reduce(cost)
                distributed.all_reduce(accuracy)
            cost.item(), accuracy.item()
    return time.perf_counter() - started


def by_hand_in_ranks(loss: str, optimizer: str, epochs: int) -> float:
    """Seconds of the same loop by two processes, until the first has ended."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (folder, loss, optimizer, epochs), nprocs=RANKS)  # type: ignore[attr-defined, no-untyped-call]
        return float((Path(folder) / "seconds").read_text())


def _rank(rank: int, folder: str, loss: str, optimizer: str, epochs: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    rows = drawn()
    distributed.barrier()
    seconds = by_hand(rows, loss, optimizer, epochs, rank=rank, ranks=RANKS)
    if rank == 0:
        (Path(folder) / "seconds").write_text(str(seconds))
    distributed.destroy_process_group()


def crossent_in_ranks(*overrides: str) -> float:
    """Seconds of ``Trainer.fit`` of two processes."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        command = [sys.executable, "-m", "crossent.train", *overrides, f"hydra.run.dir={directory}"]
        subprocess.run([*command, "accelerator=ddp_cpu", f"accelerator.devices={RANKS}"], check=True, cwd=folder,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        return float(json.loads((directory / "metrics.json").read_text())["seconds"])


class Plain(lightning.LightningModule):
    """As a tutorial writes it."""

    def __init__(self, loss: str, optimizer: str) -> None:
        super().__init__()
        self.model, self.loss, self.optimizer = torch.nn.Linear(COLUMNS, CLASSES), loss, optimizer

    def training_step(self, batch: Any, index: int) -> Tensor:
        """A step."""
        cost = cost_of(self.loss, self.model(batch[0]), batch[1])
        self.log("train/cost", cost)
        return cost

    def validation_step(self, batch: Any, index: int) -> None:
        """A batch."""
        logits = self.model(batch[0])
        self.log("val/cost", cost_of(self.loss, logits, batch[1]))
        self.log("val/accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser."""
        return OPTIMIZERS[self.optimizer](self.parameters())


def plain_lightning(rows: tuple[Tensor, ...], loss: str, optimizer: str, epochs: int) -> float:
    """Seconds of ``Trainer.fit`` of a plain module."""
    features, targets, val_features, val_targets = rows
    batches = DataLoader(TensorDataset(features, targets), BATCH, shuffle=True)
    val = DataLoader(TensorDataset(val_features, val_targets), 4096)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = lightning.Trainer(max_epochs=epochs, default_root_dir=folder, enable_progress_bar=False)
        started = time.perf_counter()
        trainer.fit(Plain(loss, optimizer), batches, val)
        return time.perf_counter() - started


def in_turns(cases: dict[str, Callable[[], float]], repeats: int, title: str) -> dict[str, list[float]]:
    """Prints a table of medians, and ratios to the first case."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, measure in cases.items():
            taken = measure()
            if turn:  # the first turn warms up
                seconds[name].append(taken)
    base = statistics.median(next(iter(seconds.values())))
    print(f"\n{title:58}{'median':>9}{'min':>9}{'max':>9}{'ratio':>8}", flush=True)
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:58}{median:9.4f}{min(times):9.4f}{max(times):9.4f}{median / base:8.2f}", flush=True)
    return seconds


def notebook(repeats: int) -> dict[str, Any]:
    """The notebook's steps."""
    options = "experiment=notebook_cross_entropy"
    cases: dict[str, Callable[[], float]] = {
        "plain loop": plain_loop,
        "crossent, log_every_n_steps=100": lambda: crossent(options, "trainer.log_every_n_steps=100"),
        "crossent, the same, steps_per_execution=1": lambda: crossent(
            options, "trainer.log_every_n_steps=100", "trainer.steps_per_execution=1"
        ),
    }
    found = {"sparse": in_turns(cases, repeats, f"{STEPS} steps of the notebook's")}
    cases = {
        "plain loop, SummaryWriter at every step": lambda: plain_loop(points=True),
        "crossent, log_every_n_steps=1": lambda: crossent(options, "trainer.log_every_n_steps=1"),
    }
    return found | {"dense": in_turns(cases, repeats, f"{STEPS} steps of the notebook's, a point each")}


@contextlib.contextmanager
def stored(rows: tuple[Tensor, ...], epochs: int) -> Iterator[tuple[str, ...]]:
    """The overrides that train on these rows."""
    with tempfile.TemporaryDirectory() as folder:
        features, targets, val_features, val_targets = (each.numpy() for each in rows)
        np.save(f"{folder}/x.npy", np.concatenate([features, val_features]))
        np.save(f"{folder}/y.npy", np.concatenate([targets, val_targets]))
        yield (
            "data=arrays", f"data.path={folder}/x.npy", f"data.target={folder}/y.npy", f"data.val_fraction={1 / 11}",
            "data.standardize=false", f"data.batch_size={BATCH}", f"trainer.max_epochs={epochs}",
            "trainer.max_steps=-1", "trainer.val_check_interval=1.0", "trainer.check_val_every_n_epoch=1",
            "trainer.log_every_n_steps=50",
            "callbacks.early_stopping.patience=null",
        )  # fmt: skip


def epochs_of(epochs: int, repeats: int) -> dict[str, Any]:
    """Mini-batches."""
    rows = drawn()
    found: dict[str, Any] = {}
    with stored(rows, epochs) as common:
        for loss, optimizer in SETTINGS:
            options = (*common, f"loss={loss}", f"optimizer={optimizer}")
            cases: dict[str, Callable[[], float]] = {
                "by hand": partial(by_hand, rows, loss, optimizer, epochs),
                "crossent": partial(crossent, *options),
                "crossent, steps_per_execution=1": partial(crossent, *options, "trainer.steps_per_execution=1"),
                "a plain LightningModule": partial(plain_lightning, rows, loss, optimizer, epochs),
            }
            title = f"{ROWS:,} × {COLUMNS}, batches of {BATCH}, {loss}, {optimizer}"
            found[title] = in_turns(cases, repeats, title)
    return found


def ranks_of(epochs: int, repeats: int) -> dict[str, Any]:
    """Mini-batches that two processes share."""
    found: dict[str, Any] = {}
    with stored(drawn(), epochs) as common:
        for loss, optimizer in SETTINGS:
            options = (*common, f"loss={loss}", f"optimizer={optimizer}")
            cases: dict[str, Callable[[], float]] = {
                "DistributedDataParallel by hand": partial(by_hand_in_ranks, loss, optimizer, epochs),
                "crossent": partial(crossent_in_ranks, *options),
            }
            title = f"{RANKS} ranks, batches of {BATCH}, {loss}, {optimizer}"
            found[title] = in_turns(cases, repeats, title)
    return found


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)  # which is faster for all of them
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # Lightning's, about the plain module's workers
    print(f"torch {torch.__version__}, {platform.machine()}")
    report: dict[str, Any] = {}
    if "notebook" in options.parts:
        report |= notebook(options.repeats)
    if "epochs" in options.parts:
        report |= epochs_of(options.epochs, options.repeats)
    if "ranks" in options.parts:
        report |= ranks_of(options.epochs, options.repeats)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
