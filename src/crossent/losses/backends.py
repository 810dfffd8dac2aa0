"""What computes a row-statistics loss: with all logits at once, or a slice of rows at a time.

Every such loss goes through here, so what is exact and lean here is so for all of them. A backend computes the
statistics of rows, and the loss's formula does the rest.

``dense`` leaves going back to autograd, whose nodes cost less than ours where there are few logits. ``chunked`` finds
the gradient in the same pass as the cost, in closed form and in the memory of the slice, and hands it to autograd. That
takes the two matrix products that cannot be avoided (three where the features need a gradient, too).
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.losses.base import Rows, nonzero
from crossent.losses.statistics import go_back, take, take_by_softmax

if TYPE_CHECKING:
    from crossent.losses.row_losses import RowLoss

# `auto` takes slices from so many classes on, or from so many bytes of float32 logits on.
MANY_CLASSES = 8192
MANY_BYTES = 256 * 2**20
# The logits of a slice. Less would make the matrix products slower, which read all weights for every slice.
SLICE_BYTES = 100 * 2**20
# The logits of a block, for each thread: what is done to them row by row is done while they are in a core's cache.
_BLOCK_BYTES = 2 * 2**20
# So few classes are stored class by class: along a short last dimension log_softmax is ten times slower.
_FEW_CLASSES = 64


def mean(loss: "RowLoss", rows: Rows, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weighted mean of the rows' costs, a scalar, float32 or wider; autograd can go back through it.

    Args:
        loss: says how a row's cost follows from its statistics.
        rows: those that count; at least one.
        weight: (classes, features).
        bias: (classes,), or None.
    """
    features, offset, device = rows.features, loss.offset(bias, weight), weight.device.type
    name = choose(loss.backend, features.shape[0], weight.shape[0])
    if name == "chunked" and (loss.learns or (rows.sample_weight is not None and rows.sample_weight.requires_grad)):
        name = "dense"  # the other finds gradients by features, weight and bias alone
    run = _dense if name == "dense" else _chunked
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
    added = loss.offset(None, weight)  # what the loss adds by itself
    logits = logits if added is None else logits + added
    reads = loss.reading(logits).statistics
    return rows.mean(loss.cost_of(take(logits, rows.targets, 1, reads, loss.class_share(logits)), rows))


def choose(name: str, rows: int, classes: int) -> str:
    """What ``auto`` stands for with so many logits: ``dense`` or ``chunked``."""
    if name != "auto":
        return name
    return "chunked" if classes >= MANY_CLASSES or rows * classes * 4 > MANY_BYTES else "dense"


