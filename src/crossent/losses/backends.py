"""What computes a row-statistics loss: with all logits at once, a slice of rows at a time, or with other ranks.

Every such loss goes through here, so what is exact and lean here is so for all of them. A backend computes the
statistics of rows, and the loss's formula does the rest.

``dense`` leaves going back to autograd, whose nodes cost less than ours where there are few logits. ``chunked`` finds
the gradient in the same pass as the cost, in closed form and in the memory of the slice, and hands it to autograd. That
takes the two matrix products that cannot be avoided (three where the features need a gradient, too). Where the classes
are split over ranks, `crossent.losses.split` does the same with messages in between.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.losses import split
from crossent.losses.products import Gradients, Products, blocks
from crossent.losses.rows import Rows, nonzero
from crossent.losses.statistics import go_back, take, take_by_softmax

if TYPE_CHECKING:
    from crossent.losses.row_losses import RowLoss

# `auto` takes slices from so many classes on, or from so many bytes of float32 logits on.
MANY_CLASSES = 8192
MANY_BYTES = 256 * 2**20
# So few classes are stored class by class: along a short last dimension log_softmax is ten times slower.
_FEW_CLASSES = 64


def mean(loss: "RowLoss", rows: Rows, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weighted mean of the rows' costs, a scalar, float32 or wider; autograd can go back through it.

    Args:
        loss: says how a row's cost follows from its statistics.
        rows: those that count; at least one.
        weight: (classes, features); of the classes that are here, where they are split.
        bias: (classes,), or None.
    """
    features, offset, device = rows.features, _offset(loss, bias, weight), weight.device.type
    name = choose(loss.backend, features.shape[0], weight.shape[0])
    by_weights = rows.sample_weight is not None and rows.sample_weight.requires_grad
    if by_weights and loss.shard is not None:
        raise ValueError("sample_weight requires a gradient, which is not found where classes are split")
    if name == "chunked" and (loss.learns or by_weights):
        name = "dense"  # the other finds gradients by features, weight and bias alone
    run = _dense if name == "dense" and loss.shard is None else _closed_form
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return run(loss, rows, weight, offset, dtype)
    if features.dtype != weight.dtype:
        raise ValueError(f"features are {features.dtype}, but the weight is {weight.dtype}")
    return run(loss, rows, weight, offset, weight.dtype)


def mean_of_outputs(loss: "RowLoss", rows: Rows, weight: Tensor) -> Tensor:
    """The weighted mean of the costs, a scalar, of rows whose ``features`` are their logits, (rows, classes)."""
    logits = rows.features
    added = _offset(loss, None, weight)  # what the loss adds by itself
    logits = logits if added is None else logits + added
    if loss.shard is not None:
        return rows.mean(loss.cost_of(split.take(loss, loss.shard, logits, rows.targets), rows))
    reads = loss.reading(logits).statistics
    return rows.mean(loss.cost_of(take(logits, rows.targets, 1, reads, loss.class_share(logits)), rows))


def choose(name: str, rows: int, classes: int) -> str:
    """What ``auto`` stands for with so many logits: ``dense`` or ``chunked``."""
    if name != "auto":
        return name
    return "chunked" if classes >= MANY_CLASSES or rows * classes * 4 > MANY_BYTES else "dense"


