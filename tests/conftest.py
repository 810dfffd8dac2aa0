"""Runs of the command, in this process and in processes of their own, and ways to look at what they leave."""

import functools
import gc
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crossent import cli
from crossent.blocked_classifier import BlockedClassifier
from crossent.callbacks.figures import Figures
from crossent.classifier import SoftmaxClassifier
from crossent.evaluate import command as evaluate_command
from crossent.predict import command as predict_command
from crossent.processes import launcher
from crossent.solved_classifier import SolvedClassifier
from crossent.train import _task as task
from crossent.train import command
from crossent.training import train as train_task

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers have taken the cores; threads that wait for one another would stand still
if torch.cuda.is_available():
    torch.cuda.init()  # while the environment still shows the GPU: most tests hide it
gc.freeze()  # what has been imported stays; looking through it for garbage would slow every test down


@dataclass
class Run:
    """What a run left behind."""

    code: int
    out: str
    err: str
    directory: Path

    @property
    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = json.loads((self.directory / "metrics.json").read_text())
        return found

    @property
    def curves(self) -> dict[str, dict[int, float]]:
        """Value by step by tag, as TensorBoard reads them; a step that has two points fails."""
        return curves(self.directory)

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        found: dict[str, Any] = torch.load(self.directory / "checkpoints" / f"{name}.ckpt", weights_only=True)
        return found


def assert_answered_in_one_line(run: Run, said: list[str]) -> None:
    """A mistake of the user's: one line that says these things, in this order, and exit code 2."""
    assert run.code == 2, run.out
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1
    position = 0
    for part in said:
        position = run.err.find(part, position)
        assert position >= 0, f"{part!r} is not in {run.err!r}, or not in its place"


def curves(directory: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    read: dict[str, dict[int, float]] = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        read[tag] = {point.step: point.value for point in points}
        assert len(read[tag]) == len(points), f"{tag} has a doubled point"
    return read


Train = Callable[..., Run]

#: A run of some steps an epoch, with a val split.
MINI_BATCHES = (
    "data=iris",
    "data.batch_size=32",
    "optimizer=adam",
    "trainer.max_steps=60",
    "trainer.log_every_n_steps=1",
)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def invoke(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Run]]:
    """Runs a command in this process; quick, since torch is imported already."""
    handlers, level = logging.root.handlers.copy(), logging.root.level

    def run(command: cli.Command[Any], *overrides: str) -> Run:
        capsys.readouterr()
        code = cli.run(command, list(overrides))
        captured = capsys.readouterr()
        latest = workplace / "logs" / "latest"
        return Run(code, captured.out, captured.err, latest.resolve() if latest.exists() else workplace)

    yield run
    for left in set(logging.root.handlers) - set(handlers):  # a run closes them when the process ends
        logging.root.removeHandler(left)
        left.close()
    logging.root.setLevel(level)


@pytest.fixture
def train(invoke: Callable[..., Run]) -> Train:
    """Runs crossent-train."""
    return partial(invoke, command(train_task))


@pytest.fixture
def start(invoke: Callable[..., Run]) -> Train:
    """Runs crossent-train as it is typed, with processes of their own where several share the rows."""
    silence_ranks()
    return partial(invoke, command(task))


@functools.cache
def silence_ranks() -> None:
    """Lets the console of ranks that are started here go nowhere; it would be in the way of pytest's own.

    Nor is their coverage measured, which would slow them down; that of ranks in the tests of whole commands is.
    """
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("COVERAGE")]:
            patch.delenv(name)
        launcher.context()
    os.dup2(kept, 1)
    for descriptor in (kept, nowhere):
        os.close(descriptor)


@pytest.fixture
def predict(invoke: Callable[..., Run]) -> Train:
    """Runs crossent-predict."""
    return partial(invoke, predict_command())


@pytest.fixture
def evaluate(invoke: Callable[..., Run]) -> Train:
    """Runs crossent-evaluate."""
    return partial(invoke, evaluate_command())


@pytest.fixture(name="command")
def command_in_process_of_its_own(workplace: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs crossent-train as a process of its own."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "crossent.train", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **environment},
            check=False,
        )

    return run


def unmeasured() -> dict[str, str]:
    """The environment for processes that take twice as long where their coverage is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


def wait_until(happened: Callable[[], object], seconds: float = 60) -> None:
    """Waits for something that another process does."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, f"it has not happened within {seconds:g} seconds"
        time.sleep(0.01)


def assert_same_state(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_state(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same_state(left, right, f"{where}[{index}]")
    else:
        assert one == other, where


def assert_same_run(one: Run, other: Run) -> None:
    left, right = one.checkpoint(), other.checkpoint()
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_same_state(left[part], right[part], part)
    assert one.curves == other.curves
    timeless = [{key: value for key, value in run.metrics.items() if key != "seconds"} for run in (one, other)]
    assert timeless[0] == timeless[1]


def stop_after(step: int, train: Train, *arguments: str, number: int = signal.SIGINT) -> Run:
    """Has a signal sent, Ctrl-C or another, in the middle of a step."""
    pressed = False

    def interrupted(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: SoftmaxClassifier, *arguments: Any) -> Any:
            nonlocal pressed
            if self.step == step - 1 and not pressed:
                pressed = True
                signal.raise_signal(number)
            return original(self, *arguments)

        return method

    with pytest.MonkeyPatch.context() as patch:
        for kind in (SoftmaxClassifier, SolvedClassifier, BlockedClassifier):
            name = "_differentiate" if kind is BlockedClassifier else "training_step"  # which calls it many times
            patch.setattr(kind, name, interrupted(getattr(kind, name)))
        return train(*arguments)


def on_a_terminal(*arguments: str, columns: int = 80) -> tuple[int, str]:
    """Runs a module in a process of its own that has a terminal: exit code, and all that was shown there."""
    terminal, inside = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=inside,
        stderr=inside,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
    )
    os.close(inside)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
    os.close(terminal)
    return running.wait(timeout=60), shown.decode()


@pytest.fixture
def golden() -> dict[str, Any]:
    """Every number that the notebook prints."""
    path = Path(__file__).parent / "golden" / "notebook.json"
    numbers: dict[str, Any] = json.loads(path.read_text())
    return numbers


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has tests that do not ask for a GPU see none, whatever the machine: their numbers are a CPU's."""
    if torch.cuda.is_available() and not request.node.get_closest_marker("gpu"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes that are started
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def figures() -> None:
    """Has runs draw their pictures."""


@pytest.fixture(autouse=True)
def _without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has runs in this process draw no pictures where a test does not ask for them: they take longer than most runs."""
    if "figures" not in request.fixturenames:
        monkeypatch.setattr(Figures, "draw", lambda self: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
