"""crossent-evaluate: the same numbers as training's, on the run's own rows or on others, from the checkpoint alone."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
import yaml
from matplotlib import image
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import crossent
from conftest import Run, Train, assert_answered_in_one_line, curves, silence_ranks

OURS = """
import torch

from crossent.data import Table
from crossent.losses import LogitLoss

open("imported", "a").close()


class Rows:
    def load(self):
        features = torch.arange(24.0).reshape(12, 2)
        return Table(features, torch.arange(12) % 2, ("a", "b"), ("x", "y"))


class Turned(Rows):
    def load(self):
        table = super().load()
        order = torch.arange(11, -1, -1)
        return Table(table.features[order].flip(1), 1 - table.targets[order], ("b", "a"), ("y", "x"))


class Learnt(LogitLoss):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def cost(self, logits, targets):
        return torch.nn.functional.cross_entropy(self.factor * logits, targets, reduction="none")
"""


def evaluation(folder: str = "evaluation") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "metrics.json").read_text())
    return found


def save(name: str, rows: slice, columns: dict[str, list[Any]]) -> None:
    pa.csv.write_csv(pa.table({key: values[rows] for key, values in columns.items()}), name)


@pytest.fixture
def columns() -> dict[str, list[Any]]:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=200), draw.normal(size=200)
    colour = draw.choice(["red", "blue"], 200)
    weight = draw.integers(1, 4, 200)
    kind = np.where(x + y + (colour == "red") + draw.normal(size=200) > 0.5, "up", np.where(x > y, "mid", "down"))
    found = {"x": x, "y": y, "colour": colour, "weight": weight, "kind": kind}
    return {name: values.tolist() for name, values in found.items()}


@pytest.mark.parametrize("data", ["iris", "digits", "breast_cancer", "synthetic"])
def test_the_test_rows_give_what_training_reported(train: Train, evaluate: Train, data: str) -> None:
    run = train(f"data={data}", "data.test_fraction=0.2", "trainer.max_steps=60", "seed=3")

    done = evaluate("output=evaluation")

    assert (done.code, done.err) == (0, "")
    found = evaluation()
    reported = {tag: value for tag, value in run.metrics.items() if tag.startswith("test/")}
    assert {tag: found[tag] for tag in reported} == pytest.approx(reported, abs=1e-6)
    assert set(found) == {*reported, "steps", "rows", "checkpoint", "seconds"}
    assert found["steps"] == run.checkpoint("best")["global_step"]


def test_val_rows_are_those_that_training_validated(train: Train, evaluate: Train) -> None:
    run = train("data=digits", "trainer.max_steps=50")

    evaluate("output=evaluation", f"run={run.directory}/checkpoints/last.ckpt")  # no test rows, so the val rows

    reported = {tag: value for tag, value in run.metrics.items() if tag.startswith("val/")}
    assert {tag: evaluation()[tag] for tag in reported} == pytest.approx(reported, abs=1e-6)


def test_every_loss_reports_its_cost(train: Train, evaluate: Train) -> None:
    for loss in ("focal", "brier", "hinge", "logit_adjusted", "one_hot", "poly1"):
        options = [] if loss == "hinge" else ["loss.z_loss=0.01"]
        run = train("data=wine", "data.test_fraction=0.3", "trainer.max_steps=9", f"loss={loss}", *options,
                    "loss.class_weight=[1,2,3]")  # fmt: skip
        assert evaluate(f"output={loss}").code == 0
        assert evaluation(loss)["test/cost"] == pytest.approx(run.metrics["test/cost"], rel=1e-5)


def test_other_rows_and_what_is_written(train: Train, evaluate: Train, columns: dict[str, list[Any]]) -> None:
    save("train.csv", slice(150), columns)
    save("new.csv", slice(150, 200), columns)
    weighted = ("data.weight=weight", "data.test_fraction=0.2")
    run = train("data=csv", "data.path=train.csv", *weighted, "trainer.max_steps=100")

    done = evaluate("data.path=new.csv")

    assert (done.code, done.err) == (0, "")
    (folder,) = run.directory.glob("evaluate/*")
    assert {path.name.split(".1")[0] for path in folder.iterdir()} == {
        "metrics.json", "classes.csv", "confusion_matrix.png", "reliability.png", "events.out.tfevents",
    }  # fmt: skip
    model = crossent.load()
    table = pa.table({name: columns[name][150:] for name in ("x", "y", "colour")})
    right = model.predict(table) == np.array(columns["kind"][150:])
    weights = np.array(columns["weight"][150:])
    found = evaluation(str(folder))
    assert found["test/accuracy"] == pytest.approx((right * weights).sum() / weights.sum())
    assert found["rows"] == 50

    rows = list(csv.DictReader((folder / "classes.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["down", "mid", "up"]
    support = [weights[np.array(columns["kind"][150:]) == row["class"]].sum() for row in rows]
    assert [float(row["rows"]) for row in rows] == support
    assert np.mean([float(row["f1"]) for row in rows]) == pytest.approx(found["test/macro_f1"])

    scalars = {tag: list(points.values()) for tag, points in curves(folder).items()}
    assert scalars == {tag: [pytest.approx(value)] for tag, value in found.items() if tag.startswith("test/")}
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"test/confusion_matrix", "test/reliability"}
    for name in ("confusion_matrix", "reliability"):
        assert image.imread(folder / f"{name}.png").std() > 0.01


def test_a_file_of_another_kind_and_arrays(train: Train, evaluate: Train, workplace: Path) -> None:
    features, targets = load_digits(return_X_y=True)
    train("data=digits", "trainer.max_steps=100")
    np.savez("new.npz", X=features, y=targets)
    names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
    shuffled = np.random.default_rng(0).permutation(64)
    table = pa.table({names[at]: features[:, at] for at in shuffled} | {"digit": targets})
    pa.csv.write_csv(table, "new.csv")

    assert evaluate("split=all", "output=own").code == 0
    assert evaluate("data=arrays", "data.path=new.npz", "output=arrays").code == 0
    assert evaluate("data=csv", "data.path=new.csv", "output=csv").code == 0

    for name in ("arrays", "csv"):
        assert evaluation(name)["rows"] == 1797
        for tag in ("test/accuracy", "test/nll", "test/cost"):
            assert evaluation(name)[tag] == pytest.approx(evaluation("own")[tag], rel=1e-6)


def test_a_checkpoint_alone_is_enough(
    train: Train, evaluate: Train, columns: dict[str, list[Any]], workplace: Path
) -> None:
    save("train.csv", slice(150), columns)
    run = train("data=csv", "data.path=train.csv", "trainer.max_steps=10")
    assert evaluate("output=before", "data.path=train.csv", "split=all").code == 0
    shutil.copy(run.directory / "checkpoints" / "best.ckpt", workplace / "model.ckpt")
    shutil.rmtree(workplace / "logs")

    assert evaluate("run=model.ckpt", "split=all", "output=after").code == 0

    for tag in ("test/cost", "test/brier", "rows"):
        assert evaluation("after")[tag] == evaluation("before")[tag]


def test_a_large_evaluation_goes_in_batches_and_shows_its_worst_classes(
    train: Train, evaluate: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train("data=synthetic", "data.rows=3000", "data.classes=60", "data.test_fraction=0.5", "trainer.max_steps=5")
    monkeypatch.setattr("crossent.data.loader._EVALUATION_NUMBERS", 60 * 100)

    done = evaluate("output=evaluation")

    assert "the 10 classes with the most mistakes, of 60:" in done.out
    assert evaluation()["test/nll"] == pytest.approx(run.metrics["test/nll"], rel=1e-6)
    assert len(Path("evaluation/classes.csv").read_text().splitlines()) == 61


def test_the_same_file_elsewhere_is_split_as_it_was(
    train: Train, evaluate: Train, columns: dict[str, list[Any]], workplace: Path
) -> None:
    save("train.csv", slice(150), columns)
    train("data=csv", "data.path=train.csv", "data.val_fraction=0.3", "data.test_fraction=0.2", "trainer.max_steps=5")
    shutil.move("train.csv", "moved.csv")

    # Whoever names rows means all of them.
    for split, rows in (("auto", 150), ("test", 30), ("val", 45), ("train", 75), ("all", 150)):
        done = evaluate("data.path=./moved.csv", f"split={split}", "output=evaluation", "overwrite=true")
        assert evaluation()["rows"] == rows
        assert ("with those that the run was trained on" in done.out) == (rows == 150)
    shutil.move("moved.csv", "train.csv")
    assert evaluate("data.in_memory=false", "output=evaluation", "overwrite=true").code == 0
    assert evaluation()["rows"] == 30


def test_other_rows_are_not_joined_by_those_set_apart_in_training(
    train: Train, evaluate: Train, columns: dict[str, list[Any]], workplace: Path
) -> None:
    for name, rows in (("train", slice(100)), ("val", slice(100, 150)), ("new", slice(150, 200))):
        save(f"{name}.csv", rows, columns)
    train("data=csv", "data.path=train.csv", "data.val_path=val.csv", "trainer.max_steps=5")

    assert evaluate("data.path=new.csv", "output=new").code == 0
    assert evaluate("output=own").code == 0

    assert evaluation("new")["rows"] == evaluation("own")["rows"] == 50
    assert "val/nll" in evaluation("own")


@pytest.mark.parametrize("data", ["csv", "arrays"])
def test_rows_that_were_dropped_are_dropped_again(train: Train, evaluate: Train, workplace: Path, data: str) -> None:
    x = [float(row) for row in range(40)]
    x[39] = float("nan")
    y = ["a", "b"] * 19 + ["a", "gone" if data == "csv" else "b"]  # the only row of its class
    np.savez("rows.npz", X=np.array([x]).T, y=np.array(y))
    Path("rows.csv").write_text(
        "x,y\n" + "".join(f"{'' if one != one else one},{two}\n" for one, two in zip(x, y, strict=True))
    )
    path = f"data.path=rows.{'npz' if data == 'arrays' else 'csv'}"
    run = train(f"data={data}", path, "data.missing=drop", "data.test_fraction=0.25", "trainer.max_steps=5")

    assert evaluate("output=evaluation").code == 0

    assert evaluation()["test/nll"] == pytest.approx(run.metrics["test/nll"], abs=1e-6)


def test_rows_of_which_none_counts_tell_nothing(train: Train, evaluate: Train, workplace: Path) -> None:
    pa.csv.write_csv(pa.table({"x": list(range(20)), "w": [1] * 20, "y": ["a", "b"] * 10}), "train.csv")
    pa.csv.write_csv(pa.table({"x": list(range(20)), "w": [0] * 20, "y": ["a", "b"] * 10}), "new.csv")
    train("data=csv", "data.path=train.csv", "data.weight=w", "data.target=y", "trainer.max_steps=5")

    done = evaluate("data.path=new.csv", "output=evaluation")

    assert_answered_in_one_line(done, ["data: no test row counts"])


def test_a_text_in_a_checkpoint_is_never_worked_out(
    train: Train, evaluate: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    run = train("data=iris", "trainer.max_steps=5")
    stored = run.checkpoint("best")
    stored["crossent"]["config"]["data"] |= {"name": "csv", "path": "${oc.env:SECRET}.csv"}
    torch.save(stored, "planted.ckpt")

    done = evaluate("run=planted.ckpt")

    assert done.code == 2
    assert "hunter2" not in done.err


@pytest.mark.parametrize("data", ["csv", "arrays"])
def test_data_that_has_changed_has_no_known_test_rows(
    train: Train, evaluate: Train, columns: dict[str, list[Any]], data: str
) -> None:
    def write(rows: int) -> None:
        save("rows.csv", slice(rows), columns)
        np.savez("rows.npz", X=np.array([columns["x"], columns["y"]]).T[:rows], y=np.array(columns["kind"])[:rows])

    write(200)
    path = f"data.path=rows.{'csv' if data == 'csv' else 'npz'}"
    train(f"data={data}", path, "data.test_fraction=0.2", "trainer.max_steps=5")
    assert evaluate("output=first").code == 0
    write(199)

    done = evaluate("output=second")

    assert_answered_in_one_line(done, ["split=auto", "no longer what the run was trained on", "split=all"])
    assert evaluate("output=second", "split=all").code == 0


class TestClassesOfTheUsersOwn:
    @pytest.fixture
    def trained(self, train: Train, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
        name = f"mine_{abs(hash(workplace))}"
        Path(f"{name}.py").write_text(OURS)
        monkeypatch.syspath_prepend(workplace)
        self.name = name
        run = train(
            "data=custom", f"data._target_={name}.Rows", "data.test_fraction=0.4", "trainer.max_steps=9",
            "loss=custom", f"loss._target_={name}.Learnt",
        )  # fmt: skip
        assert run.code == 0, run.err
        Path("imported").unlink()
        monkeypatch.delitem(__import__("sys").modules, name)
        return run

    def test_are_never_imported_because_a_checkpoint_names_them(self, trained: Run, evaluate: Train) -> None:
        named = f"data=custom data._target_={self.name}.Rows data.test_fraction=0.4"

        done = evaluate("output=evaluation")

        assert_answered_in_one_line(done, ["not imported unless it is named again", named])
        np.savez("new.npz", X=np.ones((4, 2)), y=np.array(["a", "b"] * 2))
        done = evaluate("data=arrays", "data.path=new.npz", "output=evaluation")
        assert done.code == 0
        assert f"loss=custom loss._target_={self.name}.Learnt" in done.out
        assert "test/cost" not in evaluation()
        assert evaluation()["test/nll"] > 0
        assert not Path("imported").exists()

    def test_are_used_when_they_are_named_again(self, trained: Run, evaluate: Train) -> None:
        data, loss = f"data._target_={self.name}.Rows", f"loss._target_={self.name}.Learnt"
        done = evaluate("data=custom", data, "data.test_fraction=0.4", "loss=custom", loss, "output=evaluation")

        assert (done.code, done.err) == (0, "")
        assert evaluation()["test/cost"] == pytest.approx(trained.metrics["test/cost"], rel=1e-6)
        assert evaluation()["rows"] == 5

    def test_the_runs_own_rows_are_known_by_what_they_are(self, trained: Run, evaluate: Train) -> None:
        named = ("data=custom", f"data._target_={self.name}.Rows")
        assert evaluate(*named, "split=test", "output=own").code == 0
        assert evaluation("own")["rows"] == 5
        assert evaluate("data=custom", f"data._target_={self.name}.Turned", "output=others").code == 0
        assert evaluate(*named, "split=all", "output=all").code == 0
        for tag in ("rows", "test/nll", "test/accuracy"):
            assert evaluation("others")[tag] == pytest.approx(evaluation("all")[tag])
        done = evaluate("data=custom", f"data._target_={self.name}.Turned", "split=test", "output=test")
        assert_answered_in_one_line(done, ["split=test", "not the run's own rows", "split=all"])


def test_a_foreign_target_in_a_checkpoint_is_never_imported(
    train: Train, evaluate: Train, predict: Train, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever section it stands in."""
    run = train("data=iris", "trainer.max_steps=5")
    Path("planted.py").write_text("open('imported', 'w').close()\n\n\nclass Planted:\n    pass\n")
    monkeypatch.syspath_prepend(workplace)
    stored = run.checkpoint("best")
    for section in ("data", "loss", "optimizer", "scheduler", "accelerator", "logger"):
        stored["crossent"]["config"][section] = {"name": "custom", "_target_": "planted.Planted"}
    torch.save(stored, "planted.ckpt")
    np.save("new.npy", np.ones((2, 4)))
    np.savez("new.npz", X=np.ones((2, 4)), y=np.array(["setosa", "virginica"]))

    assert evaluate("run=planted.ckpt", "output=evaluation").code == 2
    assert evaluate("run=planted.ckpt", "output=evaluation", "data=arrays", "data.path=new.npz").code == 0
    assert predict("run=planted.ckpt", "input=new.npy", "output=out.csv").code == 0
    assert crossent.load("planted.ckpt").predict(np.ones((2, 4))).shape == (2,)
    assert not Path("imported").exists()


