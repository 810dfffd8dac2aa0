"""What own data costs: the way from rows to batches, from files to the first step, and memory where rows are too many.

- ``epoch``: 1,000,000 × 64 rows in memory, 10 classes, batches of 1024: an epoch under the same Trainer with our loader
  and with ``DataLoader(TensorDataset)``.
- ``path``: the same rows without training, against a permuted copy that is sliced by hand.
- ``csv``: a CSV file of 1,000,000 × 20: to the table, and to the first step, beside pandas.
- ``disk``: a features file of 8 GB trains for an epoch, while its anonymous memory is sampled.
- ``synthetic``: accuracy of fits on synthetic rows beside the best possible one.

    python scripts/bench/data.py [--parts epoch path csv disk synthetic] [--repeats 5] [--folder DIR] [--json FILE]
"""

import argparse
import contextlib
import importlib.util
import io
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from measuring import Measure, in_turns, table, verdict, watched
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate

from crossent import cli, config, optim
from crossent.classifier import SoftmaxClassifier
from crossent.data import Batch, Table, TrainLoader
from crossent.data.csv import CsvFile
from crossent.data.files import Files
from crossent.head import Head
from crossent.losses import CrossEntropy
from crossent.reporting import quieten
from crossent.train import command
from crossent.training import train

ROWS, COLUMNS, CLASSES, BATCH = 1_000_000, 64, 10, 1024
CSV_ROWS, CSV_COLUMNS = 1_000_000, 20
DISK_ROWS, DISK_COLUMNS = 8_000_000, 256  # 8.2 GB
EPOCH_LIMIT, PATH_LIMIT, MEMORY_LIMIT = 5.0, 1.2, 1.5e9


def rows() -> Table:
    """The rows of `epoch` and `path`."""
    torch.manual_seed(0)
    names = tuple(str(each) for each in range(max(COLUMNS, CLASSES)))
    features, targets = torch.randn(ROWS, COLUMNS), torch.randint(CLASSES, (ROWS,))
    return Table(features, targets, names[:CLASSES], names[:COLUMNS])


# -- in memory ----------------------------------------------------------------------------------------------


def epoch(repeats: int, folder: Path) -> dict[str, list[float]]:
    """An epoch under the same Trainer."""
    drawn = rows()

    def collate(drawn_rows: list[tuple[Tensor, Tensor]]) -> Batch:
        return Batch(*default_collate(drawn_rows))

    dataset = TensorDataset(drawn.all_features(), drawn.targets)
    loaders: dict[str, Any] = {
        "crossent": TrainLoader(drawn, BATCH, shuffle=True, seed=0),
        "DataLoader(TensorDataset)": DataLoader(dataset, BATCH, shuffle=True, collate_fn=collate),
        "DataLoader(TensorDataset), two workers": DataLoader(
            dataset, BATCH, shuffle=True, collate_fn=collate, num_workers=2
        ),
    }

    def fit(loader: Any) -> float:
        head = Head(COLUMNS, CLASSES, CLASSES, bias="per_class", init="default", seed=0)
        sgd = config.Sgd(lr=0.1, momentum=0, dampening=0, nesterov=False, weight_decay=0)
        classifier = SoftmaxClassifier(head, CrossEntropy(), optimizer=partial(optim.build_optimizer, sgd))
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        started = time.perf_counter()
        trainer.fit(classifier, loader)
        return time.perf_counter() - started

    taken: dict[str, list[float]] = in_turns({name: partial(fit, loader) for name, loader in loaders.items()}, repeats)
    title = f"epoch: {ROWS:,} × {COLUMNS} rows, {CLASSES} classes, batches of {BATCH}, Trainer.fit"
    table(title, taken, "crossent")
    ratio = statistics.median(taken["DataLoader(TensorDataset)"]) / statistics.median(taken["crossent"])
    verdict("DataLoader(TensorDataset) / crossent", ratio, EPOCH_LIMIT, at_least=True)
    return taken