def _dense(loss: "RowLoss", rows: Rows, weight: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    features, targets = rows.features, rows.targets
    dim = 0 if weight.shape[0] < _FEW_CLASSES else 1
    if dtype.itemsize < 4:
        features, weight = features.to(dtype), weight.to(dtype)
        logits = (features.mm(weight.t()) if dim else weight.mm(features.t())).float()
        logits = logits if offset is None else logits + offset.unsqueeze(1 - dim)
    elif dim:
        logits = F.linear(features, weight, offset)
    elif offset is None:
        logits = weight.mm(features.t())
    else:
        logits = torch.addmm(offset.unsqueeze(1), weight, features.t())
    statistics, is_nll = loss.reading(logits)
    if is_nll and rows.weight is None:  # one node of autograd's, not four
        logarithms = torch.log_softmax(logits, dim)
        return F.nll_loss(logarithms if dim else logarithms.t(), targets)
    return rows.mean(loss.cost_of(take(logits, targets, dim, statistics, loss.class_share(logits)), rows))


def _chunked(loss: "RowLoss", rows: Rows, weight: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    mean: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
        loss, rows, dtype, torch.is_grad_enabled(), rows.features, weight, offset
    )
    return mean


class _Gradients(NamedTuple):
    """By features, (rows, features), weight, (classes, features), and offset, (classes,); None where not wanted."""

    features: Tensor | None
    weight: Tensor | None
    offset: Tensor | None


class _Chunked(torch.autograd.Function):
    """A slice of rows at a time.

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
        costs, ctx.gradients = _in_slices(loss, rows, weight, offset, dtype, wanted)
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
            gradients = _in_slices(loss, rows, weight, offset, dtype, ctx.needs_input_grad[4:])[1]
        by_sum = by_mean / nonzero(rows.total)
        return None, None, None, None, *(None if each is None else each.mul_(by_sum) for each in gradients)


def _in_slices(
    loss: "RowLoss",
    rows: Rows,
    weight: Tensor,
    offset: Tensor | None,
    dtype: torch.dtype,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, _Gradients]:
    """The weighted costs, (rows,), and the gradients of their sum.

    Logits are of the dtype; statistics and sums are float32 where that has 16 bits.
    """
    exact = torch.promote_types(dtype, torch.float32)
    features, weight = rows.features.to(dtype), weight.to(dtype)
    (count, columns), classes, device = features.shape, weight.shape[0], weight.device
    size = min(count, slice_rows(weight, exact.itemsize))
    memory = torch.empty(size, classes, dtype=exact, device=device)
    product = memory if dtype == exact else torch.empty_like(memory, dtype=dtype)
    costs = torch.empty(count, dtype=exact, device=device)
    gradients = _Gradients(
        torch.empty(count, columns, dtype=exact, device=device) if wanted[0] else None,
        torch.zeros(classes, columns, dtype=exact, device=device) if wanted[1] else None,
        torch.zeros(classes, dtype=exact, device=device) if wanted[2] else None,
    )
    # float16 has too narrow a range for gradients: small ones vanish, sums overflow.
    back = exact if dtype == torch.float16 else dtype
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        logits, narrow, inputs = memory[: part.stop - start], product[: part.stop - start], features[part]
        if dtype != exact:
            logits.copy_(torch.mm(inputs, weight.t(), out=narrow))
            if offset is not None:
                logits.add_(offset)
        elif offset is None:
            torch.mm(inputs, weight.t(), out=logits)
        else:
            torch.addmm(offset, inputs, weight.t(), out=logits)
        _visit(loss, logits, rows.at(part), any(wanted), costs[part])
        by_logits = logits if back == exact else narrow.copy_(logits)
        if gradients.features is not None:
            gradients.features[part] = by_logits.mm(weight.to(back))
        if gradients.weight is not None:
            if dtype == exact:
                gradients.weight.addmm_(by_logits.t(), inputs)
            else:
                gradients.weight.add_(by_logits.t().mm(inputs.to(back)))
        if gradients.offset is not None:
            gradients.offset.add_(logits.sum(dim=0))
    return costs, gradients


def slice_rows(weight: Tensor, itemsize: int) -> int:
    """How many rows' logits are held at a time.

    Matrix products are fastest in steps of 64 rows; so many are taken also where they need more than `SLICE_BYTES`, as
    long as they need no more than the weight itself, (classes, features).
    """
    classes, columns = weight.shape
    rows = SLICE_BYTES // (classes * itemsize)
    return rows - rows % 64 if rows >= 64 else max(1, rows, min(64, columns))


def _visit(loss: "RowLoss", logits: Tensor, rows: Rows, differentiate: bool, costs: Tensor) -> None:
    """Writes the weighted costs of rows, (rows,); their logits turn into the gradient by them, if it is wanted."""
    size = len(logits)  # a GPU gains nothing from blocks
    if logits.device.type == "cpu":
        threads = torch.get_num_threads()  # among which PyTorch shares out whole rows
        size = min(size, threads * max(1, _BLOCK_BYTES // logits[:1].nbytes))
    reads, share = loss.reading(logits).statistics, loss.class_share(logits)
    # One memory for all blocks: taking it from the system anew costs more than what is written there.
    memory = torch.empty_like(logits[:size])
    for start in range(0, len(logits), size):
        part = slice(start, start + size)
        block, here = logits[part], rows.at(part)
        softmax = memory[: len(block)]
        statistics = take_by_softmax(block, here.targets, reads, share, softmax)
        if differentiate:
            costs[part], slopes = loss.differentiated(statistics, here)
            go_back(block, softmax, here.targets, statistics, slopes, share)
        else:
            costs[part] = loss.cost_of(statistics, here)
