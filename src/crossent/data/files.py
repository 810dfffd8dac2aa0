"""A source that reads tables from files: one to split, or one each for training, validation and testing."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from crossent.data.arrow import TableFile
from crossent.data.encoder import Encoded, Encoder
from crossent.data.facts import DataFacts
from crossent.data.layout import Layout, check_rows, find_layout
from crossent.data.mapped import Mapped
from crossent.data.storage import InMemory, allocate, stays_in_memory
from crossent.data.table import Table


class Files:
    """Rows of files that Arrow reads; texts among the features become a feature each, of 0 and 1.

    Args:
        train: the file to train on, which says what the columns are.
        val: a file for validation, or None.
        test: a file for testing, or None.
        target: the name of the column with the classes, texts or whole numbers; None: the last one.
        features: the names of those with features; None: all others.
        weight: the name of the one with the weights of the rows; None: there is none.
        missing: what becomes of a missing value: ``error``, ``mean`` or ``drop``.
        max_categories: how many different texts a column may have.
        in_memory: whether the features are held in memory; ``auto`` goes by their number.
        ignored: a whole number that is no class: rows with this target count for nothing.
        trained: of what a model was trained on, which then says what the columns and classes are; None: the file to
            train on does.
    """

    def __init__(
        self,
        train: TableFile,
        val: TableFile | None = None,
        test: TableFile | None = None,
        *,
        target: str | None = None,
        features: Sequence[str] | None = None,
        weight: str | None = None,
        missing: str = "error",
        max_categories: int = 1000,
        in_memory: InMemory = "auto",
        ignored: int = -100,
        trained: DataFacts | None = None,
    ) -> None:
        self._train = train
        self._further = (val, test)
        self._target = target
        self._features = features
        self._weight = weight
        self._missing = missing
        self._max_categories = max_categories
        self._in_memory = in_memory
        self._ignored = ignored
        self._trained = trained

    def load(self) -> Table:
        """The rows of all files, one file after the other.

        Raises:
            UserError: a file or a value that cannot be used, with its line and column.
        """
        first, layout = self._first()
        encoder = Encoder(layout, missing=self._missing, ignored=self._ignored)
        if self._trained is not None:
            encoder.check_columns(first, self._train, "the run's training data")
        read: list[tuple[TableFile, pa.Table]] = [(self._train, first)]
        for file in self._further:
            if file is not None:
                table = file.read(layout.types())
                encoder.check_columns(table, file, str(self._train.path))
                read.append((file, table))
        rows, width = sum(len(table) for _, table in read), len(layout.features)
        in_memory = stays_in_memory(self._in_memory, rows, width)
        encoded = Encoded(
            allocate(rows, width, in_memory=in_memory),
            np.empty(rows, np.int64),
            None if layout.weight is None else np.empty(rows, np.float32),
            np.ones(rows, np.bool_),
        )
        begin, counts = 0, {}
        for file, table in read:
            part = slice(begin, begin + len(table))
            encoder.encode(table, file, encoded.part(part))
            counts[file] = int(encoded.whole[part].sum()) if self._missing == "drop" else len(table)
            begin = part.stop
        val, test = (0 if file is None else counts[file] for file in self._further)
        loaded = Table(
            torch.from_numpy(encoded.features) if in_memory else Mapped(encoded.features),
            torch.from_numpy(encoded.targets),
            layout.classes,
            layout.features,
            None if encoded.weights is None else torch.from_numpy(encoded.weights),
            labels=layout.labels,
            read_from=layout.columns,
            all_columns=layout.all_columns,
            target=layout.target,
            origins=tuple((str(file.path), len(table)) for file, table in read),
        )
        if self._missing == "drop":
            loaded = loaded.take(torch.from_numpy(encoded.whole).nonzero().squeeze(1)).without_empty_classes()
        return replace(loaded, parts=None if self._further == (None, None) else (counts[self._train], val, test))

    def _first(self) -> tuple[pa.Table, Layout]:
        """The rows of the training file, and the layout of all files."""
        trained = self._trained
        if trained is None:
            table = self._train.read({})
            return table, find_layout(
                table,
                self._train,
                target=self._target,
                features=self._features,
                weight=self._weight,
                max_categories=self._max_categories,
                ignored=self._ignored,
            )
        target = self._target or trained.target
        layout = Layout.of(
            trained,
            target=target or "",
            weight=self._weight,
            all_columns=trained.all_columns and self._features is None,
        )
        table = self._train.read({name: kind for name, kind in layout.types().items() if name})
        check_rows(table, self._train)
        return table, layout if target else replace(layout, target=table.column_names[-1])