def path(repeats: int, folder: Path) -> dict[str, list[float]]:
    """The rows of an epoch, without training."""
    drawn = rows()
    features, targets = drawn.all_features(), drawn.targets
    loader = TrainLoader(drawn, BATCH, shuffle=True, seed=0)

    def ours() -> float:
        started = time.perf_counter()
        for batch in loader:
            _ = batch.features, batch.targets
        return time.perf_counter() - started

    def permuted_copy() -> float:
        started = time.perf_counter()
        order = torch.randperm(ROWS)
        permuted, labels = features[order], targets[order]
        for start in range(0, ROWS, BATCH):
            _ = permuted[start : start + BATCH], labels[start : start + BATCH]
        return time.perf_counter() - started

    def indexed() -> float:
        started = time.perf_counter()
        order = torch.randperm(ROWS)
        for start in range(0, ROWS, BATCH):
            chosen = order[start : start + BATCH]
            _ = features.index_select(0, chosen), targets.index_select(0, chosen)
        return time.perf_counter() - started

    by_hand = "by hand: a permuted copy, sliced"
    cases = {by_hand: permuted_copy, "by hand: index_select of each batch": indexed, "crossent": ours}
    taken: dict[str, list[float]] = in_turns(cases, repeats)
    table(f"path: {ROWS:,} × {COLUMNS} rows, batches of {BATCH}, no training", taken, by_hand)
    verdict("crossent / by hand", statistics.median(taken["crossent"]) / statistics.median(taken[by_hand]), PATH_LIMIT)
    return taken


# -- from files ---------------------------------------------------------------------------------------------


