"""Sources of rows, and how they become batches.

What a source of one's own needs is here by name; it is imported when it is asked for, since predicting needs none of
it, nor the PyTorch that it brings along.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossent.data.facts import Column, DataFacts
    from crossent.data.loader import Batch, BatchLoader, TrainLoader
    from crossent.data.mapped import Mapped
    from crossent.data.module import DataModule
    from crossent.data.standardization import Standardization
    from crossent.data.table import Source, Table

_MODULES = {
    "Batch": "loader",
    "BatchLoader": "loader",
    "Column": "facts",
    "DataFacts": "facts",
    "DataModule": "module",
    "Mapped": "mapped",
    "Source": "table",
    "Standardization": "standardization",
    "Table": "table",
    "TrainLoader": "loader",
}

__all__ = [
    "Batch",
    "BatchLoader",
    "Column",
    "DataFacts",
    "DataModule",
    "Mapped",
    "Source",
    "Standardization",
    "Table",
    "TrainLoader",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
