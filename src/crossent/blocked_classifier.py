"""The LightningModule of a classifier that takes several optimiser steps in one call of Lightning's."""

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from crossent.blocks import Block
from crossent.classifier import SoftmaxClassifier
from crossent.data.loader import Batch
from crossent.divergence import DivergedError
from crossent.losses import Cost
from crossent.losses.rows import Rows
from crossent.optim import bare_step
from crossent.processes import together

_STEPS_OF_RANKS = 64  # in a block, where ranks share the rows and nobody has said how many


class BlockedClassifier(SoftmaxClassifier):
    """Trains a head by a first-order optimiser, in blocks of steps, with gradients in closed form where there is one.

    Lightning calls `training_step` and `optimizer_step` as ever. The first only notes the batch, unless its gradient is
    accumulated for a later step; the second takes that step and those behind it that need not wait for another call.

    Args:
        most: steps a block, at most; None: as many as are worth it.
        arguments: those of `SoftmaxClassifier`.
    """

    def __init__(self, *arguments: Any, most: int | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._most = most
        self._block: Block | None = None  # under way
        # What a step's earlier batches have added up; Lightning clears the parameters' own after the first of them.
        self._gradients: list[Tensor | None] = []
        self._looked_at: tuple[Batch, Rows] | None = None

    @property
    @override
    def step(self) -> int:
        taken: int = self.trainer.global_step  # of a block, those of earlier calls
        return taken if self._block is None else taken + self._block.ahead

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.open_step.batch = batch
        if self._accumulates and self.trainer.fit_loop._should_accumulate():
            with torch.no_grad():
                self._differentiate(batch)
        return self.head.weight.new_zeros((), requires_grad=True)  # Lightning wants something to go back from

    @override
    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        assert optimizer_closure is not None
        optimizer_closure()
        last = self.open_step.batch
        assert last is not None
        taken: int = self.trainer.global_step
        most, wishes = self._most, lambda: any(self.open_step.wishes())
        if together.ranks() > 1:  # which have to agree, and have clocks of their own
            most, wishes = most or _STEPS_OF_RANKS, lambda: any(self.open_step.granted)
        block = self._block = Block(self.trainer, most, self.until, wishes)
        clip, how = self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
        update = bare_step(optimizer.optimizer)
        try:
            with torch.no_grad():
                for step, batches in enumerate(block.steps(last), start=taken):
                    self._details.begin_step(step)
                    self.open_step.evaluate = partial(self._evaluate_step, batches)
                    self.open_step()
                    if clip:
                        self.configure_gradient_clipping(optimizer.optimizer, clip, how)
                    update()
                    self._close_step(step)
        finally:
            block.settle()
            self._block = self._looked_at = None
        if self._is_last(step):
            self._end()

    @property
    def _accumulates(self) -> bool:
        several: bool = self.trainer.accumulate_grad_batches > 1
        return several

    def _evaluate_step(self, batches: Iterator[Batch]) -> None:
        """Finds the gradients of a step, to which earlier calls may have added those of its other batches."""
        for batch in batches:
            self.open_step.batch = batch
            self._differentiate(batch)
        self._gradients.clear()

    def _differentiate(self, batch: Batch) -> None:
        """Finds the cost of a batch, and adds its gradients to those of the step's batches before it."""
        head, step, alone = self.head, self.open_step, together.ranks() == 1
        weight, bias = head.weight, head.bias
        for parameter, gradient in zip(step.parameters, self._gradients or repeat(None), strict=False):
            parameter.grad = gradient
        rows = self._counting(batch)
        found = self.loss.mean_with_gradients(rows, weight, head.output_bias) if len(rows.targets) else None
        cost = Cost(found[0], rows.total) if found is not None else self._cost_for_autograd(batch)
        if alone and not math.isfinite(cost.mean.item()):
            raise self._diverged(f"the cost is {cost.mean.item()}")
        scale: Tensor | float | None = None
        if self._accumulates or not alone:
            scale = step.share(cost, self._penalty(), batch.global_rows, 1)
        else:
            step.add(cost, self._penalty(), 1, last=True)
        if found is None:
            with torch.enable_grad():
                (cost.mean if scale is None else cost.mean * scale).backward()
        else:
            _, by_weight, by_bias = found
            _add(weight, by_weight, scale)
            if bias is not None and by_bias is not None:
                _add(bias, by_bias.sum(0, keepdim=True) if head.has_shared_bias else by_bias, scale)
        if scale is None:  # else that comes once the gradients are added up
            self._regularize()
        if self._accumulates:
            self._gradients = [parameter.grad for parameter in step.parameters]

    def _counting(self, batch: Batch) -> Rows:
        """The rows of a batch that count; the batch of before is not looked at again."""
        held = self._looked_at
        if held is None or held[0] is not batch:
            features, weight = self._features(batch), self.head.weight
            held = self._looked_at = batch, self.loss.counting(features, batch.targets, batch.weights, weight)
        return held[1]

    def _cost_for_autograd(self, batch: Batch) -> Cost:
        with torch.enable_grad():
            return self._cost(batch)

    @override
    def _diverged(self, what: str) -> DivergedError:
        if self._block is not None:
            self._block.settle()
        return super()._diverged(what)


def _add(parameter: torch.nn.Parameter, gradient: Tensor, scale: Tensor | float | None) -> None:
    if scale is not None:
        gradient.mul_(scale)
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


# Lightning works out the arguments of training_step anew at every step, unless they are written down.
BlockedClassifier.training_step.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    BlockedClassifier.training_step
)
