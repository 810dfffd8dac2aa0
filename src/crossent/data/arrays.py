"""NumPy's files: a pair of .npy, or one .npz. Nothing in them is ever unpickled."""

import logging
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from crossent.checking import did_you_mean
from crossent.data.classes import find_classes
from crossent.data.storage import (
    IN_MEMORY_BYTES,
    InMemory,
    Mapped,
    Numbers,
    allocate,
    slices,
    stays_in_memory,
    temporary_file,
)
from crossent.data.table import LARGEST_WEIGHT, Table
from crossent.errors import UserError

log = logging.getLogger(__name__)

_ROWS = 65_536  # that are looked at at a time
# What NumPy raises of files that it cannot read, and of headers that promise what cannot be.
_NO_NUMPY = (ValueError, EOFError, OSError, MemoryError, OverflowError)
_NAMES = {"features": ("features", "X", "x"), "target": ("targets", "target", "y"), "weight": ("weights", "weight")}


@dataclass(frozen=True)
class ArrayFiles:
    """The files of some rows.

    Attributes:
        path: of the features, .npy, or of all arrays, .npz.
        target: the path of the classes, .npy, or the name of that array in the .npz; None: targets, target or y.
        features: the name of the features in the .npz; None: features, X or x.
        weight: the path or name of the weights; None: there are none.
    """

    path: Path
    target: str | None = None
    features: str | None = None
    weight: str | None = None


@dataclass(frozen=True)
class _Opened:
    """The arrays of some rows, and what to call them."""

    files: ArrayFiles
    features: Numbers
    targets: Numbers
    weights: Numbers | None


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
    ) -> None:
        self._files = (train, val, test)
        self._missing = missing
        self._in_memory = in_memory
        self._ignored = ignored

    def load(self) -> Table:
        """The rows of all files, one after the other.

        Raises:
            UserError: files that cannot be used.
        """
        opened = [None if each is None else _open(each) for each in self._files]
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
        classes, targets = _encode_targets(present, self._ignored, drops=self._missing == "drop")
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
            origins=tuple((str(each.files.path), len(each.features)) for each in present),
        )
        counts = [0 if each is None else len(each.features) for each in opened]
        if self._missing == "drop":
            whole = torch.cat([~torch.isnan(table.features[part]).any(dim=1) for part in slices(table.features)])
            whole &= torch.from_numpy(np.concatenate([~_missing(each.targets) for each in present]))
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


def _open(files: ArrayFiles) -> _Opened:
    """Opens the arrays, and looks at their shapes."""
    if files.path.suffix == ".npz":
        names = {"features": files.features, "target": files.target, "weight": files.weight}
        arrays = _from_archive(files.path, names)
        labels = dict.fromkeys(arrays, f"{files.path}")
    else:
        if files.target is None:
            raise UserError(f"data.target: not set; {files.path} has the features, data.target is the file of classes")
        paths = {"features": files.path, "target": Path(files.target)}
        if files.weight is not None:
            paths["weight"] = Path(files.weight)
        arrays = {key: _mapped(path) for key, path in paths.items()}
        labels = {key: str(path) for key, path in paths.items()}
    features, targets, weights = arrays["features"], arrays["target"], arrays.get("weight")
    if features.ndim != 2 or 0 in features.shape:
        raise UserError(
            f"{labels['features']}: features have the shape {features.shape}; expected (rows, columns), at least one "
            "of each"
        )
    if features.dtype.kind not in "fiub":
        raise UserError(f"{labels['features']}: features are of the type {features.dtype}; expected numbers")
    for key, array in (("target", targets), ("weight", weights)):
        if array is None:
            continue
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.shape != features.shape[:1]:
            raise UserError(
                f"{labels[key]}: {key}s have the shape {array.shape}, but {labels['features']} has {len(features)} rows"
            )
    if weights is not None:
        if weights.dtype.kind not in "fiub":
            raise UserError(f"{labels['weight']}: weights are of the type {weights.dtype}; expected numbers")
        unfit = ~((weights >= 0) & (weights <= LARGEST_WEIGHT))
        if unfit.any():
            row = int(unfit.argmax())
            raise UserError(
                f"{labels['weight']}: row {row}: weight {weights.flat[row]:g}, expected a number >= 0 and <= "
                f"{LARGEST_WEIGHT:g}"
            )
    return _Opened(files, features, targets.reshape(-1), None if weights is None else weights.reshape(-1))


