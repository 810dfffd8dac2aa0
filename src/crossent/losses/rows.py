"""What losses are given beside the weights: the rows that count, and numbers of the classes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """The rows that count.

    Attributes:
        features: (rows, features).
        targets: (rows,), int64, from 0 to classes - 1.
        sample_weight: (rows,), or None: every row counts once.
        class_weight: (rows,), the weight of each row's class, or None: all classes weigh the same.
    """

    features: Tensor
    targets: Tensor
    sample_weight: Tensor | None
    class_weight: Tensor | None

    def at(self, part: slice) -> "Rows":
        """Some of the rows."""
        return Rows(*(None if each is None else each[part] for each in self))  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor | None:
        """(rows,), what a row's cost is multiplied by, or None for 1."""
        if self.sample_weight is None or self.class_weight is None:
            return self.class_weight if self.sample_weight is None else self.sample_weight
        return self.sample_weight * self.class_weight

    @property
    def total(self) -> Tensor | float:
        """The sum of the weights."""
        weight = self.weight
        return float(self.targets.shape[0]) if weight is None else weight.sum()

    def mean(self, weighted_costs: Tensor) -> Tensor:
        """The mean, a scalar, of costs that have been multiplied by the weights, (rows,)."""
        total = self.total
        return weighted_costs.sum() / nonzero(total) if isinstance(total, Tensor) else weighted_costs.mean()


def nonzero(total: Tensor | float) -> Tensor | float:
    """What to divide a sum by that is 0 where the sum of the weights is."""
    return total.where(total != 0, 1) if isinstance(total, Tensor) else total or 1.0


class PerClass:
    """Numbers of the classes, (classes,), kept in double precision and handed out as they are needed.

    No buffer of the module: its precision would change with the model's, and an Apple GPU has no double precision.
    """

    def __init__(self, values: Tensor | Sequence[float]) -> None:
        self._values = torch.as_tensor(values, dtype=torch.float64, device="cpu")
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __len__(self) -> int:
        return self._values.shape[0]

    def like(self, tensor: Tensor) -> Tensor:
        """The numbers, (classes,), on a tensor's device, in its precision or, where that is narrower, float32."""
        key = tensor.device, torch.promote_types(tensor.dtype, torch.float32)
        if key not in self._copies:
            with torch.inference_mode(False):  # or a first call while evaluating would spoil it for training
                self._copies[key] = self._values.to(*key)
        return self._copies[key]
