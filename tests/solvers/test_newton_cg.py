"""The solver reaches the optimum, and what it says of it is true."""

import copy
import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import Parameter

from crossent.losses import Binary, CrossEntropy, Focal
from crossent.losses.convex import NotConvexError
from crossent.solvers import NewtonCG, Objective, design_matrix, minimize, preconditioners
from solvers.problems import Problem, assert_never_nearer, bundled, drawn, run, twenty

PROBLEMS = twenty()


@pytest.fixture(scope="module", params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> tuple[Problem, float]:
    found = PROBLEMS[request.param]
    return found, found.optimum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9])
def test_is_never_nearer_to_the_optimum_than_the_truth(
    problem: tuple[Problem, float], dtype: torch.dtype, tol: float
) -> None:
    found, optimum = problem
    parameters = found.parameters(dtype)
    assert_never_nearer(found, optimum, parameters, found.solver(parameters, tol=tol), tol)


def test_products_in_bfloat16_claim_no_more(problem: tuple[Problem, float]) -> None:
    found, optimum = problem
    parameters = found.parameters(torch.float32)
    solver = roughly(found.solver(parameters, tol=1e-5))
    assert_never_nearer(found, optimum, parameters, solver, 1e-5)


@pytest.mark.parametrize("takes_bfloat16", [False, True])
def test_large_problems_claim_no_more(
    problem: tuple[Problem, float], monkeypatch: pytest.MonkeyPatch, *, takes_bfloat16: bool
) -> None:
    monkeypatch.setattr("crossent.solvers.objective._SMALL", 0)  # so that all are
    monkeypatch.setattr("crossent.solvers.machine.multiplies_bfloat16", lambda _: takes_bfloat16)
    found, optimum = problem
    parameters = found.parameters(torch.float32)
    solver = found.solver(parameters, tol=1e-5)
    assert solver.objective is not None
    assert not solver.objective.matrix.has_ones
    assert solver.objective.takes_bfloat16 == takes_bfloat16
    assert_never_nearer(found, optimum, parameters, solver, 1e-5)


def roughly(solver: NewtonCG) -> NewtonCG:
    """Has a solver multiply as where rows are many, on a machine that multiplies bfloat16 fast."""
    assert solver.objective is not None
    solver.objective.is_small, solver.objective.takes_bfloat16 = False, True
    return solver


def digits() -> Problem:
    """Most of its rows are told apart long before the end."""
    features, targets = bundled("digits", standardize=True)
    return Problem(CrossEntropy(), features, targets, 1 / len(targets))


@pytest.mark.parametrize("make", [digits, lambda: Problem(CrossEntropy(), *bundled("wine"), 1 / 178)])
def test_in_one_go_it_is_the_same(make: Callable[[], Problem]) -> None:
    problem = make()
    stepped, gone = problem.parameters(), problem.parameters()
    one, other = problem.solver(stepped, tol=1e-6), problem.solver(gone, tol=1e-6)

    assert run(one) == other.solve(100)

    assert all(torch.equal(*both) for both in zip(stepped, gone, strict=True))
    assert one.last == other.last
    assert one.passes == other.passes


def test_goes_on_with_the_same_bits_from_any_step() -> None:
    problem = digits()
    parameters = problem.parameters()
    whole = problem.solver(parameters, tol=1e-8)
    steps = run(whole)
    again = problem.parameters()
    solver = problem.solver(again, tol=1e-8)
    is_far = []
    for _ in range(steps):
        solver.step()
        saved = copy.deepcopy(solver.state_dict())
        is_far.append(saved["param_groups"][0]["memory"]["is_far"])
        solver = problem.solver(again, tol=1e-8)
        solver.load_state_dict(saved)

    assert all(torch.equal(*both) for both in zip(parameters, again, strict=True))
    assert solver.passes == whole.passes
    assert set(is_far) == {True, False}


