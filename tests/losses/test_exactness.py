"""Values and gradients of every loss, by every backend, against the formulas of `references`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.losses import CrossEntropy
from crossent.losses.base import Backend
from losses.references import Case, Outcome, Problem, expected, outcome, pairs, slices

OPTIONS: dict[str, Callable[[Case, Problem], Problem]] = {
    "plain": lambda case, problem: problem,
    "no_bias": lambda case, problem: problem._replace(bias=None),
    "class_weight": Case.with_class_weight,
    "sample_weight": Case.with_sample_weight,
    "ignored_rows": Case.with_ignored_rows,
    "z_loss": Case.with_z_loss,
    "all": Case.with_all,
}


def assert_exact(found: Outcome, reference: Outcome) -> None:
    for name, ours, theirs in pairs(found, reference):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max(), name


@pytest.mark.parametrize("option", OPTIONS)
def test_float64_is_the_formula(case: Case, backend: Backend, option: str) -> None:
    problem = OPTIONS[option](case, case.random())

    with slices(case.classes(7), torch.float64):
        found = outcome(case.configured(problem, backend), problem)

    assert_exact(found, expected(case, problem))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_narrow_types_lose_no_more_than_the_plain_formula(
    case: Case, backend: Backend, dtype: torch.dtype, option: str
) -> None:
    problem = OPTIONS[option](case, case.random()).to(dtype)

    with slices(case.classes(7), dtype):
        found = outcome(case.configured(problem, backend), problem)

    # Each side rounds, in places of its own, logits, their gradient and the sums. Over many seeds the errors of both
    # are alike, but which of them cancel in a single one is chance, and so is that an entry is what is left of larger
    # numbers: up to 6 epsilons more of the largest entry were seen in float32, and less than 1 in bfloat16, whose
    # statistics and sums are float32.
    epsilon = torch.finfo(dtype).eps * (8 if dtype == torch.float32 else 1)
    reference, plain = expected(case, problem.to(torch.float64)), expected(case, problem, dtype)
    for (name, ours, exact), (_, theirs, _) in zip(pairs(found, reference), pairs(plain, reference), strict=True):
        allowed = (theirs - exact).abs().max() + epsilon * exact.abs().max()
        assert (ours - exact).abs().max() <= allowed, name


def test_many_classes_are_stored_row_by_row_and_exact(case: Case, backend: Backend) -> None:
    problem = case.with_all(case.random(classes=70))

    with slices(case.classes(70), torch.float64):
        found = outcome(case.configured(problem, backend), problem)

    assert_exact(found, expected(case, problem))


def test_default_sizes_of_slices_are_exact(case: Case, backend: Backend) -> None:
    problem = case.with_all(case.random(classes=300, rows=1200))

    found = outcome(case.configured(problem, backend), problem)

    assert_exact(found, expected(case, problem))


def test_gradcheck(case: Case, backend: Backend) -> None:
    problem = case.with_all(case.random(classes=4, rows=6, columns=3, seed=1))
    loss = case.configured(problem, backend)
    assert problem.bias is not None
    inputs = [each.requires_grad_() for each in (problem.features, problem.weight, problem.bias)]

    def mean(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        found: Tensor = loss(features, weight, bias, problem.targets, problem.sample_weight).mean
        return found

    with slices(case.classes(4), torch.float64, rows=2, block=1):
        assert torch.autograd.gradcheck(mean, inputs)


@pytest.mark.parametrize("fixed", ["features", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(case: Case, backend: Backend, fixed: str) -> None:
    problem = case.with_all(case.random())
    inputs = {"features": problem.features, "weight": problem.weight, "bias": problem.bias}
    for name, each in inputs.items():
        assert each is not None
        each.requires_grad_(name != fixed)

    with slices(case.classes(7), torch.float64):
        loss = case.configured(problem, backend)
        loss(**inputs, targets=problem.targets, sample_weight=problem.sample_weight).mean.backward()

    reference = expected(case, problem)._asdict()
    for name, each in inputs.items():
        assert each is not None
        if name == fixed:
            assert each.grad is None
        else:
            torch.testing.assert_close(each.grad, reference[name], rtol=1e-10, atol=1e-14)


def test_a_second_backward_gives_the_same_gradients(case: Case, backend: Backend) -> None:
    problem = case.with_all(case.random())
    weight = problem.weight.requires_grad_()
    loss = case.configured(problem, backend)
    with slices(case.classes(7), torch.float64):
        mean = loss(problem.features, weight, problem.bias, problem.targets, problem.sample_weight).mean

        (first,) = torch.autograd.grad(mean, weight, retain_graph=True)
        kept = first.clone()
        (second,) = torch.autograd.grad(3 * mean, weight)

    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    torch.testing.assert_close(second, 3 * first)


def chunked() -> tuple[Tensor, Tensor]:
    """The mean of a chunked loss, and the weight that it depends on."""
    weight = torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_()
    cost = CrossEntropy().configure(backend="chunked")(torch.ones(5, 3), weight, None, torch.arange(5) % 4)
    return cost.mean, weight


def test_a_second_backward_after_a_change_of_the_weight_is_refused() -> None:
    mean, weight = chunked()
    mean.backward(retain_graph=True)
    with torch.no_grad():
        weight.add_(1)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        mean.backward()


def test_a_first_backward_after_a_change_of_the_weight_is_that_of_the_cost() -> None:
    mean, weight = chunked()
    unchanged_mean, unchanged = chunked()
    with torch.no_grad():
        weight.add_(1)

    mean.backward()
    unchanged_mean.backward()

    torch.testing.assert_close(weight.grad, unchanged.grad)


def test_chunked_refuses_to_have_its_gradient_differentiated() -> None:
    mean, weight = chunked()

    with pytest.raises(RuntimeError, match=r"backend=chunked: .* use dense"):
        torch.autograd.grad(mean, weight, create_graph=True)


def test_dense_has_second_derivatives() -> None:
    weight = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3).requires_grad_()
    features, targets = torch.ones(5, 3, dtype=torch.float64), torch.arange(5) % 4
    loss = CrossEntropy().configure(backend="dense")

    assert torch.autograd.gradgradcheck(lambda each: loss(features, each, None, targets).mean, weight)


def test_without_gradients_none_is_computed(case: Case, backend: Backend) -> None:
    problem = case.with_all(case.random())
    loss = case.configured(problem, backend)
    weight = problem.weight.requires_grad_()

    with slices(case.classes(7), torch.float64), torch.no_grad():
        mean = loss(problem.features, weight, problem.bias, problem.targets, problem.sample_weight).mean

    assert not mean.requires_grad
    torch.testing.assert_close(mean, expected(case, problem).mean)


@pytest.mark.parametrize("option", ["plain", "all"])
def test_autocast_computes_logits_alone_in_16_bits(case: Case, backend: Backend, option: str) -> None:
    problem = OPTIONS[option](case, case.random()).to(torch.float32)
    loss = case.configured(problem, backend)

    with slices(case.classes(7), torch.float32), torch.autocast("cpu", dtype=torch.bfloat16):
        found = outcome(loss, problem)

    # Logits and offsets, up to 8 here, are rounded to 2^-9 of themselves, half a per cent of the mean; costs and
    # statistics of 16 bits would be right to two digits at best.
    plain = expected(case, problem.to(torch.bfloat16), torch.bfloat16)
    assert found.mean.dtype == torch.float32
    assert found.weight.dtype == torch.float32
    torch.testing.assert_close(found.mean, plain.mean, rtol=5e-3, atol=0)
    torch.testing.assert_close(found.weight, plain.weight.float(), rtol=0, atol=2**-6 * plain.weight.abs().max().item())


@pytest.mark.chunked
@pytest.mark.parametrize("option", ["plain", "all"])
def test_backends_agree_under_autocast(case: Case, option: str) -> None:
    # Few digits, so that 16-bit logits are exact however they are added up.
    problem = OPTIONS[option](case, case.random())
    few = [(each * 4).round() / 4 for each in (problem.features, problem.weight, torch.zeros(7))]
    problem = problem._replace(features=few[0], weight=few[1], bias=few[2]).to(torch.float32)

    with slices(7, torch.float32), torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        means = [
            case.configured(problem, backend)(
                problem.features, problem.weight, problem.bias, problem.targets, problem.sample_weight
            ).mean
            for backend in case.loss.backends
        ]

    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0], rtol=1e-6, atol=0)


def test_the_denominator_is_the_sum_of_the_weights() -> None:
    weight = torch.eye(3)
    loss = CrossEntropy().configure(class_weight=[1.0, 2.0, 4.0])

    cost = loss(torch.eye(3), weight, None, torch.tensor([0, 2, -100]), torch.tensor([3.0, 0.5, 9.0]))

    assert cost.weight == 3 * 1 + 0.5 * 4


@pytest.mark.parametrize("backend", CrossEntropy.backends)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_with_class_weights_is_pytorchs(backend: Backend, label_smoothing: float) -> None:
    logits = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets, class_weight = torch.tensor([0, 1, 2, 3, 0, 1, -100, 3, 0]), torch.tensor([0.5, 1, 2, 0]).double()
    loss = CrossEntropy(label_smoothing).configure(class_weight=class_weight, backend=backend)

    mean = loss(logits, torch.eye(4).double(), None, targets).mean

    wanted = F.cross_entropy(logits, targets, class_weight, label_smoothing=label_smoothing)
    torch.testing.assert_close(mean, wanted)


@pytest.mark.gpu
def test_a_gpu_computes_what_the_formula_says(case: Case, backend: Backend) -> None:
    problem = case.with_all(case.random())
    moved: dict[str, Any] = {name: each.cuda() for name, each in problem._asdict().items() if isinstance(each, Tensor)}
    there = problem._replace(**moved)

    with slices(case.classes(7), torch.float64):
        found = outcome(case.configured(there, backend), there)

    here = found._replace(**{name: each.cpu() for name, each in found._asdict().items() if each is not None})
    assert_exact(here, expected(case, problem))


@pytest.mark.parametrize("option", OPTIONS)
def test_evaluation_finds_the_same_cost_and_the_outputs(case: Case, backend: Backend, option: str) -> None:
    problem = OPTIONS[option](case, case.random())
    loss = case.configured(problem, backend)
    given = (problem.features, problem.weight, problem.bias, problem.targets, problem.sample_weight)

    cost, outputs = loss.with_outputs(*given)

    assert not cost.mean.requires_grad
    assert float(cost.mean) == pytest.approx(float(loss(*given).mean), rel=1e-12)
    assert float(cost.weight) == pytest.approx(float(loss(*given).weight))
    assert torch.equal(outputs, F.linear(problem.features, problem.weight, problem.bias))
