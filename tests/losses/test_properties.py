"""What is true of every loss, whatever the numbers are."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossent.losses.base import Backend
from losses.references import Case, Outcome, Problem, outcome, slices

#: The same numbers every time, so that a change that breaks nothing never looks as if it did.
fixed = settings(derandomize=True, database=None, deadline=None, max_examples=8)

#: The sizes and the seed of a problem.
sizes = st.fixed_dictionaries(
    {
        "classes": st.integers(2, 9) | st.just(66),  # from 64 on, logits are stored the other way round
        "rows": st.integers(1, 9),
        "columns": st.integers(1, 4),
        "seed": st.integers(0, 10_000),
        "scale": st.sampled_from([0.1, 1.0, 5.0]),
    }
)


def evaluate(case: Case, backend: Backend, problem: Problem, rows: int = 3, block: int = 2) -> Outcome:
    with slices(len(problem.frequencies), torch.float64, rows, block):
        return outcome(case.configured(problem, backend), problem)


def assert_same(found: Tensor | None, wanted: Tensor | None) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def assert_same_outcome(found: Outcome, wanted: Outcome) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert_same(ours, theirs)


def some(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


@pytest.mark.symmetric
@fixed
@given(size=sizes, constant=st.floats(-100, 100))
def test_a_constant_added_to_all_logits_changes_nothing(
    case: Case, backend: Backend, size: dict[str, Any], constant: float
) -> None:
    problem = case.with_class_weight(case.with_sample_weight(case.random(**size)))

    shifted = problem._replace(bias=some(problem.bias) + constant)

    assert_same_outcome(evaluate(case, backend, shifted), evaluate(case, backend, problem))


@pytest.mark.symmetric
@fixed
@given(size=sizes)
def test_renaming_the_classes_renames_the_gradients(case: Case, backend: Backend, size: dict[str, Any]) -> None:
    problem = case.with_all(case.random(**size))
    order = torch.randperm(len(problem.frequencies), generator=torch.Generator().manual_seed(size["seed"]))
    kept = problem.targets != problem.ignore_index

    renamed = problem._replace(
        weight=problem.weight[order],
        bias=some(problem.bias)[order],
        targets=torch.where(kept, order.argsort()[problem.targets.where(kept, 0)], problem.ignore_index),
        frequencies=problem.frequencies[order],
        class_weight=some(problem.class_weight)[order],
    )

    found, wanted = evaluate(case, backend, renamed), evaluate(case, backend, problem)
    by_name = wanted._replace(weight=wanted.weight[order], bias=some(wanted.bias)[order])
    assert_same_outcome(found, by_name)


@pytest.mark.symmetric
@fixed
@given(size=sizes)
def test_gradients_of_all_classes_add_up_to_zero(case: Case, backend: Backend, size: dict[str, Any]) -> None:
    problem = case.with_class_weight(case.with_sample_weight(case.random(**size)))

    found = evaluate(case, backend, problem)

    assert_same(found.weight.sum(0), torch.zeros_like(found.weight[0]))
    assert_same(some(found.bias).sum(), torch.zeros(()).double())


@pytest.mark.chunked
@fixed
@given(size=sizes, rows=st.integers(1, 10), block=st.integers(1, 10))
def test_the_size_of_slices_does_not_matter(case: Case, size: dict[str, Any], rows: int, block: int) -> None:
    problem = case.with_all(case.random(**size))

    sliced, whole = (evaluate(case, "chunked", problem, *parts) for parts in [(rows, block), (100, 100)])

    assert_same_outcome(sliced, whole)


@fixed
@given(size=sizes)
def test_a_row_twice_is_a_row_of_weight_two(case: Case, backend: Backend, size: dict[str, Any]) -> None:
    problem = case.with_z_loss(case.with_class_weight(case.random(**size)))
    rows = size["rows"]

    twice = problem._replace(
        features=torch.cat([problem.features, problem.features[:1]]),
        targets=torch.cat([problem.targets, problem.targets[:1]]),
    )
    weighted = problem._replace(sample_weight=torch.tensor([2.0] + [1.0] * (rows - 1)))

    found, wanted = evaluate(case, backend, twice), evaluate(case, backend, weighted)
    of_both = torch.cat([found.features[:1] + found.features[rows:], found.features[1:rows]])
    assert_same_outcome(found._replace(features=of_both), wanted)


@fixed
@given(size=sizes, where=st.integers(0, 9))
def test_batches_put_together_by_their_weights_are_the_whole(
    case: Case, backend: Backend, size: dict[str, Any], where: int
) -> None:
    problem = case.with_all(case.random(**size))
    sample_weight = some(problem.sample_weight)
    loss = case.configured(problem, backend)

    def of(part: slice) -> tuple[Tensor, Tensor]:
        cost = loss(problem.features[part], problem.weight, problem.bias, problem.targets[part], sample_weight[part])
        return cost.mean, torch.as_tensor(cost.weight)

    whole, total = of(slice(None))
    (first, a), (second, b) = of(slice(where)), of(slice(where, None))

    assert_same(first * a + second * b, whole * total)
    assert_same((a + b).double(), total.double())


@fixed
@given(size=sizes)
def test_the_order_of_the_rows_does_not_matter(case: Case, backend: Backend, size: dict[str, Any]) -> None:
    problem = case.with_all(case.random(**size))
    problem = problem._replace(
        sample_weight=some(problem.sample_weight) + 0.5
    )  # some row counts, even if there are few
    order = torch.randperm(size["rows"], generator=torch.Generator().manual_seed(size["seed"]))

    shuffled = problem._replace(
        features=problem.features[order],
        targets=problem.targets[order],
        sample_weight=some(problem.sample_weight)[order],
    )

    found, wanted = evaluate(case, backend, shuffled), evaluate(case, backend, problem)
    assert_same_outcome(found, wanted._replace(features=wanted.features[order]))
