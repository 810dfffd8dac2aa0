"""Far from the optimum the rows that bend stand for all."""

import pytest
import torch

from crossent.losses import CrossEntropy
from crossent.solvers import NewtonCG, Objective
from crossent.solvers.active_rows import ActiveRows
from crossent.solvers.evaluation import Evaluation
from crossent.solvers.hessian import Hessian
from solvers.problems import Problem, bundled, drawn, run


def problem() -> Problem:
    """Digits, most of which are told apart early, and a column that is there in one row in fifty."""
    features, targets = bundled("digits", standardize=True)
    features[:, 0] = torch.arange(len(targets)) % 50 == 0
    return Problem(CrossEntropy(), features, targets, 1e-4)


def somewhere(solver: NewtonCG) -> tuple[Objective, Evaluation]:
    """Where the third step leads."""
    for _ in range(3):
        solver.step()
    assert solver.objective is not None
    assert solver.reached is not None
    return solver.objective, solver.objective.evaluate(solver.reached.at, torch.float64)


@pytest.mark.parametrize("is_large", [False, True])
def test_they_bend_as_all_do(monkeypatch: pytest.MonkeyPatch, *, is_large: bool) -> None:
    if is_large:
        monkeypatch.setattr("crossent.solvers.objective._SMALL", 0)
    solver = problem().solver(problem().parameters())
    objective, here = somewhere(solver)
    active = objective.active(here, torch.float64, torch.float64)
    assert active is not None
    assert sum(len(part.rows) for part in active.parts) < 0.7 * objective.rows
    exact = Hessian(objective, here, torch.float64, torch.float64)
    found = Hessian(objective, here, torch.float64, torch.float64, active)

    for seed in range(5):
        direction = torch.randn(here.at.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(
            (direction * found(direction)).sum(), (direction * exact(direction)).sum(), rtol=0.03, atol=0
        )
    for output, column in ((0, 0), (3, 0), (9, 30), (5, -1)):  # the diagonal is exact, also where rows are few
        one = torch.zeros_like(here.at)
        one[output, column] = 1
        torch.testing.assert_close((one * found(one)).sum(), (one * exact(one)).sum(), rtol=1e-9, atol=0)


def test_where_all_rows_bend_none_is_left_out() -> None:
    even = Problem(CrossEntropy(), *drawn(500, 30, 6), 0.1)
    solver = even.solver(even.parameters())
    assert solver.objective is not None
    zeros = solver.objective.evaluate(torch.zeros(6, 31, dtype=torch.float64), torch.float64)

    assert solver.objective.active(zeros, torch.float64, torch.float64) is None


def test_none_is_left_out_of_features_that_do_not_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossent.solvers.design_matrix._READY_BYTES", 1000)
    objective, here = somewhere(problem().solver(problem().parameters()))

    assert objective.active(here, torch.float64, torch.float64) is None


def test_steps_go_by_them_only_far_from_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    gone_by: list[ActiveRows | None] = []

    class Watched(Hessian):
        def __init__(
            self,
            objective: Objective,
            evaluation: Evaluation,
            dtype: torch.dtype,
            multiplied: torch.dtype,
            active: ActiveRows | None = None,
        ) -> None:
            gone_by.append(active)
            super().__init__(objective, evaluation, dtype, multiplied, active)

    monkeypatch.setattr("crossent.solvers.newton_steps.Hessian", Watched)
    solver = problem().solver(problem().parameters(), tol=1e-6)

    steps = run(solver)

    assert steps <= 9
    assert any(each is not None for each in gone_by)
    assert gone_by[-1] is None
    assert solver.last is not None
    assert solver.last.end == "tolerance"
