"""What is done to features before they are used: missing ones are filled in, columns are brought to one scale."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# Numbers that are brought to double precision at a time: few, so that they stay in cache.
_SLICE_NUMBERS = 2**19


@dataclass(frozen=True)
class Standardization:
    """(x − mean) / scale, column by column; all (columns,), float64.

    Attributes:
        mean: what is taken off.
        scale: what the rest is divided by.
        fill: what stands for a missing value, which is NaN; None: none is missing.
    """

    mean: Tensor
    scale: Tensor
    fill: Tensor | None = None

    @classmethod
    def identity(cls, columns: int, fill: Tensor | None = None) -> Self:
        """Changes nothing but what is missing."""
        return cls(torch.zeros(columns, dtype=torch.float64), torch.ones(columns, dtype=torch.float64), fill)

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """That of the rows, (rows, columns), themselves."""
        moments = Moments(features.shape[1])
        moments.add(features)
        return cls(*moments.mean_and_scale())

    def __call__(self, features: Tensor, out: Tensor | None = None) -> Tensor:
        """Prepares (rows, columns), in the precision of the features.

        Args:
            features: what is to be prepared.
            out: where the result goes, which may be the features themselves; None: to memory of its own, unless
                nothing is to be done.
        """
        if self.fill is None and not self.mean.any() and bool((self.scale == 1).all()):
            return features
        prepared = torch.empty_like(features) if out is None else out
        rows = max(1, _SLICE_NUMBERS // max(1, features.shape[1]))
        for start in range(0, len(features), rows):
            part = slice(start, start + rows)
            exact = features[part].double()
            if self.fill is not None:
                exact = exact.where(~exact.isnan(), self.fill)
            prepared[part] = (exact - self.mean).div_(self.scale)  # exact may be the features themselves
        return prepared


class Moments:
    """Mean and scale of columns, from rows that come in parts; NaN counts for nothing.

    Parts are merged by the formula of Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing
    sample variances, 1979, which takes no difference of large numbers.

    Args:
        columns: how many.
    """

    def __init__(self, columns: int) -> None:
        self._count = torch.zeros(columns, dtype=torch.float64)
        self._mean = torch.zeros(columns, dtype=torch.float64)
        self._squares = torch.zeros(columns, dtype=torch.float64)  # Σ (x − mean)²
        self._rows = 0
        self._lowest = torch.full((columns,), torch.inf, dtype=torch.float64)
        self._highest = -self._lowest

    def add(self, rows: Tensor) -> None:
        """Takes in (rows, columns)."""
        if not len(rows):
            return
        exact = rows.double()
        lowest, highest = torch.aminmax(rows, dim=0)
        if lowest.isnan().any():  # of columns with a NaN
            missing = rows.isnan()
            count = (~missing).sum(0).double()
            mean = exact.nansum(0) / count.clamp(min=1)
            squares = (exact - mean).square().nansum(0)
            lowest, highest = (rows.where(~missing, sign * torch.inf) for sign in (1, -1))
            lowest, highest = lowest.amin(0), highest.amax(0)
        else:
            count = torch.full_like(self._count, len(exact))
            variance, mean = torch.var_mean(exact, dim=0, correction=0)
            squares = variance * len(exact)
        self._lowest, self._highest = self._lowest.minimum(lowest), self._highest.maximum(highest)
        total = (self._count + count).clamp(min=1)
        step = mean - self._mean
        self._mean += step * (count / total)
        self._squares += squares + step.square() * (self._count * count / total)
        self._count += count
        self._rows += len(exact)

    def constant(self) -> Tensor:
        """Which columns have one value alone, (columns,)."""
        return self._lowest >= self._highest

    def means(self) -> Tensor:
        """The mean of each column, (columns,); 0 where all are missing."""
        return self._mean

    def mean_and_scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (columns,) each; 0 and 1 for constant columns, which are left alone.

        A missing value counts as the mean of its column, which is what fills it in.
        """
        constant = self.constant()
        scale = (self._squares / max(1, self._rows)).sqrt()
        return self._mean.masked_fill(constant, 0.0), scale.masked_fill(constant, 1.0)
