"""What becomes of files: numbers, texts, labels, missing values, splits, and rows that stay on disk."""

import gzip
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from torch import Tensor

import crossent
from conftest import Train
from crossent.data import BatchLoader, DataModule, Table, arrow
from crossent.data.arrays import Arrays
from crossent.data.csv import CsvFile
from crossent.data.files import Files
from crossent.data.mapped import Mapped
from crossent.data.numpy_files import ArrayFiles
from crossent.data.parquet import ParquetFile


def csv(text: str, **options: Any) -> Table:
    Path("rows.csv").write_text(text)
    return Files(CsvFile(Path("rows.csv")), **options).load()


def features(table: Table) -> list[list[float]]:
    found: list[list[float]] = table.all_features().tolist()
    return found


@pytest.fixture(autouse=True)
def _here(workplace: Path) -> None:
    """An empty current directory."""


class TestTables:
    def test_the_last_column_has_the_classes_and_texts_become_features(self) -> None:
        table = csv("size,colour,big,kind\n1.5,red,true,b\n2,blue,false,a\n3,red,true,b\n")

        assert table.columns == ("size", "colour=blue", "colour=red", "big")
        assert features(table) == [[1.5, 0, 1, 1], [2, 1, 0, 0], [3, 0, 1, 1]]
        assert (table.classes, table.targets.tolist(), table.target) == (("a", "b"), [1, 0, 1], "kind")

    def test_columns_can_be_chosen(self) -> None:
        table = csv("a,b,y,w\n1,2,0,0.5\n3,4,1,2\n", target="y", features=["b"], weight="w")

        assert (features(table), table.columns) == ([[2], [4]], ("b",))
        assert table.weights is not None
        assert table.weights.tolist() == [0.5, 2]

    @pytest.mark.parametrize(
        ("labels", "classes", "targets"),
        [
            (["10", "9", "-1"], ("-1", "9", "10"), [2, 1, 0]),  # by their values
            (["2.0", "1", "2.0"], ("1", "2"), [1, 0, 1]),
            (["x10", "x9", "x9"], ("x10", "x9"), [0, 1, 1]),  # texts by their letters
            (["true", "false", "true"], ("false", "true"), [1, 0, 1]),
            (["5", "-100", "6"], ("5", "6"), [0, -100, 1]),  # PyTorch's number for a row that does not count
            (["007", "7", "7"], ("7",), [0, 0, 0]),
        ],
    )
    def test_labels_are_whole_numbers_or_texts(
        self, labels: list[str], classes: tuple[str, ...], targets: list[int]
    ) -> None:
        table = csv("a,y\n" + "".join(f"{row},{label}\n" for row, label in enumerate(labels)))

        assert (table.classes, table.targets.tolist()) == (classes, targets)

    def test_csv_in_other_dresses(self) -> None:
        Path("rows.tsv").write_text('\ufeffa\ty\n"1"\t"two\nlines"\n\n2\tx\n')
        with gzip.open("rows.csv.gz", "wt") as file:
            file.write("1;x\n2;y\n")

        tabs = Files(CsvFile(Path("rows.tsv"), delimiter="\t")).load()
        bare = Files(CsvFile(Path("rows.csv.gz"), delimiter=";", header=False)).load()

        assert (tabs.columns, tabs.classes, features(tabs)) == (("a",), ("two\nlines", "x"), [[1], [2]])
        assert (bare.columns, bare.classes, features(bare)) == (("f0",), ("x", "y"), [[1], [2]])

    def test_parquet_has_types_of_its_own(self) -> None:
        columns = {
            "number": pa.array([1, None, 3], pa.int8()),
            "decimal": pa.array(["1.5", "2.5", "3.5"]).cast(pa.decimal128(5, 2)),
            "text": pa.array(["u", "v", "u"]).dictionary_encode(),
            "flag": pa.array([True, False, True]),
            "label": pa.array(["a", "b", "a"]).dictionary_encode(),
        }
        pyarrow.parquet.write_table(pa.table(columns), "rows.parquet")

        table = Files(ParquetFile(Path("rows.parquet")), missing="drop").load()

        assert table.columns == ("number", "decimal", "text=u", "text=v", "flag")
        assert features(table) == [[1, 1.5, 1, 0, 1], [3, 3.5, 1, 0, 1]]
        assert table.targets.tolist() == [0, 0]

    def test_large_labels_are_told_apart_beside_a_missing_one(self) -> None:
        table = csv("a,y\n1,9007199254740993\n2,9007199254740992\n3,\n4,-0\n", missing="drop")

        assert table.classes == ("0", "9007199254740992", "9007199254740993")
        assert table.targets.tolist() == [2, 1, 0]

    def test_booleans_are_booleans_in_every_file(self) -> None:
        Path("train.csv").write_text("a,y\n1,true\n2,false\n")
        Path("val.csv").write_text("a,y\n1,False\n2,True\n")

        table = Files(CsvFile(Path("train.csv")), CsvFile(Path("val.csv"))).load()

        assert (table.classes, table.targets.tolist()) == (("false", "true"), [1, 0, 0, 1])

    def test_a_class_that_has_lost_its_rows_is_gone(self) -> None:
        texts = csv("a,y\n1,a\n,b\n2,c\n3,-\n", missing="drop")
        numbers = csv("a,y\n1,5\n,6\n2,7\n3,-100\n", missing="drop")

        assert (texts.classes, texts.targets.tolist()) == (("-", "a", "c"), [1, 2, 0])
        assert (numbers.classes, numbers.targets.tolist()) == (("5", "7"), [0, 1, -100])

    def test_csv_of_other_countries(self) -> None:
        Path("rows.csv").write_bytes("größe;art\n1,5;ä\n2,5;ö\n".encode("latin-1"))

        table = Files(CsvFile(Path("rows.csv"), delimiter=";", decimal=",", encoding="latin-1")).load()

        assert (table.columns, features(table), table.classes) == (("größe",), [[1.5], [2.5]], ("ä", "ö"))

    def test_long_rows(self) -> None:
        fraction = "." + 16 * "1234567890"  # 1.6 MB a row: more than Arrow takes at once
        wide = ",".join(f"{column}{fraction}" for column in range(10_000))
        table = csv(wide.replace(fraction, "x") + ",y\n" + wide + ",0\n" + wide + ",1\n")

        assert table.features.shape == (2, 10_000)

    def test_missing_rows_can_be_dropped(self) -> None:
        table = csv("a,b,y\n1,x,0\n,x,1\n3,,0\n4,z,\n5,z,1\n", missing="drop")

        assert features(table) == [[1, 1, 0], [5, 0, 1]]
        assert table.targets.tolist() == [0, 1]

    def test_further_files_are_read_as_the_first(self, caplog: pytest.LogCaptureFixture) -> None:
        Path("train.csv").write_text("code,a,y\n007,1,0\nx7,2,1\n007,3,1\n")
        Path("val.csv").write_text("y,code,a\n1,7,5\n0,007,6\n")  # numbers alone, columns in another order
        Path("test.csv").write_text("code,a,y\nx7,7,0\n")
        files = [CsvFile(Path(f"{name}.csv")) for name in ("train", "val", "test")]

        table = Files(*files).load()

        assert table.columns == ("code=007", "code=x7", "a")
        assert features(table)[3:] == [[0, 0, 5], [1, 0, 6], [0, 1, 7]]
        assert table.targets.tolist() == [0, 1, 1, 1, 0, 0]
        assert table.parts == (3, 2, 1)
        assert "val.csv: 1 values of text columns were not among the training rows" in caplog.text

    def test_whole_numbers_that_float32_rounds_are_named(self, caplog: pytest.LogCaptureFixture) -> None:
        csv("a,id,y\n16777216,1,0\n3,16777217,1\n")

        assert "rows.csv: line 3, column 'id': 16777217 has more digits than float32 holds" in caplog.text
        assert "column 'a'" not in caplog.text

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_a_large_file_becomes_the_same_rows_without_being_in_memory(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "a,b,y\n" + "".join(f"{row},{'uvw'[row % 3]},{row % 2}\n" for row in range(9000)) + "0.5,u,1\n"
        whole = csv(text)
        pyarrow.parquet.write_table(pyarrow.csv.read_csv("rows.csv"), "rows.parquet", row_group_size=700)
        monkeypatch.setattr(f"crossent.data.{kind}.FILE_BYTES", 100)

        file = CsvFile(Path("rows.csv")) if kind == "csv" else ParquetFile(Path("rows.parquet"))
        before = pa.total_allocated_bytes()
        read = file.read({})
        for _ in range(100):  # Arrow's threads let go of what they read a moment later
            held = pa.total_allocated_bytes() - before
            if held < read.nbytes / 10:
                break
            time.sleep(0.02)
        large = Files(file, in_memory=False).load()

        assert held < read.nbytes / 10
        assert isinstance(large.features, Mapped)
        assert torch.equal(large.all_features(), whole.all_features())
        assert torch.equal(large.targets, whole.targets)

    def test_a_large_csv_file_may_change_its_mind_about_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crossent.data.csv.FILE_BYTES", 100)
        for size in ("_BLOCK_BYTES", "_PATIENT_BYTES"):
            monkeypatch.setattr(f"crossent.data.csv.{size}", 64)

        rows = "".join(f"{row},,{row % 2}\n" for row in range(50))
        table = csv("a,b,y\n" + rows + "0.5,2,1\n1,3,x\n", missing="drop")

        assert features(table) == [[0.5, 2], [1, 3]]
        assert table.classes == ("1", "x")

    def test_parts_of_a_large_parquet_file_have_dictionaries_of_their_own(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("crossent.data.parquet.FILE_BYTES", 100)
        parts = [pa.table({"a": pa.array([text] * 3).dictionary_encode(), "y": [0, 1, 0]}) for text in ("u", "v")]
        with pyarrow.parquet.ParquetWriter("rows.parquet", parts[0].schema) as writer:
            for part in parts:
                writer.write_table(part)

        table = Files(ParquetFile(Path("rows.parquet"))).load()

        assert table.columns == ("a=u", "a=v")
        assert features(table) == [[1, 0]] * 3 + [[0, 1]] * 3


class TestArrays:
    def pair(self, inputs: Any, targets: Any) -> ArrayFiles:
        np.save("X.npy", inputs)
        np.save("y.npy", targets)
        return ArrayFiles(Path("X.npy"), "y.npy")

    @pytest.mark.parametrize(
        "targets",
        [np.array([7, 3, 7]), np.array([7.0, 3.0, 7.0]), np.array([[7], [3], [7]]), np.array(["b", "a", "b"])],
    )
    def test_a_pair_of_files(self, targets: Any) -> None:
        table = Arrays(self.pair(np.arange(6).reshape(3, 2), targets)).load()

        assert features(table) == [[0, 1], [2, 3], [4, 5]]
        assert table.targets.tolist() == [1, 0, 1]
        assert table.classes in (("3", "7"), ("a", "b"))

    @pytest.mark.parametrize("kind", [">f8", "<f2", "i1", "?"])
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("in_memory", [True, False])
    def test_any_type_and_order(self, kind: str, order: Any, in_memory: bool) -> None:
        inputs = np.array([[0, 1], [1, 0], [1, 1]]).astype(kind, order=order)

        table = Arrays(self.pair(inputs, np.array([0, 1, 0])), in_memory=in_memory).load()

        assert isinstance(table.features, Mapped) != in_memory
        assert features(table) == [[0, 1], [1, 0], [1, 1]]

    def test_an_archive(self) -> None:
        np.savez_compressed("rows.npz", X=np.eye(3), y=[2, -100, 1], weights=[1, 2, 3])

        table = Arrays(ArrayFiles(Path("rows.npz"))).load()

        assert (table.classes, table.targets.tolist()) == (("1", "2"), [1, -100, 0])
        assert table.weights is not None
        assert table.weights.tolist() == [1, 2, 3]

    def test_a_large_archive_goes_through_the_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crossent.data.numpy_files.IN_MEMORY_BYTES", 100)
        np.savez("rows.npz", X=np.arange(90.0).reshape(30, 3), y=np.arange(30) % 2)

        table = Arrays(ArrayFiles(Path("rows.npz")), in_memory=False).load()

        assert features(table) == np.arange(90.0).reshape(30, 3).tolist()

    def test_missing_rows_can_be_dropped(self) -> None:
        np.savez("a.npz", X=np.array([[1, np.nan], [2, 3], [4, 5]]), y=[0, 1, 0])
        np.savez("b.npz", X=np.array([[6, 7], [np.nan, 8]]), y=[1, 0])

        table = Arrays(ArrayFiles(Path("a.npz")), ArrayFiles(Path("b.npz")), missing="drop").load()

        assert features(table) == [[2, 3], [4, 5], [6, 7]]
        assert table.targets.tolist() == [1, 0, 1]
        assert table.parts == (2, 1, 0)


class TestMissing:
    @pytest.mark.parametrize("in_memory", [True, False])
    def test_the_mean_of_the_training_rows_stands_in(self, in_memory: bool) -> None:
        Path("train.csv").write_text("a,c,y\n1,u,0\n,u,1\n3,v,0\n5,,1\n")
        Path("val.csv").write_text("a,c,y\n,v,0\n100,u,1\n")
        source = Files(CsvFile(Path("train.csv")), CsvFile(Path("val.csv")), missing="mean", in_memory=in_memory)
        module = DataModule(source, fills=True, batch_size=4)
        module.setup()

        assert served(module.val_dataloader())[0].tolist() == [[3, 0, 1], [100, 1, 0]]
        train = served(module.train_dataloader())[0]
        assert train[1].tolist() == [3, 1, 0]
        assert train[3].tolist() == pytest.approx([5, 2 / 3, 1 / 3])
        fill = module.facts.fill
        assert fill is not None
        assert fill.tolist() == pytest.approx([3, 2 / 3, 1 / 3])


def served(loader: BatchLoader | list[BatchLoader]) -> tuple[Tensor, Tensor]:
    assert isinstance(loader, BatchLoader)
    batches = list(loader)
    return torch.cat([batch.features for batch in batches]), torch.cat([batch.targets for batch in batches])


class TestRuns:
    rows = "a,b,kind\n" + "".join(f"{row % 7},{row % 5 + row / 100},{'xyz'[row % 3]}\n" for row in range(120))

    def test_a_run_from_disk_is_a_run_from_memory(self, train: Train) -> None:
        Path("rows.csv").write_text(self.rows)
        typed = (
            "data=csv",
            "data.path=rows.csv",
            "data.batch_size=108",
            "data.test_fraction=0.1",
            "trainer.max_steps=60",
        )

        memory, disk = train(*typed), train(*typed, "data.in_memory=false")

        assert memory.code == disk.code == 0, disk.err
        # All training rows in one batch of 96, so that their order does not matter.
        for tag, points in memory.curves.items():
            assert disk.curves[tag] == pytest.approx(points, rel=1e-5), tag

    @pytest.mark.parametrize("steps", [3, 8, 11])
    def test_a_run_from_disk_goes_on_in_the_middle_of_an_epoch(self, train: Train, steps: int) -> None:
        Path("rows.csv").write_text(self.rows)
        typed = ("data=csv", "data.path=rows.csv", "data.batch_size=16", "data.in_memory=false", "optimizer=adam")
        whole = train(*typed, "trainer.max_steps=30", "trainer.val_check_interval=10")
        train(*typed, f"trainer.max_steps={steps}", "trainer.val_check_interval=10")

        resumed = train("resume=latest", "trainer.max_steps=30")

        assert resumed.code == 0, resumed.err
        for name, value in whole.checkpoint()["state_dict"].items():
            assert torch.equal(value, resumed.checkpoint()["state_dict"][name]), name
        assert whole.curves["train/cost"] == resumed.curves["train/cost"]

    def test_resume_refuses_a_file_that_has_changed(self, train: Train) -> None:
        Path("rows.csv").write_text(self.rows)
        train("data=csv", "data.path=rows.csv", "trainer.max_steps=3")
        Path("rows.csv").write_text(self.rows.replace("6,", "7,"))

        again = train("resume=latest", "trainer.max_steps=5")

        assert again.code == 2
        assert "the data is no longer what the run began with: other" in again.err
        assert again.err.count("\n") == 1

    def test_resume_names_values_that_have_changed(self, train: Train) -> None:
        Path("rows.csv").write_text(self.rows)
        train("data=csv", "data.path=rows.csv", "data.standardize=false", "trainer.max_steps=3")
        Path("rows.csv").write_text(self.rows.replace("6,", "7,", 1))

        again = train("resume=latest", "trainer.max_steps=5")

        assert "the data is no longer what the run began with: other values" in again.err

    def test_resume_does_not_mind_how_a_mean_was_rounded(self, train: Train) -> None:
        Path("rows.csv").write_text(self.rows)
        run = train("data=csv", "data.path=rows.csv", "trainer.max_steps=3")
        stored = run.checkpoint()
        stored["crossent"]["data"]["mean"] *= 1 + 1e-15  # as another machine may have it
        torch.save(stored, run.directory / "checkpoints" / "last.ckpt")

        again = train("resume=latest", "trainer.max_steps=5")

        assert (again.code, again.metrics["steps"]) == (0, 5), again.err

    def test_the_header_names_file_and_target(self, train: Train) -> None:
        Path("rows.csv").write_text(self.rows)

        run = train("data=csv", "data.path=rows.csv", "trainer.max_steps=3")

        assert "data       csv rows.csv: 108 train + 12 val rows, 2 features, 3 classes of 'kind'" in run.out

    def test_a_checkpoint_knows_how_the_file_was_read(self, train: Train) -> None:
        Path("rows.csv").write_text("colour,a,kind\n" + "red,1,x\nblue,2,y\n" * 20)

        run = train("data=csv", "data.path=rows.csv", "trainer.max_steps=3")

        stored = run.checkpoint()["crossent"]["data"]
        assert stored["read_from"] == [
            {"name": "colour", "categories": ["blue", "red"]},
            {"name": "a", "categories": None},
        ]
        assert (stored["target"], stored["columns"]) == ("kind", ["colour=blue", "colour=red", "a"])

    def test_the_scaling_in_a_checkpoint_folds_into_the_weights(self, train: Train) -> None:
        Path("rows.csv").write_text(self.rows)
        train("data=csv", "data.path=rows.csv", "data.val_fraction=0", "trainer.max_steps=20")

        model, table = crossent.load("latest"), Files(CsvFile(Path("rows.csv"))).load()

        raw = torch.from_numpy(table.all_features().double().numpy() @ model.coef_.T + model.intercept_)
        # The next cost of the run is that of these weights.
        further = train("resume=latest", "trainer.max_steps=21").curves["train/cost"][20]
        assert torch.nn.functional.cross_entropy(raw, table.targets).item() == pytest.approx(further, rel=1e-5)

    def test_accuracy_goes_by_the_weights(self, train: Train) -> None:
        Path("train.csv").write_text("a,w,y\n" + "-1,1,0\n1,1,1\n" * 10)
        Path("val.csv").write_text("a,w,y\n1,3,1\n1,1,0\n1,0,0\n1,0,0\n")
        files = ("data.path=train.csv", "data.val_path=val.csv", "data.weight=w", "data.target=y")

        run = train("data=csv", *files, "trainer.max_steps=200")

        assert run.metrics["val/accuracy"] == 0.75

    def test_the_val_cost_is_that_of_all_rows_however_many_batches(
        self, train: Train, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("rows.csv").write_text(self.rows)
        parts = ("data.val_fraction=0.3", "data.test_fraction=0.1")
        typed = ("data=csv", "data.path=rows.csv", *parts, "trainer.max_steps=9")
        one = train(*typed)
        monkeypatch.setattr("crossent.data.loader._EVALUATION_NUMBERS", 3 * 7)  # batches of seven, and one of one row

        many = train(*typed)

        for tag in ("val/cost", "val/accuracy", "test/cost", "test/accuracy"):
            assert many.metrics[tag] == pytest.approx(one.metrics[tag], rel=1e-6), tag

    def test_columns_that_spoil_a_fit_are_named(self, train: Train) -> None:
        rows = "".join(f"{row % 5},2024,{1_700_000_000 + row}.5,{row % 2}\n" for row in range(40))
        Path("rows.csv").write_text("a,year,time,y\n" + rows)

        run = train("data=csv", "data.path=rows.csv", "trainer.max_steps=1")

        assert "column 'year' (and 1 more), 2024, is the same in all training rows" in run.out
        assert "column 'a'" not in run.out

    def test_as_many_classes_as_rows_are_wondered_at(self, train: Train) -> None:
        Path("rows.csv").write_text("a,b\n" + "".join(f"{row},{row}\n" for row in range(30)))

        run = train("data=csv", "data.path=rows.csv", "data.val_fraction=0", "trainer.max_steps=3")

        assert run.code == 0, run.err
        assert "30 classes for 30 training rows: is the target (data.target) what you want" in run.out


def test_arrow_is_not_imported_where_no_file_is_read() -> None:
    script = "import sys, crossent.training; sys.exit('pyarrow' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
    assert arrow.FILE_BYTES > 0
