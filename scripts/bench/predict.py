"""What comes out of a run: how fast rows are predicted, in how much memory, and how exact the metrics are.

- ``speed``: 1,000,000 × 20 numbers and an id, from CSV and from Parquet, to a file of the same kind with id, prediction
  and probability: ``crossent-predict`` beside a process that does the same with pandas and a pickled
  LogisticRegression of scikit-learn; whole processes, and without their imports.
- ``memory``: a CSV file of 8 GB and a .npy of 8 GB are predicted while anonymous memory is sampled.
- ``metrics``: all metrics beside scikit-learn's (the calibration error beside torchmetrics') on the same predictions.
- ``calibration``: digits, ECE and NLL on the test rows before and after temperature scaling, five splits.

    python scripts/bench/predict.py [--parts speed memory metrics calibration] [--repeats 5] [--folder DIR]

``speed`` needs pandas. Unset OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE where they are set, which slow NumPy down.
"""

import argparse
import importlib.util
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet
from measuring import in_turns, table, verdict, watched

ROWS, COLUMNS, CLASSES = 1_000_000, 20, 5
LARGE = 8_000_000_000  # bytes
MEMORY_LIMIT, SPEED_LIMIT = 1.5e9, 2.0

# What somebody with pandas and scikit-learn writes; it prints the seconds of the job without the imports.
THEIRS = """
import pickle, sys, time
import numpy, pandas, sklearn.linear_model
started = time.perf_counter()
source, target = sys.argv[1:]
model = pickle.load(open("model.pickle", "rb"))
rows = pandas.read_csv(source) if source.endswith("csv") else pandas.read_parquet(source)
probabilities = model.predict_proba(rows[model.feature_names_in_])
out = pandas.DataFrame(
    {
        "id": rows["id"],
        "prediction": model.classes_[probabilities.argmax(1)],
        "probability": probabilities.max(1),
    }
)
out.to_csv(target, index=False) if target.endswith("csv") else out.to_parquet(target, index=False)
print("seconds", time.perf_counter() - started)
"""


def crossent(command: str, folder: Path, *overrides: str) -> str:
    """Runs one of our commands as a process of its own, and returns what it printed."""
    arguments = [sys.executable, "-m", f"crossent.{command}", *overrides]
    return subprocess.run(arguments, cwd=folder, check=True, capture_output=True, text=True).stdout


def rows(count: int, first: int = 0) -> pa.Table:
    """Rows with an id, features and a label."""
    draw = np.random.default_rng(first)
    features = draw.standard_normal((count, COLUMNS), np.float32)
    teacher = np.random.default_rng(1).standard_normal((COLUMNS, CLASSES))
    labels = (features @ teacher + draw.gumbel(size=(count, CLASSES))).argmax(1)
    columns: dict[str, Any] = {"id": np.arange(first, first + count)}
    columns |= {f"x{column}": features[:, column] for column in range(COLUMNS)}
    return pa.table(columns | {"label": [f"class {label}" for label in labels]})


def trained(folder: Path) -> None:
    """Trains on some rows, and a classifier of scikit-learn's on the same."""
    some = rows(20_000, first=2_000_000)
    arrow_csv.write_csv(some.drop_columns("id"), folder / "train.csv")
    crossent("train", folder, "data=csv", "data.path=train.csv", "trainer.max_steps=200")


# -- speed --------------------------------------------------------------------------------------------------


