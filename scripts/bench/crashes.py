"""Kills runs at random moments, lets them go on, and compares them with runs that nobody killed.

Each run is started, killed with SIGKILL, resumed and killed again, and in the end allowed to finish. It is killed once
before its first checkpoint, and then in turns while a checkpoint is being written and at any moment. Killed and whole
runs have to agree in every bit of weights, optimiser, random number generators and place in the data, and in every
point of every curve, as EventAccumulator and the two servers of TensorBoard read them. Exits with 1 if one does not.

    python scripts/bench/crashes.py [--kills 100] [--seed 0] [--at-a-time 2] [--fork] [--ranks 1] [--accelerator …] …

With --fork, runs are processes split off from one that has imported everything, one at a time. They start in a tenth of
a second, so that more of the kills hit what is Crossent's own.

With --ranks 2, two processes share every run, and what is killed is one of them or the one that watches them; with
--accelerator class_parallel_cpu they share out the classes.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Protocol, Self

import torch
from measuring import descendants
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

KILLS_A_RUN = 5
_PATIENCE = 60  # seconds for a TensorBoard server to read what there is
_COMMON = [
    "optimizer=adam",
    "data.test_fraction=0.1",
    "trainer.log_every_n_steps=1",
    "callbacks.early_stopping.patience=null",
    "callbacks.checkpoint.every_minutes=null",
]
#: What is killed: one whose small checkpoints are written at once, and one whose larger ones a thread writes.
SETTINGS = {
    "digits": [
        *_COMMON,
        "data=digits",
        "data.batch_size=64",
        "trainer.max_steps=500",
        "calibration=temperature",
        "trainer.val_check_interval=20",
        "callbacks.checkpoint.every_n_steps=7",
    ],
    "many classes": [
        *_COMMON,
        "data=synthetic",
        "data.rows=4000",
        "data.features=600",
        "data.classes=200",
        "data.batch_size=100",
        "trainer.max_steps=-1",
        "trainer.max_epochs=6",
        "trainer.val_check_interval=45",
        "callbacks.checkpoint.every_n_steps=6",
        "callbacks.checkpoint.keep=3",
    ],
}
Curves = dict[str, dict[int, float]]


@dataclass
class Result:
    """What became of a run.

    Attributes:
        kills: how many of each kind.
        wrong: in what it is not the whole run; empty: in nothing.
    """

    kills: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Running(Protocol):
    """A process, as `subprocess.Popen` has it."""

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


class Forked:
    """crossent-train in a process split off from this one."""

    def __init__(self, arguments: list[str], console: IO[bytes], folder: Path) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(arguments, console, folder))
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, or None as long as it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()

    def wait(self) -> int:
        """The exit code, once it has one."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def _run(self, arguments: list[str], console: IO[bytes], folder: Path) -> None:
        from crossent import train

        os.dup2(console.fileno(), 1)
        os.dup2(console.fileno(), 2)
        os.chdir(folder)
        train.main(arguments)


