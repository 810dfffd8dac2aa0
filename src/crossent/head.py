"""The linear layer of a softmax classifier: weight and bias."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossent.config import Bias, Init

_NOTEBOOK_SEED = 1


class Head(nn.Module):
    """logits = features · weightᵀ + bias.

    Args:
        features: columns of the data.
        classes: how many classes are told apart.
        outputs: one a class, or 1 for two classes of which the first has the logit 0.
        bias: ``per_class``, one scalar ``shared`` by all outputs, or ``none``.
        init: ``default`` is torch.nn.Linear's, ``zeros``, or ``notebook``: Linear's, drawn after the notebook's two
            draws from its seed.
        seed: of the generator that ``default`` draws from; the global one is left alone.

    Attributes:
        weight: (outputs, features).
        bias: (outputs,), (1,) where shared, or None.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, features: int, classes: int, outputs: int, *, bias: Bias, init: Init, seed: int) -> None:
        super().__init__()
        self.classes = classes
        self.weight = nn.Parameter(torch.zeros(outputs, features))
        biases = {"per_class": outputs, "shared": 1, "none": 0}[bias]
        self.bias = nn.Parameter(torch.zeros(biases)) if biases else None
        if init != "zeros":
            self._draw(_after_notebooks_draws() if init == "notebook" else torch.Generator().manual_seed(seed))

    def _draw(self, generator: torch.Generator) -> None:
        """Draws weight and bias as torch.nn.Linear.reset_parameters does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight.shape[1])
            nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    @property
    def output_bias(self) -> Tensor | None:
        """The bias of every output, (outputs,), or None."""
        bias, outputs = self.bias, self.weight.shape[0]
        return bias if bias is None or bias.shape[0] == outputs else bias.expand(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """The logits of all classes, (rows, classes), from features, (rows, features)."""
        return of_all_classes(F.linear(features, self.weight, self.output_bias), self.classes)


def of_all_classes(outputs: Tensor, classes: int) -> Tensor:
    """The logits of all classes, (rows, classes), from a head's outputs, (rows, outputs)."""
    if outputs.shape[1] == classes:
        return outputs
    return torch.cat([torch.zeros_like(outputs), outputs], dim=1)  # softmax([0, d]) = [1 − sigmoid(d), sigmoid(d)]


def _after_notebooks_draws() -> torch.Generator:
    """A generator as far on as the notebook's when it initialises its module."""
    generator = torch.Generator().manual_seed(_NOTEBOOK_SEED)
    torch.rand(3, 5, generator=generator)
    torch.randint(5, (3,), generator=generator)
    return generator
