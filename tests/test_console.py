"""What one reads while a run goes on."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Train, on_a_terminal
from crossent.callbacks.progress import _round_number

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_a_process_prints_a_short_account_and_nothing_twice(command: Command, workplace: Path) -> None:
    done = command("data=iris", "data.test_fraction=0.2", "trainer.max_steps=200")

    assert done.returncode == 0
    assert done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[0] == "data       iris: 105 train + 15 val + 30 test rows, 4 features, 3 classes"
    assert lines[1] == "loss       auto (CrossEntropy)"
    assert lines[2] == "optimizer  sgd, lr 0.1, all rows a step"
    assert lines[3].startswith("device     ")
    assert re.fullmatch(r"run        logs/train/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d_[0-9a-f]{6}", lines[4])
    assert lines[5].split() == ["step", "train/cost", "val/cost", "val/accuracy"]
    assert [int(line.split()[0]) for line in lines[6:17]] == [*range(0, 200, 20), 190]
    assert lines[17].startswith("trained to step 200 in ")
    assert lines[18].split() == ["train", "val", "test"]
    names = ["cost", "accuracy", "top5_accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece"]
    assert [line.split()[0] for line in lines[19:27]] == names
    assert len(lines[19].split()) == 4
    assert [line.split()[0] for line in lines[27:30]] == ["gradient_norm", "weight_norm", "lr"]
    assert lines[30].split() == ["at", "step", "190", "200", "200"]
    assert lines[31] == "curves: tensorboard --logdir logs/train"
    assert len(lines) == len(set(lines)) == 32
    log = next(workplace.glob("logs/train/*/*/train.log")).read_text()
    assert all(line in log for line in lines)


def test_a_terminal_shows_one_bar_below_the_rows(workplace: Path) -> None:
    code, text = on_a_terminal("crossent.train", "trainer.max_steps=300")

    assert code == 0
    assert "training" in text
    assert re.search(r"\d+/300", text)
    rows = re.findall(r"^ +(\d+) +[\d.]+\s*$", re.sub(r"\r|\x1b\[[0-9;?]*[a-zA-Z]", "\n", text), flags=re.MULTILINE)
    assert [int(row) for row in rows] == [*range(0, 300, 20), 290]


def test_the_bar_can_be_switched_off(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

    shown = train("trainer.max_steps=20")
    hidden = train("trainer.max_steps=20", "trainer.enable_progress_bar=false")

    assert "training" in shown.out
    assert "training" not in hidden.out


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0.3, 1), (1, 1), (9.9, 5), (10, 10), (19, 10), (100.1, 100), (199, 100), (500, 500), (float("inf"), 1000)],
)
def test_rows_come_at_round_numbers(limit: float, expected: int) -> None:
    assert _round_number(limit) == expected
