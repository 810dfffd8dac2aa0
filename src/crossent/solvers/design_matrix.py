"""The rows' features as a solver multiplies by them: centred, with a column of ones, part by part."""

from collections.abc import Iterator

import torch
from torch import Tensor

from crossent.data.ahead import in_order
from crossent.data.mapped import Features, Mapped

# Of all rows together, up to which they are kept ready in memory; more are made ready part by part, at every pass.
_READY_BYTES = 512 * 2**20
# Logits, and features, of a part: it is multiplied by twice, and is still in a cache the second time.
_PART_NUMBERS = 2**19
_FEWEST_ROWS = 256
# Features of a file that are read at a time.
_WINDOW_BYTES = 32 * 2**20
# Rows that say by how much the columns are shifted.
_SHIFT_ROWS = 10_000


class DesignMatrix:
    """Features and a column of ones, (rows, columns), which is never made as a whole where that is large.

    With an intercept the features are shifted by about their means, so that the column of ones is nearly at right
    angles to them: an intercept takes up any shift.

    Args:
        features: (rows, features), in memory or in a file.
        outputs: of each row, which say how many rows make a part.
        intercept: whether there is a column of ones, the last one.
        shift: (features,), in double precision, what the features are shifted by; zeros without an intercept.

    Attributes:
        columns: how many, that of ones included.
        passes: through all rows, so far.
    """

    def __init__(self, features: Features, outputs: int, *, intercept: bool, shift: Tensor) -> None:
        self._features = features
        self._intercept = intercept
        self.shift = shift
        self._is_shifted = bool(shift.any())
        self.columns = features.shape[1] + intercept
        rows = max(_FEWEST_ROWS, min(_PART_NUMBERS // outputs, 2 * _PART_NUMBERS // self.columns))
        self.slices = [slice(start, min(start + rows, len(self))) for start in range(0, len(self), rows)]
        self._ready: dict[torch.dtype, Tensor] = {}
        self.passes = 0

    def __len__(self) -> int:
        return self._features.shape[0]

    @property
    def device(self) -> torch.device:
        """On which the parts are."""
        return torch.device("cpu") if isinstance(self._features, Mapped) else self._features.device

    def parts(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Some rows at a time, and all columns of them, (rows, columns); valid until the next ones."""
        self.passes += 1
        if isinstance(self._features, Mapped):
            yield from self._from_file(self._features, dtype)
            return
        ready = self._ready.get(dtype)
        if ready is None and len(self) * self.columns * dtype.itemsize <= _READY_BYTES:
            if self._intercept or self._is_shifted or dtype != self._features.dtype:
                ready = self._prepared(self._features, self._new(len(self), dtype))
            else:
                ready = self._features
            self._ready[dtype] = ready
        if ready is not None:
            for rows in self.slices:
                yield rows, ready[rows]
            return
        memory = self._new(self.slices[0].stop if self.slices else 0, dtype)
        for rows in self.slices:
            yield rows, self._prepared(self._features[rows], memory[: rows.stop - rows.start])

    def take(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows with these indices, (n, columns)."""
        found = self._features.read(rows) if isinstance(self._features, Mapped) else self._features[rows]
        return self._prepared(found, self._new(len(rows), dtype))

    def _from_file(self, features: Mapped, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """While a window is worked on, a thread reads the next."""
        if not self.slices:
            return
        part = self.slices[0].stop
        count = max(1, _WINDOW_BYTES // (4 * part * features.shape[1]))  # of parts in a window
        windows = [self.slices[start : start + count] for start in range(0, len(self.slices), count)]
        memory = self._new(part, dtype)

        def read(index: int) -> Tensor:
            return features[windows[index][0].start : windows[index][-1].stop]

        for window, found in zip(windows, in_order(read, range(len(windows)), threads=1), strict=True):
            first = window[0].start
            for rows in window:
                there = found[rows.start - first : rows.stop - first]
                yield rows, self._prepared(there, memory[: rows.stop - rows.start])

    def _prepared(self, features: Tensor, out: Tensor) -> Tensor:
        count = features.shape[1]
        if self._is_shifted and out.dtype == torch.float64:
            torch.sub(features, self.shift, out=out[:, :count])
        elif self._is_shifted:
            torch.sub(features, self.shift.to(features.dtype), out=out[:, :count])
        else:
            out[:, :count] = features
        if self._intercept:
            out[:, count] = 1
        return out

    def _new(self, rows: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, self.columns, dtype=dtype, device=self.device)


def column_sums(features: Features) -> Tensor:
    """The sums of the columns over some of the rows, and how many these are, (features + 1,), in double precision."""
    step = max(1, features.shape[0] // _SHIFT_ROWS)
    rows = torch.arange(0, features.shape[0], step)
    found = features.read(rows) if isinstance(features, Mapped) else features[::step]
    return torch.cat([found.sum(0, dtype=torch.float64), found.new_tensor([len(found)], dtype=torch.float64)])
