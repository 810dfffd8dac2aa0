"""The data sets that scikit-learn brings along."""

from typing import Literal

import torch

from crossent.data.table import Table


class Bundled:
    """One of scikit-learn's own sets, read from its package; nothing is downloaded.

    Args:
        name: iris (150 × 4, 3 classes), wine (178 × 13, 3), digits (1797 × 64, 10) or breast_cancer (569 × 30, 2).
    """

    def __init__(self, name: Literal["iris", "wine", "digits", "breast_cancer"]) -> None:
        self.name = name

    def load(self) -> Table:
        """All rows of the set, in its order."""
        from sklearn import datasets  # an extra: checking.py has seen that it is there

        bunch = getattr(datasets, f"load_{self.name}")()
        return Table(
            features=torch.as_tensor(bunch.data, dtype=torch.float32),
            targets=torch.as_tensor(bunch.target, dtype=torch.int64),
            classes=tuple(str(name) for name in bunch.target_names),
            columns=tuple(str(name) for name in bunch.feature_names),
            labels="texts" if bunch.target_names.dtype.kind == "U" else "whole numbers",
        )
