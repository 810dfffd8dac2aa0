"""What brings conjugate gradients near the solution of a Newton step: inverses of parts of the Hessian."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from crossent.processes import together
from crossent.solvers.evaluation import Evaluation
from crossent.solvers.objective import Objective

#: By the names that go into checkpoints.
Kind = Literal["whole", "coupled", "blocks", "diagonal"]
#: Turns a residual, (outputs, columns), into about the Hessian's inverse times it.
Preconditioner = Callable[[Tensor], Tensor]

# Rows that a preconditioner goes by, at least; with many columns more.
_ROWS, _ROWS_A_COLUMN = 8192, 16
# Numbers of weights up to which their whole Hessian is made, and multiply-adds that it may take.
_FEW_NUMBERS, _FEW_PRODUCTS = 128, 20_000_000
# Columns up to which those of each output are taken together, and numbers of all these blocks.
_FEW_COLUMNS, _FEW_BLOCK_NUMBERS = 1024, 2**26
# Numbers of weights up to which the blocks are coupled.
_FEW_COUPLED = 4096
# Of the mean of the rows' second derivatives by an output, the share below which a row hardly bends.
_HARDLY = 0.1
# Likewise of the mean of all outputs' where they are coupled, which tells weak pairs as well.
_NEXT_TO_NOTHING = 1e-3
# Second derivatives by a weight below this share of the square of its column's largest number are none.
_FLAT = 1e-14
# Multiply-adds that a product is worth at least, since it has to be started; and how much slower those of blocks are.
_STARTING, _SLOWER = 5e6, 1.3
# What is added to a diagonal in proportion, the first time that a matrix turns out to have no Cholesky factor.
_FIRST_SHIFT = {torch.float64: 1e-12, torch.float32: 1e-6}


def takes_all(objective: Objective) -> bool:
    """Whether the weights are few enough for their whole Hessian."""
    few = objective.numbers <= _FEW_NUMBERS
    return few and objective.rows * objective.numbers * objective.outputs <= _FEW_PRODUCTS


def takes_blocks(objective: Objective) -> bool:
    """Whether the columns are few enough for the blocks of all outputs."""
    columns = objective.matrix.columns
    return columns <= _FEW_COLUMNS and objective.outputs * columns**2 <= _FEW_BLOCK_NUMBERS


def products_of_blocks(objective: Objective) -> float:
    """How many products with the Hessian it takes the time of to make the blocks."""
    rows, columns, outputs = objective.rows, objective.matrix.columns, objective.outputs
    blocks = 2 * outputs * columns**2 * (min(rows, _rows(objective)) + columns)
    found: float = _SLOWER * blocks / (4 * rows * columns * outputs + _STARTING)
    return found


def takes_coupled(objective: Objective) -> bool:
    """Whether the weights are few enough, and rows bend by few outputs at a time, for blocks that are coupled.

    Near kinks the outputs of a row bend in pairs, as one; without the other, an output seems to be held fast.
    """
    return objective.smoothing > 0 and objective.numbers <= _FEW_COUPLED


def products_of_coupled(objective: Objective) -> float:
    """How many products with the Hessian it takes the time of to couple the blocks."""
    rows, columns, outputs = objective.rows, objective.matrix.columns, objective.outputs
    coupled = 2 * rows * outputs * columns**2 + objective.numbers**3
    found: float = _SLOWER * coupled / (4 * rows * columns * outputs + _STARTING)
    return found


def diagonal(objective: Objective, at: Evaluation, dtype: torch.dtype) -> Preconditioner:
    """The Hessian's diagonal: what columns of different scale, and classes of different size, are in need of.

    Args:
        objective: whose Hessian.
        at: where.
        dtype: of residuals.
    """
    found = at.at.new_zeros(at.at.shape, dtype=dtype)
    for part, rows, state, stands_for in objective.visits.evenly(at, dtype, _stride(objective)):
        found.addmm_(objective.costs.second_derivatives(rows, state), part.square(), alpha=stands_for)
    found = together.total(found) / objective.total
    found += objective.penalties_as[dtype]
    if objective.largest is not None:  # where nothing bends, as at classes that no row is near to, nothing is to move
        least = _FLAT * objective.largest.square().to(dtype)
        found = torch.where(found > least, found, torch.inf)
    return lambda residual: residual / found


def blocks(objective: Objective, at: Evaluation, dtype: torch.dtype) -> Preconditioner:
    """The Hessian by the weights of each output, all pairs of columns, without what is between outputs.

    Of rows that hardly bend by an output, its block has the diagonal alone: they are many, once classes are told apart.

    Args:
        objective: whose Hessian.
        at: where.
        dtype: of residuals.
    """
    outputs, columns = at.at.shape
    bending, rows_seen = at.at.new_zeros(outputs, dtype=dtype), 0.0
    found = at.at.new_zeros(outputs, columns, columns, dtype=dtype)
    own = at.at.new_zeros(outputs, columns, dtype=dtype)
    bends_of_parts: list[Tensor] = []
    for part, rows, state, _ in objective.visits.evenly(at, dtype, _stride(objective)):
        bends_of_parts.append(objective.costs.second_derivatives(rows, state))
        bending += bends_of_parts[-1].sum(1)
        rows_seen += len(part)
    if together.ranks() > 1:
        (rows_seen,) = together.add_up([bending], [rows_seen])
    least = _HARDLY * bending.unsqueeze(1) / max(1.0, rows_seen)
    again = objective.visits.evenly(at, dtype, _stride(objective))  # since parts are valid until the next ones
    for bends, (part, _, _, stands_for) in zip(bends_of_parts, again, strict=True):
        bent = bends >= least
        for output, which in enumerate(bent):
            chosen = which.nonzero().squeeze(1)
            taken, weights = part.index_select(0, chosen), bends[output].index_select(0, chosen)
            found[output].addmm_((taken * weights.unsqueeze(1)).t(), taken, alpha=stands_for)
        own.addmm_(bends.masked_fill_(bent, 0), part.square(), alpha=stands_for)
    found.diagonal(dim1=1, dim2=2).add_(own)
    found = together.total(found) / objective.total
    found.diagonal(dim1=1, dim2=2).add_(objective.penalties_as[dtype])
    inverses = inverse(found)  # which are symmetric; from the left they are multiplied up to eight times as fast
    return lambda residual: torch.bmm(residual.unsqueeze(1), inverses).squeeze(1)


def coupled(objective: Objective, at: Evaluation, dtype: torch.dtype) -> Preconditioner:
    """The Hessian by all weights, but of rows that hardly bend by an output its diagonal alone, nothing between two.

    Without what a row has between two outputs the Hessian is the greater, and so as definite as it was.

    Args:
        objective: whose Hessian.
        at: where.
        dtype: of residuals.
    """
    outputs, columns = at.at.shape
    found = at.at.new_zeros(outputs, columns, outputs, columns)
    own = at.at.new_zeros(outputs, columns)
    for part, rows, state, _ in objective.visits.evenly(at, torch.float64, 1):
        bends = objective.costs.second_derivatives(rows, state)
        least = _NEXT_TO_NOTHING * bends.mean()
        own.addmm_(bends.masked_fill(bends >= least, 0), part.square())
        for output in range(outputs):
            between = torch.zeros_like(bends)
            between[output] = 1
            objective.costs.bend(between, rows, state)
            for other, which in enumerate(between[: output + 1].abs() >= least):
                chosen = which.nonzero().squeeze(1)
                taken, weights = part.index_select(0, chosen), between[other].index_select(0, chosen)
                found[output, :, other].addmm_((taken * weights.unsqueeze(1)).t(), taken)
    found = together.total(found).div_(objective.total)
    there = found.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1)  # (outputs, columns)
    there.add_(together.total(own).div_(objective.total)).add_(objective.penalties)
    _hold(objective, found)
    solution = _solution(found.view(outputs * columns, -1))
    return lambda residual: solution(residual.to(torch.float64)).to(dtype)


def whole(objective: Objective, at: Evaluation) -> Preconditioner:
    """The Hessian itself, in double precision; what it does not tell, since it changes nothing, stays 0."""
    outputs, columns = at.at.shape
    found: Tensor | None = None
    for part, rows, state, _ in objective.visits.evenly(at, torch.float64, 1):
        transposed = part.t().contiguous()  # which is multiplied a sixth faster
        bends = objective.costs.hessians(rows, state).unsqueeze(2)
        weighted = (bends * transposed).view(-1, len(part))
        product = torch.mm(weighted, transposed.t())
        found = product if found is None else found.add_(product)
    found = at.at.new_zeros(outputs**2 * columns, columns) if found is None else found
    found = together.total(found).div_(objective.total)
    square = found.view(outputs, outputs, columns, columns).transpose(1, 2).contiguous()
    if objective.l2:
        square.diagonal(dim1=1, dim2=3).diagonal(dim1=0, dim2=1).add_(objective.penalties.unsqueeze(1))
    _hold(objective, square)
    return _solution(square.view(outputs * columns, -1))


def _hold(objective: Objective, square: Tensor) -> None:
    """Makes a Hessian, (outputs, columns, outputs, columns), definite if one number for all outputs changes nothing."""
    if not objective.costs.has_gauge:
        return
    pairs = square.diagonal(dim1=1, dim2=3)  # of outputs, column by column
    own = pairs.diagonal(dim1=0, dim2=1)  # (columns, outputs)
    free = objective.penalised if objective.l2 else 0
    count = objective.matrix.columns - free
    pairs.narrow(2, free, count).add_(own.narrow(0, free, count).sum(1).div_(objective.outputs**2))


def _solution(matrix: Tensor) -> Preconditioner:
    """By a symmetric matrix of all weights, (outputs · columns, as many), of which the lower half is enough."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not int(failed):
        return lambda residual: torch.cholesky_solve(residual.reshape(-1, 1), factor).view_as(residual)
    solution = inverse((matrix.tril() + matrix.tril(-1).t()).unsqueeze(0))[0]
    return lambda residual: torch.mv(solution, residual.reshape(-1)).view_as(residual)


