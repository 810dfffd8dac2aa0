"""What it costs to see and to compare runs.

- ``curves``: the notebook's run and digits, as they come, against the same without what is recorded beside the cost and
  without pictures: ``Trainer.fit``; and the whole command with pictures and without.
- ``size``: the event files of 100,000 steps, with pictures.
- ``summary``: crossent-summarize on a thousand runs, 200 rates of five seeds each.

Every run is a process of its own, since the first call of anything in PyTorch takes many times as long as the next.

    python scripts/bench/comparing.py [--parts curves size summary] [--repeats 9]
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import yaml
from measuring import verdict

PARTS = ("curves", "size", "summary")
RUNS = {
    "notebook": ["experiment=notebook_cross_entropy"],
    "digits": ["data=digits"],
    "digits, batches of 64": ["data=digits", "data.batch_size=64", "optimizer=adam", "trainer.max_steps=2001"],
}
# Runs crossent-train as it was before there was anything but the cost.
BARE = """
import crossent.details, crossent.callbacks.figures
crossent.details.has_details = lambda step, every, end: False
crossent.callbacks.figures.Figures.draw = lambda self: None
from crossent.train import main
main()
"""


def run(folder: Path, arguments: list[str], *, bare: bool = False) -> tuple[float, float]:
    """Seconds of fit, and of the whole command."""
    python = [sys.executable, *(["-c", BARE] if bare else ["-m", "crossent.train"])]
    started = time.perf_counter()
    subprocess.run([*python, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - started
    return float(json.loads((folder / "logs/latest/metrics.json").read_text())["seconds"]), whole


def curves(repeats: int) -> None:
    """Compares runs with and without all that is recorded beside the cost."""
    for name, arguments in RUNS.items():
        taken: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for turn in range(repeats + 1):
            for case in ("bare", "as it comes", "no pictures"):
                more = ["logger.figures=false"] if case == "no pictures" else []
                with tempfile.TemporaryDirectory() as folder:
                    found = run(Path(folder), [*arguments, *more], bare=case == "bare")
                if turn:
                    taken[case].append(found)
        fit = {case: statistics.median(each for each, _ in times) for case, times in taken.items()}
        whole = {case: statistics.median(each for _, each in times) for case, times in taken.items()}
        print(f"{name}: fit {fit['bare']:.3f} s bare, {fit['as it comes']:.3f} s as it comes")
        print(f"{name}: command {whole['no pictures']:.2f} s without pictures, {whole['as it comes']:.2f} s with them")
        verdict(f"{name}: fit, of bare", fit["as it comes"] / fit["bare"], 1.1)


def size() -> None:
    """Prints how large the event files of a long run are."""
    arguments = ["data=digits", "optimizer=adam", "trainer.max_steps=100000", "callbacks.early_stopping.patience=null"]
    with tempfile.TemporaryDirectory() as folder:
        seconds, _ = run(Path(folder), arguments)
        found = sum(path.stat().st_size for path in Path(folder).glob("logs/latest/events.*"))
    print(f"digits, 100,000 steps, a point each 10 and a validation each 50: {found / 1e6:.2f} MB, fit {seconds:.1f} s")


def summary() -> None:
    """Prints how long a thousand runs take to be compared."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ["-m", "data=digits", "optimizer=adam", "optimizer.lr=0.1,0.01", "seed=0,1", "trainer.max_steps=501"]
        command = [sys.executable, "-m", "crossent.train", *options, f"hydra.sweep.dir={folder / 'base'}"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        made = sorted(path.parent for path in folder.glob("base/*/metrics.json"))
        for number in range(1000):
            rate, seed = 0.001 * (number // 5 + 1), number % 5
            directory = folder / "runs" / str(number)
            shutil.copytree(made[number % len(made)], directory)
            config = yaml.safe_load((directory / "config.yaml").read_text())
            config["seed"], config["optimizer"]["lr"] = seed, rate
            (directory / "config.yaml").write_text(yaml.safe_dump(config))
            typed = ["data=digits", "optimizer=adam", f"optimizer.lr={rate}", f"seed={seed}"]
            (directory / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(typed))
        for plot in ("true", "false"):
            started = time.perf_counter()
            command = [sys.executable, "-m", "crossent.summarize", str(folder / "runs"), f"plot={plot}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            verdict(f"a thousand runs, plot={plot}: seconds", time.perf_counter() - started, 10)


def main() -> None:
    """Runs the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    if "curves" in arguments.parts:
        curves(arguments.repeats)
    if "size" in arguments.parts:
        size()
    if "summary" in arguments.parts:
        summary()


if __name__ == "__main__":
    main()
