"""Sources of rows, and how they become batches."""

from crossent.data.loader import Batch, BatchLoader, TrainLoader
from crossent.data.module import DataModule, build
from crossent.data.table import DataFacts, Source, Standardization, Table

__all__ = [
    "Batch",
    "BatchLoader",
    "DataFacts",
    "DataModule",
    "Source",
    "Standardization",
    "Table",
    "TrainLoader",
    "build",
]
