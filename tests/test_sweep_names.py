from pathlib import Path

import pytest
import yaml

from conftest import Train
from crossent.composing import conf_directory, parse
from crossent.sweeps import job_name


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("", "7"),
        ("optimizer.lr-0.1_seed-2", "7_optimizer.lr-0.1_seed-2"),
        ("optimizer.lr-0.15676677195506075", "7_optimizer.lr-0.1568"),
        ("optimizer.lr-1.5676677195506075e-05", "7_optimizer.lr-1.568e-05"),
        ("+loss.k-3_data.path-my files/a,b.csv", "7_loss.k-3_data.path-my-files-a-b.csv"),
        ("data.path-" + "long" * 50, f"7_data.path-{'long' * 50}"[:120]),
    ],
)
def test_jobs_are_named_after_what_differs(overrides: str, name: str) -> None:
    assert job_name(7, overrides) == name
    (run,) = parse([f"run=logs/{name}"])  # as it is typed
    assert run.value() == f"logs/{name}"


def test_what_all_jobs_share_is_in_no_name(train: Train, workplace: Path) -> None:
    train("-m", "data=iris", "trainer.max_steps=2", "optimizer.lr=0.1,0.2", "model.l2=0.1", "hydra.sweep.dir=s")

    assert sorted(path.name for path in workplace.glob("s/*/")) == [
        "0_optimizer.lr-0.1",
        "1_optimizer.lr-0.2",
        "summary",
    ]


def test_comparing_losses_leaves_none_out(train: Train, workplace: Path) -> None:
    """None of those that take ten classes: a loss that is added is compared without being named anywhere."""
    run = train("-m", "experiment=compare_losses", "trainer.max_steps=11", "seed=3", "hydra.sweep.dir=s")

    assert run.code == 0, run.err
    stored = [yaml.safe_load(path.read_text()) for path in workplace.glob("s/*/config.yaml")]
    losses = {path.stem for path in (conf_directory() / "loss").glob("*.yaml")} - {"auto", "binary", "custom"}
    assert sorted(each["loss"]["name"] for each in stored) == sorted(losses)
    assert {each["seed"] for each in stored} == {3}
    assert (workplace / "s" / "summary" / "curves.png").exists()
    assert "best by val/accuracy: loss=" in run.out
    assert "repeat: crossent-train config=s/" in run.out
