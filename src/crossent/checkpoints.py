"""Reads checkpoints as what they are, numbers and names: nothing in them is ever imported or run. Imports no torch.

PyTorch's format is a zip archive of one pickle and the tensors' bytes, each with a checksum, which PyTorch itself does
not look at (torch/serialization.py, torch/_weights_only_unpickler.py).
"""

import math
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from crossent import runs
from crossent.data.facts import DataFacts
from crossent.data.storage import Numbers
from crossent.errors import UserError

#: Where a checkpoint has what is Crossent's own.
KEY = "crossent"

_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_BROKEN = (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError)
_BROKEN += (AttributeError, RuntimeError, MemoryError, OverflowError, OSError)  # type: ignore[assignment]  # a tuple of more


@dataclass(frozen=True)
class Checkpoint:
    """What predicting needs.

    Attributes:
        path: of the file.
        weight: (outputs, features), as it was trained.
        bias: (outputs,), or None.
        steps: optimiser steps that the weights have had.
        config: the run's configuration, plain values.
        facts: what is known of the data.
        temperature: what the logits are divided by before the softmax; None: they were not calibrated.
        loss: the loss's own parameters, where it has some.
    """

    path: Path
    weight: Numbers
    bias: Numbers | None
    steps: int
    config: dict[str, Any]
    facts: DataFacts
    temperature: float | None
    loss: dict[str, Numbers]


def read(run: runs.StoredRun, key: str) -> Checkpoint:
    """Reads the checkpoint that a run predicts with.

    Args:
        run: it, and perhaps one of its checkpoints.
        key: what named it, ``run=<…>``, for messages.

    Raises:
        UserError: the run has no checkpoint yet, or the file is none, or not whole.
    """
    path = _path(run, key)
    stored = load(path, key)
    try:
        weight, bias = stored["state_dict"]["head.weight"], stored["state_dict"].get("head.bias")
        record = stored[KEY]
        facts = DataFacts.from_plain(record["data"])
        outputs = len(weight)
        if weight.shape != (outputs, len(facts.columns)):
            raise ValueError(f"weights have the shape {weight.shape}, for {len(facts.columns)} features")
        if outputs != len(facts.classes) and (outputs, len(facts.classes)) != (1, 2):
            raise ValueError(f"{outputs} outputs for {len(facts.classes)} classes")
        if bias is not None:
            bias = np.broadcast_to(bias, (outputs,)).copy()  # one may be shared by all
        if not np.isfinite(weight).all():
            raise ValueError(
                "its weights are not finite, since the run diverged; train again with a lower optimizer.lr"
            )
        temperature = record.get("temperature")
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"a temperature of {temperature}")
        loss = {name[5:]: each for name, each in stored["state_dict"].items() if name.startswith("loss.")}
        config = dict(record["config"])
        return Checkpoint(path, weight, bias, int(stored["global_step"]), config, facts, temperature, loss)
    except _BROKEN as error:
        why = f"no '{error.args[0]}'" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{_where(key, path)} is no checkpoint of Crossent's: {why}") from error


def configuration(run: runs.StoredRun, key: str) -> dict[str, Any]:
    """The configuration in the checkpoint that a run predicts with; quick, since no tensor is read.

    Raises:
        UserError: the run has no checkpoint yet, or the file is none.
    """
    path = _path(run, key)
    stored = load(path, key, tensors=False).get(KEY)
    found = stored.get("config") if isinstance(stored, dict) else None
    if not isinstance(found, dict):
        raise UserError(f"{_where(key, path)} is no checkpoint of Crossent's: it has no configuration")
    return found


def _path(run: runs.StoredRun, key: str) -> Path:
    path = run.best_checkpoint
    if path is None:
        raise UserError(
            f"{key}: {runs.shown(run.directory)} has no checkpoint yet; a run writes the first one at its first "
            "validation, or when callbacks.checkpoint.every_minutes have passed, or when it ends"
        )
    return path


def load(path: Path, key: str, *, tensors: bool = True) -> dict[str, Any]:
    """All that a checkpoint holds, arrays for its tensors, after a look at whether it is whole.

    Args:
        path: of the file.
        key: what named it, for messages.
        tensors: whether they are read; if not, their checksums are not looked at, and None stands for each.

    Raises:
        UserError: the file is no checkpoint, or not whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip() if tensors else None
            if broken is not None:
                raise UserError(f"{_where(key, path)} is damaged: the checksum of {broken} in it is wrong")
            if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                raise UserError(f"{_where(key, path)} is a compressed archive, but no checkpoint")
            pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if pickled is None:
                raise UserError(f"{_where(key, path)} is a zip archive, but no checkpoint")
            with archive.open(pickled) as file:
                stored = _Unpickler(file, archive if tensors else None, pickled.removesuffix("data.pkl")).load()
    except _BROKEN as error:
        why = "it is not in PyTorch's format, and nothing else is ever unpickled"
        if _begins_as_archive(path):
            why = f"it is damaged or cut short ({' '.join(str(error).split()) or type(error).__name__})"
        raise UserError(f"{_where(key, path)} is no whole checkpoint: {why}") from error
    if not isinstance(stored, dict):
        raise UserError(f"{_where(key, path)} is no checkpoint: it holds a {type(stored).__name__}")
    return stored


def _where(key: str, path: Path) -> str:
    """What named the checkpoint, and the path of it where that is another."""
    named = key.partition("=")[2]
    return f"{key}:" if Path(named).absolute() == path.absolute() else f"{key}: {runs.shown(path)}"


def _begins_as_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


class _Unpickler(pickle.Unpickler):
    """Makes plain values, and arrays of what PyTorch would make tensors of; refuses every other name.

    Args:
        file: of the pickle.
        archive: that has the tensors' bytes; None: they are not read.
        folder: in which they lie there.
    """

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile | None, folder: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """What stands for a name, of which there are few; none is looked up."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _nothing if self._archive is None else _array
        if module == "torch" and name in _TYPES:
            return _Storage(name)  # a type of storage, which is named and not made
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is never imported")

    def persistent_load(self, reference: Any) -> Numbers | None:
        """The numbers of a storage, (numbers,), if they are read."""
        if self._archive is None:
            return None
        _, kind, key, _, count = reference
        member = self._archive.getinfo(f"{self._folder}data/{key}")
        stored = bytearray(member.file_size)
        with self._archive.open(member) as file:
            file.readinto(stored)  # type: ignore[attr-defined]  # a BufferedIOBase in all but its type
        numbers = np.frombuffer(stored, _TYPES[kind.name], count)
        if kind.name == "BFloat16Storage":  # the upper half of a float32
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers


@dataclass(frozen=True)
class _Storage:
    name: str

    def __call__(self, *arguments: object) -> Any:
        raise pickle.UnpicklingError("a storage outside of a tensor")


def _nothing(*_: object) -> None:
    """Stands for a tensor that is not read."""


def _array(storage: Numbers, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> Numbers:
    """What `torch._utils._rebuild_tensor_v2` makes a tensor of; never beyond the storage."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor beyond its storage")
    size = storage.itemsize
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, [size * stride for stride in strides])
