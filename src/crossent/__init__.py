"""Crossent: softmax classifiers with PyTorch Lightning and Hydra.

Importing this package imports no torch; its modules do.
"""

__version__ = "0.1.0"