def mean_with_gradients(
    loss: "RowLoss", rows: Rows, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """What `mean` finds, and its gradients by weight and bias, without autograd, whose nodes cost more than few logits.

    None where that gains nothing: ``chunked`` does so anyway, and where classes are split, messages take longer. In 16
    bits, or with parameters of the loss's own, there is more to do than this.

    Args:
        loss: says how a row's cost follows from its statistics.
        rows: those that count; at least one.
        weight: (classes, features).
        bias: (classes,), or None.
    """
    features, targets, device = rows.features, rows.targets, weight.device.type
    is_dense = choose(loss.backend, features.shape[0], weight.shape[0]) == "dense" and loss.shard is None
    if not is_dense or loss.learns or weight.dtype.itemsize < 4 or torch.is_autocast_enabled(device):
        return None
    logits, dim = _logits(features, weight, _offset(loss, bias, weight))
    reads, is_nll = loss.reading(logits)
    if is_nll and rows.weight is None:
        logarithms = torch.log_softmax(logits, dim)
        mean = F.nll_loss(logarithms if dim else logarithms.t(), targets)
        share = 1 / targets.shape[0]
        slopes = logarithms.exp_().mul_(share).scatter_(dim, targets.unsqueeze(dim), -share, reduce="add")
    else:
        class_share = loss.class_share(logits)
        statistics = take(logits, targets, dim, reads, class_share)
        costs, by_statistics = loss.differentiated(statistics, rows)
        mean = rows.mean(costs)
        softmax, slopes = torch.softmax(logits, dim), logits
        out, probabilities = (slopes, softmax) if dim else (slopes.t(), softmax.t())
        go_back(out, probabilities, targets, statistics, by_statistics, class_share)
        slopes.div_(nonzero(rows.total))
    return mean, (slopes.t() if dim else slopes).mm(features), None if bias is None else slopes.sum(1 - dim)


def _dense(loss: "RowLoss", rows: Rows, weight: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    features, targets = rows.features, rows.targets
    if dtype.itemsize < 4:
        dim = _dim(weight)
        features, weight = features.to(dtype), weight.to(dtype)
        logits = (features.mm(weight.t()) if dim else weight.mm(features.t())).float()
        logits = logits if offset is None else logits + offset.unsqueeze(1 - dim)
    else:
        logits, dim = _logits(features, weight, offset)
    statistics, is_nll = loss.reading(logits)
    if is_nll and rows.weight is None:  # one node of autograd's, not four
        logarithms = torch.log_softmax(logits, dim)
        return F.nll_loss(logarithms if dim else logarithms.t(), targets)
    return rows.mean(loss.cost_of(take(logits, targets, dim, statistics, loss.class_share(logits)), rows))


def _dim(weight: Tensor) -> int:
    """Of the classes, in the logits."""
    return 0 if weight.shape[0] < _FEW_CLASSES else 1


def _logits(features: Tensor, weight: Tensor, offset: Tensor | None) -> tuple[Tensor, int]:
    """The logits, (rows, classes) or (classes, rows), and the dimension of the classes."""
    dim = _dim(weight)
    if dim:
        return F.linear(features, weight, offset), dim
    if offset is None:
        return weight.mm(features.t()), dim
    return torch.addmm(offset.unsqueeze(1), weight, features.t()), dim


def _offset(loss: "RowLoss", bias: Tensor | None, weight: Tensor) -> Tensor | None:
    """What is added to all rows' logits, (classes,): the bias, and what the loss itself adds."""
    added = loss.added(weight)
    if added is None:
        return bias
    added = added if loss.shard is None else added[loss.shard.part]
    return added if bias is None else added + bias


def _closed_form(loss: "RowLoss", rows: Rows, weight: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    mean: Tensor = _ClosedForm.apply(  # type: ignore[no-untyped-call]
        loss, rows, dtype, torch.is_grad_enabled(), rows.features, weight, offset
    )
    return mean


class _ClosedForm(torch.autograd.Function):
    """Cost and gradient without autograd.

    The gradients that the forward pass has found are scaled and handed out in place, without a copy. Whoever goes
    back a second time through the same graph, as gradcheck does, has them computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: "RowLoss",
        rows: Rows,
        dtype: torch.dtype,
        differentiate: bool,
        features: Tensor,
        weight: Tensor,
        offset: Tensor | None,
    ) -> Tensor:
        ctx.arguments = loss, rows._replace(features=features.new_empty(0)), dtype
        ctx.save_for_backward(features, weight, offset)
        wanted = ctx.needs_input_grad[4:] if differentiate else (False, False, False)
        costs, ctx.gradients = _find(loss, rows, weight, offset, dtype, wanted)
        return rows.mean(costs)

    @staticmethod
    def backward(ctx: Any, by_mean: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("backend=chunked: autograd cannot differentiate its gradient again; use dense")
        loss, rows, dtype = ctx.arguments
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            features, weight, offset = ctx.saved_tensors  # raises if they have been changed since
            rows = rows._replace(features=features)
            gradients = _find(loss, rows, weight, offset, dtype, ctx.needs_input_grad[4:])[1]
        by_sum = by_mean / nonzero(rows.total)
        return None, None, None, None, *(None if each is None else each.mul_(by_sum) for each in gradients)


def _find(
    loss: "RowLoss",
    rows: Rows,
    weight: Tensor,
    offset: Tensor | None,
    dtype: torch.dtype,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Gradients]:
    """The weighted costs, (rows,), and the gradients of their sum by features, weight and offset."""
    products = Products(rows.features, weight, offset, dtype, wanted)
    if loss.shard is not None:
        held = choose(loss.backend, products.rows, products.classes) == "dense"
        return split.find(loss, loss.shard, rows, products, held=held), products.gradients
    costs = products.new_empty(products.rows)
    for part in products.row_parts():
        logits = products.logits(rows=part)
        _visit(loss, logits, rows.at(part), products.is_wanted, costs[part])
        products.go_back(logits, rows=part)
    return costs, products.gradients


def _visit(loss: "RowLoss", logits: Tensor, rows: Rows, differentiate: bool, costs: Tensor) -> None:
    """Writes the weighted costs of rows, (rows,); their logits turn into the gradient by them, if it is wanted."""
    reads, share = loss.reading(logits).statistics, loss.class_share(logits)
    for part, softmax in blocks(logits):
        block, here = logits[part], rows.at(part)
        statistics = take_by_softmax(block, here.targets, reads, share, softmax)
        if differentiate:
            costs[part], slopes = loss.differentiated(statistics, here)
            go_back(block, softmax, here.targets, statistics, slopes, share)
        else:
            costs[part] = loss.cost_of(statistics, here)