class Training:
    """A run of crossent-train in a directory, as often as it takes.

    Attributes:
        first: the seconds until its first checkpoint.
        seconds: of training.
    """

    def __init__(self, setting: str, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self._overrides = SETTINGS[setting]
        if options.ranks > 1:
            shared = [f"accelerator={options.accelerator}", f"accelerator.devices={options.ranks}"]
            self._overrides = [*self._overrides, *shared]
        self._ranks = options.ranks
        self._checkpoints = directory / "checkpoints"
        self._fork = options.fork
        self.first = self.seconds = 0.0

    def start(self) -> Running:
        """Begins the run, or goes on with it if it has begun."""
        begun = (self.directory / "config.yaml").exists()
        arguments = [f"resume={self.directory}"] if begun else [*self._overrides, f"hydra.run.dir={self.directory}"]
        with self.directory.with_suffix(".console").open("ab") as console:
            if self._fork:
                return Forked(arguments, console, self.directory.parent)
            command = [sys.executable, "-m", "crossent.train", *arguments]
            return subprocess.Popen(command, stdout=console, stderr=console, cwd=self.directory.parent)

    def finish(self) -> Self:
        """Runs to the end, and looks at the time it takes.

        Raises:
            RuntimeError: it has failed.
        """
        started, running = time.perf_counter(), self.start()
        self._wait(running, self._has_checkpoint)
        self.first = time.perf_counter() - started
        if (code := running.wait()) != 0:
            said = self.directory.with_suffix(".console").read_text().strip().splitlines()[-1]
            raise RuntimeError(f"it ended with {code}: {said}")
        self.seconds = json.loads((self.directory / "metrics.json").read_text())["seconds"]
        return self

    def kill(self, kind: str, draw: random.Random) -> str | None:
        """Kills the run at a moment of a kind; the kind that it turned out to be, or None: it had ended.

        Args:
            kind: of moment.
            draw: the moments.
        """
        running = self.start()
        if kind == "before the first":
            time.sleep(draw.uniform(0, self.first))
        elif kind == "while writing":
            self._wait(running, self._is_writing)
            self._spend(draw.uniform(0, 0.03))
            self._wait(running, self._is_writing)
            self._spend(draw.uniform(0, 0.002))
        else:
            before = self._events()
            self._wait(running, lambda: self._events() > before)
            self._spend(draw.uniform(0, self.seconds / 2))
        if self._ranks > 1:
            assert isinstance(running, subprocess.Popen)
            kill_one(running, self._ranks, draw)
        else:
            running.kill()
        if running.wait() == 0:
            return None
        if not self._has_checkpoint():
            return "before the first"
        return "while writing" if self._is_writing() else "at any moment"

    def _wait(self, running: Running, happened: Callable[[], bool]) -> None:
        while not happened() and running.poll() is None:
            pass

    def _spend(self, seconds: float) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass

    def _events(self) -> int:
        return len(list(self.directory.glob("events.out.tfevents.*")))

    def _is_writing(self) -> bool:
        return any(self._checkpoints.glob(".*.part"))

    def _has_checkpoint(self) -> bool:
        return any(self._checkpoints.glob("*.ckpt"))


def kill_one(running: "subprocess.Popen[bytes]", ranks: int, draw: random.Random) -> None:
    """Kills a rank or the process that watches them, and waits until all of them are gone."""
    family = [running.pid, *descendants(running.pid)]
    trained = [pid for pid in family if Path(f"/proc/{pid}").exists() and os.getsid(pid) == pid]  # as ranks have it
    victims = [running.pid, *sorted(trained)[:ranks]]
    with contextlib.suppress(ProcessLookupError):
        os.kill(victims[draw.randrange(len(victims))], signal.SIGKILL)
    running.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in family):
        time.sleep(0.01)


def attack(training: Training, whole: Training, kills: int, seed: int) -> Result:
    """Kills a run so many times and lets it finish."""
    draw, result = random.Random(seed), Result()
    training.first, training.seconds = whole.first, whole.seconds
    for index in range(kills):
        kind = "before the first" if index == 0 else ("while writing", "at any moment")[index % 2]
        killed = training.kill(kind, draw)
        if killed is None:  # it was quicker; the next ones have nothing to kill any more
            break
        result.kills[killed] += 1
    try:
        training.finish()
    except RuntimeError as error:
        result.wrong.append(str(error))
    return result


def differences(whole: Path, killed: Path) -> Iterator[str]:
    """In what two runs differ."""
    for name in ("last", "best"):
        one, other = (torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for run in (whole, killed))
        for part in (
            "state_dict",
            "optimizer_states",
            "lr_schedulers",
            "global_step",
            "epoch",
            "callbacks",
            "DataModule",
        ):
            if not _same(one.get(part), other.get(part)):
                yield f"{name}.ckpt: {part}"
    one, other = (json.loads((run / "metrics.json").read_text()) | {"seconds": 0} for run in (whole, killed))
    if one != other:
        yield "metrics.json"
    if found := _unlike(_accumulated(whole), _accumulated(killed)):
        yield f"the curves, as EventAccumulator reads them: {found}"


def _unlike(one: Curves, other: Curves) -> str:
    """Where curves differ, tag and step; empty: nowhere."""
    found = [
        f"{tag} at {step}"
        for tag in sorted(one.keys() | other.keys())
        for step in sorted(one.get(tag, {}).keys() | other.get(tag, {}).keys())
        if one.get(tag, {}).get(step) != other.get(tag, {}).get(step)
    ]
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


def _accumulated(directory: Path) -> Curves:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    found: Curves = {}
    for tag in events.Tags()["scalars"]:
        found[tag] = _once((point.step, point.value) for point in events.Scalars(tag))
    return found