MISTAKES: list[tuple[str, list[str]]] = [
    ("data.path=gone.csv", ["data.path=gone.csv", "no such file"]),
    ("data.path=unseen.csv", ["unseen.csv: line 3", "'kind'", "'sideways' is not among the training rows"]),
    ("data.path=missing.csv", ["missing.csv", "no column 'y'"]),
    ("data.path=surplus.csv", ["surplus.csv", "column 'id'", "data.features"]),
    ("data.path=text.csv", ["text.csv: line 3", "'x'", "'one'", "expected a number", "the run's training data"]),
    ("data.standardize=false", ["data.standardize=false", "scaled as they were"]),
    ("data=iris", ["no feature 'x'", "x, y, colour=blue"]),
    (
        "data.val_fraction=0.5",
        ["data.val_fraction=0.5", "split as they were in training", "split=train, val, test or all"],
    ),
    ("split=tset", ["split=tset", "auto, test, train, val"]),
    ("split=test", ["split=test", "no such rows", "train, val, all"]),
    ("loss=binary", ["loss=binary", "2 classes"]),
    ("loss=focsl", ["loss=focsl", "did you mean 'focal'?"]),
    ("accelerator=gpu", ["accelerator=gpu", "no GPU"]),
    ("accelerator=ddp", ["accelerator=ddp", "this machine shows no GPU", "ddp_cpu"]),
    ("optimizer=sgd", ["optimizer", "no such group"]),
    ("trainer.max_steps=5", ["trainer.max_steps", "no such key"]),
    ("run=nowhere", ["run=nowhere", "no such file or directory"]),
    ("run=train.csv", ["run=train.csv", "no whole checkpoint", "nothing else is ever unpickled"]),
    ("output=train.csv", ["output=train.csv", "a file; expected a folder"]),
    ("output=logs/latest", ["output=logs/latest", "holds a training run"]),
    ("output=/proc/x/y", ["output=/proc/x/y", "cannot be written"]),
]


