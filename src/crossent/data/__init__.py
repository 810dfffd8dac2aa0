"""Sources of rows, and how they become batches."""

from crossent.data.building import build
from crossent.data.loader import Batch, BatchLoader, TrainLoader
from crossent.data.module import DataModule
from crossent.data.standardization import Standardization
from crossent.data.table import Column, DataFacts, Source, Table

__all__ = [
    "Batch",
    "BatchLoader",
    "Column",
    "DataFacts",
    "DataModule",
    "Source",
    "Standardization",
    "Table",
    "TrainLoader",
    "build",
]
