"""What a softmax and its losses compute, step by step, on numbers small enough to follow."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
import torch.nn.functional as F
import yaml
from msgspec.structs import replace
from torch import Tensor

from crossent import config, losses, plots
from crossent.checking import show
from crossent.composing import conf_directory
from crossent.errors import UserError
from crossent.losses.base import IGNORED
from crossent.losses.statistics import take

_SHOWN = 10  # numbers of a row, so that lines stay readable
_GAP = "logit of the target − the other logit"


def explain(chosen: config.ExplainConfig) -> None:
    """Prints the softmax and its losses on some rows, the limits of a number type, and draws the losses.

    Raises:
        UserError: a loss that does not fit the rows, or a picture that cannot be written.
    """
    logits, targets = _notebooks_batch()
    if chosen.logits is not None and chosen.targets is not None:
        logits, targets = torch.tensor(chosen.logits), torch.tensor(chosen.targets)
    sections = [chosen.loss] if chosen.loss is not None else [_default(kind) for kind in losses.LOSSES]
    if chosen.loss is not None:
        _build(chosen.loss, logits, targets)  # refuses, if at all, before anything is written
    if chosen.plot is not None:  # first, so that it is there also for a reader who leaves before the last line
        plots.save_losses(Path(chosen.plot), _GAP, *_against_the_gap(sections))
    if chosen.logits is None:
        _print_softmax(torch.tensor([1.0, 2.0, 3.0]))
        print("\nThe notebook's batch: torch.manual_seed(1), torch.rand(3, 5), torch.randint(5, (3,))")
    else:
        print(f"{len(logits)} row{'s' * (len(logits) != 1)} of {logits.shape[1]} logits")
    _print_steps(logits, targets)
    _print_losses(sections, logits, targets)
    _print_limits(chosen.dtype)
    if chosen.plot is not None:
        print(f"\ncost and gradient against the logit gap, one line a loss: {chosen.plot}")


def _notebooks_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 5, generator=generator), torch.randint(5, (3,), generator=generator)


def _print_softmax(logits: Tensor) -> None:
    probabilities = F.softmax(logits, dim=0)
    print("The softmax of three logits: exp(logit) / Σ exp(logits)\n")
    _print_row("logits", logits)
    _print_row("softmax", probabilities, f"   sum {probabilities.sum():.4f}")


def _print_steps(logits: Tensor, targets: Tensor) -> None:
    logarithms = F.log_softmax(logits, dim=1)
    one_hot = torch.zeros_like(logits).scatter_(1, targets.unsqueeze(1), 1)
    costs = (one_hot * -logarithms).sum(dim=1)
    for row in range(len(logits)):
        print(f"\nrow {row}, target {int(targets[row])}")
        _print_row("logits", logits[row])
        _print_row("softmax", logarithms[row].exp())
        _print_row("log softmax", logarithms[row])
        _print_row("one-hot", one_hot[row])
        _print_row("cost", costs[row : row + 1], "   −Σ one-hot · log softmax")
    print(f"\nmean cost  {costs.mean():.4f}")


def _print_losses(sections: Sequence[config.Loss], logits: Tensor, targets: Tensor) -> None:
    print("\nLosses: mean cost, cost of each row by itself, and gradient of the mean by the logits, row by row")
    for section in sections:
        name, options = _name(section), ", ".join(f"{key}={show(value)}" for key, value in _options(section).items())
        print(f"\n{name}{f' ({options})' if options else ''}")
        try:
            loss = _build(section, logits, targets)
        except UserError as error:
            print(f"  {str(error).removeprefix(f'loss={name}: ').split(';')[0]}")
            continue
        inputs = _inputs(loss, logits)
        mean = loss(inputs, torch.eye(inputs.shape[1]), None, targets).mean
        (gradient,) = torch.autograd.grad(mean, inputs)
        _print_row("mean cost", mean.detach().unsqueeze(0))
        _print_row("cost", torch.tensor([_cost(loss, inputs[row], targets[row]) for row in range(len(inputs))]))
        for row in range(len(gradient)):
            _print_row(f"gradient {row}", gradient[row])


def _build(section: config.Loss, logits: Tensor, targets: Tensor) -> losses.Loss:
    loss = losses.build(section, torch.bincount(targets, minlength=logits.shape[1]).tolist())
    loss.outputs(logits.shape[1])  # refuses classes that it is not made for
    return loss


def _inputs(loss: losses.Loss, logits: Tensor) -> Tensor:
    """What the head's outputs are to be for these logits, (rows, outputs): for one output, their difference."""
    outputs = loss.outputs(logits.shape[1])
    logits = logits if outputs == logits.shape[1] else logits[:, 1:] - logits[:, :1]
    return logits.clone().requires_grad_()


def _cost(loss: losses.Loss, outputs: Tensor, target: Tensor) -> float:
    """The cost of one row."""
    with torch.no_grad():
        return float(loss(outputs.unsqueeze(0), torch.eye(len(outputs)), None, target.unsqueeze(0)).mean)


