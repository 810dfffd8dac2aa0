"""The configuration of ``crossent-predict``."""

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

from crossent.config.data import check_csv
from crossent.config.types import Decimal, Delimiter, Encoding, FilePath, Text

InputPath = Annotated[str, Meta(pattern=r"^(?!\?\?\?$).", description="a .csv, .parquet, .npy or .npz file")]


class CsvOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """How a CSV file is read; null: as the run read its own, or as usual."""

    delimiter: Delimiter | None
    decimal: Decimal | None
    encoding: Encoding | None
    header: bool | None

    def __post_init__(self) -> None:
        check_csv(self.delimiter, self.decimal, self.encoding)


class PredictConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of ``crossent-predict``."""

    run: Text
    input: InputPath
    output: FilePath | None
    keep: list[Text | int]
    probabilities: bool
    surplus: Literal["error", "ignore"]
    missing: Literal["error", "empty"]
    overwrite: bool
    csv: CsvOptions

    def __post_init__(self) -> None:
        if input_kind(self.input) is None:
            raise ValueError(f"input={self.input}: expected a file that ends in .csv, .parquet, .npy or .npz")
        if self.output is not None and output_kind(self.output) is None:
            raise ValueError(f"output={self.output}: expected a file that ends in .csv, .parquet or .npz")
        names = [str(name) for name in self.keep]
        for name in names:
            if name in ("prediction", "probability") or names.count(name) > 1:
                raise ValueError(f"keep={name}: the output would have two columns of that name")
        if input_kind(self.input) != ".csv":
            given = {
                name: value for name in self.csv.__struct_fields__ if (value := getattr(self.csv, name)) is not None
            }
            for name in given:
                raise ValueError(f"csv.{name}: {self.input} is no CSV file")

    def files(self) -> dict[str, str]:
        """The path of every file to be read, under its key."""
        return {"input": self.input}


def input_kind(path: str) -> str | None:
    """What a file is by its name: .csv (perhaps compressed), .parquet, .npy, .npz, or None."""
    found = re.search(r"(\.csv(?=(\.gz|\.bz2|\.zst)?$)|\.parquet$|\.npy$|\.npz$)", path.lower())
    return None if found is None else found[1]


def output_kind(path: str) -> str | None:
    """What a file is to be by its name: .csv, .parquet, .npz, or None."""
    return next((kind for kind in (".csv", ".parquet", ".npz") if path.lower().endswith(kind)), None)
