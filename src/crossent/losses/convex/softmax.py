"""Costs by the probabilities of a softmax, of many classes or of two."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from crossent.losses.convex.base import Cast, ConvexCosts, OfRows, Visited, Which, smallest_lead


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
        self._targets = OfRows(targets.unsqueeze(0))
        self._constant = None if weights.constant is None else OfRows(weights.constant)
        share = share.to(torch.float64)
        self._added = None if added is None else Cast(added.to(torch.float64).unsqueeze(1))
        self._share = None if weights.mean_nll is None else Cast(share)
        self._minus_nll = OfRows(-weights.nll.unsqueeze(0))
        self._mean = None if weights.mean_nll is None else OfRows(weights.mean_nll)
        whole = weights.nll if weights.mean_nll is None else weights.nll + weights.mean_nll * share.sum()
        is_plain = weights.mean_nll is None and bool((weights.nll == 1).all())
        self._whole = None if is_plain else OfRows(whole)
        self.masses = torch.zeros_like(share).index_add_(0, targets, weights.nll)
        if weights.mean_nll is not None:
            self.masses += share * weights.mean_nll.sum()

    def visit(self, outputs: Tensor, rows: Which, state: Tensor) -> Visited:
        if self._added is not None:
            outputs += self._added.like(outputs)
        targets = self._targets.of(rows)
        logarithms = torch.log_softmax(outputs, 0, out=outputs)
        smallest = float(logarithms.amin()) if logarithms.numel() else 0.0
        costs = (logarithms.gather(0, targets) * self._minus_nll.of(rows)).sum()  # in double precision, as the weights
        if self._constant is not None:
            costs += self._constant.of(rows).sum()
        if self._share is not None and self._mean is not None:
            means = self._share.like(outputs) @ logarithms
            costs -= (means * self._mean.of(rows)).sum()
        torch.exp(logarithms, out=state)
        if self._whole is None:
            outputs.copy_(state)
        else:
            torch.mul(state, self._whole.of(rows, outputs), out=outputs)
        outputs.scatter_add_(0, targets, self._minus_nll.of(rows, outputs))
        if self._share is not None and self._mean is not None:
            outputs.addr_(self._share.like(outputs), self._mean.of(rows, outputs), alpha=-1)
        return Visited(costs, smallest)

    def bend(self, directions: Tensor, rows: Which, state: Tensor) -> None:
        directions.mul_(state)
        directions.addcmul_(state, directions.sum(0, keepdim=True), value=-1)
        if self._whole is not None:
            directions.mul_(self._whole.of(rows, directions))

    def second_derivatives(self, rows: Which, state: Tensor) -> Tensor:
        found = torch.addcmul(state, state, state, value=-1)
        return found if self._whole is None else found.mul_(self._whole.of(rows, state))

    def hessians(self, rows: Which, state: Tensor) -> Tensor:
        weighted = state if self._whole is None else state * self._whole.of(rows, state)
        found = weighted.unsqueeze(1) * -state.unsqueeze(0)
        found.diagonal(dim1=0, dim2=1).add_(weighted.t())
        return found

    def aim(self, rows: Which, state: Tensor, there: Tensor, lift: Tensor) -> tuple[Tensor, Tensor]:
        changed, left = _aim_softmax(state, there, lift, self.masses if self.levels else None)
        if self._whole is not None:
            whole = self._whole.of(rows, left)
            left, _ = left.mul_(whole), changed.mul_(whole)
        return changed, left.sum(dtype=torch.float64)

    def hessian_sum(self, rows: Which, state: Tensor) -> Tensor:
        weighted = state if self._whole is None else state * self._whole.of(rows, state)
        found = -(weighted @ state.t())
        found.diagonal().add_(weighted.sum(1))
        return found

    def level(self, slopes: Tensor, smallest: float) -> tuple[float, float]:
        return _level_softmax(slopes, self.masses / self.total, smallest)

    def leads(self, outputs: Tensor, rows: Which) -> Tensor:
        return smallest_lead(outputs, self._targets.of(rows))


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
        minus_signs = (1 - 2 * targets).to(torch.float64)
        self._minus_signs, self._weights = OfRows(minus_signs), OfRows(weights)
        self._minus_signed = OfRows(minus_signs * weights)
        self.masses = torch.zeros(2, dtype=torch.float64, device=targets.device).index_add_(0, targets, weights)

    def visit(self, outputs: Tensor, rows: Which, state: Tensor) -> Visited:
        (output,), (below, above) = outputs, state
        opposite = output * self._minus_signs.of(rows, output)
        largest = float(torch.linalg.vector_norm(output, torch.inf)) if len(output) else 0.0
        costs = torch.dot(torch.nn.functional.softplus(opposite).to(torch.float64), self._weights.of(rows))
        torch.sigmoid(output, out=above)
        torch.sigmoid(output.neg_(), out=below)
        torch.mul(opposite.sigmoid_(), self._minus_signed.of(rows, output), out=output)
        return Visited(costs, -largest - math.log(2))  # or a little more

    def bend(self, directions: Tensor, rows: Which, state: Tensor) -> None:
        directions.mul_(self.second_derivatives(rows, state))

    def second_derivatives(self, rows: Which, state: Tensor) -> Tensor:
        return (state[0] * state[1]).mul_(self._weights.of(rows, state)).unsqueeze(0)

    def hessians(self, rows: Which, state: Tensor) -> Tensor:
        return self.second_derivatives(rows, state).unsqueeze(0)

    def aim(self, rows: Which, state: Tensor, there: Tensor, lift: Tensor) -> tuple[Tensor, Tensor]:
        weights = self._weights.of(rows, state)
        masses = self.masses if self.levels else None
        changed, left = _aim_softmax(state, there, torch.cat([torch.zeros_like(lift), lift]), masses)
        return changed[1:].mul_(weights), left.mul_(weights).sum(dtype=torch.float64)

    def hessian_sum(self, rows: Which, state: Tensor) -> Tensor:
        return self.second_derivatives(rows, state).sum(1, keepdim=True)

    def level(self, slopes: Tensor, smallest: float) -> tuple[float, float]:
        return _level_softmax(torch.cat([-slopes, slopes]), self.masses / self.total, smallest)

    def leads(self, outputs: Tensor, rows: Which) -> Tensor:
        return -(outputs[0] * self._minus_signs.of(rows, outputs)).amax()


def _aim_softmax(softmax: Tensor, there: Tensor, lift: Tensor, masses: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a step aims at by its first order: q = p + p ∘ (u − ⟨p, u⟩) for logits that move by u, and KL(q ‖ p⁺).

    Where a probability of q would be below 0 it is 0, as are those of classes that no row has, and the others add up to
    1. The divergence is taken from above: (1 + e) log(1 + e) − e is at most e² / (2 + min(e, 0)), and as much to the
    third order.

    Args:
        softmax: p, (classes, rows).
        there: p⁺, behind the step, (classes, rows).
        lift: (classes,), which is added to u.
        masses: what the rows' targets add up to, (classes,); None: no class is left out.

    Returns:
        q − p, (classes, rows), and the divergences, (rows,).
    """
    tiny = torch.finfo(there.dtype).tiny  # which keeps probabilities that are 0 apart from no number
    aside = (there + tiny).div_(softmax + tiny).log_()  # u, but for what all logits of a row have in common
    aside += lift.unsqueeze(1)
    aside.sub_((softmax * aside).sum(0)).clamp_(min=-1)
    if masses is not None and not masses.all():
        aside[masses == 0] = -1
    surplus = (softmax * aside).sum(0)  # by what q adds up to more than 1
    changed = aside.sub_(surplus).div_(1 + surplus).mul_(softmax)
    aimed = softmax + changed
    scale = torch.minimum(aimed, there).add_(there).add_(tiny)
    divergence = aimed.sub_(there).square_().div_(scale).sum(0)
    return changed, divergence.nan_to_num_(nan=torch.inf, posinf=torch.inf)


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