def process(*arguments: str) -> float:
    """Seconds of a whole process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def csv(repeats: int, folder: Path) -> dict[str, list[float]]:
    """From a CSV file to a table, and to the first step."""
    file = folder / "rows.csv"
    generator = np.random.default_rng(0)
    with file.open("w") as written:
        written.write(",".join([*(f"x{column}" for column in range(CSV_COLUMNS)), "label"]) + "\n")
        for _ in range(20):
            part = generator.standard_normal((CSV_ROWS // 20, CSV_COLUMNS))
            labels = generator.integers(CLASSES, size=(len(part), 1))
            np.savetxt(written, np.hstack([part, labels]), fmt=["%.6f"] * CSV_COLUMNS + ["%d"], delimiter=",")

    def load() -> float:
        started = time.perf_counter()
        Files(CsvFile(file)).load()
        return time.perf_counter() - started

    step = ["-m", "crossent.train", "trainer.max_steps=1", f"hydra.run.dir={folder}/runs/${{now:%H%M%S%f}}"]
    first_step = [*step, "data=csv", f"data.path={file}", "data.batch_size=1024"]
    cases: dict[str, Measure] = {
        "crossent: file to table": load,
        "crossent-train: one step of the toy set": lambda: process(*step),
        "crossent-train: one step of the file": lambda: process(*first_step),
    }
    if importlib.util.find_spec("pandas") is None:
        print("\npandas is not installed; its times are left out")
    else:
        import pandas as pd  # type: ignore[import-untyped, unused-ignore]

        def read() -> float:
            started = time.perf_counter()
            pd.read_csv(file)
            return time.perf_counter() - started

        cases["pandas.read_csv"] = read
        reading = f"import pandas; pandas.read_csv({str(file)!r})"
        cases["a process that reads it with pandas"] = lambda: process("-c", reading)
    taken: dict[str, list[float]] = in_turns(cases, repeats)
    size = file.stat().st_size / 1e6
    table(f"csv: {CSV_ROWS:,} × {CSV_COLUMNS} numbers and a label, {size:.0f} MB", taken, "crossent: file to table")
    return taken


def disk(repeats: int, folder: Path) -> dict[str, list[float]]:
    """An epoch of a file that does not fit in the memory that it may take."""
    generator = np.random.default_rng(0)
    features, targets = folder / "X.npy", folder / "y.npy"
    mapped = np.lib.format.open_memmap(features, "w+", np.float32, (DISK_ROWS, DISK_COLUMNS))
    teacher = generator.standard_normal((DISK_COLUMNS, CLASSES), np.float32)
    labels = np.empty(DISK_ROWS, np.int64)
    for start in range(0, DISK_ROWS, 100_000):
        drawn = generator.standard_normal((100_000, DISK_COLUMNS), np.float32)
        mapped[start : start + 100_000] = drawn
        labels[start : start + 100_000] = (drawn @ teacher).argmax(1)
    mapped.flush()
    del mapped
    np.save(targets, labels)
    arguments = ["data=arrays", f"data.path={features}", f"data.target={targets}", "data.batch_size=1024"]
    arguments += ["trainer.max_steps=-1", "trainer.max_epochs=1", "trainer.val_check_interval=1.0"]
    arguments += ["trainer.check_val_every_n_epoch=1", "optimizer.lr=0.5", f"hydra.run.dir={folder}/disk"]
    command_line = [sys.executable, "-m", "crossent.train", *arguments]
    taken, peak, _ = watched(command_line, folder)
    metrics = json.loads((folder / "disk" / "metrics.json").read_text())
    size = features.stat().st_size / 1e9
    print(
        f"\ndisk: {DISK_ROWS:,} × {DISK_COLUMNS} float32, {size:.1f} GB, an epoch of batches of 1024, val, standardised"
    )
    print(f"{taken:.1f} s in all, {metrics['seconds']:.1f} s of fit for {metrics['steps']} steps; {metrics}")
    verdict("anonymous memory (RssAnon, sampled every 20 ms), GB", peak / 1e9, MEMORY_LIMIT / 1e9)
    return {"seconds": [taken], "fit": [metrics["seconds"]], "anonymous bytes": [float(peak)]}


# -- synthetic ----------------------------------------------------------------------------------------------


def synthetic(repeats: int, folder: Path) -> dict[str, list[float]]:
    """Accuracy on test rows beside the best possible one."""
    found: dict[str, list[float]] = {}
    print(
        "\nsynthetic: half of the rows for testing, lbfgs; accuracy on the test rows, and the best possible on average"
    )
    for count, columns, classes, zipf in (
        (10_000, 20, 5, 0),
        (100_000, 20, 5, 0),
        (1_000_000, 20, 10, 0),
        (400_000, 64, 100, 1),
    ):
        run = folder / f"synthetic-{count}-{classes}"
        overrides = [
            "data=synthetic",
            f"data.rows={count}",
            f"data.features={columns}",
            f"data.classes={classes}",
            f"data.zipf={zipf}",
            "data.test_fraction=0.5",
            "optimizer=lbfgs",
            "trainer.max_steps=10",
            "loss=cross_entropy",
            f"hydra.run.dir={run}",
        ]
        said = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(said):
            if cli.run(command(train), overrides) != 0:
                raise RuntimeError("the run failed")
        accuracy = json.loads((run / "metrics.json").read_text())["test/accuracy"]
        best = next(float(line.rsplit(":", 1)[1]) for line in said.getvalue().splitlines() if "best possible" in line)
        print(f"{count:>10,} rows, {columns} features, {classes:>3} classes, zipf {zipf}: {accuracy:.4f} of {best:.4f}")
        found[run.name] = [accuracy, best]
    return found


PARTS = {"epoch": epoch, "path": path, "csv": csv, "disk": disk, "synthetic": synthetic}


def main() -> None:
    """Prints the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go, 9 GB of them; a temporary one if not given")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    quieten()
    warnings.filterwarnings("ignore", ".*does not have many workers")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    found = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.parts:
            found[name] = PARTS[name](options.repeats, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