def _once(points: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Value by step; NaN, which equals nothing, where a step has several."""
    found: dict[int, float] = {}
    for step, value in points:
        found[step] = math.nan if step in found else value
    return found


def served(logs: Path, *, fast: bool) -> dict[str, Curves]:
    """Every run's curves as a TensorBoard server hands them to the browser.

    Args:
        logs: the folder that the runs are in.
        fast: whether the server reads by its data server, which is its default, or by itself.

    Raises:
        ValueError: it does not come to an end with reading.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1", "--port", "0"]
    command += ["--load_fast", str(fast).lower(), "--samples_per_plugin", "scalars=1000000", "--reload_interval", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            return _ask(server, logs)
        finally:
            server.terminate()


def _ask(server: "subprocess.Popen[str]", logs: Path) -> dict[str, Curves]:
    assert server.stdout is not None
    addresses = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stdout)
    address = next(each[0] for each in addresses if each is not None)

    def get(what: str, **query: str) -> Any:
        url = f"{address}/data/plugin/scalars/{what}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)

    def curves(run: str) -> Curves:
        found: Curves = {}
        for tag in get("tags").get(run, ()):
            points = get("scalars", run=run, tag=tag)
            found[tag] = _once((int(step), value) for _, step, value in points)
        return found

    runs = {path.parent.name for path in logs.glob("*/events.out.tfevents.*")}
    before: dict[str, Curves] = {}
    for _ in range(_PATIENCE):  # it goes on reading while it answers
        time.sleep(1)
        found = {run: curves(run) for run in runs}
        if repr(found) == repr(before) and all(points for run in found.values() for points in run.values()):
            return found
        before = found
    raise ValueError(f"TensorBoard has not read all runs after {_PATIENCE} s")


def _kills(results: Iterable[Result]) -> Counter[str]:
    return sum((result.kills for result in results), Counter[str]())


def main() -> int:
    """Prints what became of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-a-time", type=int, default=2, help="runs")
    parser.add_argument("--fork", action="store_true", help="split runs off from this process, one at a time")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share a run")
    parser.add_argument("--accelerator", default="ddp_cpu", choices=["ddp_cpu", "class_parallel_cpu"])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--keep", type=Path, help="leave the runs in this folder")
    parser.add_argument("--json", type=Path, help="also write the counts here")
    options = parser.parse_args()
    if options.fork and options.ranks > 1:
        parser.error("--fork: one process a run")
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        each: Callable[..., Iterable[Any]] = map  # in this thread: a process that has others cannot be forked
        if options.fork:
            import_module("crossent.training")
            import_module("torch.utils.tensorboard")
        else:
            each = stack.enter_context(ThreadPoolExecutor(options.at_a_time)).map
        trainings = [
            Training(setting, folder / f"whole_{index}", options) for index, setting in enumerate(options.settings)
        ]
        whole = dict(zip(options.settings, each(Training.finish, trainings), strict=True))
        plans: list[tuple[str, Path, int, int]] = []
        results: list[Result] = []
        while (left := options.kills - _kills(results).total()) > 0:  # some have ended before they could be killed
            begun = len(plans)
            for index in range(begun, begun - (-left // KILLS_A_RUN)):
                kills = min(KILLS_A_RUN, left - (index - begun) * KILLS_A_RUN)
                setting = options.settings[index % len(options.settings)]
                plans.append((setting, folder / f"killed_{index}", kills, options.seed * 1000 + index))
            results += each(
                lambda plan: attack(Training(plan[0], plan[1], options), whole[plan[0]], *plan[2:]),
                plans[begun:],
            )
        readers = {"data server": served(folder, fast=True), "server itself": served(folder, fast=False)}
        for (setting, directory, *_), result in zip(plans, results, strict=True):
            if not (directory / "metrics.json").exists():
                result.wrong.append("no results")
                continue
            result.wrong += differences(whole[setting].directory, directory)
            for reader, read in readers.items():
                if found := _unlike(read[whole[setting].directory.name], read[directory.name]):
                    result.wrong.append(f"the curves, as TensorBoard's {reader} reads them: {found}")
            for what in result.wrong:
                print(f"{directory.name} ({setting}): {what}")
    kills = _kills(results)
    counts = {
        "kills": kills.total(),
        **kills,
        "runs": len(results),
        "results lost": sum("no results" in result.wrong for result in results),
        "runs not bit-identical": sum(bool(result.wrong) for result in results),
    }
    for name, count in counts.items():
        print(f"{name:24} {count}")
    if options.json:
        options.json.write_text(json.dumps(counts, indent=2) + "\n")
    return int(counts["runs not bit-identical"] > 0)


if __name__ == "__main__":
    sys.exit(main())
