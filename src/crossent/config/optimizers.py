"""The groups ``optimizer`` and ``scheduler``."""

from typing import Literal

from crossent.config.types import AtLeastOne, Custom, NonNegative, Positive, ProperShare, Section, Tolerance


class Sgd(Section, tag="sgd"):
    lr: Positive
    momentum: NonNegative
    dampening: NonNegative
    nesterov: bool
    weight_decay: NonNegative

    def __post_init__(self) -> None:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov=true needs momentum above 0 and dampening=0")


class Adam(Section, tag="adam"):
    lr: Positive
    betas: tuple[ProperShare, ProperShare]
    eps: NonNegative
    amsgrad: bool
    weight_decay: NonNegative


class AdamW(Adam, tag="adamw"):
    pass


class Lbfgs(Section, tag="lbfgs"):
    lr: Positive
    max_iter: AtLeastOne
    max_eval: AtLeastOne | None
    tolerance_grad: NonNegative
    tolerance_change: NonNegative
    history_size: AtLeastOne
    line_search_fn: Literal["strong_wolfe"] | None


class NewtonCg(Section, tag="newton_cg"):
    tol: Tolerance
    max_inner: AtLeastOne


AnyOptimizer = Sgd | Adam | AdamW | Lbfgs | NewtonCg | Custom


class NoScheduler(Section, tag="none"):
    pass


class CosineScheduler(Section, tag="cosine"):
    steps: AtLeastOne | None
    eta_min: NonNegative


class StepScheduler(Section, tag="step"):
    step_size: AtLeastOne
    gamma: Positive


AnyScheduler = NoScheduler | CosineScheduler | StepScheduler | Custom
