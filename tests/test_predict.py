"""crossent-predict: new rows through a checkpoint, in order, streamed, whole or not at all."""

import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

import crossent
from conftest import Run, Train, assert_answered_in_one_line, on_a_terminal
from crossent.checkpoints import Checkpoint
from crossent.data.facts import DataFacts
from crossent.trained import TrainedClassifier

ROWS = 60


def flowers(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """Rows with two numbers, a text, true and false, and a class."""
    draw = np.random.default_rng(seed)
    size, width = draw.normal(5, 2, rows), draw.normal(100, 30, rows)
    colour = draw.choice(["red", "blue", "green"], rows)
    tall = draw.random(rows) < 0.5
    species = np.where(size + 2 * (colour == "red") + tall > 6, "a, big", np.where(width > 100, "b", 'c "x"'))
    names = ("size", "colour", "width", "tall", "species")
    return pa.table(dict(zip(names, (size, colour, width, tall, species), strict=True)))


def save(table: pa.Table, path: str) -> None:
    if path.endswith(".csv"):
        pa.csv.write_csv(table, path)
    else:
        pa.parquet.write_table(table, path)


def read(path: str) -> dict[str, list[Any]]:
    if path.endswith(".npz"):
        return {name: array.tolist() for name, array in np.load(path).items()}
    found: dict[str, list[Any]] = (
        pa.csv.read_csv(path) if path.endswith(".csv") else pa.parquet.read_table(path)
    ).to_pydict()
    return found


def left_behind(workplace: Path) -> set[str]:
    return {str(path.relative_to(workplace)) for path in workplace.rglob("*")}


@pytest.fixture
def trained(train: Train, workplace: Path) -> Run:
    save(flowers(), "train.csv")
    return train("data=csv", "data.path=train.csv", "trainer.max_steps=50")


def by_hand(run: Run, table: pa.Table) -> np.ndarray[Any, Any]:
    """Probabilities, from what the checkpoint holds, the way the documentation says."""
    stored = run.checkpoint("best")
    facts, state = stored["crossent"]["data"], stored["state_dict"]
    columns = []
    for column in facts["read_from"]:
        values = np.array(table[column["name"]].to_pylist())
        columns += [values] if column["categories"] is None else [values == each for each in column["categories"]]
    features = torch.tensor(np.stack(columns, axis=1).astype(np.float32)).double()
    scaled = (features - facts["mean"]) / facts["scale"]
    logits = scaled @ state["head.weight"].double().t() + state["head.bias"].double()
    return np.asarray(logits.softmax(dim=1))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("out", ["csv", "parquet", "npz"])
def test_predictions_are_those_of_the_formula_under_the_names_of_training(
    trained: Run, predict: Train, kind: str, out: str
) -> None:
    table = flowers(37, seed=1).select(["tall", "colour", "size", "width"])  # other rows, other order, no class
    save(table.append_column("id", pa.array([f"n{row}" for row in range(37)])), f"new.{kind}")

    run = predict(f"input=new.{kind}", f"output=out.{out}", "keep=[id]", "probabilities=true")

    assert (run.code, run.err) == (0, "")
    found, expected = read(f"out.{out}"), by_hand(trained, table)
    classes = ["a, big", "b", 'c "x"']
    assert list(found) == ["id", "prediction", "probability", *(f"probability_{name}" for name in classes)]
    assert found["id"] == [f"n{row}" for row in range(37)]
    assert found["prediction"] == [classes[code] for code in expected.argmax(axis=1)]
    assert found["probability"] == pytest.approx(expected.max(axis=1), abs=1e-6)
    for place, name in enumerate(classes):
        assert found[f"probability_{name}"] == pytest.approx(expected[:, place], abs=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary", "hinge", "logit_adjusted"])
@pytest.mark.parametrize("bias", ["per_class", "shared", "none"])
def test_every_head_predicts_as_it_evaluates(
    train: Train, predict: Train, evaluate: Train, workplace: Path, loss: str, bias: str
) -> None:
    table = flowers(80)
    table = table.set_column(4, "species", [["yes" if name == "b" else "no" for name in table["species"].to_pylist()]])
    save(table, "train.csv")
    train("data=csv", "data.path=train.csv", "trainer.max_steps=30", f"loss={loss}", f"model.bias={bias}")

    assert predict("input=train.csv", "output=out.csv", "probabilities=true").code == 0
    assert evaluate("split=all", "output=evaluation").code == 0

    found, truth = read("out.csv"), table["species"].to_pylist()
    metrics = Run(0, "", "", Path("evaluation")).metrics
    right = [one == other for one, other in zip(found["prediction"], truth, strict=True)]
    assert np.mean(right) == pytest.approx(metrics["test/accuracy"])
    own = [found[f"probability_{name}"][row] for row, name in enumerate(truth)]
    assert -np.log(own).mean() == pytest.approx(metrics["test/nll"], abs=1e-6)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays_are_predicted_by_place(train: Train, predict: Train, workplace: Path, kind: str) -> None:
    from sklearn.datasets import load_digits

    features, targets = load_digits(return_X_y=True)
    run = train("data=digits", "trainer.max_steps=200")
    if kind == "npy":
        np.save("new.npy", features)
    else:
        np.savez("new.npz", X=features, id=np.arange(len(features)), y=targets)

    done = predict(f"input=new.{kind}", "output=out.npz", *(["keep=[id,y]"] if kind == "npz" else []))

    assert (done.code, done.err) == (0, "")
    found = np.load("out.npz")
    assert found["prediction"].dtype == np.int64  # as the classes were
    assert (found["prediction"] == targets).mean() > 0.9
    assert run.metrics["val/accuracy"] > 0.9
    if kind == "npz":
        assert found["id"].tolist() == list(range(len(features)))
        assert (found["y"] == targets).all()


def test_without_an_output_it_goes_to_a_folder_inside_the_run(trained: Run, predict: Train) -> None:
    done = predict("input=train.csv")

    (path,) = trained.directory.glob("predict/*/predictions.csv")
    assert f"output  {path.relative_to(Path.cwd())}: 60 rows" in done.out
    assert len(read(str(path))["prediction"]) == ROWS


def test_a_checkpoint_alone_is_enough(trained: Run, predict: Train, workplace: Path) -> None:
    elsewhere = workplace / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(trained.directory / "checkpoints" / "last.ckpt", elsewhere / "model.bin")
    shutil.rmtree(workplace / "logs")
    (workplace / "train.csv").rename("new.csv")

    assert predict("run=elsewhere/model.bin", "input=new.csv", "output=out.csv").code == 0
    assert len(read("out.csv")["prediction"]) == ROWS
    assert predict("run=elsewhere/model.bin", "input=new.csv").code == 0
    assert len(list(workplace.glob("logs/predict/*/predictions.csv"))) == 1


@pytest.mark.parametrize(
    "codes",
    [["007", "1.50", '"a,b"', "x"], ["007", "08", "9", "1"], ["NA", "null", "?", ""], ["12345678901234567890"] * 4],
)
@pytest.mark.usefixtures("trained")
def test_carried_over_columns_are_as_they_were(predict: Train, codes: list[str]) -> None:
    table = flowers(4).to_pydict()
    with Path("new.csv").open("w") as file:
        file.write("size,code,colour,width,tall\r\n")
        for row, code in enumerate(codes):
            columns = [str(table[name][row]) for name in ("size", "colour", "width", "tall")]
            file.write(f"{columns[0]},{code},{columns[1]},{columns[2]},{columns[3].lower()}\r\n")

    assert predict("input=new.csv", "output=out.csv", "keep=[code]").code == 0
    kinds = pa.csv.ConvertOptions(column_types={"code": pa.string()})
    plain = [code.strip('"') for code in codes]
    assert pa.csv.read_csv("out.csv", convert_options=kinds)["code"].to_pylist() == plain

    # Numbers where they can be, and texts if one further down is none.
    assert predict("input=new.csv", "output=out.parquet", "keep=[code,size]").code == 0
    assert read("out.parquet")["code"] == plain
    assert read("out.parquet")["size"] == table["size"]


@pytest.mark.usefixtures("trained")
def test_numbers_carried_over_to_text_stay_as_they_were_written(predict: Train) -> None:
    save(flowers(3).drop_columns("species").append_column("mark", pa.array(["M0", "M1", "M2"])), "new.csv")
    text = Path("new.csv").read_text()
    for row, mark in enumerate(("1.50", "2.0", "-3e0")):
        text = text.replace(f'"M{row}"', mark)
    Path("new.csv").write_text(text)

    for out in ("csv", "parquet"):
        assert predict("input=new.csv", f"output=out.{out}", "keep=[mark]").code == 0

    with Path("out.csv").open() as file:
        assert [row["mark"] for row in csv.DictReader(file)] == ["1.50", "2.0", "-3e0"]
    assert read("out.parquet")["mark"] == [1.5, 2.0, -3.0]


def test_a_kept_number_that_turns_out_to_be_a_text_is_read_again(
    trained: Run, predict: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossent.data.csv._CHUNK_BYTES", 2000)
    table = flowers(30_000)
    codes = [str(row) for row in range(29_999)] + ["last"]
    save(table.append_column("code", pa.array(codes)), "new.csv")
    Path("new.csv").write_text(Path("new.csv").read_text().replace('"', "").replace("a, big", "a").replace("c x", "c"))

    done = predict("input=new.csv", "output=out.parquet", "keep=[code]")

    assert (done.code, done.err) == (0, "")
    assert read("out.parquet")["code"] == codes


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("compressed", ["", ".gz"])
def test_rows_keep_their_order_over_many_chunks(
    trained: Run, predict: Train, monkeypatch: pytest.MonkeyPatch, ending: str, compressed: str
) -> None:
    monkeypatch.setattr("crossent.data.csv._CHUNK_BYTES", 1000)
    table = flowers(5000, seed=3)
    table = table.drop_columns("species").append_column("id", pa.array(range(5000)))
    save(table, "plain.csv")
    text = Path("plain.csv").read_text().replace("\n", ending).rstrip()  # and no end of the last line
    with pa.output_stream(f"new.csv{compressed}", compression="detect" if compressed else None) as stream:
        stream.write(b"\xef\xbb\xbf" + ending.encode() + text.encode())  # the mark that Windows puts, a blank line

    done = predict(f"input=new.csv{compressed}", "output=out.csv", "keep=[id]")

    assert (done.code, done.err) == (0, "")
    found, expected = read("out.csv"), by_hand(trained, table)
    assert found["id"] == list(range(5000))
    assert found["probability"] == pytest.approx(expected.max(axis=1), abs=1e-6)


@pytest.mark.parametrize("chunk", [100, 137, 1000, 100_000])
def test_texts_over_several_lines_and_long_rows(
    trained: Run, predict: Train, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("crossent.data.csv._CHUNK_BYTES", chunk)
    table = flowers(400, seed=3).drop_columns("species")
    notes = ["plain"] * 300 + ["one\ntwo, three\nfour"] * 99 + ["long\n" * 1000]
    save(table.append_column("note", pa.array(notes)), "new.csv")

    done = predict("input=new.csv", "output=out.parquet", "keep=[note]")

    assert (done.code, done.err) == (0, "")
    assert read("out.parquet")["note"] == notes
    assert read("out.parquet")["probability"] == pytest.approx(by_hand(trained, table).max(axis=1), abs=1e-6)


def test_a_quote_that_is_none_is_read_another_way(
    trained: Run, predict: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossent.data.csv._CHUNK_BYTES", 1000)
    monkeypatch.setattr("crossent.data.csv._PATIENT_BYTES", 4000)
    table = flowers(400, seed=3).drop_columns("species")
    notes = ["plain"] * 200 + ['5" pipe'] + ["plain"] * 199
    save(table.append_column("note", pa.array(notes)), "new.csv")
    Path("new.csv").write_text(Path("new.csv").read_text().replace('"5"" pipe"', '5" pipe'))

    done = predict("input=new.csv", "output=out.parquet", "keep=[note]")

    assert (done.code, done.err) == (0, "")
    assert read("out.parquet")["note"] == notes
    assert read("out.parquet")["probability"] == pytest.approx(by_hand(trained, table).max(axis=1), abs=1e-6)


def test_a_file_in_another_dialect(trained: Run, predict: Train) -> None:
    table = flowers(5, seed=2)
    lines = ["size;colour;width;tall;größe"]
    for size, colour, width, tall, _ in zip(*table.to_pydict().values(), strict=True):
        lines.append(f"{size:.3f};{colour};{width:.3f};{str(tall).lower()};ä".replace(".", ","))
    Path("new.csv").write_text("\n".join(lines), encoding="utf-16")

    options = ("csv.delimiter=';'", "csv.decimal=','", "csv.encoding=utf-16", "keep=['größe']")
    done = predict("input=new.csv", "output=out.csv", *options)

    assert (done.code, done.err) == (0, "")
    assert read("out.csv")["größe"] == ["ä"] * 5
    assert read("out.csv")["probability"] == pytest.approx(by_hand(trained, table).max(axis=1), abs=1e-3)


def test_a_file_without_rows_gives_one_without_rows(trained: Run, predict: Train) -> None:
    save(flowers(0), "new.parquet")
    Path("new.csv").write_text("size,colour,width,tall\n")

    for kind in ("csv", "parquet"):
        done = predict(f"input=new.{kind}", f"output=out_{kind}.csv")
        assert (done.code, done.err) == (0, "")
        assert Path(f"out_{kind}.csv").read_text() == "prediction,probability\n"


def test_unseen_texts_are_rows_of_zeros_and_counted_at_the_end(trained: Run, predict: Train) -> None:
    table = flowers(6, seed=2)
    save(table.set_column(1, "colour", [["red", "pink", "blue", "pink", "grey", "green"]]), "new.csv")
    with Path("new.csv").open("a") as file:
        file.write("5,NA,100,true,b\n")  # missing, which is another thing

    done = predict("input=new.csv", "output=out.csv", "missing=empty")

    counted = [line for line in done.out.splitlines() if "not among the training rows" in line]
    assert counted == ["new.csv: 3 values of text columns were not among the training rows; all their features are 0"]
    table = table.set_column(1, "colour", [["red", "pink", "blue", "pink", "grey", "green"]])
    assert read("out.csv")["probability"][:6] == pytest.approx(by_hand(trained, table).max(axis=1), abs=1e-6)


def test_numbers_of_other_machines_and_separators_of_other_programs(
    train: Train, predict: Train, workplace: Path
) -> None:
    Path("train.tsv.csv").write_text("x\ty\n" + "1\ta\n2\tb\n" * 10)
    train("data=csv", "data.path=train.tsv.csv", "data.delimiter=tab", "trainer.max_steps=5")
    np.savez("new.npz", X=np.array([[1.0], [2.0]], ">f8"), id=np.array([1, 2], ">i4"))

    assert predict("input=train.tsv.csv", "output=out.csv").code == 0  # as the run read its own
    assert predict("input=new.npz", "output=out.parquet", "keep=[id]").code == 0
    assert read("out.parquet")["id"] == [1, 2]
    assert read("out.parquet")["probability"] == pytest.approx(read("out.csv")["probability"][:2])


class TestMissingValues:
    @pytest.fixture
    def new(self, workplace: Path) -> str:
        Path("new.csv").write_text("size,colour,width,tall\n5,red,,true\n5,NA,100,true\n5,red,100,false\n")
        return "new.csv"

    def test_are_filled_in_as_in_training(self, train: Train, predict: Train, new: str) -> None:
        table = flowers().to_pydict()
        table["width"][3] = table["colour"][7] = None
        save(pa.table(table), "train.csv")
        train("data=csv", "data.path=train.csv", "data.missing=mean", "trainer.max_steps=20")
        fill = crossent.load().facts.fill
        assert fill is not None

        assert predict(f"input={new}", "output=out.csv").code == 0

        model = crossent.load()
        rows = np.array([[5, 0, 0, 1, np.nan, 1], [5, np.nan, np.nan, np.nan, 100, 1], [5, 0, 0, 1, 100, 0]])
        expected = model.predict_proba(np.where(np.isnan(rows), fill, rows)).max(axis=1)
        assert read("out.csv")["probability"] == pytest.approx(expected, abs=1e-6)

    @pytest.mark.usefixtures("trained")
    def test_are_a_mistake_otherwise(self, predict: Train, new: str) -> None:
        done = predict(f"input={new}", "output=out.csv")

        assert_answered_in_one_line(done, ["new.csv: line 3", "'colour'", "missing", "missing=empty"])

    @pytest.mark.parametrize("out", ["csv", "parquet"])
    @pytest.mark.usefixtures("trained")
    def test_may_leave_the_prediction_empty(self, predict: Train, new: str, out: str) -> None:
        done = predict(f"input={new}", f"output=out.{out}", "missing=empty", "probabilities=true")

        assert (done.code, done.err) == (0, "")
        found = read(f"out.{out}")
        for name, values in found.items():
            assert [value in (None, "") for value in values] == [True, True, False], name

    @pytest.mark.usefixtures("workplace")
    def test_in_arrays(self, train: Train, predict: Train) -> None:
        np.save("new.npy", np.array([[1.0, 2, 3, 4], [1, np.nan, 3, 4]]))
        train("data=iris", "trainer.max_steps=5")

        assert_answered_in_one_line(predict("input=new.npy", "output=out.csv"), ["new.npy: row 1", "missing"])
        assert predict("input=new.npy", "output=out.csv", "missing=empty").code == 0
        assert [value in (None, "") for value in read("out.csv")["prediction"]] == [False, True]


MISTAKES: list[tuple[str, str, list[str]]] = [
    ("size,colour,tall\n1,red,true\n", "", ["new.csv", "no column 'width'"]),
    ("Size,colour,width,tall\n1,red,2,true\n", "", ["new.csv", "no column 'size'", "did you mean 'Size'?"]),
    ("size,colour,width,tall,id\n1,red,2,true,7\n", "", ["new.csv", "'id'", "keep=[id]", "surplus=ignore"]),
    ("size,colour,width,tall,size\n1,red,2,true,7\n", "", ["new.csv", "two columns are named 'size'"]),
    ("size,colour,width,tall\n1,red,2,true\n1,red,wide,true\n", "", ["line 3", "'width'", "'wide'", "a number"]),
    ("size,colour,width,tall\n1,red,2,true\n1,red,2\n", "", ["new.csv: line 3", "3 columns, but 4"]),
    ("size,colour,width,tall\n1,red,inf,true\n", "", ["new.csv: line 2", "'width'", "inf", "finite"]),
    ("", "", ["new.csv", "empty"]),
    ("size,colour,width,tall\n1,red,2,true\n", "keep=[id]", ["keep=id", "no such column", "size, colour"]),
    ("size,colour,width,tall\n1,red,2,true\n", "keep=[probability]", ["keep=probability", "two columns"]),
    ("size,colour,width,tall\n1,red,2,true\n", "keep=[size,size]", ["keep=size", "two columns"]),
    ("size,colour,width,tall\n1,red,2,true\n", "output=out.txt", ["output=out.txt", ".csv, .parquet or .npz"]),
    ("size,colour,width,tall\n1,red,2,true\n", "output=new.csv", ["output=new.csv", "the same file as the input"]),
    ("size,colour,width,tall\n1,red,2,true\n", "output=train.csv", ["output=train.csv", "overwrite=true"]),
    ("size,colour,width,tall\n1,red,2,true\n", "output=train.csv/x.csv", ["output=train.csv/x.csv", "Not a directory"]),
    (
        "size,colour,width,tall\n1,red,2,true\n",
        "output=/proc/x/out.csv",
        ["output=/proc/x/out.csv", "cannot be written"],
    ),
    ("size,colour,width,tall\n1,red,2,true\n", "outptu=x.csv", ["outptu", "did you mean 'output'?"]),
    ("size,colour,width,tall\n1,red,2,true\n", "csv.delimiter=ab", ["csv.delimiter", "one character"]),
    ("size,colour,width,tall\n1,red,2,true\n", "csv.encoding=utf9", ["csv.encoding=utf9", "no such encoding"]),
    ("size,colour,width,tall\n1,red,2,true\n", "run=logs", ["run=logs", "no run directory", "config.yaml"]),
    ("size,colour,width,tall\n1,red,2,true\n", "run=nowhere", ["run=nowhere", "no such file or directory"]),
    ("size,colour,width,tall\n1,red,2,true\n", "run=train.csv", ["run=train.csv", "no whole checkpoint"]),
    ("size,colour,width,tall\n1,red,2,true\n", "-m run=latest,latest", ["--multirun", "no sweeps"]),
]


@pytest.mark.parametrize(("content", "override", "said"), MISTAKES, ids=[" ".join(each[2]) for each in MISTAKES])
@pytest.mark.usefixtures("trained")
def test_a_mistake_is_answered_in_one_line_and_leaves_nothing_behind(
    predict: Train, workplace: Path, content: str, override: str, said: list[str]
) -> None:
    Path("new.csv").write_text(content)
    before, training = left_behind(workplace), Path("train.csv").read_bytes()
    output = [] if override.startswith("output") else ["output=folder/out.csv"]

    done = predict("input=new.csv", *output, *override.split())

    assert_answered_in_one_line(done, said)
    assert left_behind(workplace) == before
    assert (Path("train.csv").read_bytes(), Path("new.csv").read_text()) == (training, content)


@pytest.mark.usefixtures("trained")
def test_a_text_far_down_a_parquet_or_a_number_in_the_place_of_a_text_is_named(predict: Train) -> None:
    table = flowers(5)
    save(table.set_column(0, "size", [["1", "2", "x", "4", "5"]]), "texts.parquet")
    save(table.set_column(1, "colour", [[1, 2, 3, 4, 5]]), "numbers.parquet")
    done = predict("input=texts.parquet", "output=out.csv")
    assert_answered_in_one_line(done, ["texts.parquet", "'size'", "string", "numbers in the run's training data"])
    done = predict("input=numbers.parquet", "output=out.csv")
    assert_answered_in_one_line(done, ["numbers.parquet", "'colour'", "int64", "texts in the run's training data"])


@pytest.mark.usefixtures("trained")
def test_text_in_another_encoding_is_named(predict: Train) -> None:
    Path("text.csv").write_bytes("size,colour,width,tall\n1,grün,2,true\n".encode("latin-1"))
    Path("kept.csv").write_bytes("size,colour,width,tall,id\n1,red,2,true,grün\n".encode("latin-1"))

    for name in ("text", "kept"):
        done = predict(f"input={name}.csv", "output=out.csv", "surplus=ignore", *(["keep=[id]"] * (name == "kept")))
        assert_answered_in_one_line(done, [f"{name}.csv", "its text is in another encoding", "csv.encoding"])
    assert predict("input=text.csv", "output=out.csv", "csv.encoding=latin-1").code == 0


ODD = {
    "whole": pa.array([1, None, 3]),
    "truth": pa.array([True, None, False]),
    "text": pa.array(["a", None, "c"]),
    "float": pa.array([1.5, None, 2.5]),
    "day": pa.array([1, 2, 3], pa.date32()),
    "decimal": pa.array([1, 2, 3]).cast(pa.decimal128(21, 1)),
    "list": pa.array([[1], [2], [3]]),
}


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("out", ["csv", "parquet", "npz"])
def test_columns_of_all_types_are_carried_over_or_refused(predict: Train, out: str) -> None:
    table = flowers(3)
    for name, values in ODD.items():
        table = table.append_column(name, values)
    save(table, "new.parquet")
    refused = {"csv": ["list"], "npz": ["decimal", "list"], "parquet": []}[out]

    for name in refused:
        done = predict("input=new.parquet", f"output=out.{out}", f"keep=[{name}]", "surplus=ignore")
        assert_answered_in_one_line(done, [f"keep={name}", f"a .{out} file cannot have", ".parquet can"])
    kept = [name for name in ODD if name not in refused]
    assert predict("input=new.parquet", f"output=out.{out}", f"keep=[{','.join(kept)}]", "surplus=ignore").code == 0

    if out == "npz":
        found = np.load("out.npz")
        assert np.array_equal(found["whole"], [1, np.nan, 3], equal_nan=True)
        assert np.array_equal(found["truth"], [1, np.nan, 0], equal_nan=True)
        assert found["text"].tolist() == ["a", "", "c"]
        assert found["day"].dtype.kind == "M"
    else:
        found = read(f"out.{out}")
        assert found["whole"] == ODD["whole"].to_pylist()
        assert found["truth"] == ODD["truth"].to_pylist()


@pytest.mark.parametrize(
    ("classes", "kind"), [([3, 7], np.float64), ([True, False], np.float64), (["x", "y"], np.str_)]
)
def test_a_missing_prediction_is_none_in_an_archive_either(
    train: Train, predict: Train, workplace: Path, classes: list[Any], kind: type
) -> None:
    save(pa.table({"x": list(range(20)), "y": classes * 10}), "train.csv")
    train("data=csv", "data.path=train.csv", "trainer.max_steps=5")
    Path("new.csv").write_text("x,\n1,a\n,b\n")

    assert predict("input=new.csv", "output=out.npz", "missing=empty", "surplus=ignore").code == 0

    found = np.load("out.npz")["prediction"]
    assert np.issubdtype(found.dtype, kind)
    assert found[1] == "" if kind is np.str_ else np.isnan(found[1])


@pytest.mark.usefixtures("trained")
def test_weights_that_are_no_numbers_are_refused(predict: Train) -> None:
    stored = torch.load("logs/latest/checkpoints/best.ckpt", weights_only=True)
    stored["state_dict"]["head.weight"][0, 0] = torch.nan
    torch.save(stored, "diverged.ckpt")

    done = predict("run=diverged.ckpt", "input=train.csv", "output=out.csv")

    assert_answered_in_one_line(done, ["run=diverged.ckpt", "not finite", "optimizer.lr"])


@pytest.mark.usefixtures("trained")
def test_the_same_file_under_another_name_is_no_output(predict: Train) -> None:
    save(flowers(5), "new.csv")
    Path("link.csv").symlink_to("new.csv")
    os.link("new.csv", "hard.csv")

    for name in ("link.csv", "hard.csv"):
        done = predict("input=new.csv", f"output={name}", "overwrite=true")
        assert_answered_in_one_line(done, [f"output={name}", "the same file as the input"])


@pytest.mark.usefixtures("trained")
def test_an_output_is_replaced_when_asked_to_and_only_by_a_whole_one(predict: Train) -> None:
    Path("out.csv").write_text("before")
    save(flowers(5), "new.csv")

    assert predict("input=new.csv", "output=out.csv", "overwrite=true").code == 0
    assert len(read("out.csv")["prediction"]) == 5
    whole = Path("out.csv").read_bytes()
    Path("new.csv").write_text("size,colour,width,tall\n1,red,2,true\n1,red,wide,true\n")
    assert predict("input=new.csv", "output=out.csv", "overwrite=true").code == 2
    assert Path("out.csv").read_bytes() == whole


def test_features_chosen_in_training_leave_other_columns_alone(train: Train, predict: Train, workplace: Path) -> None:
    save(flowers(), "train.csv")
    train("data=csv", "data.path=train.csv", "data.features=[width,size]", "trainer.max_steps=5")

    assert predict("input=train.csv", "output=out.csv").code == 0
    assert crossent.load().feature_names_.tolist() == ["width", "size"]


def test_a_run_without_a_checkpoint_yet(train: Train, predict: Train, evaluate: Train, workplace: Path) -> None:
    run = train("data=iris", "trainer.max_steps=5", "trainer.enable_checkpointing=false")
    np.save("new.npy", np.ones((1, 4)))

    said = [f"run={run.directory}", "has no checkpoint yet"]
    assert_answered_in_one_line(predict(f"run={run.directory}", "input=new.npy"), said)
    assert_answered_in_one_line(evaluate(f"run={run.directory}"), said)


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "crossent.predict", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("out", ["csv", "parquet", "npz"])
@pytest.mark.usefixtures("trained")
def test_a_full_disk_leaves_nothing_behind(workplace: Path, out: str) -> None:
    save(flowers(20_000), "new.parquet")
    before = left_behind(workplace)

    def full() -> None:  # as a disk with 100 kB left
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    # Without measuring coverage, which would not find room for its own file.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    arguments = ("input=new.parquet", f"output=folder/out.{out}", "probabilities=true")
    running = process(*arguments, preexec_fn=full, env=environment)
    _, err = running.communicate(timeout=60)

    assert running.returncode == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "File too large" in err
    assert left_behind(workplace) == before


@pytest.mark.usefixtures("trained")
def test_ctrl_c_leaves_nothing_behind(workplace: Path) -> None:
    save(pa.concat_tables([flowers(200_000)] * 10), "new.csv")
    before = left_behind(workplace)

    running = process("input=new.csv", "output=folder/out.csv", "probabilities=true")
    deadline = time.monotonic() + 60
    while not list(workplace.glob("folder/.out.csv.*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)

    assert running.returncode == 130
    assert err == "interrupted\n"
    assert left_behind(workplace) == before


@pytest.mark.usefixtures("trained")
def test_a_terminal_shows_how_far_it_is(workplace: Path) -> None:
    save(pa.concat_tables([flowers(100_000)] * 5), "new.csv")
    code, shown = on_a_terminal("crossent.predict", "input=new.csv", "output=out.csv", columns=100)

    assert code == 0
    assert "predicting" in shown
    assert "500,000 rows" in shown


def test_a_wrong_override_of_evaluation_is_answered_without_torch(train: Train) -> None:
    train("data=iris", "trainer.max_steps=2")
    seen = (
        "import sys; from crossent import cli; from crossent.evaluate import command; "
        "print(cli.run(command(), ['split=tset']), [name for name in ('torch', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "2 []"
    assert done.stderr.startswith("error: split=tset")


@pytest.mark.usefixtures("trained")
def test_neither_torch_nor_lightning_nor_pandas_is_imported() -> None:
    save(flowers(5), "new.csv")
    seen = (
        "import sys; from crossent import cli; from crossent.predict import command; "
        "code = cli.run(command(), ['input=new.csv', 'output=out.csv', 'keep=[width]', 'probabilities=true']); "
        "print(code, [name for name in ('torch', 'lightning', 'pandas', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize(("classes", "columns"), [(3, 20), (1000, 4096), (300_000, 2), (20_000_000, 2)])
def test_the_logits_held_at_a_time_are_bounded_however_many_classes(classes: int, columns: int) -> None:
    facts = DataFacts(("a", "b"), ("x",) * columns, (1, 1), np.zeros(columns), np.ones(columns))
    config: dict[str, Any] = {"data": {}}
    model = TrainedClassifier(Checkpoint(Path(), np.zeros((2, columns)), None, 0, config, facts, None, {}))
    model.classes_ = np.broadcast_to(np.int64(0), (classes,))

    assert model.rows_at_a_time >= 1
    assert model.rows_at_a_time * classes <= max(2**23, classes)


class TestPython:
    @pytest.mark.usefixtures("workplace")
    def test_arrays_of_raw_features(self, train: Train) -> None:
        from sklearn.datasets import load_wine

        features, targets = load_wine(return_X_y=True)
        train("data=wine", "data.standardize=true", "trainer.max_steps=300")

        model = crossent.load("latest")

        probabilities = model.predict_proba(features)
        assert probabilities.dtype == np.float64
        assert probabilities.sum(axis=1) == pytest.approx(1)
        assert model.classes_.tolist() == ["class_0", "class_1", "class_2"]
        assert (model.predict(features) == model.classes_[targets]).mean() > 0.95
        logits = features @ model.coef_.T + model.intercept_
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert probabilities == pytest.approx(expected, abs=1e-5)
        assert model.predict(features[:0]).shape == (0,)
        assert model.predict_proba(features[:0]).shape == (0, 3)

    @pytest.mark.usefixtures("workplace")
    def test_two_classes_with_one_output(self, train: Train) -> None:
        from sklearn.datasets import load_breast_cancer

        features, _ = load_breast_cancer(return_X_y=True)
        train("data=breast_cancer", "loss=binary", "trainer.max_steps=50")

        model = crossent.load()

        assert model.coef_.shape == (1, 30)
        assert model.intercept_.shape == (1,)
        sigmoid = 1 / (1 + np.exp(-(features @ model.coef_.T + model.intercept_)[:, 0]))
        assert model.predict_proba(features)[:, 1] == pytest.approx(sigmoid, abs=1e-5)

    def test_tables_by_name_with_texts_as_they_are(self, trained: Run) -> None:
        table = flowers(9, seed=5)
        model = crossent.load(trained.directory)
        shuffled = table.select(["tall", "species", "width", "colour", "size"])

        assert model.predict_proba(shuffled) == pytest.approx(by_hand(trained, table), abs=1e-6)
        assert model.predict(shuffled).dtype.kind == "U"
        assert model.feature_names_.tolist() == [
            "size", "colour=blue", "colour=green", "colour=red", "width", "tall"
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (lambda: np.ones((3, 5)), "features have 5 columns; the run was trained on 6"),
            (lambda: np.ones(6), "expected numbers, (rows, features)"),
            (lambda: np.array([["a"] * 6]), "expected numbers"),
            (lambda: [[1, 2], [3]], "features: neither a table nor an array of numbers"),
            (lambda: np.full((2, 6), np.nan), "features: row 0, column 'size': missing"),
            (lambda: flowers(3).drop_columns("size"), "features: no column 'size'"),
            (lambda: flowers(3).append_column("id", pa.array([1, 2, 3])), "features: column 'id'"),
            (lambda: pa.table({"size": ["x"], "colour": ["red"], "width": [1], "tall": [True]}), "'size'"),
        ],
    )
    @pytest.mark.usefixtures("trained")
    def test_a_mistake_is_named(self, given: Callable[[], Any], said: str) -> None:
        with pytest.raises(crossent.errors.UserError) as raised:
            crossent.load().predict(given())
        assert said in str(raised.value)

    @pytest.mark.usefixtures("workplace")
    def test_whole_numbers_and_booleans_come_back_as_such(self, train: Train) -> None:
        for labels, kind in (([3, -1, 3, -1] * 5, np.int64), ([True, False] * 10, np.bool_)):
            Path("train.csv").unlink(missing_ok=True)
            save(pa.table({"x": list(range(20)), "y": labels}), "train.csv")
            train("data=csv", "data.path=train.csv", "trainer.max_steps=5")
            model = crossent.load()
            assert model.classes_.tolist() == sorted(set(labels))
            assert model.predict(np.ones((2, 1))).dtype == kind
