"""A source that reads NumPy's files."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from crossent.data.classes import class_values, find_classes
from crossent.data.facts import DataFacts, Labels
from crossent.data.mapped import Mapped, slices
from crossent.data.numpy_files import ArrayFiles, OpenedArrays, open_arrays
from crossent.data.storage import InMemory, Numbers, allocate, stays_in_memory
from crossent.data.survey import check_finite
from crossent.data.table import Table
from crossent.errors import UserError

log = logging.getLogger(__name__)

_ROWS = 65_536  # that are looked at at a time


class Arrays:
    """Features as (rows, columns), classes as (rows,), texts or whole numbers.

    Features that do not fit in memory stay in their file and are read as they are needed.

    Args:
        train: the files to train on.
        val: those for validation, or None.
        test: those for testing, or None.
        missing: what becomes of a missing value, which is NaN: ``error``, ``mean`` or ``drop``.
        in_memory: whether the features are held in memory; ``auto`` goes by their number.
        ignored: a whole number that is no class: rows with this target count for nothing.
        trained: of what a model was trained on, which then says what the classes are; None: the file to train on does.
    """

    def __init__(
        self,
        train: ArrayFiles,
        val: ArrayFiles | None = None,
        test: ArrayFiles | None = None,
        *,
        missing: str = "error",
        in_memory: InMemory = "auto",
        ignored: int = -100,
        trained: DataFacts | None = None,
    ) -> None:
        self._files = (train, val, test)
        self._missing = missing
        self._in_memory = in_memory
        self._ignored = ignored
        self._trained = trained

    def load(self) -> Table:
        """The rows of all files, one after the other.

        Raises:
            UserError: files that cannot be used.
        """
        opened = [None if each is None else open_arrays(each) for each in self._files]
        present = [each for each in opened if each is not None]
        train, columns = present[0], present[0].features.shape[1]
        for each in present[1:]:
            if each.features.shape[1] != columns:
                raise UserError(
                    f"{each.files.path}: {each.features.shape[1]} columns, but {columns} in {train.files.path}"
                )
        for each in present:
            _warn_of_rounding(str(each.files.path), each.features)
        rows = sum(len(each.features) for each in present)
        classes, targets, labels = _encode_targets(
            present, self._ignored, drops=self._missing == "drop", trained=self._trained
        )
        features: torch.Tensor | Mapped
        in_memory = stays_in_memory(self._in_memory, rows, columns)
        if in_memory or len(present) > 1:
            together = _together([each.features for each in present], in_memory=in_memory)
            features = torch.from_numpy(together) if in_memory else Mapped(together)
        else:
            features = Mapped(train.features)
        weights = None
        if train.weights is not None:
            weighted = [np.ones(len(each.features)) if each.weights is None else each.weights for each in present]
            weights = torch.from_numpy(np.concatenate(weighted).astype(np.float32))
        table = Table(
            features,
            torch.from_numpy(targets),
            classes,
            tuple(f"x{column}" for column in range(columns)),
            weights,
            labels=labels,
            origins=tuple((str(each.files.path), len(each.features)) for each in present),
        )
        counts = [0 if each is None else len(each.features) for each in opened]
        if self._missing == "drop":
            whole = torch.from_numpy(np.concatenate([~_missing(each.targets) for each in present]))
            for part in slices(table.features):
                rows_here = table.features[part]
                check_finite(table, rows_here, part.start, missing_allowed=True)  # now, by the rows' own numbers
                whole[part] &= ~torch.isnan(rows_here).any(dim=1)
            counts = [int(part.sum()) for part in whole.split(counts)]
            table = table.take(whole.nonzero().squeeze(1)).without_empty_classes()
        return replace(table, parts=None if len(present) == 1 else (counts[0], counts[1], counts[2]))


def _together(parts: list[Numbers], *, in_memory: bool) -> Numbers:
    """All rows, float32, in one array; never two copies at a time."""
    found = allocate(sum(len(part) for part in parts), parts[0].shape[1], in_memory=in_memory)
    begin = 0
    for part in parts:
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as such
            found[begin : begin + len(part)] = part
        begin += len(part)
    return found


def _warn_of_rounding(path: str, features: Numbers) -> None:
    """Names a whole number that float32 does not hold."""
    if features.dtype.kind not in "iu" or features.dtype.itemsize < 4:
        return
    for start in range(0, len(features), _ROWS):
        exact = features[start : start + _ROWS]
        rounded = exact.astype(np.float32).astype(np.float64) != exact
        if rounded.any():
            row, column = (int(place[0]) for place in rounded.nonzero())
            log.warning(
                "%s: row %d, column 'x%d': %d has more digits than float32 holds, so it is rounded; so may be others",
                path,
                start + row,
                column,
                exact[row, column],
            )
            return


def _missing(targets: Numbers) -> Numbers:
    """Which labels are NaN, (rows,)."""
    return np.isnan(targets) if targets.dtype.kind == "f" else np.zeros(len(targets), np.bool_)


def _encode_targets(
    parts: Sequence[OpenedArrays], ignored: int, *, drops: bool, trained: DataFacts | None
) -> tuple[tuple[str, ...], Numbers, Labels]:
    """The classes' names, which a model knows or the first part says, the targets of all, and what the classes are."""
    first = parts[0]
    texts = first.targets.dtype.kind in "US"
    if first.targets.dtype.kind not in "USfiub":
        raise UserError(
            f"{_targets_of(first)}: classes are of the type {first.targets.dtype}; expected texts or whole numbers"
        )
    if trained is not None and texts != (trained.labels == "texts"):
        raise UserError(
            f"{_targets_of(first)}: classes are of the type {first.targets.dtype}; the run's are {trained.labels}"
        )
    labels = [_labels(part, texts=texts, drops=drops) for part in parts]
    if trained is not None:
        known = class_values(trained.classes, trained.labels)
    else:
        known = np.unique(labels[0][~_missing(first.targets)])
        if not texts:
            known = known[known != ignored]
    targets = []
    for part, found in zip(parts, labels, strict=True):
        codes, unknown = find_classes(known, found, None if texts else ignored)
        unknown &= ~_missing(part.targets)
        if unknown.any():
            row = int(unknown.argmax())
            raise UserError(f"{_targets_of(part)}: row {row}: class '{found[row]}' is not among the training rows")
        targets.append(codes)
    if trained is not None:
        return trained.classes, np.concatenate(targets), trained.labels
    names = tuple(str(each) for each in known)
    return names, np.concatenate(targets), "texts" if texts else "whole numbers"


def _labels(part: OpenedArrays, *, texts: bool, drops: bool) -> Numbers:
    """Texts as they are, numbers as whole ones, and 0 where a row is to be dropped."""
    found = part.targets
    if texts != (found.dtype.kind in "US"):
        raise UserError(
            f"{_targets_of(part)}: classes are of the type {found.dtype}, unlike those of the training rows"
        )
    if texts:
        return np.char.decode(found, "utf-8", "replace") if found.dtype.kind == "S" else np.asarray(found)
    gaps = _missing(found)
    broken = ~(np.abs(found) < 2.0**63) if found.dtype.kind in "fu" else np.zeros(len(found), np.bool_)
    if found.dtype.kind == "f":
        broken |= found != np.floor(found)
    if drops:
        broken &= ~gaps
    if broken.any():
        row = int(broken.argmax())
        raise UserError(
            f"{_targets_of(part)}: row {row}: {found[row]} is no class; classes are texts or whole numbers below 2^63"
        )
    return np.where(gaps, 0, found).astype(np.int64)


def _targets_of(part: OpenedArrays) -> str:
    return str(part.files.path if part.files.path.suffix == ".npz" else part.files.target)
