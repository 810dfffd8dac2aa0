"""NumPy's files: a pair of .npy, or one .npz. Nothing in them is ever unpickled."""

import lzma
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from crossent.checking import did_you_mean
from crossent.data.facts import LARGEST_WEIGHT
from crossent.data.storage import IN_MEMORY_BYTES, Numbers, temporary_file
from crossent.errors import UserError

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
class OpenedArrays:
    """The arrays of some rows, and what to call them."""

    files: ArrayFiles
    features: Numbers
    targets: Numbers
    weights: Numbers | None


def open_arrays(files: ArrayFiles) -> OpenedArrays:
    """Opens the arrays, and looks at their shapes.

    Raises:
        UserError: a file that is none of NumPy's, or arrays that do not fit together.
    """
    if files.path.suffix == ".npz":
        given = {"features": files.features, "target": files.target, "weight": files.weight}
        arrays = _from_archive(
            files.path,
            {
                key: _Wanted(_NAMES[key] if name is None else (name,), f"data.{key}", key == "weight" and name is None)
                for key, name in given.items()
            },
        )
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
    _check_features(features, labels["features"])
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
    return OpenedArrays(files, features, targets.reshape(-1), None if weights is None else weights.reshape(-1))


def open_features(path: Path, keep: Sequence[str]) -> tuple[Numbers, dict[str, Numbers]]:
    """Opens the features, and what is to be kept beside them.

    Args:
        path: of the features, .npy, or of all arrays, .npz.
        keep: the names of further arrays in the .npz.

    Returns:
        The features, (rows, columns), and the further arrays, (rows,) each.

    Raises:
        UserError: a file that is none of NumPy's, or arrays that do not fit together.
    """
    if path.suffix.lower() != ".npz":
        if keep:
            raise UserError(f"keep={keep[0]}: {path} has features alone; an .npz may have more arrays")
        arrays = {"features": _mapped(path)}
    else:
        wanted = {f"keep={name}": _Wanted((name,), f"keep={name}") for name in keep}
        arrays = _from_archive(path, {"features": _Wanted(_NAMES["features"], "the features"), **wanted})
    features = arrays["features"]
    _check_features(features, str(path), rows=0)
    kept = {name: arrays[f"keep={name}"] for name in keep}
    for name, array in kept.items():
        if array.shape != features.shape[:1] or array.dtype.kind not in "fiubUS":
            raise UserError(
                f"keep={name}: {path} has it as {array.dtype} of the shape {array.shape}; expected numbers or texts, "
                f"{features.shape[:1]}"
            )
    return features, kept


def _check_features(features: Numbers, label: str, *, rows: int = 1) -> None:
    if features.ndim != 2 or len(features) < rows or not features.shape[1]:
        raise UserError(
            f"{label}: features have the shape {features.shape}; expected (rows, columns), at least one of each"
        )
    if features.dtype.kind not in "fiub":
        raise UserError(f"{label}: features are of the type {features.dtype}; expected numbers")


def _mapped(path: Path) -> Numbers:
    """An array in a .npy file, of which nothing has been read yet."""
    try:
        # Takes no pickle, whatever it calls itself, and wants as many bytes as the header promises.
        array: Numbers = npy.open_memmap(path, mode="r")
    except ValueError as error:
        if "empty file" not in str(error):
            raise _unreadable(path, error) from error
        return np.asarray(np.load(path, allow_pickle=False))  # there is nothing in it to be mapped
    except _NO_NUMPY as error:
        raise _unreadable(path, error) from error
    return array


class _Wanted(NamedTuple):
    """An array of an archive.

    Attributes:
        names: that it may have.
        key: of the configuration that names it, or could.
        optional: whether it need not be there.
    """

    names: tuple[str, ...]
    key: str
    optional: bool = False


def _from_archive(path: Path, wanted: Mapping[str, _Wanted]) -> dict[str, Numbers]:
    """The arrays of a .npz file under the same keys, but for optional ones that are not there."""
    try:
        with zipfile.ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            found = {}
            for key, each in wanted.items():
                chosen = next((name for name in each.names if name in there), None)
                if chosen is not None:
                    found[key] = _member(archive, chosen)
                elif not each.optional:
                    listed = " or ".join(f"'{name}'" for name in each.names)
                    near = did_you_mean(each.names[0], there).rstrip(".?") + "?" if len(each.names) == 1 else ""
                    raise UserError(
                        f"{path}: no array {listed}{near.removeprefix('?')} ({each.key}); it has: "
                        f"{', '.join(there) or 'none'}"
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