def test_there_are_twenty_problems() -> None:
    assert len(PROBLEMS) == 20


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", ["iris", "wine", "digits", "breast_cancer"])
def test_coefficients_are_those_of_scikit_learn(name: str, standardize: bool) -> None:
    features, targets = bundled(name, standardize=standardize)
    loss = Binary() if name == "breast_cancer" else CrossEntropy()
    ours = Problem(loss, features, targets, 1 / len(targets))
    theirs = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(features, targets)
    weight, bias = ours.parameters()

    run(ours.solver([weight, bias], tol=1e-13))

    torch.testing.assert_close(weight.detach(), torch.from_numpy(theirs.coef_), rtol=0, atol=1e-5)
    intercepts = torch.from_numpy(theirs.intercept_)
    torch.testing.assert_close(bias.detach(), intercepts - intercepts.mean() * (len(bias) > 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["whole", "blocks", "diagonal"])
def test_every_preconditioner_leads_there(kind: Literal["whole", "blocks", "diagonal"]) -> None:
    problem = Problem(CrossEntropy(), *drawn(500, 12, 5, scales=1), 1e-3)
    parameters = problem.parameters()
    solver = problem.solver(parameters, tol=1e-10)
    memory = solver._recalled()
    memory.kind = kind
    solver.param_groups[0]["memory"] = dict(memory.__dict__)

    steps = run(solver)

    assert problem.value(parameters).item() == pytest.approx(problem.optimum(), rel=1e-10)
    assert steps < 12


def test_blocks_are_the_same_where_parts_share_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def solution() -> torch.Tensor:
        problem = Problem(CrossEntropy(), *drawn(900, 12, 5, scales=1), 1e-3)
        objective = problem.solver(problem.parameters()).objective
        assert objective is not None
        zeros = objective.evaluate(torch.zeros(5, 13, dtype=torch.float64), torch.float64)
        slopes = torch.randn(5, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return preconditioners.blocks(objective, zeros, torch.float64)(slopes)

    held = solution()
    monkeypatch.setattr("crossent.solvers.design_matrix._READY_BYTES", 0)
    monkeypatch.setitem(design_matrix._PART_NUMBERS, "cpu", 100)  # rows come in parts of 256

    torch.testing.assert_close(solution(), held, rtol=1e-9, atol=1e-12)


def test_products_in_bfloat16_give_way_where_they_are_too_rough() -> None:
    features, targets = drawn(500, 30, 6)
    features[:, 1] = features[:, 0] + 1e-3 * features[:, 1]  # bfloat16 has three digits
    easy, hard = (Problem(CrossEntropy(), each, targets, 1e-7) for each in (features[:, 2:], features))
    precisions = []

    for problem in (easy, hard):
        parameters = problem.parameters()
        solver = roughly(problem.solver(parameters))
        assert solver._recalled().product_dtype == torch.bfloat16
        run(solver)
        precisions.append(solver._recalled().precision)
        assert solver.last is not None
        assert solver.last.end == "tolerance"
        assert problem.value(parameters).item() == pytest.approx(problem.optimum(), rel=1e-6)

    assert precisions[0] < 0 <= precisions[1]


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-6])
def test_large_columns_do_not_keep_it_from_the_certificate(tol: float) -> None:
    """Where a column has large numbers, next to no slope of an intercept is much in the bound."""
    features, targets = drawn(3000, 30, 6, scales=6)
    problem = Problem(CrossEntropy(), features, targets, 1 / 3000)
    solver = problem.solver(problem.parameters(), tol=tol)

    assert run(solver) < 8
    assert solver.last is not None
    assert solver.last.end == "tolerance"


