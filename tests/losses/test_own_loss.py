"""A loss of the user's own, as README.md and docs/losses.md show it: proved by the same tests, trained, explained."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Train

TOP = Path(__file__).parents[2]


@pytest.fixture(params=["README.md", "docs/losses.md"])
def mine(request: pytest.FixtureRequest, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example of a page, in a module."""
    page = (TOP / request.param).read_text()
    (code,) = (
        block for block in re.findall(r"```python\n(# mine\.py.*?)```", page, flags=re.DOTALL) if "Tsallis" in block
    )
    (workplace / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(workplace)
    yield workplace
    sys.modules.pop("mine", None)


def test_the_example_is_proved_without_a_test_of_its_own(mine: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "tests/losses",
            "--loss=mine.Tsallis",
            "-k",
            "Tsallis",
            "-q",
            "-p",
            "no:xdist",
        ],
        cwd=TOP,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(mine), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 90


@pytest.mark.parametrize("backend", ["dense", "chunked"])
@pytest.mark.usefixtures("mine")
def test_the_example_trains(backend: str, train: Train) -> None:
    run = train(
        "data=iris", "loss=custom", "loss._target_=mine.Tsallis", "+loss.share=0.2", f"loss.backend={backend}",
        "loss.class_weight=balanced", "loss.z_loss=1e-4", "trainer.max_steps=60",
    )  # fmt: skip

    assert run.code == 0, run.err
    assert run.metrics["val/accuracy"] > 0.8
