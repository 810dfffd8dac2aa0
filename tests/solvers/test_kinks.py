"""Kinks are rounded off less and less: the solver reaches a hinge's optimum, and what it says of it is true."""

import copy
import math
from typing import Literal

import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import Parameter

from crossent.losses import Hinge
from crossent.solvers import minimize, preconditioners
from crossent.solvers.conjugate_gradients import solve
from crossent.solvers.hessian import Hessian
from solvers.problems import Problem, assert_never_nearer, bundled, claims, drawn, run, with_kinks

PROBLEMS = with_kinks()


@pytest.fixture(scope="module", params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> tuple[Problem, float]:
    found = PROBLEMS[request.param]
    return found, found.optimum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
def test_is_never_nearer_to_the_optimum_than_the_truth(
    problem: tuple[Problem, float], dtype: torch.dtype, tol: float
) -> None:
    found, optimum = problem
    parameters = found.parameters(dtype)
    assert_never_nearer(found, optimum, parameters, found.solver(parameters, tol=tol), tol)


def test_claims_what_is_true_wherever_steps_run_out(problem: tuple[Problem, float]) -> None:
    found, optimum = problem
    said = []
    for steps in (1, 8, 14, 20, 25):
        parameters = found.parameters()
        solver = found.solver(parameters)
        solver.solve(steps)
        assert solver.last is not None
        said.append(solver.last.following)
        true = (found.value(parameters).item() - optimum) / optimum
        assert said[-1] + 1e-13 >= true
    assert math.isfinite(said[-1])


def test_claims_what_is_true_of_a_run_whose_steps_ran_out_and_that_goes_on(problem: tuple[Problem, float]) -> None:
    found, optimum = problem
    parameters = found.parameters(torch.float32)

    # Steps that are the last ones end at weights that are rounded, and the next ones go on from there.
    said = claims(found, optimum, parameters, found.solver(parameters, tol=1e-5), last_from=16)

    assert all(claim + 1e-13 >= true for claim, true in said)
    assert math.isfinite(said[-1][0])


def test_two_classes_are_a_support_vector_machine() -> None:
    """Whose weight is that of class 1 over class 0, and λ ‖weight‖² / 4 what is left of the penalty."""
    features, targets = bundled("breast_cancer", standardize=True)
    machine = SVC(kernel="linear", C=1, tol=1e-8).fit(features.numpy(), targets.numpy())

    found = minimize(Hinge(), features, targets, l2=1 / len(targets), tol=1e-9)

    assert found.bias is not None
    weight, bias = found.weight[1] - found.weight[0], found.bias[1] - found.bias[0]
    torch.testing.assert_close(weight, torch.tensor(machine.coef_[0]), rtol=0, atol=1e-3)
    assert bias.item() == pytest.approx(machine.intercept_[0], abs=1e-3)
    halves = torch.tensor(machine.coef_[0]) / 2, torch.tensor(machine.intercept_[0]) / 2
    theirs = [Parameter(torch.stack([-half, half])) for half in halves]
    value = Problem(Hinge(), features, targets, 1 / len(targets)).value(theirs).item()
    assert found.value <= value <= found.value * (1 + 1e-5)


def test_goes_on_with_the_same_bits_from_any_step() -> None:
    problem = Problem(Hinge(), *drawn(1000, 40, 4, strength=2), 1e-3)
    parameters = problem.parameters(torch.float32)
    whole = problem.solver(parameters)
    steps = run(whole)
    again = problem.parameters(torch.float32)
    solver = problem.solver(again)
    smoothings, kinds = set(), set()
    for _ in range(steps):
        solver.step()
        saved = copy.deepcopy(solver.state_dict())
        smoothings.add(saved["param_groups"][0]["memory"]["smoothing"])
        kinds.add(saved["param_groups"][0]["memory"]["kind"])
        solver = problem.solver(again)
        solver.load_state_dict(saved)

    assert all(torch.equal(*both) for both in zip(parameters, again, strict=True))
    assert solver.passes == whole.passes
    assert len(smoothings) > 5
    assert kinds == {"diagonal", "blocks", "coupled"}


def test_in_one_go_it_is_the_same() -> None:
    problem = Problem(Hinge(), *drawn(1000, 40, 4, strength=2), 1e-3)
    stepped, gone = problem.parameters(torch.float32), problem.parameters(torch.float32)
    one, other = problem.solver(stepped), problem.solver(gone)

    assert run(one) == other.solve(100)

    assert all(torch.equal(*both) for both in zip(stepped, gone, strict=True))
    assert one.last == other.last
    assert one.passes == other.passes


@pytest.mark.parametrize("bias", [False, True])
def test_coupled_blocks_are_the_hessian(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossent.solvers.preconditioners._NEXT_TO_NOTHING", 0.0)
    problem = Problem(Hinge(), *drawn(500, 12, 5), 1e-3, bias=bias)
    objective = problem.solver(problem.parameters()).objective
    assert objective is not None
    generator = torch.Generator().manual_seed(0)
    at, direction = torch.randn(2, 5, 12 + bias, generator=generator, dtype=torch.float64)
    there = objective.evaluate(at, torch.float64)
    direction[:, 12:] -= direction[:, 12:].mean(0)  # intercepts only count by their differences

    bent = Hessian(objective, there, torch.float64, torch.float64)(direction)

    torch.testing.assert_close(preconditioners.coupled(objective, there, torch.float64)(bent), direction)


def test_rows_that_hardly_bend_are_left_out_of_coupled_blocks() -> None:
    problem = Problem(Hinge(), *few_digits(), 1e-2, bias=False)
    solver = problem.solver(problem.parameters())
    run(solver)
    objective, there = solver.objective, solver.reached
    assert objective is not None
    assert there is not None
    gradient = torch.randn(there.at.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def iterations(precondition: preconditioners.Preconditioner) -> int:
        hessian, moved = Hessian(objective, there, torch.float64, torch.float64), precondition(gradient)
        return solve(hessian, gradient, moved, precondition, lambda now: now.size < 1e-6 * now.first, 1000).steps

    with torch.inference_mode():  # as the steps were
        coupled = iterations(preconditioners.coupled(objective, there, torch.float64))
        by_blocks = iterations(preconditioners.blocks(objective, there, torch.float64))
    assert coupled < 20
    assert by_blocks > 5 * coupled


def test_rows_that_are_left_out_of_coupled_blocks_are_in_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossent.solvers.preconditioners._NEXT_TO_NOTHING", math.inf)
    problem = Problem(Hinge(), *drawn(500, 12, 5), 1e-3, bias=False)
    objective = problem.solver(problem.parameters()).objective
    assert objective is not None
    at, residual = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there = objective.evaluate(at, torch.float64)

    found = preconditioners.coupled(objective, there, torch.float64)(residual)

    torch.testing.assert_close(found, preconditioners.diagonal(objective, there, torch.float64)(residual))


def test_outputs_that_are_too_many_to_keep_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossent.solvers.objective._SMALL", 0)
    monkeypatch.setattr("crossent.solvers.machine.KEPT_BYTES", 0)
    problem = PROBLEMS["weighted"]
    parameters = problem.parameters(torch.float32)
    solver = problem.solver(parameters)

    run(solver)

    assert solver.reached is not None
    assert solver.reached.states is None
    assert solver.last is not None
    assert solver.last.end == "tolerance"


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_without_a_penalty_margins_that_can_all_be_kept_cost_nothing(p: Literal[1, 2], dtype: torch.dtype) -> None:
    problem = Problem(Hinge(p=p), *bundled("digits"), 0.0)
    parameters = problem.parameters(dtype)
    solver = problem.solver(parameters)

    run(solver)

    assert solver.last is not None
    assert (solver.last.end, solver.last.following) == ("tolerance", 0)
    assert problem.value(parameters).item() == 0


@pytest.mark.parametrize("p", [1, 2])
def test_without_a_penalty_others_have_an_optimum_too(p: Literal[1, 2]) -> None:
    problem = Problem(Hinge(p=p), *drawn(1000, 12, 5), 0.0)
    parameters = problem.parameters()
    solver = problem.solver(parameters, tol=1e-5)
    run(solver)
    reached, claim = problem.value(parameters).item(), solver.last.following  # type: ignore[union-attr]

    run(problem.solver(parameters, tol=1e-8))

    optimum = problem.value(parameters).item()
    assert solver.last is not None
    assert solver.last.end == "tolerance"
    assert claim + 1e-14 >= (reached - optimum) / optimum


def few_digits() -> tuple[Tensor, Tensor]:
    features, targets = bundled("digits", standardize=True)
    return features[:300], targets[:300]


def test_another_penalty_begins_with_rounder_kinks() -> None:
    """As in a path of penalties: the weights of one optimum are far from another one's kinks."""
    problem = Problem(Hinge(), *few_digits(), 1e-1)
    parameters = problem.parameters()
    solver = problem.solver(parameters)
    run(solver)
    assert solver.objective is not None

    solver.objective.penalise(1e-4)
    solver.begin_anew()
    assert run(solver) < 100

    alone = Problem(Hinge(), problem.features, problem.targets, 1e-4)
    weights = alone.parameters()
    run(alone.solver(weights))
    assert alone.value(parameters).item() == pytest.approx(alone.value(weights).item(), rel=2e-6)


def test_says_when_arithmetic_has_no_more_digits() -> None:
    problem = Problem(Hinge(), *few_digits(), 1e-2)
    solver = problem.solver(problem.parameters(), tol=1e-15)

    assert run(solver) < 150

    assert solver.last is not None
    assert solver.last.end == "precision"
    assert solver.last.following < 1e-5