def test_outputs_that_are_too_many_to_keep_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(CrossEntropy(0.1), *drawn(2000, 12, 5), 1e-3)
    kept, anew = problem.parameters(), problem.parameters()
    run(problem.solver(kept, tol=1e-10))

    monkeypatch.setattr("crossent.solvers.machine.KEPT_BYTES", 0)
    solver = problem.solver(anew, tol=1e-10)
    run(solver)

    assert solver.reached is not None
    assert solver.reached.states is None
    for one, other in zip(kept, anew, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def test_starts_from_zero_where_that_is_better() -> None:
    problem = Problem(CrossEntropy(), *drawn(500, 12, 5), 1e-3)
    parameters = problem.parameters()
    with torch.no_grad():
        parameters[0].normal_(std=1000, generator=torch.Generator().manual_seed(0))
    far = problem.value(parameters).item()

    solver = problem.solver(parameters)
    solver.step()

    assert solver.last is not None
    assert solver.last.cost + solver.last.penalty == pytest.approx(far)
    assert problem.value(parameters).item() < math.log(5)
    assert run(solver) < 10


def test_does_not_leave_the_optimum() -> None:
    problem = Problem(CrossEntropy(), *drawn(500, 12, 5), 1e-3)
    parameters = problem.parameters()
    run(problem.solver(parameters, tol=1e-12))
    there = parameters[0].clone()

    steps = run(problem.solver(parameters, tol=1e-6))

    torch.testing.assert_close(parameters[0].detach(), there.detach(), rtol=0, atol=1e-6)
    assert steps <= 2


def test_classes_that_can_be_told_apart_have_no_optimum() -> None:
    features, targets = bundled("digits")
    solver = Problem(CrossEntropy(), features, targets, 0.0).solver(
        [*Problem(CrossEntropy(), features, targets, 0.0).parameters()]
    )

    run(solver)

    assert solver.last is not None
    assert solver.last.end == "separable"


def test_a_class_that_can_be_told_apart_has_no_optimum_either() -> None:
    features, targets = bundled("iris", standardize=True)
    problem = Problem(CrossEntropy(), features, targets, 0.0)
    solver = problem.solver(problem.parameters())

    run(solver)

    assert solver.last is not None
    assert solver.last.end == "endless"


def test_without_a_penalty_too() -> None:
    problem = Problem(CrossEntropy(), *drawn(2000, 12, 5), 0.0)
    parameters = problem.parameters()
    solver = problem.solver(parameters, tol=1e-6)
    run(solver)
    reached, claim = problem.value(parameters).item(), solver.last.following  # type: ignore[union-attr]

    run(problem.solver(parameters, tol=1e-14))

    optimum = problem.value(parameters).item()
    assert solver.last is not None
    assert solver.last.end == "tolerance"
    assert claim + 1e-14 >= (reached - optimum) / optimum


def test_smoothed_labels_have_an_optimum_without_a_penalty() -> None:
    features, targets = bundled("iris", standardize=True)
    problem = Problem(CrossEntropy(0.1), features, targets, 0.0)
    solver = problem.solver(problem.parameters())

    run(solver)

    assert solver.last is not None
    assert solver.last.end == "tolerance"


def test_says_when_arithmetic_has_no_more_digits() -> None:
    problem = Problem(CrossEntropy(), *drawn(500, 12, 5), 1e-3)
    solver = problem.solver(problem.parameters(), tol=1e-17)

    run(solver)

    assert solver.last is not None
    assert solver.last.end == "precision"
    assert solver.last.following < 1e-13


def test_says_how_far_it_is_where_steps_run_out() -> None:
    problem = Problem(CrossEntropy(), *drawn(500, 12, 5), 1e-3)
    parameters = problem.parameters()
    solver = problem.solver(parameters)

    for step in range(3):
        solver.is_last = step == 2
        solver.step()

    assert solver.last is not None
    assert solver.last.end is None
    optimum = problem.optimum()
    assert math.inf > solver.last.following >= (problem.value(parameters).item() - optimum) / optimum


def test_refuses_a_loss_that_is_not_convex() -> None:
    with pytest.raises(NotConvexError):
        Objective(Focal(), *drawn(50, 3, 3), outputs=3)


def test_goes_on_with_the_same_bits() -> None:
    problem = Problem(CrossEntropy(), *bundled("digits"), 1e-3)
    whole = problem.parameters(torch.float32)
    run(problem.solver(whole))
    parts = problem.parameters(torch.float32)
    state = None

    for _ in range(100):  # a solver of its own for every step
        solver = problem.solver(parts)
        if state is not None:
            solver.load_state_dict(state)
        solver.step()
        state = solver.state_dict()
        assert solver.last is not None
        if solver.last.end is not None:
            break

    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)


def test_needs_its_objective() -> None:
    with pytest.raises(AssertionError, match="objective"):
        NewtonCG([Parameter(torch.zeros(2, 2))]).step()


def test_minimize_needs_no_run() -> None:
    problem = Problem(CrossEntropy(), *drawn(500, 12, 5), 1e-3)

    found = minimize(problem.loss, problem.features, problem.targets, l2=1e-3, tol=1e-9)

    assert found.bias is not None
    assert found.end == "tolerance"
    assert found.suboptimality <= 1e-9
    value = problem.value([Parameter(found.weight), Parameter(found.bias)]).item()
    assert found.value == pytest.approx(value, rel=1e-12)
    assert value == pytest.approx(problem.optimum(), rel=1e-9)
    assert minimize(problem.loss, problem.features, problem.targets, max_steps=2).end is None
