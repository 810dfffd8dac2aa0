"""The rows' features as a solver multiplies by them: centred, with a column of ones, part by part."""

from collections.abc import Iterator

import torch
from torch import Tensor

from crossent.data.ahead import in_order
from crossent.data.mapped import Features, Mapped
from crossent.processes import together

# Of all rows together, up to which they are kept ready in memory; more are made ready part by part, at every pass.
_READY_BYTES = 512 * 2**20
# Logits, and features, of a part: it is multiplied by twice, and is still in a cache the second time. A GPU wants more
# work at a time than its caches hold.
_PART_NUMBERS = {"cpu": 2**19, "cuda": 2**24}
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

    Attributes:
        shift: (features,), in double precision, what the features are shifted by; zeros without an intercept.
        features: how many.
        columns: how many, that of ones included.
        has_ones: whether parts have the column of ones; without it they are as wide as matrix products are fast at, and
            may be the features themselves, but its products are calls of their own.
        multiplied: the precision in which they are multiplied most, if that is known: only in that they are kept ready.
        passes: through all rows, so far.
    """

    def __init__(self, features: Features, outputs: int, *, intercept: bool) -> None:
        self._features = features
        self._intercept = intercept
        if intercept:  # by numbers that single precision holds
            self.shift = _means(features).float().double()
        else:
            self.shift = torch.zeros(features.shape[1], dtype=torch.float64, device=self.device)
        self._is_shifted = bool(self.shift.any())
        self.features = features.shape[1]
        self.columns = self.features + intercept
        numbers = _PART_NUMBERS.get(self.device.type, _PART_NUMBERS["cpu"])
        rows = max(_FEWEST_ROWS, min(numbers // outputs, 2 * numbers // self.columns))
        self.slices = [slice(start, min(start + rows, len(self))) for start in range(0, len(self), rows)]
        self._ready: dict[torch.dtype, list[tuple[slice, Tensor]]] = {}
        self.has_ones = intercept
        self.multiplied: torch.dtype | None = None
        self.passes = 0

    def __len__(self) -> int:
        return self._features.shape[0]

    @property
    def device(self) -> torch.device:
        """On which the parts are."""
        return torch.device("cpu") if isinstance(self._features, Mapped) else self._features.device

    @property
    def fits(self) -> bool:
        """Whether all parts stay in memory, in single precision."""
        return isinstance(self._features, Tensor) and len(self) * self.columns * 4 <= _READY_BYTES

    def weights(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A head's weight, (outputs, features), and bias, (outputs,), as the weights of these columns."""
        if not self._intercept:
            return weight.to(torch.float64, copy=True)
        found = weight.new_empty(len(weight), self.columns, dtype=torch.float64)
        centred, last = found.narrow(1, 0, self.features), found.select(1, self.features)
        torch.mv(centred.copy_(weight), self.shift, out=last)
        if bias is not None:
            last += bias
        return found

    def head(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weight, (outputs, features), and the bias, (outputs,), of a head, from the weights of these columns."""
        if not self._intercept:
            return weights, None
        weight = weights.narrow(1, 0, self.features)
        return weight, torch.addmv(weights.select(1, self.features), weight, self.shift, alpha=-1)

    def rounded(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """Weights of these columns as a head in a precision will hold them, in the memory of what is given."""
        if not self._intercept:
            return weights if dtype == weights.dtype else weights.copy_(weights.to(dtype))
        weight, bias = self.head(weights)
        assert bias is not None
        if dtype != weights.dtype:
            weight.copy_(weight.to(dtype))
            bias = bias.to(dtype)
        last = weights.select(1, self.features)
        torch.mv(weight, self.shift, out=last)
        last += bias
        return weights

    def parts(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Some rows at a time, and all columns of them, (rows, columns); valid until the next ones.

        Without the last one where `has_ones` is not set.
        """
        self.passes += 1
        if isinstance(self._features, Mapped):
            yield from self._from_file(self._features, dtype)
            return
        ready = self._ready.get(dtype)
        keeps = self.multiplied in (None, dtype) and len(self) * self.columns * dtype.itemsize <= _READY_BYTES
        if ready is None and keeps:
            whole = self._features
            if self.has_ones or self._is_shifted or dtype != whole.dtype:
                whole = self._new(len(self), dtype)
                for rows in self.slices:  # a part stays in a cache while it is shifted and rounded
                    self._prepared(self._features[rows], whole[rows])
            ready = self._ready[dtype] = [(rows, whole[rows]) for rows in self.slices]
        if ready is not None:
            yield from ready
            return
        memory = self._new(self.slices[0].stop if self.slices else 0, dtype)
        for rows in self.slices:
            yield rows, self._prepared(self._features[rows], memory[: rows.stop - rows.start])

    def is_ready(self, dtype: torch.dtype) -> bool:
        """Whether the parts of a precision stay valid."""
        return dtype in self._ready

    def take(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows with these indices, (n, columns)."""
        found = self._features.read(rows) if isinstance(self._features, Mapped) else self._features[rows]
        return self.with_ones(self._prepared(found, self._new(len(rows), dtype)))

    def with_ones(self, part: Tensor) -> Tensor:
        """All columns of some rows, (rows, columns)."""
        if self.has_ones or not self._intercept:
            return part
        return torch.cat([part, part.new_ones(len(part), 1)], 1)

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
        elif self._is_shifted and out.dtype == features.dtype:
            torch.sub(features, self.shift.to(features.dtype), out=out[:, :count])
        elif self._is_shifted:  # in one call it would take ten times as long
            out[:, :count] = features - self.shift.to(features.dtype)
        else:
            out[:, :count] = features
        if self.has_ones:
            out[:, count] = 1
        return out

    def _new(self, rows: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, self.features + self.has_ones, dtype=dtype, device=self.device)


def _means(features: Features) -> Tensor:
    """Of the columns over some of the rows, of all ranks, (features,), in double precision."""
    step = max(1, features.shape[0] // _SHIFT_ROWS)
    if isinstance(features, Mapped):
        found = features.read(torch.arange(0, features.shape[0], step))
    else:
        found = features[::step]
    sums, count = found.sum(0, dtype=torch.float64), float(len(found))
    if together.ranks() > 1:
        (count,) = together.add_up([sums], [count])
    return sums / max(count, 1.0)
