"""The logits of some rows and classes at a time, in memory that is used again, and the gradients that come back."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# The logits of a slice of rows. Less would make the products slower, which read all weights for every slice.
SLICE_BYTES = 100 * 2**20
# The logits of a block, for each thread: what is done to them row by row is done while they are in a core's cache.
_BLOCK_BYTES = 2 * 2**20
# The logits of a tile of classes: for each of a CPU's threads what stays in its cache, too; of smaller ones a GPU would
# have more to start than to compute.
_TILE_BYTES, _GPU_TILE_BYTES = 4 * 2**20, 512 * 2**20
_ALL = slice(None)


class Gradients(NamedTuple):
    """By features, (rows, features), weight, (classes, features), and offset, (classes,); None where not wanted."""

    features: Tensor | None
    weight: Tensor | None
    offset: Tensor | None


class Products:
    """features · weightᵀ + offset, part by part.

    Logits are of the dtype; what is computed of them, and the gradients, are float32 where that has 16 bits.

    Args:
        features: (rows, features).
        weight: (classes, features).
        offset: (classes,), or None.
        dtype: of the products.
        wanted: whether the gradients by features, weight and offset are wanted.

    Attributes:
        rows: how many.
        classes: how many.
        is_wanted: whether any gradient is.
        gradients: of the parts that have gone back so far.
    """

    def __init__(
        self,
        features: Tensor,
        weight: Tensor,
        offset: Tensor | None,
        dtype: torch.dtype,
        wanted: tuple[bool, bool, bool],
    ) -> None:
        self._features, self._weight, self._offset = features.to(dtype), weight.to(dtype), offset
        self._exact = torch.promote_types(dtype, torch.float32)
        # float16 has too narrow a range for gradients: small ones vanish, sums overflow.
        self._back = self._exact if dtype == torch.float16 else dtype
        self._memory = self.new_empty(0)
        self._narrow = torch.empty_like(self._memory, dtype=dtype)
        (self.rows, columns), self.classes = features.shape, weight.shape[0]
        self.is_wanted = any(wanted)
        shapes = (self.rows, columns), (self.classes, columns), (self.classes,)
        self.gradients = Gradients(
            *(self.new_empty(*shape).zero_() if want else None for shape, want in zip(shapes, wanted, strict=True))
        )

    def new_empty(self, *shape: int) -> Tensor:
        """Memory on the device, float32 or wider."""
        return torch.empty(*shape, dtype=self._exact, device=self._weight.device)

    def row_parts(self) -> list[slice]:
        """Slices of rows, of all classes each."""
        return _parts(self.rows, slice_rows(self._weight, self._exact.itemsize))

    def class_parts(self) -> list[slice]:
        """Tiles of classes, of all rows each."""
        on_cpu = self._weight.device.type == "cpu"
        total = _TILE_BYTES * torch.get_num_threads() if on_cpu else _GPU_TILE_BYTES
        size = total // (self.rows * self._exact.itemsize)
        return _parts(self.classes, max(64, size - size % 64))

    def logits(self, *, rows: slice = _ALL, classes: slice = _ALL, anew: bool = False) -> Tensor:
        """The logits of a part, (its rows, its classes).

        Args:
            rows: a slice of them.
            classes: a slice of them.
            anew: whether they have memory of their own; else the next part takes it over.
        """
        inputs, weight = self._features[rows], self._weight[classes].t()
        offset = None if self._offset is None else self._offset[classes]
        shape = inputs.shape[0], weight.shape[1]
        if anew or len(self._memory) < shape[0] * shape[1]:
            memory = self.new_empty(shape[0] * shape[1])
            self._memory = self._memory if anew else memory
        else:
            memory = self._memory
        logits = memory[: shape[0] * shape[1]].view(shape)
        if self._features.dtype != self._exact:
            logits.copy_(torch.mm(inputs, weight, out=self._narrow_like(logits)))
            if offset is not None:
                logits.add_(offset)
        elif offset is None:
            torch.mm(inputs, weight, out=logits)
        else:
            torch.addmm(offset, inputs, weight, out=logits)
        return logits

    def go_back(self, by_logits: Tensor, *, rows: slice = _ALL, classes: slice = _ALL) -> None:
        """Adds the gradients of a part.

        Args:
            by_logits: the gradient by its logits.
            rows: of the part.
            classes: of the part.
        """
        exact, inputs, weight = by_logits, self._features[rows], self._weight[classes]
        if self._back != self._exact:
            by_logits = self._narrow_like(exact).copy_(exact)
        if self.gradients.features is not None:
            self._add(self.gradients.features[rows], by_logits, weight)
        if self.gradients.weight is not None:
            self._add(self.gradients.weight[classes], by_logits.t(), inputs)
        if self.gradients.offset is not None:
            self.gradients.offset[classes].add_(exact.sum(dim=0))

    def _add(self, total: Tensor, one: Tensor, other: Tensor) -> None:
        if one.dtype == total.dtype == other.dtype:
            total.addmm_(one, other)
        else:
            total.add_(one.mm(other.to(one.dtype)))

    def _narrow_like(self, logits: Tensor) -> Tensor:
        if len(self._narrow) < logits.numel():
            self._narrow = torch.empty(logits.numel(), dtype=self._narrow.dtype, device=logits.device)
        return self._narrow[: logits.numel()].view(logits.shape)


def slice_rows(weight: Tensor, itemsize: int) -> int:
    """How many rows' logits of all classes are held at a time.

    Matrix products are fastest in steps of 64 rows; so many are taken also where they need more than `SLICE_BYTES`, as
    long as they need no more than the weight itself, (classes, features).
    """
    classes, columns = weight.shape
    rows = SLICE_BYTES // (classes * itemsize)
    return rows - rows % 64 if rows >= 64 else max(1, rows, min(64, columns))


def blocks(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Parts of rows that stay in a core's cache while they are worked on, each with memory of its own shape.

    Args:
        logits: (rows, classes).
    """
    size = len(logits)  # a GPU gains nothing from blocks
    if logits.device.type == "cpu":
        threads = torch.get_num_threads()  # among which PyTorch shares out whole rows
        size = min(size, threads * max(1, _BLOCK_BYTES // logits[:1].nbytes))
    # One memory for all blocks: taking it from the system anew costs more than what is written there.
    memory = torch.empty_like(logits[:size])
    for part in _parts(len(logits), size):
        yield part, memory[: part.stop - part.start]


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
