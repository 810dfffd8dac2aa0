"""Files that cannot be trained on: one line that names the file, the line and the column, and nothing left behind."""

import os
import pickle
import shlex
import tempfile
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from conftest import Train, assert_answered_in_one_line

GOOD = "a,b,species\n" + "".join(f"{row},{row % 3}.5,{'xyz'[row % 3]}\n" for row in range(30))


class Trap:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str, int], object], tuple[str, int]]:
        return os.open, ("unpickled", os.O_CREAT)


def csv(text: str, name: str = "rows.csv") -> object:
    return Path(name).write_text(text)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def parquet(**columns: object) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), "rows.parquet")
    return Path("rows.parquet")


def arrays(features: object, targets: object, weights: object = None) -> list[Path]:
    made = {"X.npy": features, "y.npy": targets} | ({} if weights is None else {"w.npy": weights})
    for name, values in made.items():
        np.save(name, np.asarray(values))
    return [Path(name) for name in made]


def archive(name: str = "rows.npz", **members: object) -> Path:
    np.savez_compressed(name, allow_pickle=True, **{key: np.asarray(each) for key, each in members.items()})
    return Path(name)


def truncated(path: str, keep: float) -> object:
    whole = Path(path).read_bytes()
    return Path(path).write_bytes(whole[: int(len(whole) * keep)])


def disguised(path: str) -> object:
    return Path(path).write_bytes(pickle.dumps(Trap()))


def objects() -> object:
    return np.array([[Trap()]] * 20)


