"""The notebook's toy set: eight rows, four features, three classes."""

import torch

from crossent.data.table import Table

_FEATURES = [
    [1, 2, 1, 1],
    [2, 1, 3, 2],
    [3, 1, 3, 4],
    [4, 1, 5, 5],
    [1, 7, 5, 5],
    [1, 2, 5, 6],
    [1, 6, 6, 6],
    [1, 7, 7, 7],
]
_TARGETS = [2, 2, 2, 1, 1, 1, 0, 0]


class Toy:
    """The notebook's rows, in its order."""

    def load(self) -> Table:
        """The eight rows."""
        return Table(
            features=torch.tensor(_FEATURES, dtype=torch.float32),
            targets=torch.tensor(_TARGETS),
            classes=("0", "1", "2"),
            columns=("x1", "x2", "x3", "x4"),
            labels="whole numbers",
        )
