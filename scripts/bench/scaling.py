"""Measures a step on one and on two processes against the formulas of docs/scaling.md: memory, bytes and time.

Each run is made in two lengths, of which the difference counts, in a network namespace of its own, whose counters say
what was sent; that takes root. `rows` splits the rows of every batch; `classes` splits a million classes, tile by tile
and with all logits of a batch held. There a run with checkpoints tells the memory, and one of fewer classes and more
steps what is sent, which is the same and drowns in what is sent at the start of the other.

    sudo python scripts/bench/scaling.py [--parts rows classes] [--repeats 3]
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measuring import anonymous, descendants
from torch import distributed

_LENGTHS = 20, 120
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Setting:
    """What is trained: one layer on made-up rows."""

    rows: int
    features: int
    classes: int
    batch: int

    @property
    def overrides(self) -> list[str]:
        """That choose it."""
        return [
            "data=synthetic",
            f"data.rows={self.rows}",
            f"data.features={self.features}",
            f"data.classes={self.classes}",
            f"data.batch_size={self.batch}",
            "data.val_fraction=0",
            "accelerator.threads=1",
            "trainer.log_every_n_steps=1000",
            "logger=none",
        ]

    @property
    def weights(self) -> int:
        """Bytes of weight and bias, and so of their gradients."""
        return self.classes * (self.features + 1) * _FLOAT

    def sent(self, ranks: int) -> float:
        """Bytes that a rank sends in a step: a ring adds the gradients up, and hands the sums out."""
        return 2 * (ranks - 1) / ranks * (self.weights + 4 * _FLOAT)

    def operations(self, ranks: int) -> float:
        """Floating-point operations of a rank in a step: two matrix products."""
        return 4 * self.batch / ranks * self.features * self.classes


@dataclass(frozen=True)
class SplitSetting:
    """Many classes, each of one row."""

    features: int = 64
    classes: int = 1_000_000
    batch: int = 1024

    def overrides(self, folder: Path) -> list[str]:
        """That choose it, and rows in a folder."""
        draw, rows = np.random.default_rng(0), folder / f"x{self.classes}.npy"
        targets = rows.with_name(f"y{self.classes}.npy")
        if not rows.exists():
            np.save(rows, draw.standard_normal((self.classes, self.features), np.float32))
            np.save(targets, draw.permutation(self.classes))
        return [
            "data=arrays",
            f"data.path={rows}",
            f"data.target={targets}",
            "data.in_memory=false",
            f"data.batch_size={self.batch}",
            "data.val_fraction=0",
            "data.standardize=false",
            "loss=cross_entropy",
            "loss.label_smoothing=0.1",
            "accelerator.threads=1",
            "trainer.log_every_n_steps=1000",
            "logger=none",
        ]

    def sent(self, ranks: int) -> float:
        """Bytes that a rank sends in a step: a number a row of the maxima, and three of the sums."""
        return 2 * (ranks - 1) / ranks * 4 * self.batch * _FLOAT

    def memory(self, ranks: int, *, held: bool) -> float:
        """Bytes of a rank: weights, their gradient, and the logits that are there at a time.

        Without others those are of 64 rows, with others of a tile, which takes next to nothing.
        """
        own = self.classes / ranks
        rows = self.batch if held else min(64, self.features) if ranks == 1 else 0
        return (2 * own * (self.features + 1) + rows * own) * _FLOAT


SETTINGS = [
    Setting(rows=40_000, features=256, classes=1000, batch=4096),
    Setting(rows=40_000, features=256, classes=1000, batch=256),
    Setting(rows=20_000, features=512, classes=8000, batch=2048),
]


@dataclass(frozen=True)
class Measured:
    """A step: its seconds, the bytes that all ranks together send, and the most memory that one of them has."""

    seconds: float
    sent: float
    memory: int


def measure(overrides: list[str], kind: str, ranks: int, lengths: tuple[int, int] = _LENGTHS) -> Measured:
    """Runs both lengths."""
    short, long = (_run(overrides, kind, ranks, steps) for steps in lengths)
    steps = lengths[1] - lengths[0]
    return Measured((long.seconds - short.seconds) / steps, (long.sent - short.sent) / steps, long.memory)


def _run(overrides: list[str], kind: str, ranks: int, steps: int) -> Measured:
    processes = [f"accelerator={kind}", f"accelerator.devices={ranks}"] if ranks > 1 else ["accelerator=cpu"]
    command = [sys.executable, "-m", "crossent.train", *processes, *overrides, f"trainer.max_steps={steps}"]
    with tempfile.TemporaryDirectory() as folder:
        # The loopback device is read before the namespace is gone, and the last reading counts.
        inside = 'ip link set lo up; "$@"; code=$?; cat /proc/net/dev > sent; exit $code'
        running = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", inside, "sh", *command, "hydra.run.dir=run"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )
        memory = 0
        while running.poll() is None:
            memory = max([memory, *map(anonymous, descendants(running.pid))])
            time.sleep(0.02)
        if running.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} has ended with exit code {running.returncode}")
        lines = (Path(folder) / "sent").read_text().splitlines()
        sent = int(next(line for line in lines if line.strip().startswith("lo:")).split(":")[1].split()[8])
        seconds = float(json.loads((Path(folder) / "run" / "metrics.json").read_text())["seconds"])
    return Measured(seconds, sent, memory)


def time_messages(ranks: int) -> None:
    """Prints how long it takes ranks to add up messages of some sizes."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            multiprocessing.get_context("spawn").Process(target=_add_up, args=(rank, ranks, f"file://{folder}/ranks"))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()


