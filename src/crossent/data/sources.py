"""Makes the source of rows that the configuration asks for."""

from pathlib import Path
from typing import TYPE_CHECKING

from crossent import config
from crossent.custom import make
from crossent.data.arrays import Arrays
from crossent.data.bundled import Bundled
from crossent.data.facts import DataFacts
from crossent.data.numpy_files import ArrayFiles
from crossent.data.synthetic import Synthetic
from crossent.data.table import Source
from crossent.data.toy import Toy

if TYPE_CHECKING:
    from crossent.data.arrow import TableFile


def source(chosen: config.AnyData, ignored: int, trained: DataFacts | None = None) -> Source:
    """Makes the source of rows that the configuration asks for.

    Args:
        chosen: the section ``data``.
        ignored: the target of rows that count for nothing.
        trained: of what a model was trained on, if files are to be read as it was; None: they say what they are.

    Raises:
        UserError: a class of the user's own that cannot be made.
    """
    match chosen:
        case config.ToyData():
            return Toy()
        case config.IrisData():
            return Bundled("iris")
        case config.WineData():
            return Bundled("wine")
        case config.DigitsData():
            return Bundled("digits")
        case config.BreastCancerData():
            return Bundled("breast_cancer")
        case config.SyntheticData():
            return Synthetic(
                chosen.rows,
                chosen.features,
                chosen.classes,
                signal=chosen.signal,
                zipf=chosen.zipf,
                seed=chosen.seed,
                in_memory=chosen.in_memory,
            )
        case config.CsvData() | config.ParquetData():
            return _files(chosen, ignored, trained)
        case config.ArraysData():
            return _arrays(chosen, ignored, trained)
        case config.CustomData():
            return make("data", chosen.class_path, chosen.arguments, Source)


def _files(chosen: config.CsvData | config.ParquetData, ignored: int, trained: DataFacts | None) -> Source:
    # Arrow takes a third of a second to import, which other sources need not wait for.
    from crossent.data.csv import CsvFile
    from crossent.data.files import Files
    from crossent.data.parquet import ParquetFile

    def file(path: str) -> "TableFile":
        if isinstance(chosen, config.CsvData):
            return CsvFile(
                Path(path),
                delimiter=chosen.delimiter,
                decimal=chosen.decimal,
                encoding=chosen.encoding,
                header=chosen.header,
            )
        return ParquetFile(Path(path))

    return Files(
        file(chosen.path),
        None if chosen.val_path is None else file(chosen.val_path),
        None if chosen.test_path is None else file(chosen.test_path),
        target=None if chosen.target is None else str(chosen.target),
        features=None if chosen.features is None else [str(name) for name in chosen.features],
        weight=None if chosen.weight is None else str(chosen.weight),
        missing=chosen.missing,
        max_categories=chosen.max_categories,
        in_memory=chosen.in_memory,
        ignored=ignored,
        trained=trained,
    )


def _arrays(chosen: config.ArraysData, ignored: int, trained: DataFacts | None) -> Source:
    def files(path: str, target: str | None) -> ArrayFiles:
        own = path == chosen.path or path.endswith(".npz")  # a .npy of weights has those of the training rows alone
        names = [target or chosen.target, chosen.features, chosen.weight if own else None]
        return ArrayFiles(Path(path), *(None if name is None else str(name) for name in names))

    return Arrays(
        files(chosen.path, None),
        None if chosen.val_path is None else files(chosen.val_path, chosen.val_target),
        None if chosen.test_path is None else files(chosen.test_path, chosen.test_target),
        missing=chosen.missing,
        in_memory=chosen.in_memory,
        ignored=ignored,
        trained=trained,
    )
