"""Rows of which it is known how well they can be told apart at best."""

import math

import torch
from torch import Tensor

from crossent.data.mapped import Mapped
from crossent.data.storage import InMemory, allocate, stays_in_memory
from crossent.data.table import Table

# Logits of the teacher that are in memory at a time.
_LOGITS = 2**24
_ROUNDS = 20  # of fitting the classes' frequencies
_SAMPLE_ROWS = 4096


class Synthetic:
    """Gaussian features, and classes drawn by a linear teacher.

    The class of a row is the largest of the teacher's logits, each with standard Gumbel noise added. So its
    probabilities are the softmax of the logits (Gumbel, Statistical Theory of Extreme Values, 1954; Maddison et al.,
    A* Sampling, 2014), a softmax classifier can be exactly right, and nobody can be right more often, on average, than
    the mean of the largest probabilities.

    Args:
        rows: how many.
        features: columns, each drawn from the standard normal distribution.
        classes: how many.
        signal: standard deviation of the teacher's logits: 0 is noise alone.
        zipf: s, 0 or more: class k has about a frequency in proportion to k^−s; 0: all classes are as frequent.
        seed: of teacher and rows.
        in_memory: whether the features are held in memory; ``auto`` goes by their number.
    """

    def __init__(
        self,
        rows: int = 10_000,
        features: int = 20,
        classes: int = 5,
        *,
        signal: float = 3.0,
        zipf: float = 0.0,
        seed: int = 0,
        in_memory: InMemory = "auto",
    ) -> None:
        self._rows, self._features, self._classes = rows, features, classes
        self._signal = signal
        self._zipf = zipf
        self._seed = seed
        self._in_memory = in_memory

    def load(self) -> Table:
        """Draws all rows."""
        generator = torch.Generator().manual_seed(self._seed)
        scale = self._signal / math.sqrt(self._features)
        weight = torch.randn(self._classes, self._features, generator=generator) * scale
        bias = self._bias(weight, generator)
        in_memory = stays_in_memory(self._in_memory, self._rows, self._features)
        features = allocate(self._rows, self._features, in_memory=in_memory)
        targets = torch.empty(self._rows, dtype=torch.int64)
        best, step = 0.0, max(1, _LOGITS // max(self._classes, self._features))
        for start in range(0, self._rows, step):
            part = slice(start, min(start + step, self._rows))
            drawn = torch.randn(part.stop - start, self._features, generator=generator)
            logits = torch.addmm(bias, drawn, weight.t())
            best += float(logits.softmax(1).amax(1).double().sum())
            # −log of a standard exponential is Gumbel's distribution.
            noise = torch.empty_like(logits).exponential_(generator=generator).log_()
            targets[part] = (logits - noise).argmax(1)
            features[part] = drawn.numpy()
        return Table(
            torch.from_numpy(features) if in_memory else Mapped(features),
            targets,
            tuple(str(label) for label in range(self._classes)),
            tuple(f"x{column}" for column in range(self._features)),
            labels="whole numbers",
            best_accuracy=best / self._rows,
        )

    def _bias(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """The teacher's bias, (classes,), with which the classes are as frequent as asked for."""
        wanted = torch.arange(1, self._classes + 1, dtype=torch.float64).pow(-self._zipf)
        wanted = (wanted / wanted.sum()).log()
        bias = wanted.float()
        rows = max(64, min(_SAMPLE_ROWS, _LOGITS // self._classes))
        logits = torch.randn(rows, self._features, generator=generator) @ weight.t()
        for _ in range(_ROUNDS):
            found = (logits + bias).log_softmax(1).double().logsumexp(0) - math.log(rows)
            bias = bias + (wanted - found).float()
        return bias