def _add_up(rank: int, ranks: int, meeting: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    for size in (64, 2**16, 2**20, 2**24):
        message, taken = torch.ones(size // _FLOAT), []
        for _ in range(30):
            distributed.barrier()
            started = time.perf_counter()
            distributed.all_reduce(message)
            taken.append(time.perf_counter() - started)
        if rank == 0:
            print(f"adding up {size:9} bytes over {ranks} ranks: {1000 * statistics.median(taken):7.2f} ms", flush=True)
    distributed.destroy_process_group()


def main() -> None:
    """Measures what was chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["rows", "classes"], choices=["rows", "classes"])
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    if "rows" in chosen.parts:
        split_rows(chosen.repeats)
    if "classes" in chosen.parts:
        split_classes(chosen.repeats)


def split_classes(repeats: int) -> None:
    """Prints a row a number of ranks and a backend."""
    setting, fewer = SplitSetting(), SplitSetting(classes=10_000)
    print(f"{setting.features} features, {setting.classes} classes, batches of {setting.batch} rows")
    print(
        f"{'ranks':>6}{'backend':>9}{'s a step':>10}{'kB sent a rank':>16}{'formula':>9}{'MB memory':>11}{'formula':>9}"
    )
    with tempfile.TemporaryDirectory() as folder:
        rows, few = setting.overrides(Path(folder)), fewer.overrides(Path(folder))
        for ranks, backend in ((1, "chunked"), (2, "chunked"), (2, "dense")):
            chosen = [f"loss.backend={backend}"]
            quiet = [*chosen, "trainer.enable_checkpointing=false"]
            found = [measure([*rows, *quiet], "class_parallel_cpu", ranks, (2, 7)) for _ in range(repeats)]
            seconds = statistics.median(each.seconds for each in found)
            sent = measure([*few, *quiet], "class_parallel_cpu", ranks, (20, 220)).sent / ranks
            memory = _run([*rows, *chosen], "class_parallel_cpu", ranks, 3).memory
            print(f"{ranks:6}{backend:>9}{seconds:10.2f}{sent / 1e3:16.1f}{setting.sent(ranks) / 1e3:9.1f}", end="")
            print(f"{memory / 1e6:11.0f}{setting.memory(ranks, held=backend == 'dense') / 1e6:9.0f}", flush=True)


def split_rows(repeats: int) -> None:
    """Prints a row a setting and number of ranks."""
    time_messages(2)
    print(f"{'features':>8}{'classes':>9}{'batch':>7}{'ranks':>7}{'ms a step':>11}{'GFLOP/s a rank':>16}", end="")
    print(f"{'MB sent a rank':>16}{'formula':>9}{'MB memory':>11}")
    for setting in SETTINGS:
        for ranks in (1, 2):
            found = [measure(setting.overrides, "ddp_cpu", ranks) for _ in range(repeats)]
            seconds = statistics.median(each.seconds for each in found)
            sent = statistics.median(each.sent for each in found) / ranks
            memory = statistics.median(each.memory for each in found)
            print(f"{setting.features:8}{setting.classes:9}{setting.batch:7}{ranks:7}{1000 * seconds:11.1f}", end="")
            print(f"{setting.operations(ranks) / seconds / 1e9:16.1f}{sent / 1e6:16.3f}", end="")
            print(f"{setting.sent(ranks) / 1e6:9.3f}{memory / 1e6:11.0f}", flush=True)


if __name__ == "__main__":
    main()
