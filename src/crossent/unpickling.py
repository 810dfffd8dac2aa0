"""Reads the pickle in a checkpoint: plain values, and where its tensors lie; nothing is imported or run.

PyTorch's own reader of weights does the same with a longer list of names (torch/_weights_only_unpickler.py).
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from crossent.data.storage import Numbers

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


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies; it is read when it is asked for, since optimisers store more of them than predicting needs.

    Attributes:
        storage: of its numbers, perhaps among others'.
        offset: of its first number there.
        shape: of the tensor.
        strides: from one number to the next along each dimension.
    """

    storage: "_Storage"
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> Numbers:
        """The tensor as an array; of bfloat16 as float32.

        Raises:
            pickle.UnpicklingError: it reaches beyond its storage.
        """
        numbers = self.storage.read()
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.shape, *self.strides)) < 0 or (0 not in self.shape and last >= len(numbers)):
            raise pickle.UnpicklingError("a tensor beyond its storage")
        steps = [numbers.itemsize * stride for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps).copy()


@dataclass(frozen=True)
class _Storage:
    """Numbers in a checkpoint."""

    path: Path
    member: str
    kind: str

    def read(self) -> Numbers:
        with zipfile.ZipFile(self.path) as archive:
            stored = archive.read(self.member)  # looks at the checksum
        if self.kind == "BFloat16Storage":  # the upper half of a float32
            return (np.frombuffer(stored, "<u2").astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(stored, _TYPES[self.kind])


class PlainUnpickler(pickle.Unpickler):
    """Makes plain values, and a `StoredTensor` of what PyTorch would make a tensor of; refuses every other name.

    Args:
        file: of the pickle.
        path: of the checkpoint.
        folder: in which the tensors' bytes lie there.
    """

    def __init__(self, file: IO[bytes], path: Path, folder: str) -> None:
        super().__init__(file)
        self._path = path
        self._folder = folder

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """What stands for a name, of which there are few; none is looked up."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuild()
        if module == "torch" and name in _TYPES:
            return _StorageType(name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is never imported")

    def persistent_load(self, reference: Any) -> _Storage:
        """Where a storage is."""
        _, kind, key, *_ = reference
        return _Storage(self._path, f"{self._folder}data/{key}", kind.name)


class _Rebuild:
    """Stands for ``torch._utils._rebuild_tensor_v2``; an object without a dict, so that a pickle cannot change it."""

    __slots__ = ()

    def __call__(self, storage: _Storage, offset: int, shape: Any, strides: Any, *_: object) -> StoredTensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        return StoredTensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


class _StorageType:
    """Stands for a type of storage, which is named and never made."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: object) -> Any:
        raise pickle.UnpicklingError("a storage outside of a tensor")