def _mapped(path: Path) -> Numbers:
    """An array in a .npy file, of which nothing has been read yet."""
    try:
        # Takes no pickle, whatever it calls itself, and wants as many bytes as the header promises.
        array: Numbers = npy.open_memmap(path, mode="r")
    except _NO_NUMPY as error:
        raise _unreadable(path, error) from error
    return array


def _from_archive(path: Path, names: dict[str, str | None]) -> dict[str, Numbers]:
    """The arrays of a .npz file, by what they are; those that were not named and are not there are left out."""
    try:
        with zipfile.ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            found = {}
            for key, name in names.items():
                known = _NAMES[key] if name is None else (name,)
                chosen = next((each for each in known if each in there), None)
                if chosen is not None:
                    found[key] = _member(archive, chosen)
                elif name is not None or key != "weight":
                    wanted = " or ".join(f"'{each}'" for each in known)
                    near = "" if name is None else did_you_mean(name, there).rstrip(".")
                    raise UserError(
                        f"{path}: no array {wanted}{near}; data.{key} can name one of: {', '.join(there) or 'none'}"
                    )
            return found
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, *_NO_NUMPY) as error:
        raise _unreadable(path, error) from error


def _member(archive: zipfile.ZipFile, name: str) -> Numbers:
    """An array of an archive; one that is too large for memory goes through a temporary file."""
    member = f"{name}.npy"
    with archive.open(member) as stream:
        if archive.getinfo(member).file_size <= IN_MEMORY_BYTES:
            array: Numbers = npy.read_array(stream, allow_pickle=False)
            return array
        with temporary_file() as file:
            shutil.copyfileobj(stream, file, 2**20)
            file.seek(0)
            read_header = {(1, 0): npy.read_array_header_1_0}.get(npy.read_magic(file), npy.read_array_header_2_0)
            shape, fortran, kind = read_header(file)
            if kind.hasobject:
                raise ValueError("Object arrays cannot be mapped")
            return np.memmap(file, kind, "r", file.tell(), shape, "F" if fortran else "C")


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    if "Object arrays" in reason or "Python objects" in reason:
        reason = "it holds Python objects, which are never unpickled; save numbers or texts"
    elif "magic string" in reason:
        reason = "it is none"
    return UserError(f"{path}: cannot be read as NumPy's {path.suffix.lstrip('.') or 'npy'} file: {reason}")


def _missing(targets: Numbers) -> Numbers:
    """Which labels are NaN, (rows,)."""
    return np.isnan(targets) if targets.dtype.kind == "f" else np.zeros(len(targets), np.bool_)


def _encode_targets(parts: Sequence[_Opened], ignored: int, *, drops: bool) -> tuple[tuple[str, ...], Numbers]:
    """The names of the classes of the first part, and the targets of all."""
    first = parts[0]
    texts = first.targets.dtype.kind in "US"
    if first.targets.dtype.kind not in "USfiub":
        raise UserError(
            f"{_targets_of(first)}: classes are of the type {first.targets.dtype}; expected texts or whole numbers"
        )
    labels = [_labels(part, texts=texts, drops=drops) for part in parts]
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
    names = tuple(each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each) for each in known)
    return names, np.concatenate(targets)


def _labels(part: _Opened, *, texts: bool, drops: bool) -> Numbers:
    """Texts as they are, numbers as whole ones, and 0 where a row is to be dropped."""
    found = part.targets
    if texts != (found.dtype.kind in "US"):
        raise UserError(
            f"{_targets_of(part)}: classes are of the type {found.dtype}, unlike those of the training rows"
        )
    if texts:
        return np.asarray(found)
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


def _targets_of(part: _Opened) -> str:
    return str(part.files.path if part.files.path.suffix == ".npz" else part.files.target)
