"""Costs by the probabilities of a softmax, of many classes or of two."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from crossent.losses.convex.base import Cast, ConvexCosts, Which, smallest_lead


class Weights(NamedTuple):
    """What a row's statistics count, each (rows,), in double precision.

    Attributes:
        nll: of the target's negative log-likelihood.
        mean_nll: of the mean over the classes; None: nothing.
        constant: what the cost has beside them; None: nothing.
    """

    nll: Tensor
    mean_nll: Tensor | None = None
    constant: Tensor | None = None


class SoftmaxCosts(ConvexCosts):
    """a_i · nll_i + b_i · mean_nll_i: cross entropy, with all that it can be given.

    That is A_i · logsumexp(z_i + added) − ⟨t_i, z_i⟩, whose conjugate is the negative entropy of a distribution q_i
    with A_i q_i − t_i = α_i; what is left of Fenchel's inequality is A_i · KL(q_i ‖ softmax(z_i)).

    Args:
        targets: (rows,), int64.
        weights: what the statistics count.
        share: (classes,), the classes' weights divided by their number; the mean's.
        added: (classes,), to all rows' logits; None: nothing.
        classes: how many.
        total: the sum of the rows' weights.
    """

    has_gauge = True

    def __init__(
        self, targets: Tensor, weights: Weights, share: Tensor, added: Tensor | None, classes: int, total: float
    ) -> None:
        self.outputs = self.states = classes
        self.total = total
        self.is_unbounded = weights.mean_nll is None
        self._targets = targets.unsqueeze(0)
        self._constant = weights.constant
        share = share.to(torch.float64)
        self._added = None if added is None else Cast(added.to(torch.float64).unsqueeze(1))
        self._share = None if weights.mean_nll is None else Cast(share)
        self._nll = Cast(weights.nll)
        self._mean = None if weights.mean_nll is None else Cast(weights.mean_nll)
        whole = weights.nll if weights.mean_nll is None else weights.nll + weights.mean_nll * share.sum()
        is_plain = weights.mean_nll is None and bool((weights.nll == 1).all())
        self._whole = None if is_plain else Cast(whole)
        self.masses = torch.zeros_like(share).index_add_(0, targets, weights.nll)
        if weights.mean_nll is not None:
            self.masses += share * weights.mean_nll.sum()

    def visit(self, outputs: Tensor, rows: Which, state: Tensor) -> tuple[Tensor, float]:
        if self._added is not None:
            outputs += self._added.like(outputs)
        targets, nll = self._targets[:, rows], self._nll.like(outputs)[rows]
        logarithms = torch.log_softmax(outputs, 0, out=outputs)
        smallest = float(logarithms.amin()) if logarithms.numel() else 0.0
        costs = -(logarithms.gather(0, targets).squeeze(0) * nll).sum(dtype=torch.float64)
        if self._constant is not None:
            costs += self._constant[rows].sum()
        if self._share is not None and self._mean is not None:
            means = self._share.like(outputs) @ logarithms
            costs -= (means * self._mean.like(outputs)[rows]).sum(dtype=torch.float64)
        torch.exp(logarithms, out=state)
        if self._whole is None:
            outputs.copy_(state)
        else:
            torch.mul(state, self._whole.like(outputs)[rows], out=outputs)
        outputs.scatter_add_(0, targets, -nll.unsqueeze(0))
        if self._share is not None and self._mean is not None:
            outputs.addr_(self._share.like(outputs), self._mean.like(outputs)[rows], alpha=-1)
        return costs, smallest

    def bend(self, directions: Tensor, rows: Which, state: Tensor) -> None:
        directions.mul_(state)
        directions.addcmul_(state, directions.sum(0, keepdim=True), value=-1)
        if self._whole is not None:
            directions.mul_(self._whole.like(directions)[rows])

    def second_derivatives(self, rows: Which, state: Tensor) -> Tensor:
        found = torch.addcmul(state, state, state, value=-1)
        return found if self._whole is None else found.mul_(self._whole.like(state)[rows])

    def hessians(self, rows: Which, state: Tensor) -> Tensor:
        weighted = state if self._whole is None else state * self._whole.like(state)[rows]
        found = weighted.unsqueeze(1) * -state.unsqueeze(0)
        found.diagonal(dim1=0, dim2=1).add_(weighted.t())
        return found

    def aim(self, directions: Tensor, rows: Which, state: Tensor) -> Tensor:
        left = _aim_softmax(directions, state, self.masses)
        if self._whole is not None:
            whole = self._whole.like(left)[rows]
            left, _ = left.mul_(whole), directions.mul_(whole)
        return left.sum(dtype=torch.float64)

    def hessian_sum(self, rows: Which, state: Tensor) -> Tensor:
        weighted = state if self._whole is None else state * self._whole.like(state)[rows]
        found = -(weighted @ state.t())
        found.diagonal().add_(weighted.sum(1))
        return found

    def level(self, slopes: Tensor, smallest: float) -> tuple[float, float]:
        return _level_softmax(slopes, self.masses / self.total, smallest)

    def leads(self, outputs: Tensor, rows: Which) -> Tensor:
        return smallest_lead(outputs, self._targets[:, rows])


class LogisticCosts(ConvexCosts):
    """weight_i · softplus(∓d_i), of one output d_i a row, the logit of class 1 over class 0.

    The conjugate is that of a softmax with two classes.

    Args:
        targets: (rows,), 0 or 1.
        weights: (rows,), of the costs.
        total: the sum of the rows' weights, which may be another.
    """

    is_unbounded = True
    has_gauge = False
    outputs, states = 1, 2

    def __init__(self, targets: Tensor, weights: Tensor, total: float) -> None:
        self.total = total
        self._signs = Cast((2 * targets - 1).to(torch.float64))
        self._weights = Cast(weights)
        self.masses = torch.zeros(2, dtype=torch.float64, device=targets.device).index_add_(0, targets, weights)

    def visit(self, outputs: Tensor, rows: Which, state: Tensor) -> tuple[Tensor, float]:
        signs, weights = self._signs.like(outputs)[rows], self._weights.like(outputs)[rows]
        lead = outputs[0] * signs
        largest = float(lead.abs().amax()) if lead.numel() else 0.0
        costs = -(torch.nn.functional.logsigmoid(lead) * weights).sum(dtype=torch.float64)
        torch.sigmoid(outputs[0].neg(), out=state[0])
        torch.sigmoid(outputs[0], out=state[1])
        torch.mul(torch.sigmoid(lead.neg_()), signs * -weights, out=outputs[0])
        return costs, -largest - math.log(2)  # or a little more

    def bend(self, directions: Tensor, rows: Which, state: Tensor) -> None:
        directions.mul_(self.second_derivatives(rows, state))

    def second_derivatives(self, rows: Which, state: Tensor) -> Tensor:
        return (state[0] * state[1]).mul_(self._weights.like(state)[rows]).unsqueeze(0)

    def hessians(self, rows: Which, state: Tensor) -> Tensor:
        return self.second_derivatives(rows, state).unsqueeze(0)

    def aim(self, directions: Tensor, rows: Which, state: Tensor) -> Tensor:
        both, weights = torch.cat([torch.zeros_like(directions), directions]), self._weights.like(state)[rows]
        left = _aim_softmax(both, state, self.masses)
        torch.mul(both[1], weights, out=directions[0])
        return left.mul_(weights).sum(dtype=torch.float64)

    def hessian_sum(self, rows: Which, state: Tensor) -> Tensor:
        return self.second_derivatives(rows, state).sum(1, keepdim=True)

    def level(self, slopes: Tensor, smallest: float) -> tuple[float, float]:
        return _level_softmax(torch.cat([-slopes, slopes]), self.masses / self.total, smallest)

    def leads(self, outputs: Tensor, rows: Which) -> Tensor:
        return (outputs[0] * self._signs.like(outputs)[rows]).amin()


def _aim_softmax(directions: Tensor, softmax: Tensor, masses: Tensor) -> Tensor:
    """KL(q ‖ p⁺) of each row, (rows,), q = p + p ∘ (u − ⟨p, u⟩) and p⁺ the softmax of logits that move by u.

    Where a probability of q would be below 0 it is 0, as are those of classes that no row has, and the others add up to
    1. Written in u alone, so that only small numbers are subtracted.

    Args:
        directions: u, (classes, rows); turns into q − p.
        softmax: p, (classes, rows).
        masses: what the rows' targets add up to, (classes,).
    """
    directions.sub_((softmax * directions).sum(0))
    moved = torch.log1p((softmax * torch.expm1(directions)).sum(0))  # by what logsumexp moves, beyond ⟨p, u⟩
    aside = directions.clamp(min=-1)
    if not masses.all():
        aside[masses == 0] = -1
    surplus = (softmax * aside).sum(0)  # by what q adds up to more than 1
    # KL of q, which adds up to 1 + surplus, and then of q / (1 + surplus)
    left = (softmax * (torch.special.xlog1py(1 + aside, aside) - (1 + aside) * directions)).sum(0)
    left = left / (1 + surplus) + moved - torch.log1p(surplus)
    torch.mul(softmax, aside.sub_(surplus).div_(1 + surplus), out=directions)
    divergence: Tensor = left.clamp_(min=0).nan_to_num_(nan=torch.inf, posinf=torch.inf)
    return divergence


def _level_softmax(slopes: Tensor, masses: Tensor, smallest: float) -> tuple[float, float]:
    """`ConvexCosts.level` of distributions, which are mixed with one distribution that is the same for all rows.

    KL is convex, and from a softmax whose smallest log-probability is l no distribution diverges by more than −l.

    Args:
        slopes: means over the rows of A q − t, (classes,).
        masses: of t, (classes,).
        smallest: log-probability of any row and class.
    """
    above = slopes.clamp(min=0)
    share = float((above / (masses + above).where(above > 0, 1)).max())
    if share >= 1:
        return math.inf, math.inf
    mass = float(masses.sum())
    return share * mass * -smallest, 2 * share * mass