def speed(repeats: int, folder: Path) -> dict[str, list[float]]:
    """Rows a second, whole processes and the job alone."""
    if importlib.util.find_spec("pandas") is None:
        print("\nspeed: needs pandas, which is not installed; left out")
        return {}
    trained(folder)
    fit = (
        "import pandas, pickle; from sklearn.linear_model import LogisticRegression;"
        "rows = pandas.read_csv('train.csv');"
        "model = LogisticRegression().fit(rows.drop(columns='label'), rows['label']);"
        "pickle.dump(model, open('model.pickle', 'wb'))"
    )
    subprocess.run([sys.executable, "-c", fit], cwd=folder, check=True)
    drawn = rows(ROWS).drop_columns("label")
    arrow_csv.write_csv(drawn, folder / "new.csv")
    pyarrow.parquet.write_table(drawn, folder / "new.parquet")
    jobs: dict[str, list[float]] = {}

    def ours(kind: str) -> float:
        started = time.perf_counter()
        said = crossent("predict", folder, f"input=new.{kind}", f"output=ours.{kind}", "keep=[id]", "overwrite=true")
        taken = time.perf_counter() - started
        jobs.setdefault(f"crossent, {kind}", []).append(float(re.findall(r"rows in ([\d.]+) s", said)[0]))
        return taken

    def theirs(kind: str) -> float:
        started = time.perf_counter()
        arguments = [sys.executable, "-c", THEIRS, f"new.{kind}", f"theirs.{kind}"]
        said = subprocess.run(arguments, cwd=folder, check=True, capture_output=True, text=True).stdout
        taken = time.perf_counter() - started
        jobs.setdefault(f"pandas and scikit-learn, {kind}", []).append(float(said.split()[1]))
        return taken

    found: dict[str, list[float]] = {}
    for kind in ("csv", "parquet"):
        base = f"pandas and scikit-learn, {kind}"
        taken = in_turns({f"crossent, {kind}": lambda: ours(kind), base: lambda: theirs(kind)}, repeats)  # noqa: B023
        table(f"speed: {ROWS:,} × {COLUMNS} from and to {kind}, whole processes", taken, base)
        alone = {name: times[1:] for name, times in jobs.items() if name.endswith(kind)}
        table(f"speed: {ROWS:,} × {COLUMNS} from and to {kind}, without imports", alone, base)
        for what, times in (("whole processes", taken), ("without imports", alone)):
            medians = {name: statistics.median(each) for name, each in times.items()}
            rates = ", ".join(f"{name} {ROWS / median:,.0f}" for name, median in medians.items())
            print(f"rows a second, {what}: {rates}")
            ratio = medians[base] / medians[f"crossent, {kind}"]
            verdict(f"{kind}, {what}: times as fast", ratio, SPEED_LIMIT, at_least=True)
        found |= taken | {f"{name}, without imports": times for name, times in alone.items()}
    return found


# -- memory -------------------------------------------------------------------------------------------------


def memory(repeats: int, folder: Path) -> dict[str, list[float]]:
    """Anonymous memory while files of 8 GB are predicted."""
    trained(folder)
    block = rows(ROWS).drop_columns("label")
    arrow_csv.write_csv(block, folder / "block.csv")
    header, text = (folder / "block.csv").read_bytes().split(b"\n", 1)
    with (folder / "large.csv").open("wb") as file:
        file.write(header + b"\n")
        while file.tell() < LARGE:
            file.write(text)
    count = LARGE // (4 * COLUMNS)
    array = np.lib.format.open_memmap(folder / "large.npy", "w+", np.float32, (count, COLUMNS))
    numbers = np.stack([block[f"x{column}"].to_numpy() for column in range(COLUMNS)], axis=1)
    for start in range(0, count, len(numbers)):
        array[start : start + len(numbers)] = numbers[: count - start]
    array.flush()
    found = {}
    for kind, out in (("csv", "csv"), ("csv", "parquet"), ("npy", "parquet")):
        overrides = [f"input=large.{kind}", f"output=out.{out}", "probabilities=true", "overwrite=true"]
        keep = ["keep=[id]"] if kind == "csv" else []
        taken, peak, said = watched([sys.executable, "-m", "crossent.predict", *overrides, *keep], folder)
        size = (folder / f"large.{kind}").stat().st_size / 1e9
        print(f"\nmemory: large.{kind}, {size:.1f} GB, to {out}, all probabilities: {taken:.1f} s")
        print(said.splitlines()[-1])
        verdict("anonymous memory (RssAnon, sampled every 20 ms), GB", peak / 1e9, MEMORY_LIMIT / 1e9)
        found[f"{kind} to {out}"] = [taken, float(peak)]
    return found


# -- metrics ------------------------------------------------------------------------------------------------


