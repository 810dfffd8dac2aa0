"""Compares losses whose classes are split over ranks with the same on one process: value and gradient.

Ranks are processes that send messages by gloo, 2 and 3 that share classes, and 2 × 2 that share rows and classes. Every
row-statistics loss, with each of the options that all have, and cross entropy with label smoothing; float32 against the
dense loss in float32, float64 against float64. Of the two backends, `dense` and `chunked`, the worse one counts. Then a
run on classes with Zipf's frequencies against the same run on one process, and the time of a rank's share of a million
classes, without the messages, against all of them.

    python scripts/bench/split.py [--parts exactness run share] [--device cuda] [--classes 1001] [--rows 257] …

With a GPU, ranks share it if there are fewer than ranks, and send messages through main memory.

Exits with 1 if a difference is above its limit.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ranks import largest_difference, run
from torch import Tensor, distributed

from crossent import config
from crossent.class_shard import ClassShard
from crossent.losses import LOSSES, CrossEntropy, LogitAdjusted, RowLoss, products
from crossent.losses.base import Backend
from crossent.processes import together
from crossent.processes.grid import Grid
from crossent.processes.world import World

_LIMITS = {torch.float32: 1e-6, torch.float64: 1e-12}
_GRIDS = {"2": (2, 2), "3": (3, 3), "2 × 2": (4, 2)}  # processes, and those among them that share classes
_ZIPF = [
    "data=synthetic",
    "data.rows=20000",
    "data.features=64",
    "data.classes=10000",
    "data.zipf=1.0",
    "data.batch_size=512",
    "data.val_fraction=0",
    "loss=cross_entropy",
    "loss.label_smoothing=0.1",
    "model.l2=1e-4",
    "trainer.max_steps=200",
    "trainer.log_every_n_steps=1",
    "callbacks.early_stopping.patience=null",
]


@dataclass(frozen=True)
class Problem:
    """Rows, a head, and options."""

    features: Tensor
    weight: Tensor
    bias: Tensor
    targets: Tensor
    frequencies: Tensor

    @classmethod
    def drawn(cls, rows: int, features: int, classes: int, dtype: torch.dtype, device: str) -> "Problem":
        """From a seed of its own, the same in both precisions."""
        draw = torch.Generator().manual_seed(0)
        return cls(
            torch.randn(rows, features, generator=draw).to(device, dtype),
            torch.randn(classes, features, generator=draw).mul(0.5).to(device, dtype),
            torch.randn(classes, generator=draw).to(device, dtype),
            torch.randint(classes, (rows,), generator=draw).to(device),
            torch.randint(1, 50, (classes,), generator=draw).double(),
        )

    @property
    def options(self) -> dict[str, tuple[dict[str, Any], Tensor, Tensor | None]]:
        """What a loss is configured with, targets, and weights of the rows."""
        classes, rows = len(self.frequencies), len(self.targets)
        class_weight = {"class_weight": torch.linspace(0.5, 2, classes, dtype=torch.float64)}
        numbers = torch.arange(rows, device=self.targets.device)
        some_ignored = self.targets.where(numbers % 5 != 1, -100)
        weights = (numbers % 4 / 2).to(self.features.dtype)
        return {
            "plain": ({}, self.targets, None),
            "class_weight": (class_weight, self.targets, None),
            "ignored rows": ({}, some_ignored, None),
            "sample weights": ({}, self.targets, weights),
            "z_loss": ({"z_loss": 0.01}, self.targets, None),
            "all": ({**class_weight, "z_loss": 0.01}, some_ignored, weights),
        }


def losses(problem: Problem) -> dict[str, Callable[[], RowLoss]]:
    """All that can be split; each call makes a new one."""
    found: dict[str, Callable[[], RowLoss]] = {}
    for section, kind in LOSSES.items():
        if issubclass(kind, RowLoss):
            make: Callable[[], RowLoss] = kind
            if kind is LogitAdjusted:
                make = lambda: LogitAdjusted(problem.frequencies)  # noqa: E731
            found[str(section.__struct_config__.tag)] = make
    return found | {"cross_entropy, smoothing": lambda: CrossEntropy(0.1)}


class Difference(NamedTuple):
    """To one process: of the value, of the gradient, and that as a share of the gradient's largest entry."""

    value: float
    gradient: float
    share: float


