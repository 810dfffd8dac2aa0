"""The group ``data``."""

import codecs
from typing import Literal

from crossent.config.types import (
    Arguments,
    AtLeastOne,
    AtLeastTwo,
    ClassPath,
    Coefficient,
    Decimal,
    Delimiter,
    Encoding,
    FilePath,
    InMemory,
    ProperShare,
    Section,
    Seed,
    Text,
)


class Data(Section):
    """What every source has: how its rows are split, scaled and batched."""

    batch_size: Literal["full"] | AtLeastOne
    test_fraction: ProperShare
    standardize: bool

    def __post_init__(self) -> None:
        together = self.val_share + self.test_fraction
        if together >= 1:
            raise ValueError(f"val_fraction + test_fraction = {together:g} leaves no row to train on")

    @property
    def val_share(self) -> float:
        """The fraction of the rows that is for validation."""
        raise NotImplementedError


class OneTable(Data):
    """Has all rows in one place."""

    val_fraction: ProperShare

    @property
    def val_share(self) -> float:
        return self.val_fraction


class ToyData(OneTable, tag="toy"):
    pass


class IrisData(OneTable, tag="iris"):
    pass


class WineData(OneTable, tag="wine"):
    pass


class DigitsData(OneTable, tag="digits"):
    pass


class BreastCancerData(OneTable, tag="breast_cancer"):
    pass


class CustomData(OneTable, tag="custom"):
    class_path: ClassPath
    arguments: Arguments


class SyntheticData(OneTable, tag="synthetic"):
    in_memory: InMemory
    rows: AtLeastTwo
    features: AtLeastOne
    classes: AtLeastTwo
    signal: Coefficient
    zipf: Coefficient
    seed: Seed


#: Of the rows of files, for validation, where no file has them.
DEFAULT_VAL_FRACTION = 0.1


class FileData(Data):
    """Is read from a file, or from one each for training, validation and testing."""

    in_memory: InMemory
    path: FilePath
    target: Text | int | None  # columns may have numbers for names
    weight: Text | int | None
    val_path: Text | None
    test_path: Text | None
    val_fraction: ProperShare | None
    missing: Literal["error", "mean", "drop"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for split, fraction in (("val", self.val_fraction), ("test", self.test_fraction)):
            path = getattr(self, f"{split}_path")
            if path is not None and fraction:
                raise ValueError(
                    f"{split}_fraction={fraction:g}: {split}_path={path} has those rows; leave one of them out"
                )

    @property
    def val_share(self) -> float:
        """The fraction of the rows that is for validation: where it is not set, a tenth unless a file has them."""
        if self.val_fraction is None:
            return 0.0 if self.val_path is not None else DEFAULT_VAL_FRACTION
        return self.val_fraction

    def files(self) -> dict[str, str]:
        """The path of every file to be read, under its key."""
        paths = {"path": self.path, "val_path": self.val_path, "test_path": self.test_path}
        return {f"data.{key}": path for key, path in paths.items() if path is not None}


class TableData(FileData):
    """A file with named columns."""

    features: list[Text | int] | None
    max_categories: AtLeastOne


class CsvData(TableData, tag="csv"):
    delimiter: Delimiter
    decimal: Decimal
    encoding: Encoding
    header: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_csv(self.delimiter, self.decimal, self.encoding)


def check_csv(delimiter: str | None, decimal: str | None, encoding: str | None) -> None:
    """Refuses what no CSV file can have; None: not known.

    Raises:
        ValueError: the key and why.
    """
    if decimal is not None and decimal == delimiter:
        raise ValueError(f"decimal={decimal}: the same as delimiter; a number would be two columns")
    try:
        codecs.lookup(encoding or "utf8")
    except LookupError:
        raise ValueError(f"encoding={encoding}: no such encoding; utf8 and latin-1 are usual") from None


class ParquetData(TableData, tag="parquet"):
    pass


class ArraysData(FileData, tag="arrays"):
    features: Text | None
    val_target: Text | None
    test_target: Text | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for split in ("", "val_", "test_"):
            path, target = getattr(self, f"{split}path"), getattr(self, f"{split}target")
            if path is None and target is not None:
                raise ValueError(f"{split}target={target}: {split}path is not set")
            if path is None:
                continue
            archive = path.endswith(".npz")
            if not archive and target is None:
                raise ValueError(
                    f"{split}target: not set; {path} has the features, {split}target is the .npy of the classes"
                )
            if not archive and self.features is not None:
                raise ValueError(f"features={self.features}: names an array of a .npz file, which {path} is not")
            if split and archive and target is not None:
                raise ValueError(f"{split}target={target}: {path} has its classes under the name that target gives")

    def files(self) -> dict[str, str]:
        found = super().files()
        pairs = {"path": ("target", "weight"), "val_path": ("val_target",), "test_path": ("test_target",)}
        for path, keys in pairs.items():
            if f"data.{path}" in found and not found[f"data.{path}"].endswith(".npz"):
                found |= {f"data.{key}": str(getattr(self, key)) for key in keys if getattr(self, key) is not None}
        return found


BundledData = IrisData | WineData | DigitsData | BreastCancerData
AnyData = ToyData | BundledData | SyntheticData | CsvData | ParquetData | ArraysData | CustomData
