"""What brings conjugate gradients near the solution of a Newton step: inverses of parts of the Hessian."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from crossent.processes import together
from crossent.solvers.evaluation import Evaluation
from crossent.solvers.objective import Objective

#: By the names that go into checkpoints.
Kind = Literal["whole", "blocks", "diagonal"]
#: Turns a residual, (outputs, columns), into about the Hessian's inverse times it.
Preconditioner = Callable[[Tensor], Tensor]

# Rows that a preconditioner goes by, at least; with many columns more.
_ROWS, _ROWS_A_COLUMN = 8192, 16
# Numbers of weights up to which their whole Hessian is made, and multiply-adds that it may take.
_FEW_NUMBERS, _FEW_PRODUCTS = 128, 20_000_000
# Columns up to which those of each output are taken together, and numbers of all these blocks.
_FEW_COLUMNS, _FEW_BLOCK_NUMBERS = 1024, 2**26
_AT_A_TIME = 2**22  # numbers
_FEW_ENTRIES = 2**18
# Second derivatives by a weight below this share of the square of its column's largest number are none.
_FLAT = 1e-14
# Multiply-adds that a product is worth at least, since it has to be started; and how much slower those of blocks are.
_STARTING, _SLOWER = 15e6, 1.3
# What is added to a diagonal in proportion, the first time that a matrix turns out to have no Cholesky factor.
_FIRST_SHIFT = {torch.float64: 1e-12, torch.float32: 1e-6}


def make(kind: Kind, objective: Objective, at: Evaluation, dtype: torch.dtype) -> Preconditioner:
    """Makes the preconditioner of a kind from the Hessian at some weights; for residuals of a precision."""
    match kind:
        case "whole":
            return whole(objective, at)
        case "blocks":
            return blocks(objective, at, dtype)
        case "diagonal":
            return diagonal(objective, at, dtype)


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


def diagonal(objective: Objective, at: Evaluation, dtype: torch.dtype) -> Preconditioner:
    """The Hessian's diagonal: what columns of different scale, and classes of different size, are in need of."""
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
    """The Hessian by the weights of each output, all pairs of columns, without what is between outputs."""
    outputs, columns = at.at.shape
    found = at.at.new_zeros(outputs, columns, columns, dtype=dtype)
    for part, rows, state, stands_for in objective.visits.evenly(at, dtype, _stride(objective)):
        bends = objective.costs.second_derivatives(rows, state)
        step = max(1, _AT_A_TIME // part.numel())
        for first in range(0, outputs, step):
            some = slice(first, first + step)
            weighted = bends[some].unsqueeze(1) * part.t()
            found[some].baddbmm_(weighted, part.expand(len(weighted), -1, -1), alpha=stands_for)
    found = together.total(found) / objective.total
    found.diagonal(dim1=1, dim2=2).add_(objective.penalties_as[dtype])
    inverse = _inverse(found)
    if inverse.numel() <= _FEW_ENTRIES:  # too few for a call of the matrix product's routine for each output
        return lambda residual: (inverse * residual.unsqueeze(1)).sum(2)
    return lambda residual: torch.bmm(inverse, residual.unsqueeze(2)).squeeze(2)


def whole(objective: Objective, at: Evaluation) -> Preconditioner:
    """The Hessian itself, in double precision; what it does not tell, since it changes nothing, stays 0."""
    outputs, columns = at.at.shape
    found: Tensor | None = None
    for part, rows, state, _ in objective.visits.evenly(at, torch.float64, 1):
        bends = objective.costs.hessians(rows, state).view(outputs * outputs, -1)
        weighted = (bends.t().unsqueeze(2) * part.unsqueeze(1)).reshape(len(part), -1)
        found = torch.mm(part.t(), weighted) if found is None else found.addmm_(part.t(), weighted)
    found = at.at.new_zeros(columns, outputs * outputs * columns) if found is None else found
    found = together.total(found).div_(objective.total)
    square = found.view(columns, outputs, outputs, columns).permute(1, 0, 2, 3).contiguous()
    pairs = square.diagonal(dim1=1, dim2=3)  # of outputs, column by column
    own = pairs.diagonal(dim1=0, dim2=1)  # (columns, outputs)
    if objective.l2:
        own.add_(objective.penalties.unsqueeze(1))
    if objective.costs.has_gauge:
        free = objective.penalised if objective.l2 else 0
        raised = own.narrow(0, free, columns - free).sum(1).div_(outputs**2)
        pairs.narrow(2, free, columns - free).add_(raised)
    matrix = square.view(outputs * columns, -1)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not int(failed):
        return lambda residual: torch.cholesky_solve(residual.view(-1, 1), factor).view_as(residual)
    inverse = _inverse(matrix.unsqueeze(0))[0]
    return lambda residual: torch.mv(inverse, residual.view(-1)).view_as(residual)


def _stride(objective: Objective) -> int:
    return int(objective.rows) // _rows(objective)


def _rows(objective: Objective) -> int:
    return max(_ROWS, _ROWS_A_COLUMN * objective.matrix.columns)


def _inverse(matrices: Tensor) -> Tensor:
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