def _print_limits(dtype: str) -> None:
    print(f"\nFrom which gap between two logits on each way of writing the cross entropy breaks, in {dtype}\n")
    print(f"  {'':38}{'gradient':>10}{'cost':>10}{'right row,':>12}")
    print(f"  {'':38}{'NaN':>10}{'inf':>10}{'cost NaN':>12}")
    for name, cost in _WAYS.items():
        found = limits(cost, getattr(torch, dtype))
        shown = ["never" if gap is None else f"{gap:g}" for gap in found]
        print(f"  {name:38}{shown[0]:>10}{shown[1]:>10}{shown[2]:>12}")
    print(
        "\n  One probability of the softmax becomes 0, so its logarithm is −inf: a wrong row costs inf, and in a right"
        "\n  row the other class adds 0 · −inf, which is not a number. The other ways never take that logarithm."
    )


class Limits(NamedTuple):
    """The gaps between two logits from which on a way of writing the loss breaks; None: at none that was tried.

    Attributes:
        gradient: of a wrong row is NaN.
        cost: of a wrong row is infinite.
        right: the cost of a right row is NaN.
    """

    gradient: float | None
    cost: float | None
    right: float | None


def limits(cost: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> Limits:
    """Finds the limits, trying gaps 0.25 apart up to 1000, then powers of 2 up to the largest of the number type.

    Args:
        cost: the cost of each row, (rows,), from logits, (rows, 2), and targets, (rows,).
        dtype: of the logits.
    """
    largest = torch.finfo(dtype).max
    gaps = [step / 4 for step in range(4001)] + [2.0**power for power in range(10, 1024)]
    gaps = [gap for gap in gaps if gap <= largest]
    apart = torch.tensor(gaps, dtype=torch.float64).to(dtype)
    zeros, targets = torch.zeros_like(apart), torch.zeros(len(gaps), dtype=torch.int64)
    wrong = torch.stack([zeros, apart], dim=1).requires_grad_()
    costs = cost(wrong, targets)
    (gradient,) = torch.autograd.grad(costs.sum(), wrong)
    right = cost(torch.stack([apart, zeros], dim=1), targets)

    def first(broken: Tensor) -> float | None:
        return gaps[int(broken.nonzero()[0])] if broken.any() else None

    return Limits(first(gradient.isnan().any(dim=1)), first(costs.isinf()), first(right.isnan()))


def _crossents(logits: Tensor, targets: Tensor) -> Tensor:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    statistics = take(exact, targets, 1, frozenset(), None)
    return losses.CrossEntropy().cost(statistics)


_WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "one_hot: −log(softmax) by hand": losses.OneHot().cost,
    "nll: nll_loss(log_softmax)": losses.NegativeLogLikelihood().cost,
    "torch.nn.functional.cross_entropy": lambda logits, targets: F.cross_entropy(logits, targets, reduction="none"),
    "cross_entropy of Crossent": _crossents,
}


def _against_the_gap(sections: Sequence[config.Loss]) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Gaps, (points,), and by loss the cost and its slope there, (points,) each, of a row of two classes, target 1."""
    gaps = torch.linspace(-8, 8, 161)
    logits, target = torch.stack([torch.zeros_like(gaps), gaps], dim=1), torch.tensor(1)
    curves = {}
    for section in sections:
        loss = losses.build(replace(section, class_weight=None, ignore_index=IGNORED), [1, 1])
        inputs = _inputs(loss, logits)
        mean = loss(inputs, torch.eye(inputs.shape[1]), None, target.expand(len(gaps))).mean
        (gradient,) = torch.autograd.grad(mean, inputs)
        costs = torch.tensor([_cost(loss, row, target) for row in inputs])
        # Only the gap matters to a loss, so this is the slope along it also where both logits could move.
        curves[_name(section)] = costs, gradient[:, -1] * len(gaps)
    return gaps, curves


def _default(kind: type[config.Loss]) -> config.Loss:
    """A loss as conf/ has it."""
    folder = conf_directory()
    values: dict[str, object] = yaml.safe_load((folder / "loss_options.yaml").read_text())
    values |= yaml.safe_load((folder / "loss" / f"{kind.__struct_config__.tag}.yaml").read_text())
    values.pop("defaults")
    return msgspec.convert(values, kind)


def _name(section: config.Loss) -> str:
    return section.class_path if isinstance(section, config.CustomLoss) else str(section.__struct_config__.tag)


def _options(section: config.Loss) -> dict[str, object]:
    """What is the loss's own, of what it has."""
    if isinstance(section, config.CustomLoss):
        return section.arguments
    common = {field.name for field in msgspec.structs.fields(config.Loss)}
    return {key: value for key, value in msgspec.structs.asdict(section).items() if key not in common}


def _print_row(name: str, numbers: Tensor, note: str = "") -> None:
    shown = "".join(f"{float(number):10.4f}" for number in numbers[:_SHOWN])
    more = f"   … {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    print(f"  {name:<12}{shown}{more}{note}")