def metrics(repeats: int, folder: Path) -> dict[str, list[float]]:
    """The largest difference to others' metrics on the same predictions, with weights and without."""
    import torch
    from sklearn import metrics as sklearn
    from torchmetrics.functional.classification import multiclass_calibration_error

    from crossent.metrics import Scores

    warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
    found: dict[str, list[float]] = {}
    for count, classes, weighted in (
        (100_000, 10, False),
        (100_000, 10, True),
        (20_000, 1000, True),
        (50_000, 2, True),
    ):
        draw = torch.Generator().manual_seed(classes)
        logits = 3 * torch.randn(count, classes, generator=draw)
        chosen = torch.rand(count, generator=draw) < 0.7
        targets = torch.where(chosen, logits.argmax(1), torch.randint(classes, (count,), generator=draw))
        weights = torch.rand(count, generator=draw, dtype=torch.float64) + 0.1
        scores = Scores(classes)
        for part in torch.arange(count).split(4096):
            scores.update(logits[part], targets[part], weights[part] if weighted else None)
        ours = {name: float(value) for name, value in scores.compute().items()}
        probabilities, y = logits.double().softmax(1).numpy(), targets.numpy()
        predicted, labels = probabilities.argmax(1), np.arange(classes)
        given: dict[str, Any] = {"sample_weight": weights.numpy() if weighted else None}
        theirs = {
            "accuracy": sklearn.accuracy_score(y, predicted, **given),
            "top5_accuracy": sklearn.top_k_accuracy_score(y, probabilities, k=5, labels=labels, **given)
            if classes > 5
            else 1.0,
            "balanced_accuracy": sklearn.balanced_accuracy_score(y, predicted, **given),
            "macro_f1": sklearn.f1_score(y, predicted, average="macro", **given),
            "nll": sklearn.log_loss(y, probabilities, labels=labels, **given),
            "brier": sklearn.brier_score_loss(y, probabilities, labels=labels, scale_by_half=False, **given),
        }
        if not weighted:
            error = multiclass_calibration_error(torch.from_numpy(probabilities), targets, classes, n_bins=15)
            theirs["ece"] = float(error)
        differences = {name: abs(ours[name] - value) for name, value in theirs.items()}
        print(
            f"\nmetrics: {count:,} rows, {classes} classes, {'weighted' if weighted else 'unweighted'}, float32 logits"
        )
        for name, difference in differences.items():
            print(f"  {name:20}{ours[name]:12.8f}{theirs[name]:12.8f}   difference {difference:.1e}")
        found[f"{count} × {classes}"] = [max(differences.values())]
    print(f"\nlargest difference: {max(each for values in found.values() for each in values):.1e}")
    return found


# -- calibration --------------------------------------------------------------------------------------------


def calibration(repeats: int, folder: Path) -> dict[str, list[float]]:
    """Digits before and after temperature scaling."""
    found: dict[str, list[float]] = {}
    for steps in (1001, 20_000):
        print(f"\ncalibration: digits, {steps} steps, test_fraction 0.2, val_fraction 0.1, five splits")
        print(f"{'seed':>6}{'temperature':>13}{'NLL before':>12}{'after':>9}{'ECE before':>12}{'after':>9}")
        for seed in range(5):
            overrides = ["data=digits", "data.test_fraction=0.2", "calibration=temperature", f"seed={seed}"]
            overrides += [f"trainer.max_steps={steps}", "callbacks.early_stopping.patience=null"]
            said = crossent("train", folder, *overrides, f"hydra.run.dir=digits-{steps}-{seed}")
            stored = json.loads((folder / f"digits-{steps}-{seed}" / "metrics.json").read_text())
            temperature = re.findall(r"best.ckpt: temperature ([\d.]+)", said)
            values = [stored[f"test/{name}"] for name in ("nll", "nll_calibrated", "ece", "ece_calibrated")]
            shown = float(temperature[0]) if temperature else 1.0
            print(f"{seed:6}{shown:13.4f}{values[0]:12.4f}{values[1]:9.4f}{values[2]:12.4f}{values[3]:9.4f}")
            found[f"{steps} steps, seed {seed}"] = [shown, *values]
    return found


PARTS = {"speed": speed, "memory": memory, "metrics": metrics, "calibration": calibration}


def main() -> None:
    """Prints the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go, 20 GB of them; a temporary one if not given")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, Arrow {pa.__version__}, {pa.cpu_count()} cores, {platform.machine()}")
    found = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.parts:
            found[name] = PARTS[name](options.repeats, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
