"""Optimisers and learning-rate schedules, by the names that the configuration takes."""

import inspect
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

from torch.nn import Parameter
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer, optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from crossent import config
from crossent.custom import make
from crossent.solvers import NewtonCG

__all__ = ["OptimizerFactory", "SchedulerFactory", "bare_step", "build_optimizer", "build_scheduler", "is_elementwise"]

#: Makes an optimiser of parameters.
OptimizerFactory = Callable[[Iterable[Parameter]], Optimizer]
#: Makes a schedule of an optimiser and the number of steps that the run will take.
SchedulerFactory = Callable[[Optimizer, int | float], LRScheduler | None]


def build_optimizer(chosen: config.AnyOptimizer, parameters: Iterable[Parameter]) -> Optimizer:
    """Makes the optimiser for the section ``optimizer`` of the configuration.

    Raises:
        UserError: a class of the user's own that cannot be made.
    """
    made = _build_optimizer(chosen, parameters)
    for group in made.param_groups:
        if group.get("foreach", False) is None and all(each.is_cpu for each in group["params"]):
            group["foreach"] = False  # as it is on a CPU anyway, but found out at every step for a twelfth of its time
    return made


def _build_optimizer(chosen: config.AnyOptimizer, parameters: Iterable[Parameter]) -> Optimizer:
    match chosen:
        case config.Sgd():
            return SGD(
                parameters,
                lr=chosen.lr,
                momentum=chosen.momentum,
                dampening=chosen.dampening,
                nesterov=chosen.nesterov,
                weight_decay=chosen.weight_decay,
            )
        case config.Adam():  # AdamW's section has the same keys
            kind = AdamW if isinstance(chosen, config.AdamW) else Adam
            return kind(
                parameters,
                lr=chosen.lr,
                betas=chosen.betas,
                eps=chosen.eps,
                amsgrad=chosen.amsgrad,
                weight_decay=chosen.weight_decay,
            )
        case config.Lbfgs():
            return LBFGS(
                parameters,
                lr=chosen.lr,
                max_iter=chosen.max_iter,
                max_eval=chosen.max_eval,
                tolerance_grad=chosen.tolerance_grad,
                tolerance_change=chosen.tolerance_change,
                history_size=chosen.history_size,
                line_search_fn=chosen.line_search_fn,
            )
        case config.NewtonCg():
            return NewtonCG(parameters, tol=chosen.tol, max_inner=chosen.max_inner)
        case config.Custom():
            return make("optimizer", chosen.class_path, chosen.arguments, Optimizer, parameters)


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether each weight's step depends on that weight alone, so that weights can be shared out among ranks.

    Those of PyTorch's are so but for a few that look at all of them or at matrices; a class of the user's own says so
    by an attribute ``elementwise = True``.
    """
    if type(optimizer).__module__.startswith("torch.optim"):
        return type(optimizer).__name__ not in ("LBFGS", "Muon", "Adafactor")
    return getattr(optimizer, "elementwise", False) is True


def bare_step(of: Optimizer) -> Callable[[], Any]:
    """The step of an optimiser of PyTorch's without what it is wrapped in, which takes longer than a small step itself.

    That is what a profiler sees of it, and hooks. Where there are some, or a schedule has put its own method in the
    place, it is the method as it stands. To be called with autograd switched off.
    """
    hooks = (
        of._optimizer_step_pre_hooks,
        of._optimizer_step_post_hooks,
        optimizer._global_optimizer_pre_hooks,
        optimizer._global_optimizer_post_hooks,
    )
    if any(hooks) or "step" in vars(of):
        return of.step
    return MethodType(inspect.unwrap(type(of).step), of)


def build_scheduler(chosen: config.AnyScheduler, optimizer: Optimizer, steps: int | float) -> LRScheduler | None:
    """Makes the schedule for the section ``scheduler``, to be stepped after every optimiser step; None for none.

    Args:
        chosen: the section.
        optimizer: whose learning rate it sets.
        steps: optimiser steps of the whole run; infinite where nobody knows, which is refused for `cosine`.

    Raises:
        UserError: a class of the user's own that cannot be made.
    """
    match chosen:
        case config.NoScheduler():
            return None
        case config.CosineScheduler():
            return CosineAnnealingLR(optimizer, T_max=chosen.steps or int(steps), eta_min=chosen.eta_min)
        case config.StepScheduler():
            return StepLR(optimizer, step_size=chosen.step_size, gamma=chosen.gamma)
        case config.Custom():
            return make("scheduler", chosen.class_path, chosen.arguments, LRScheduler, optimizer)