def outcome(
    loss: RowLoss, rows: slice, part: slice, problem: Problem, targets: Tensor, weights: Tensor | None
) -> tuple[float, float, list[Tensor]]:
    """The summed cost, the summed weight, and the gradients of the summed cost by weight and bias."""
    weight, bias = (each[part].clone().requires_grad_() for each in (problem.weight, problem.bias))
    cost = loss(problem.features[rows], weight, bias, targets[rows], None if weights is None else weights[rows])
    total = cost.mean * cost.weight
    return float(total.detach()), float(cost.weight), list(torch.autograd.grad(total, [weight, bias]))


def differences(grid: Grid, shape: tuple[int, int, int], device: str) -> Iterator[tuple[str, str, list[Difference]]]:
    """For each loss and option, and float32 and float64: how far value and gradient are from one process's."""
    problems = {dtype: Problem.drawn(*shape, dtype, device) for dtype in _LIMITS}
    everything, all_rows = slice(None), slice(0, shape[0])
    shard = grid.shard(shape[2])
    assert shard is not None
    mine = slice(*(shape[0] * row // grid.rows for row in (grid.row, grid.row + 1)))
    for name in losses(problems[torch.float64]):
        for option in problems[torch.float64].options:
            found = []
            for problem in problems.values():
                options, targets, weights = problem.options[option]
                make = losses(problem)[name]
                dense = make().configure(**options, backend="dense")
                cost, weight, gradients = outcome(dense, all_rows, everything, problem, targets, weights)
                worst = 0.0, 0.0, 0.0
                backends: tuple[Backend, ...] = ("dense", "chunked")
                for backend in backends:
                    loss = make().configure(**options, backend=backend, shard=shard)
                    own, own_weight, parts = outcome(loss, mine, shard.part, problem, targets, weights)
                    if grid.rows > 1:
                        own, own_weight = together.add_up(parts, [own, own_weight], grid.of_my_classes)
                    value = abs(own / own_weight - cost / weight) / max(1, abs(cost / weight))
                    for part, whole in zip(parts, gradients, strict=True):
                        by = float((part / own_weight - whole[shard.part] / weight).abs().max())
                        worst = max(worst[0], value), max(worst[1], by), max(worst[2], by / largest(whole / weight))
                found.append(Difference(*together.largest(*worst)))
            yield name, option, found


def largest(tensor: Tensor) -> float:
    """The largest entry."""
    return float(tensor.abs().max())


def rank(
    number: int, ranks: int, shards: int, meeting: str, shape: tuple[int, int, int], device: str, said: Any
) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    products._TILE_BYTES = products.SLICE_BYTES = 2**18  # several of them
    distributed.init_process_group("gloo", init_method=meeting, rank=number, world_size=ranks)
    accelerator = config.ClassParallelCpuAccelerator(
        devices=ranks, num_nodes=1, class_shards=shards, precision="32-true", threads=1, timeout=60
    )
    grid = Grid.of(World(number, ranks, class_shards=shards), accelerator)
    if device == "cuda":
        device = f"cuda:{number % torch.cuda.device_count()}"
    for row in differences(grid, shape, device):
        if number == 0:
            said.put(row)
    distributed.destroy_process_group()


def measured(
    ranks: int, shards: int, shape: tuple[int, int, int], device: str
) -> dict[tuple[str, str], list[Difference]]:
    """The differences that processes of their own find."""
    context = multiprocessing.get_context("spawn")
    said, found = context.Queue(), {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = [(number, ranks, shards, f"file://{folder}/ranks", shape, device, said) for number in range(ranks)]
        processes = [context.Process(target=rank, args=each) for each in arguments]
        for process in processes:
            process.start()
        tiny = Problem.drawn(2, 2, 2, torch.float64, "cpu")
        for _ in range(len(losses(tiny)) * len(tiny.options)):
            name, option, numbers = said.get(timeout=300)
            found[name, option] = numbers
        for process in processes:
            process.join()
    return found


def exactness(shape: tuple[int, int, int], device: str) -> int:
    """Prints a row a loss and option, and returns how many differences are above their limit."""
    columns = {name: measured(*processes, shape, device) for name, processes in _GRIDS.items()}
    limits, missed = list(_LIMITS.values()), 0
    head = [f"{name}, {kind}" for name in columns for kind in ("float32", "float64")]
    print("Of each: the difference of the value, as a share of it where it is above 1, the difference of the gradient,")
    print("and that as a share of its largest entry.")
    print("| loss | option | " + " | ".join(head) + " |")
    print("|---" * (2 + len(head)) + "|")
    for key in next(iter(columns.values())):
        cells = []
        for column in columns.values():
            for found, limit in zip(column[key], limits, strict=True):
                wrong = max(found.value, found.gradient) > limit
                missed += wrong
                cells.append(", ".join(f"{number:.0e}" for number in found) + "!" * wrong)
        print(f"| {key[0]} | {key[1]} | " + " | ".join(cells) + " |", flush=True)
    return missed


def runs() -> int:
    """Prints a row a precision and grid, and returns how many differences are above their limit."""
    missed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for precision, limit in (("32-true", 1e-6), ("64-true", 1e-12)):
            common = [*_ZIPF, f"accelerator.precision={precision}"]
            alone = run(Path(scratch) / f"1 {precision}", [*common, "accelerator=cpu"])
            for name, (ranks, shards) in _GRIDS.items():
                split = [f"accelerator.devices={ranks}", f"accelerator.class_shards={shards}"]
                overrides = [*common, "accelerator=class_parallel_cpu", *split]
                shared = run(Path(scratch) / f"{ranks} {shards} {precision}", overrides)
                weights = largest_difference(alone, shared)
                missed += weights > limit
                objective = abs(alone.objective - shared.objective)
                print(f"200 steps, 10,000 Zipf classes, {precision}, {name}: weights {weights:.1e}", end="")
                print(f", objective {objective:.1e}", flush=True)
    return missed


class _NoMessages:
    """Stands for ranks that are not there."""

    def largest(self, numbers: Tensor) -> None:
        """Sends nothing."""

    def total(self, numbers: Tensor) -> None:
        """Sends nothing."""


def share(device: str) -> None:
    """Prints the time of a step's cost and gradient by half of a million classes, and by all."""
    features, classes = torch.randn(1024, 64, device=device), 1_000_000
    targets = torch.randint(classes, (1024,), device=device)
    half = ClassShard.share(classes, 0, 2, _NoMessages())
    for name, part, backend in (("all", None, "chunked"), ("half", half, "chunked"), ("half", half, "dense")):
        weight = torch.randn(classes if part is None else part.classes, 64, device=device).mul_(0.05).requires_grad_()
        loss = CrossEntropy(0.1).configure(backend=backend, shard=part)  # type: ignore[arg-type]
        taken = []
        for _ in range(6):
            weight.grad = None
            started = time.perf_counter()
            loss(features, weight, None, targets).mean.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
        print(f"{name} of 1,000,000 classes, {backend}: {1000 * statistics.median(taken[1:]):.1f} ms", flush=True)


def main() -> int:
    """Measures what was chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["exactness", "run", "share"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    for name, default in (("rows", 257), ("features", 33), ("classes", 1001)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    missed = 0
    if "exactness" in chosen.parts:
        missed += exactness((chosen.rows, chosen.features, chosen.classes), chosen.device)
    if "run" in chosen.parts:
        missed += runs()
    if "share" in chosen.parts:
        share(chosen.device)
    return int(missed > 0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