def _stride(objective: Objective) -> int:
    return int(objective.rows) // _rows(objective)


def _rows(objective: Objective) -> int:
    return max(_ROWS, _ROWS_A_COLUMN * objective.matrix.columns)


def inverse(matrices: Tensor) -> Tensor:
    """Of symmetric matrices, (matrices, n, n), none of whose eigenvalues is below 0; those that are 0 are raised.

    Rows and columns of zeros stay so.
    """
    factors, failed = torch.linalg.cholesky_ex(matrices)
    if not failed.any():
        return torch.cholesky_inverse(factors)
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    counts = diagonal > torch.finfo(matrices.dtype).tiny  # a column that is constant has no say, and gets none
    scale = torch.where(counts, diagonal, 1).rsqrt().mul_(counts)
    matrices = matrices * scale.unsqueeze(1) * scale.unsqueeze(2)
    matrices.diagonal(dim1=1, dim2=2).add_(~counts)
    factors, failed = torch.linalg.cholesky_ex(matrices)
    shift = _FIRST_SHIFT[matrices.dtype]
    while bool(failed.any()) and shift < 1:
        matrices.diagonal(dim1=1, dim2=2).add_(shift)
        factors, failed = torch.linalg.cholesky_ex(matrices)
        shift *= 10
    return torch.cholesky_inverse(factors).mul_(scale.unsqueeze(1)).mul_(scale.unsqueeze(2))
