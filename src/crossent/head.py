"""The linear layer of a softmax classifier: weight and bias."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossent.class_shard import ClassShard
from crossent.config import Bias, Init

_NOTEBOOK_SEED = 1
_DRAWN_AT_A_TIME = 2**20  # numbers


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
        shard: the classes that are here, where others are elsewhere; they begin with the very weights that they would
            have in a head of all classes.

    Attributes:
        weight: (outputs, features); of the classes that are here.
        bias: (outputs,), likewise; (1,) where shared, or None.
        shard: the classes that are here; all of them, unless other ranks have others.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        features: int,
        classes: int,
        outputs: int,
        *,
        bias: Bias,
        init: Init,
        seed: int,
        shard: ClassShard | None = None,
    ) -> None:
        super().__init__()
        self.shard = shard or ClassShard.whole(classes)
        outputs = outputs if shard is None else shard.classes
        self.weight = nn.Parameter(torch.zeros(outputs, features))
        biases = {"per_class": outputs, "shared": 1, "none": 0}[bias]
        self.bias = nn.Parameter(torch.zeros(biases)) if biases else None
        self._has_shared_bias = bias == "shared"
        if init != "zeros":
            self._draw(_after_notebooks_draws() if init == "notebook" else torch.Generator().manual_seed(seed))

    def _draw(self, generator: torch.Generator) -> None:
        """Draws weight and bias as torch.nn.Linear.reset_parameters does."""
        before, after = self.shard.first, self.shard.of - self.shard.part.stop
        if self.shard.is_whole:
            before = after = 0  # there may be one output for two classes
        features = self.weight.shape[1]
        _pass_over(before * features, generator)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        _pass_over(after * features, generator)
        if self.bias is None:
            return
        bound = 1 / math.sqrt(features)
        _pass_over(0 if self._has_shared_bias else before, generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    @property
    def has_shared_bias(self) -> bool:
        """Whether all classes have one bias together, and not each its own."""
        return self._has_shared_bias

    @property
    def sharded(self) -> dict[str, nn.Parameter]:
        """The parameters, by their names, of which other ranks have the parts of other classes."""
        if self.shard.is_whole:
            return {}
        shared = {"bias"} if self._has_shared_bias else set()
        return {name: each for name, each in self.named_parameters() if name not in shared}

    def own_part(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of the classes that are here, out of those of a head of all classes."""
        return {name: each[self.shard.part] if name in self.sharded else each for name, each in state.items()}

    @property
    def output_bias(self) -> Tensor | None:
        """The bias of every output, (outputs,), or None."""
        bias, outputs = self.bias, self.weight.shape[0]
        return bias if bias is None or bias.shape[0] == outputs else bias.expand(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """The logits of the classes that are here, (rows, classes), from features, (rows, features)."""
        return of_all_classes(F.linear(features, self.weight, self.output_bias), self.shard.classes)


def of_all_classes(outputs: Tensor, classes: int) -> Tensor:
    """The logits of all classes, (rows, classes), from a head's outputs, (rows, outputs)."""
    if outputs.shape[1] == classes:
        return outputs
    return torch.cat([torch.zeros_like(outputs), outputs], dim=1)  # softmax([0, d]) = [1 − sigmoid(d), sigmoid(d)]


def _pass_over(count: int, generator: torch.Generator) -> None:
    """Draws so many numbers for nothing: those of others."""
    memory = torch.empty(min(count, _DRAWN_AT_A_TIME))
    for start in range(0, count, _DRAWN_AT_A_TIME):
        memory[: count - start].uniform_(generator=generator)


def _after_notebooks_draws() -> torch.Generator:
    """A generator as far on as the notebook's when it initialises its module."""
    generator = torch.Generator().manual_seed(_NOTEBOOK_SEED)
    torch.rand(3, 5, generator=generator)
    torch.randint(5, (3,), generator=generator)
    return generator
