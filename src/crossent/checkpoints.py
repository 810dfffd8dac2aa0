"""Reads checkpoints as what they are, numbers and names: nothing in them is ever imported or run. Imports no torch.

PyTorch's format is a zip archive of one pickle and the tensors' bytes, each with a checksum, which PyTorch itself does
not look at (torch/serialization.py).
"""

import contextlib
import lzma
import math
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossent import runs
from crossent.console import shown
from crossent.data.classes import class_values
from crossent.data.facts import DataFacts
from crossent.data.storage import Numbers
from crossent.errors import UserError
from crossent.seal import is_broken
from crossent.unpickling import PlainUnpickler, StoredTensor

#: Where a checkpoint has what is Crossent's own.
KEY = "crossent"

_BROKEN: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    OverflowError,
    OSError,
)


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

    @property
    def known_columns(self) -> tuple[str | None, ...]:
        """The columns that training knew beside those of features, of the classes and of the weights."""
        weight = self.config["data"].get("weight") if self.facts.read_from else None
        return self.facts.target, None if weight is None else str(weight)


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
        state, record = stored["state_dict"], stored[KEY]
        facts = DataFacts.from_plain({name: _resolved(value) for name, value in record["data"].items()})
        class_values(facts.classes, facts.labels)  # raises if they are not what they are said to be
        weight, bias = _numbers(state["head.weight"]), state.get("head.bias")
        outputs = len(weight)
        if weight.shape != (outputs, len(facts.columns)):
            raise ValueError(f"weights have the shape {weight.shape}, for {len(facts.columns)} features")
        if outputs != len(facts.classes) and (outputs, len(facts.classes)) != (1, 2):
            raise ValueError(f"{outputs} outputs for {len(facts.classes)} classes")
        if bias is not None:
            bias = np.broadcast_to(_numbers(bias), (outputs,)).copy()  # one may be shared by all
        temperature = record.get("temperature")
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"a temperature of {temperature}")
        loss = {name[5:]: _numbers(each) for name, each in state.items() if name.startswith("loss.")}
        config = _checked(record["config"])
        return Checkpoint(path, weight, bias, int(stored["global_step"]), config, facts, temperature, loss)
    except _BROKEN as error:
        why = f"no '{error.args[0]}'" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{_where(key, path)} is no checkpoint of Crossent's: {why}") from error


def _resolved(value: object) -> object:
    return value.read() if isinstance(value, StoredTensor) else value


def _numbers(value: object) -> Numbers:
    """A tensor that is to have finite numbers."""
    if not isinstance(value, StoredTensor):
        raise ValueError(f"a {type(value).__name__} where a tensor should be")
    numbers = value.read()
    if numbers.dtype.kind != "f":
        raise ValueError(f"weights of the type {numbers.dtype}")
    if not np.isfinite(numbers).all():
        raise ValueError("its weights are not finite, since the run diverged; train again with a lower optimizer.lr")
    return numbers


def _checked(config: object) -> dict[str, Any]:
    """A configuration of plain values, as a run stores it.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(config, dict) or not all(isinstance(config.get(name), dict) for name in ("data", "loss")):
        raise ValueError("it has no configuration")
    waiting: list[object] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise ValueError("its configuration has keys that are no texts")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif not isinstance(value, bool | int | float | str | None):
            raise ValueError(f"its configuration has a {type(value).__name__}")
    if not isinstance(config.get("seed"), int):
        raise ValueError("its configuration has no seed")
    return config


def configuration(run: runs.StoredRun, key: str) -> dict[str, Any]:
    """The configuration in the checkpoint that a run predicts with; quick, since no tensor is read.

    Raises:
        UserError: the run has no checkpoint yet, or the file is none.
    """
    path = _path(run, key)
    stored = load(path, key, whole=False).get(KEY)
    try:
        return _checked(stored.get("config") if isinstance(stored, dict) else None)
    except ValueError as error:
        raise UserError(f"{_where(key, path)} is no checkpoint of Crossent's: {error}") from error


def steps(path: Path) -> int | None:
    """How many optimiser steps a checkpoint's weights have had; None where the file does not say."""
    with contextlib.suppress(UserError):
        found = load(path, "checkpoint", whole=False).get("global_step")
        return found if isinstance(found, int) else None
    return None


def newest_step(directory: Path) -> int | None:
    """The step of the newest checkpoint that a run has, damaged ones apart; None: it has none."""
    run = runs.StoredRun(directory)
    found = [step for path in (*run.checkpoints, run.best) if path.exists() and (step := steps(path)) is not None]
    return max(found, default=None)


def _path(run: runs.StoredRun, key: str) -> Path:
    path = run.best_checkpoint
    if path is None:
        raise UserError(
            f"{key}: {shown(run.directory)} has no checkpoint yet; a run writes the first one at its first "
            "validation, or when callbacks.checkpoint.every_minutes have passed, or when it ends"
        )
    return path


def load(path: Path, key: str, *, whole: bool = True) -> dict[str, Any]:
    """All that a checkpoint holds, a `StoredTensor` for each of its tensors.

    Args:
        path: of the file.
        key: what named it, for messages.
        whole: whether the checksums of all tensors are looked at first.

    Raises:
        UserError: the file is no checkpoint, or not whole.
    """
    try:
        with _archive(path, whole=whole) as (archive, pickled), archive.open(pickled) as file:
            stored = PlainUnpickler(file, path, pickled.removesuffix("data.pkl")).load()
            if not isinstance(stored, dict):
                raise NotWholeError(f"is no checkpoint: it holds a {type(stored).__name__}")
    except NotWholeError as error:
        raise UserError(f"{_where(key, path)} {error}") from error
    return stored


class NotWholeError(Exception):
    """A file is no checkpoint, or one that was damaged or cut short; the message goes on from the file's name."""


def check(path: Path) -> None:
    """Looks at a checkpoint's structure, at the checksum of every record in it, and at that of the whole file.

    Raises:
        NotWholeError: something is wrong with it.
    """
    with _archive(path, whole=True):
        pass


@contextlib.contextmanager
def _archive(path: Path, *, whole: bool) -> Iterator[tuple[zipfile.ZipFile, str]]:
    """The archive that a checkpoint is, and the name of the pickle in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # So no member can claim to be larger than the file, or unpack to more than that.
            if any(
                each.compress_type or each.flag_bits & 1 or each.compress_size != each.file_size for each in members
            ):
                raise NotWholeError("is a compressed archive, but no checkpoint")
            if whole and is_broken(path):
                raise NotWholeError("is damaged or cut short: its checksum is wrong")
            broken = archive.testzip() if whole else None
            if broken is not None:
                raise NotWholeError(f"is damaged: the checksum of {broken} in it is wrong")
            pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if pickled is None:
                raise NotWholeError("is a zip archive, but no checkpoint")
            yield archive, pickled
    except _BROKEN as error:
        why = "it is not in PyTorch's format, and nothing else is ever unpickled"
        if _begins_as_archive(path):
            why = f"it is damaged or cut short ({' '.join(str(error).split()) or type(error).__name__})"
        raise NotWholeError(f"is no whole checkpoint: {why}") from error


def _where(key: str, path: Path) -> str:
    """What named the checkpoint, and the path of it where that is another."""
    named = key.partition("=")[2]
    return f"{key}:" if Path(named).absolute() == path.absolute() else f"{key}: {shown(path)}"


def _begins_as_archive(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK"
    except OSError:
        return False