def flipped(path: str) -> object:
    whole = bytearray(Path(path).read_bytes())
    whole[len(whole) // 3] ^= 255
    return Path(path).write_bytes(whole)


def promised(path: str) -> object:
    whole = Path(path).read_bytes()
    assert b"(20, 2), }" in whole
    return Path(path).write_bytes(whole.replace(b"(20, 2), }            ", b"(20000000000000, 2), }"))


def archive_of_texts() -> None:
    with zipfile.ZipFile("rows.npz", "w") as written:
        written.writestr("X.txt", "1 2 3")


def archive_without_numpy() -> None:
    with zipfile.ZipFile("rows.npz", "w") as written:
        written.writestr("X.npy", pickle.dumps(Trap()))
        written.writestr("y.npy", b"")


CSV = "data=csv data.path=rows.csv"
PARQUET = "data=parquet data.path=rows.parquet"
NPY = "data=arrays data.path=X.npy data.target=y.npy"
NPZ = "data=arrays data.path=rows.npz"
X, Y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
PAIRS = [(row, str(row % 2)) for row in range(40)]

CASES: dict[str, tuple[Callable[[], object], str, list[str]]] = {
    # what: (what makes the file, what is typed, what the line has to say, in this order)
    "no such file": (lambda: csv(GOOD, "row.csv"), CSV, ["data.path=rows.csv: no such file", "did you mean 'row.csv'"]),
    "no such val file": (lambda: csv(GOOD), f"{CSV} data.val_path=v.csv", ["data.val_path=v.csv: no such file"]),
    "no path": (lambda: None, "data=csv", ["data.path: not set", "a path"]),
    "a directory": (lambda: Path("rows.csv").mkdir(), CSV, ["data.path=rows.csv: a directory"]),
    "empty": (lambda: csv(""), CSV, ["rows.csv: the file is empty"]),
    "header only": (lambda: csv("a,b,species\n"), CSV, ["rows.csv: no rows, only the names of 3 columns"]),
    "no header": (lambda: csv("1,2,0\n3,4,1\n"), CSV, ["rows.csv: line 1: numbers", "1, 2, 0", "data.header=false"]),
    "ragged": (lambda: csv(changed("6,0.5,x", "6,0.5")), CSV, ["rows.csv: line 8: 2 columns, but 3 in the first"]),
    "ragged after a quoted line": (
        lambda: csv('a,species\n1,"x\nx"\n\n2,y,z\n'),
        CSV,
        ["rows.csv: line 5: 3 columns, but 2 in the first"],
    ),
    "two columns of one name": (lambda: csv("a,a,y\n1,2,0\n"), CSV, ["rows.csv: two columns are named 'a'"]),
    "wrong target": (
        lambda: csv(GOOD),
        f"{CSV} data.target=spcies",
        ["data.target=spcies: no such column in rows.csv, did you mean 'species'?", "Columns: a, b, species"],
    ),
    "wrong feature": (lambda: csv(GOOD), f"{CSV} data.features=[a,c]", ["data.features=c: no such column", "a, b"]),
    "wrong weight": (lambda: csv(GOOD), f"{CSV} data.weight=w", ["data.weight=w: no such column"]),
    "target as feature": (lambda: csv(GOOD), f"{CSV} data.features=[species]", ["'species' is data.target already"]),
    "no feature": (lambda: csv("y\n0\n1\n"), CSV, ["rows.csv: no column is left for features beside 'y'"]),
    "one class": (
        lambda: csv("a,y\n1,x\n2,x\n"),
        f"{CSV} data.val_fraction=0",
        ["rows.csv: 1 class", "every row is 'x'"],
    ),
    "a class of one row": (
        lambda: csv(changed("0,0.5,x", "0,0.5,w")),
        CSV,
        ["class 'w' has 1 row, too few to split", "data.val_fraction=0"],
    ),
    "missing": (
        lambda: csv(changed("6,0.5,x", "6,,x")),
        CSV,
        ["rows.csv: line 8, column 'b': missing", "data.missing=mean", "drop"],
    ),
    "NaN": (lambda: csv(changed("6,0.5,x", "6,NaN,x")), CSV, ["rows.csv: line 8, column 'b': missing"]),
    "inf": (lambda: csv(changed("6,0.5,x", "6,inf,x")), CSV, ["rows.csv: line 8, column 'b': inf, expected a finite"]),
    "beyond float32": (
        lambda: csv(changed("6,0.5,x", "6,1e39,x")),
        CSV,
        ["rows.csv: line 8, column 'b': 1e+39, expected a finite number that float32 can hold"],
    ),
    "missing label": (
        lambda: csv(changed("6,0.5,x", "6,0.5,")),
        f"{CSV} data.missing=mean",
        ["rows.csv: line 8, column 'species': missing; data.missing=drop"],
    ),
    "fractional label": (
        lambda: csv("a,y\n1,1\n2,1.5\n3,2\n"),
        CSV,
        ["rows.csv: line 3, column 'y': 1.5 is no class", "whole numbers"],
    ),
    "a text among numbers": (
        lambda: csv("a,y\n" + "".join(f"{row}.25,{row % 2}\n" for row in range(60)) + "n.a.,0\n"),
        CSV,
        ["rows.csv: line 62, column 'a': 'n.a.' among numbers", "data.features"],
    ),
    "100,000 texts": (
        lambda: csv("a,b,y\n" + "".join(f"{row},name{row},{row % 2}\n" for row in range(100_000))),
        CSV,
        ["rows.csv: column 'b': 100,000 different texts", "data.features", "data.max_categories=1000"],
    ),
    "dates": (
        lambda: csv("when,a,y\n2026-01-02,1,0\n2026-01-03,2,1\n"),
        CSV,
        ["rows.csv: column 'when': holds dates or times", "data.features"],
    ),
    "not UTF-8": (
        lambda: Path("rows.csv").write_bytes("a,y\nä,0\nb,1\n".encode("latin-1")),
        CSV,
        ["rows.csv: column 'a': is not in UTF-8", "data.encoding"],
    ),
    "negative weight": (
        lambda: csv("a,w,y\n" + "".join(f"{row},{row - 1},{row % 2}\n" for row in range(40))),
        f"{CSV} data.weight=w",
        ["rows.csv: line 2, column 'w': weight -1", "a number >= 0"],
    ),
    "val file without a column": (
        lambda: (csv(GOOD), csv("a,species\n1,x\n", "val.csv")),
        f"{CSV} data.val_path=val.csv",
        ["val.csv: no column 'b', which rows.csv has"],
    ),
    "val file with one more": (
        lambda: (csv(GOOD), csv("a,b,c,species\n1,2,3,x\n", "val.csv")),
        f"{CSV} data.val_path=val.csv",
        ["val.csv: column 'c', which rows.csv does not have", "data.features"],
    ),
    "val file with texts for numbers": (
        lambda: (csv(GOOD), csv("a,b,species\n1,2,x\n1,two,x\n", "val.csv")),
        f"{CSV} data.val_path=val.csv",
        ["val.csv: line 3, column 'b': 'two', expected a number, as in rows.csv"],
    ),
    "val file with another class": (
        lambda: (csv(GOOD), csv("a,b,species\n1,2,x\n1,2,w\n", "val.csv")),
        f"{CSV} data.val_path=val.csv",
        ["val.csv: line 3, column 'species': class 'w' is not among the training rows", "x, y, z"],
    ),
    "val file and val fraction": (
        lambda: csv(GOOD),
        f"{CSV} data.val_path=rows.csv data.val_fraction=0.2",
        ["data.val_fraction=0.2: val_path=rows.csv has those rows"],
    ),
    "two characters between columns": (
        lambda: csv(GOOD),
        f"{CSV} data.delimiter=ab",
        ["data.delimiter=ab", "one char"],
    ),
    "truncated Parquet": (
        lambda: (parquet(a=[*range(40)], y=[row % 2 for row in range(40)]), truncated("rows.parquet", 0.7)),
        PARQUET,
        ["rows.parquet: cannot be read as a Parquet file"],
    ),
    "CSV as Parquet": (
        lambda: csv(GOOD, "rows.parquet"),
        PARQUET,
        ["rows.parquet: cannot be read as a Parquet file"],
    ),
    "nested column": (
        lambda: parquet(a=[[1, 2]] * 4, y=[0, 1, 0, 1]),
        PARQUET,
        ["rows.parquet: column 'a': holds values of the type list", "data.features"],
    ),
    "dates in Parquet": (
        lambda: parquet(a=[date(2026, 1, 1)] * 4, b=[1, 2, 3, 4], y=[0, 1, 0, 1]),
        PARQUET,
        ["rows.parquet: column 'a': holds dates or times"],
    ),
    "missing in Parquet": (
        lambda: parquet(a=[1.0, None, 2.0, 3.0], y=[0, 1, 0, 1]),
        PARQUET,
        ["rows.parquet: row 1, column 'a': missing"],
    ),
    "a column of nothing": (
        lambda: parquet(a=[None] * 4, b=[1, 2, 3, 4], y=[0, 1, 0, 1]),
        PARQUET,
        ["rows.parquet: column 'a': has no value at all"],
    ),
    "npy without targets": (lambda: arrays(X, Y), "data=arrays data.path=X.npy", ["data.target: not set", ".npy"]),
    "npy of another length": (
        lambda: arrays(X, Y[:-1]),
        NPY,
        ["y.npy: targets have the shape (19,), but X.npy has 20 rows"],
    ),
    "npy of one dimension": (lambda: arrays(X[:, 0], Y), NPY, ["X.npy: features have the shape (20,)", "(rows, col"]),
    "npy of texts": (lambda: arrays([["a"], ["b"]], [0, 1]), NPY, ["X.npy: features are of the type <U1"]),
    "npy with NaN": (
        lambda: arrays(np.where(X == 7, np.nan, X), Y),
        NPY,
        ["X.npy: row 3, column 'x1': nan", "data.missing=mean"],
    ),
    "npy with inf": (
        lambda: arrays(np.where(X == 7, np.inf, X), Y),
        f"{NPY} data.missing=mean",
        ["X.npy: row 3, column 'x1': inf, expected a finite number"],
    ),
    "npy with inf below a row that is dropped": (
        lambda: arrays(np.where(X == 3, np.nan, np.where(X == 7, np.inf, X)), Y),
        f"{NPY} data.missing=drop",
        ["X.npy: row 3, column 'x1': inf, expected a finite number"],
    ),
    "a number for a file": (
        lambda: arrays(X, Y),
        "data=arrays data.path=X.npy data.target=2020",
        ["data.target=2020: no"],
    ),
    "npy of fractional labels": (lambda: arrays(X, Y + 0.5), NPY, ["y.npy: row 0: 0.5 is no class"]),
    "truncated npy": (
        lambda: (arrays(X, Y), truncated("X.npy", 0.9)),
        NPY,
        ["X.npy: cannot be read as NumPy's npy file"],
    ),
    "empty npy": (
        lambda: (arrays(X, Y), Path("X.npy").write_bytes(b"")),
        NPY,
        ["X.npy: cannot be read as NumPy's npy file"],
    ),
    "npy of no rows": (lambda: arrays(X[:0], Y[:0]), NPY, ["X.npy"]),
    "pickle as npy": (
        lambda: (arrays(X, Y), disguised("X.npy")),
        NPY,
        ["X.npy: cannot be read as NumPy's npy file: it is none"],
    ),
    "npy of objects": (
        lambda: arrays(objects(), Y),
        NPY,
        ["X.npy", "never unpickled"],
    ),
    "pickle as npz": (
        lambda: disguised("rows.npz"),
        NPZ,
        ["rows.npz: cannot be read as NumPy's npz file: File is not a zip file"],
    ),
    "npz of objects": (lambda: archive(X=objects(), y=Y), NPZ, ["rows.npz", "never unpickled"]),
    "npz of pickles": (archive_without_numpy, NPZ, ["rows.npz", "it is none"]),
    "npz without the arrays": (
        lambda: archive(data=X, labels=Y),
        NPZ,
        ["rows.npz: no array 'features' or 'X' or 'x' (data.features); it has: data, labels"],
    ),
    "npz without the named array": (
        lambda: archive(X=X, labels=Y),
        f"{NPZ} data.target=label",
        ["rows.npz: no array 'label', did you mean 'labels'?"],
    ),
    "val archive of another width": (
        lambda: (archive(X=X, y=Y), archive("val.npz", X=X[:, :1], y=Y)),
        f"{NPZ} data.val_path=val.npz",
        ["val.npz: 1 columns, but 2 in rows.npz"],
    ),
    "val archive of another class": (
        lambda: (archive(X=X, y=Y), archive("val.npz", X=X, y=Y + 1)),
        f"{NPZ} data.val_path=val.npz",
        ["val.npz: row 1: class '2' is not among the training rows"],
    ),
    "text weights": (
        lambda: csv("a,w,y\n1,u,0\n2,v,1\n"),
        f"{CSV} data.weight=w",
        ["rows.csv: column 'w': holds the type string; weights are numbers"],
    ),
    "a name in another encoding": (
        lambda: Path("rows.csv").write_bytes("größe,y\n1,0\n2,1\n".encode("latin-1")),
        CSV,
        ["rows.csv: cannot be read as a CSV file", "another encoding", "data.encoding"],
    ),
    "commas for both": (
        lambda: csv(GOOD),
        f"{CSV} 'data.decimal=\",\"'",
        ["data.decimal=,: the same as delimiter"],
    ),
    "no such encoding": (lambda: csv(GOOD), f"{CSV} data.encoding=utf9", ["data.encoding=utf9: no such encoding"]),
    "another delimiter": (
        lambda: csv(GOOD.replace(",", ";")),
        CSV,
        ["rows.csv: no column is left", "is data.delimiter ';'?"],
    ),
    "decimal commas": (
        lambda: csv("a;y\n" + "".join(f"{row},5;{row % 2}\n" for row in range(50))),
        f"{CSV} 'data.delimiter=\";\"'",
        ["rows.csv: column 'a': numbers with decimal commas", "data.decimal"],
    ),
    "an ignored class": (
        lambda: csv(GOOD),
        f"{CSV} loss.ignore_index=1",
        ["loss.ignore_index=1: the 3 classes of a file are numbered from 0", "negative"],
    ),
    "a feature twice": (lambda: csv(GOOD), f"{CSV} data.features=[a,a]", ["data.features: 'a' is among them already"]),
    "texts of nothing": (
        lambda: parquet(a=pa.array([None] * 4, pa.string()), y=[0, 1, 0, 1]),
        f"{PARQUET} data.missing=mean",
        ["rows.parquet: column 'a': has no value at all"],
    ),
    "labels too large": (
        lambda: arrays(X, np.array([2**63, 1] * 10, np.uint64)),
        NPY,
        ["y.npy: row 0: 9223372036854775808 is no class", "below 2^63"],
    ),
    "val file of names alone": (
        lambda: (csv(GOOD), csv("a,b,species\n", "val.csv")),
        f"{CSV} data.val_path=val.csv",
        ["val.csv: no rows"],
    ),
    "val file with two columns of one name": (
        lambda: (csv(GOOD), csv("a,b,b,species\n1,2,3,x\n", "val.csv")),
        f"{CSV} data.val_path=val.csv",
        ["val.csv: two columns are named 'b'"],
    ),
    "val rows that do not count": (
        lambda: (csv("a,w,y\n1,1,0\n2,1,1\n"), csv("a,w,y\n1,0,0\n2,0,1\n", "val.csv")),
        f"{CSV} data.weight=w data.target=y data.val_path=val.csv",
        ["no val row counts"],
    ),
    "val array with NaN": (
        lambda: (archive(X=X, y=Y), archive("val.npz", X=np.where(X == 7, np.nan, X), y=Y)),
        f"{NPZ} data.val_path=val.npz",
        ["val.npz: row 3, column 'x1': nan"],
    ),
    "negative weights in an array": (
        lambda: arrays(X, Y, Y - 1.0),
        f"{NPY} data.weight=w.npy",
        ["w.npy: row 0: weight -1"],
    ),
    "corrupt archive": (
        lambda: (archive(X=np.random.default_rng(0).random((99, 9)), y=np.arange(99) % 2), flipped("rows.npz")),
        NPZ,
        ["rows.npz: cannot be read as NumPy's npz file"],
    ),
    "archive of other things": (
        lambda: archive_of_texts(),
        NPZ,
        ["rows.npz: no array 'features'", "it has: none"],
    ),
    "a header that promises too much": (
        lambda: (arrays(X, Y), promised("X.npy")),
        NPY,
        ["X.npy: cannot be read as NumPy's npy file"],
    ),
    "more fractions than rows": (
        lambda: csv(GOOD),
        f"{CSV} data.test_fraction=0.95",
        ["data: val_fraction + test_fraction = 1.05 leaves no row to train on"],
    ),
}


@pytest.mark.parametrize(("write", "typed", "said"), CASES.values(), ids=list(CASES))
def test_a_bad_file_is_answered_in_one_line_and_leaves_nothing_behind(
    write: Callable[[], object],
    typed: str,
    said: list[str],
    train: Train,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = workplace / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    write()
    before = sorted(workplace.rglob("*"))

    run = train(*shlex.split(typed))

    assert_answered_in_one_line(run, said)
    assert sorted(workplace.rglob("*")) == before


def test_all_rows_a_step_are_refused_where_they_do_not_fit(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossent.data.module.IN_MEMORY_BYTES", 100)
    arrays(X, Y)

    run = train(*NPY.split(), "data.in_memory=false")

    assert run.code == 2
    assert "data.batch_size=full: so many rows with 2 features do not stay in memory" in run.err


def test_a_full_disk_of_temporary_files_is_named(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    csv(GOOD)

    run = train("data=csv", "data.path=rows.csv", "data.in_memory=false", "data.batch_size=8")

    assert run.code == 2
    assert "No space left on device; set TMPDIR" in run.err
