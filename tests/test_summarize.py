import csv
import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from conftest import Run, Train, assert_answered_in_one_line
from crossent import runs, summarize
from crossent.comparison import Statistic, compare
from crossent.run_records import RunRecord, find

OPTIONS = ("data=iris", "optimizer=adam", "trainer.max_steps=40", "trainer.val_check_interval=10")


@pytest.fixture
def summary(invoke: Any) -> Train:
    """Runs crossent-summarize."""

    def run(*arguments: str) -> Run:
        done: Run = invoke(summarize.command(), *summarize.with_key(list(arguments)))
        return done

    return run


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a sweep over two rates and three seeds has left, by a process of its own."""
    folder = tmp_path_factory.mktemp("once")
    options = ("-m", *OPTIONS, "optimizer.lr=0.1,0.001", "seed=0,1,2", "hydra.sweep.dir=swept", "logger.figures=false")
    subprocess.run([sys.executable, "-m", "crossent.train", *options], cwd=folder, check=True, capture_output=True)
    shutil.rmtree(folder / "swept" / "summary")
    return folder


@pytest.fixture
def swept(once: Path, workplace: Path) -> Path:
    """That sweep, to do with as one likes."""
    shutil.copytree(once, workplace, symlinks=True, dirs_exist_ok=True)
    return workplace / "swept"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_seeds_are_averaged_and_the_best_row_comes_first(summary: Train, swept: Path) -> None:
    run = summary("swept")

    rows = table(swept / "summary" / "summary.csv")
    stored = [json.loads(path.read_text()) for path in sorted(swept.glob("*/metrics.json"))]
    assert [(row["optimizer.lr"], row["runs"]) for row in rows] == [("0.1", "3"), ("0.001", "3")]
    for row, own in zip(rows, (stored[:3], stored[3:]), strict=True):
        for tag in ("val/cost", "val/accuracy", "train/cost"):
            values = [metrics[tag] for metrics in own]
            assert float(row[f"{tag} mean"]) == pytest.approx(statistics.fmean(values))
            assert float(row[f"{tag} sd"]) == pytest.approx(statistics.stdev(values))
    lines = run.out.splitlines()
    assert lines[0] == "runs  swept: 6 finished"
    assert lines[1] == (
        "same  data=iris, loss=auto, model.l2=0, optimizer=adam, trainer.max_steps=40, trainer.val_check_interval=10"
    )
    assert re.match(r"optimizer.lr +runs +val/cost +val/accuracy", lines[3])
    assert re.match(r"0.1 +3 +0\.\d{4} ± 0\.\d{4}", lines[4])
    assert "best by val/cost: optimizer.lr=0.1" in lines
    assert {each["status"] for each in table(swept / "summary" / "runs.csv")} == {"finished"}


def test_the_command_repeats_the_best_row(summary: Train, train: Train, swept: Path, workplace: Path) -> None:
    run = summary("swept")

    (line,) = (line for line in run.out.splitlines() if line.startswith("repeat: "))
    command = shlex.split(line.removeprefix("repeat: "))
    assert command[0] == "crossent-train"
    assert train(*command[1:], "hydra.sweep.dir=again").code == 0
    for seed in range(3):
        (again,) = workplace.glob(f"again/{seed}_*/metrics.json")
        (before,) = swept.glob(f"{seed}_*/metrics.json")
        one, other = (json.loads(path.read_text()) for path in (again, before))
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_run_from_a_stored_configuration_is_repeated_from_it(summary: Train, train: Train, workplace: Path) -> None:
    first = train(*OPTIONS)
    train("config=latest", "seed=4", "hydra.run.dir=mine")

    run = summary("mine")

    assert "repeat: crossent-train config=mine/config.yaml seed=4\n" in run.out
    assert yaml.safe_load((workplace / "mine/config.yaml").read_text())["seed"] == 4
    assert first.directory.exists()


def test_files_for_a_page_and_a_paper(summary: Train, swept: Path) -> None:
    summary("swept")

    text = (swept / "summary" / "summary.md").read_text()
    assert text.startswith("| optimizer.lr | runs | val/cost |")
    assert text.splitlines()[1].startswith("| --- | ---: |")
    assert "| 0.1 | 3 | 0." in text
    assert "    crossent-train -m data=iris" in text
    with Image.open(swept / "summary" / "curves.png") as picture:
        assert picture.size[0] > 1000
        assert len(picture.convert("RGB").getcolors(2**24) or ()) > 50


def test_runs_that_are_not_whole_are_listed(summary: Train, swept: Path) -> None:
    paths = sorted(path for path in swept.iterdir() if path.is_dir())
    (paths[0] / "config.yaml").write_text("data: [")
    (paths[1] / "metrics.json").write_text('{"val/cost": ')
    (paths[2] / "metrics.json").unlink()
    (paths[3] / "config.yaml").unlink()
    with (paths[4] / "train.log").open("a") as log:
        log.write("2026-11-27 10:00:00,000 ERROR crossent: error: the cost is nan at step 3\n")
    (paths[4] / "metrics.json").unlink()
    (paths[5] / "events.out.tfevents.9999999999.x").write_bytes(b"torn")

    with runs.held(paths[2], "x"):
        run = summary("swept")

    assert run.code == 0, run.err
    assert run.out.startswith("runs  swept: 1 finished, 1 running, 1 stopped, 3 broken\n")
    for path, said in zip(
        paths[:5],
        (
            "cannot be read: while parsing",
            "metrics.json cannot be read",
            "running",
            "no config.yaml",
            "error: the cost is",
        ),
        strict=True,
    ):
        assert re.search(rf"  swept/{re.escape(path.name)}: .*{said}", run.out), said
    assert len(table(swept / "summary" / "runs.csv")) == 6


def test_costs_of_different_losses_do_not_say_which_is_best(summary: Train, train: Train) -> None:
    train("-m", *OPTIONS, "loss=focal,brier", "hydra.sweep.dir=swept")

    assert "best by val/accuracy: loss=" in summary("swept").out
    assert "best by val/nll: loss=" in summary("swept", "metric=val/nll").out


@pytest.mark.parametrize("missing", [{"val"}, {"val", "test"}])
def test_without_val_rows_others_say_which_is_best(missing: set[str]) -> None:
    tags = {f"{split}/cost" for split in ("val", "test", "train") if split not in missing}
    records = [
        RunRecord(Path(str(lr)), "finished", config={"data": {"name": "toy"}, "optimizer": {"lr": lr}},
                  metrics=dict.fromkeys(tags, lr))
        for lr in (0.3, 0.1)
    ]  # fmt: skip

    compared = compare(records)

    assert compared.metric == f"{'test' if missing == {'val'} else 'train'}/cost"
    assert compared.best is not None
    assert compared.best.values == {"optimizer.lr": 0.1}


def test_values_that_are_no_numbers_make_no_row_the_best() -> None:
    assert Statistic.of([1.0, float("nan")]).deviation is None
    records = [
        RunRecord(Path(str(lr)), "finished", config={"data": {"name": "toy"}, "optimizer": {"lr": lr}},
                  metrics={"val/cost": cost})
        for lr, cost in ((0.1, float("nan")), (0.2, 5.0))
    ]  # fmt: skip

    assert [row.values["optimizer.lr"] for row in compare(records).rows] == [0.2, 0.1]


@pytest.mark.parametrize(("metric", "best"), [("val/cost", 0.1), ("val/accuracy", 0.2)])
def test_more_of_some_metrics_is_better(metric: str, best: float) -> None:
    records = [
        RunRecord(
            Path(str(lr)),
            "finished",
            config={"data": {"name": "toy"}, "optimizer": {"lr": lr}},
            metrics={"val/cost": lr, "val/accuracy": lr},
        )
        for lr in (0.1, 0.2)
    ]

    compared = compare(records, metric)

    assert compared.best is not None
    assert compared.best.values == {"optimizer.lr": best}


def test_links_are_not_followed(swept: Path, workplace: Path) -> None:
    assert (workplace / "logs" / "latest").is_symlink()
    (workplace / "logs" / "copy").symlink_to(swept)

    assert list(find(workplace / "logs")) == []
    assert len(list(find(workplace / "logs" / "latest" / "."))) == 1


def test_to_look_at_a_run_does_not_keep_others_from_it(swept: Path) -> None:
    directory = next(path for path in swept.iterdir() if path.is_dir())
    assert not runs.is_held(directory)
    with runs.held(directory, "x"):
        assert runs.is_held(directory)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], ["folder=nowhere", "no such folder"]),
        (["empty"], ["folder=empty", "there is no run in it"]),
        (["swept", "metric=val/acuracy"], ["metric=val/acuracy", "no run has it", "val/accuracy"]),
        (["swept", "metric=accuracy"], ["metric=accuracy", "a curve as val/accuracy"]),
        (["swept", "output=full"], ["output=full", "has summary.csv", "overwrite=true"]),
        (["swept", "output=full/summary.csv"], ["output=full/summary.csv", "a file"]),
        (["swept", "plots=false"], ["plots", "did you mean 'plot'"]),
    ],
)
def test_mistakes(arguments: list[str], said: list[str], summary: Train, train: Train, workplace: Path) -> None:
    train("data=iris", "trainer.max_steps=2", "hydra.run.dir=swept/one")
    (workplace / "empty").mkdir()
    (workplace / "full").mkdir()
    (workplace / "full" / "summary.csv").touch()

    assert_answered_in_one_line(summary(*arguments), said)
    assert not (workplace / "swept" / "summary").exists()
