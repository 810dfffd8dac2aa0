"""crossent-explain: the notebook's numbers, the user's own, and where each way of writing the loss breaks."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from crossent import cli, losses
from crossent.config import ExplainConfig
from crossent.explaining import explain as explain_task
from crossent.explaining import limits

Explain = Callable[..., tuple[int, str, str]]


@pytest.fixture
def explain(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Explain:
    """Runs crossent-explain in this process: exit code, output and errors."""

    def run(*overrides: str) -> tuple[int, str, str]:
        command = cli.Command("explain", ExplainConfig, lambda config, plain, directory: explain_task(config))
        code = cli.run(command, list(overrides))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def numbers(text: str, name: str) -> list[list[float]]:
    """The rows of numbers that begin with a name."""
    found = re.findall(rf"^ *{name}((?: +-?\d+\.\d+)+)", text, flags=re.MULTILINE)
    return [[float(number) for number in row.split()] for row in found]


def test_without_arguments_it_prints_the_notebooks_numbers(explain: Explain, golden: dict[str, Any]) -> None:
    code, out, err = explain()

    assert (code, err) == (0, "")
    first, *batch = numbers(out, "softmax")
    assert first == pytest.approx(golden["softmax"]["probabilities"], abs=1e-4)
    assert "sum 1.0000" in out
    assert numbers(out, "logits")[1:] == golden["batch"]["logits"]
    for row, expected in zip(batch, golden["batch"]["softmax"], strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
    assert numbers(out, "log softmax") == golden["batch"]["log_softmax"]
    assert [row.index(1) for row in numbers(out, "one-hot")] == golden["batch"]["targets"]
    assert [cost for row in numbers(out, "cost")[:3] for cost in row] == golden["batch"]["cost_per_row"]
    assert numbers(out, "mean cost")[0] == [golden["batch"]["cost_mean"]]


def test_every_loss_is_shown_with_cost_and_gradient(explain: Explain) -> None:
    _, out, _ = explain("logits=[[1,3],[0,-2],[4,4]]", "targets=[0,0,1]", "plot=null")

    for kind in losses.LOSSES:
        assert re.search(rf"^{kind.__struct_config__.tag}\b", out, flags=re.MULTILINE)
    assert len(numbers(out, "gradient 2")) == len(losses.LOSSES)
    logits = torch.tensor([[1.0, 3.0], [0.0, -2.0], [4.0, 4.0]], requires_grad=True)
    F.cross_entropy(logits, torch.tensor([0, 0, 1])).backward()
    assert logits.grad is not None
    shown = out[out.index("\ncross_entropy") :]
    for row, gradient in enumerate(logits.grad.tolist()):
        assert numbers(shown, f"gradient {row}")[0] == pytest.approx(gradient, abs=1e-4)


def test_a_single_loss_takes_its_options(explain: Explain) -> None:
    code, out, _ = explain("logits=[[0,1]]", "targets=[0]", "loss=focal", "loss.gamma=0", "plot=null")

    assert code == 0
    assert "focal (gamma=0" in out
    assert "brier" not in out
    assert numbers(out, "mean cost")[1] == [pytest.approx(1.3133, abs=1e-4)]


@pytest.mark.parametrize(
    ("dtype", "gradient", "cost", "right"),
    [
        (torch.float64, 710, 745.25, 745.25),
        (torch.float32, 88.75, 104, 104),
        (torch.bfloat16, 88.75, 92.75, 92.75),
        (torch.float16, 11.25, 17.5, 17.5),
    ],
)
def test_limits_of_the_hand_written_loss_are_found(
    dtype: torch.dtype, gradient: float, cost: float, right: float
) -> None:
    assert limits(losses.OneHot().cost, dtype) == (gradient, cost, right)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_other_ways_have_no_limit(dtype: str, explain: Explain) -> None:
    _, out, _ = explain(f"dtype={dtype}", "plot=null")

    for way in ("nll: nll_loss", "torch.nn.functional.cross_entropy", "cross_entropy of Crossent"):
        assert re.search(rf"{way}.* never +never +never$", out, flags=re.MULTILINE)


def test_the_picture_is_a_png_and_the_only_file(explain: Explain, workplace: Path) -> None:
    code, out, _ = explain("plot=pictures/losses.png")

    assert code == 0
    assert out.endswith("pictures/losses.png\n")
    (picture,) = (path for path in workplace.rglob("*") if path.is_file())
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("logits=[[1,2]]", "logits and targets go together"),
        ("logits=[[1],[2]] targets=[0,0]", "logits: a row needs 2 or more"),
        ("logits=[[1,2],[1,2,3]] targets=[0,0]", "logits.1: 3 numbers, but 2 in the first row"),
        ("logits=[[1,2],[1,x]] targets=[0,0]", "logits.1.1=x: expected a number"),
        ("logits=[[1,2]] targets=[2]", "targets.0=2: expected 0 to 1"),
        ("logits=[[1,2]] targets=[0,1]", "targets: 2, but logits has 1 rows"),
        ("dtype=float8", "dtype=float8: expected one of bfloat16, float16, float32, float64"),
        ("loss=binary", "loss=binary: made for 2 classes"),
        ("loss=focl", "loss=focl: no such loss, did you mean 'focal'?"),
        ("seed=1", "seed: no such key"),
        ("-m dtype=float16,float32", "crossent-explain has no sweeps"),
        ("plot=/dev/null/x.png", "plot=/dev/null/x.png: cannot be written: Not a directory"),
    ],
)
def test_a_mistake_is_answered_in_one_line(typed: str, said: str, explain: Explain, workplace: Path) -> None:
    code, _, err = explain(*typed.split())

    assert code == 2
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert not list(workplace.iterdir())


def test_a_reader_may_leave(workplace: Path) -> None:
    shell = f"{sys.executable} -m crossent.explain | head -n 2"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120, check=False)

    assert done.stderr == ""
    assert done.stdout.startswith("The softmax of three logits")
    assert (workplace / "losses.png").stat().st_size > 10_000