@pytest.mark.parametrize(("override", "said"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_mistake_is_answered_in_one_line_and_leaves_nothing_behind(
    train: Train, evaluate: Train, columns: dict[str, list[Any]], workplace: Path, override: str, said: list[str]
) -> None:
    del columns["weight"]
    save("train.csv", slice(150), columns)
    save("surplus.csv", slice(9), {**columns, "id": list(range(200))})
    save("missing.csv", slice(9), {name: values for name, values in columns.items() if name != "y"})
    save("unseen.csv", slice(9), {**columns, "kind": ["up", "sideways"] * 100})
    save("text.csv", slice(9), {**columns, "x": ["1", "one"] * 100})
    train("data=csv", "data.path=train.csv", "trainer.max_steps=3")
    before = {str(path) for path in workplace.rglob("*")}

    done = evaluate("output=folder/evaluation", override)

    assert_answered_in_one_line(done, said)
    assert {str(path) for path in workplace.rglob("*")} == before


def test_an_evaluation_is_replaced_when_asked_to(train: Train, evaluate: Train) -> None:
    train("data=iris", "trainer.max_steps=5")
    assert evaluate("output=evaluation").code == 0
    Path("evaluation/notes.txt").write_text("mine")

    assert_answered_in_one_line(evaluate("output=evaluation"), ["output=evaluation", "overwrite=true"])
    assert evaluate("output=evaluation", "overwrite=true", "split=train").code == 0

    assert "train/accuracy" in evaluation()
    assert set(curves(Path("evaluation"))) == {tag for tag in evaluation() if "/" in tag}
    assert Path("evaluation/notes.txt").read_text() == "mine"


def test_nothing_of_the_users_is_overwritten_unasked_or_lost_when_it_fails(train: Train, evaluate: Train) -> None:
    train("data=iris", "trainer.max_steps=5")
    Path("mine").mkdir()
    Path("mine/classes.csv").write_text("mine")

    assert_answered_in_one_line(evaluate("output=mine"), ["output=mine", "has classes.csv", "overwrite=true"])
    assert [path.name for path in Path("mine").iterdir()] == ["classes.csv"]

    assert evaluate("output=evaluation").code == 0
    before = {path: path.read_bytes() for path in Path("evaluation").iterdir()}
    assert evaluate("output=evaluation", "overwrite=true", "data=wine").code == 2
    assert {path: path.read_bytes() for path in Path("evaluation").iterdir()} == before


@pytest.mark.parametrize(
    "names", [["$\\frac$", "a, b"], ["花", "木"], [f"a rather long name of a class {number}" for number in range(40)]]
)
def test_names_of_classes_are_shown_as_they_are(
    train: Train, evaluate: Train, workplace: Path, names: list[str]
) -> None:
    pa.csv.write_csv(pa.table({"x": np.arange(5.0 * len(names)), "y": names * 5}), "train.csv")
    train("data=csv", "data.path=train.csv", "data.val_fraction=0.2", "trainer.max_steps=2")

    done = evaluate("output=evaluation", "split=all")

    assert (done.code, done.err) == (0, "")
    assert "all, with those that the run was trained on" in done.out
    rows = csv.DictReader(Path("evaluation/classes.csv").read_text().splitlines())
    assert {row["class"] for row in rows} == set(names)


def test_the_configuration_comes_from_the_checkpoint_and_not_from_beside_it(train: Train, evaluate: Train) -> None:
    run = train("data=iris", "data.test_fraction=0.2", "trainer.max_steps=5")
    edited = yaml.safe_load((run.directory / "config.yaml").read_text())
    edited["data"]["test_fraction"] = 0.5
    (run.directory / "config.yaml").write_text(yaml.safe_dump(edited))

    evaluate("output=evaluation")

    assert evaluation()["rows"] == 30


@pytest.mark.parametrize("classes", [10, 40])  # so many that only the worst are in the picture
@pytest.mark.parametrize(
    "accelerator",
    [
        ["accelerator=ddp_cpu", "accelerator.devices=3"],
        ["accelerator=class_parallel_cpu", "accelerator.devices=3"],
        ["accelerator=class_parallel_cpu", "accelerator.devices=4", "accelerator.class_shards=2"],
    ],
    ids=["rows", "classes", "both"],
)
def test_several_processes_find_what_one_does(
    accelerator: list[str], classes: int, train: Train, evaluate: Train, workplace: Path
) -> None:
    rows = ["data=synthetic", f"data.classes={classes}", "data.rows=600", "data.features=8", "data.test_fraction=0.2"]
    train(*rows, "loss=cross_entropy", "trainer.max_steps=30", "calibration=temperature")
    silence_ranks()
    shared = partial(evaluate, *accelerator, "accelerator.precision=64-true")

    alone = evaluate("output=alone", "accelerator=cpu", "accelerator.precision=64-true")
    together = shared("output=together")
    again = shared("output=together")

    assert (alone.code, together.code) == (0, 0), together.err
    one, other = (json.loads((workplace / name / "metrics.json").read_text()) for name in ("alone", "together"))
    for name in one.keys() - {"seconds", "checkpoint"}:
        assert other[name] == pytest.approx(one[name], rel=1e-12), name
    for name in ("classes.csv", "confusion_matrix.png", "reliability.png"):
        assert (workplace / "alone" / name).read_bytes() == (workplace / "together" / name).read_bytes()
    assert_answered_in_one_line(again, ["output=together: has metrics.json"])
