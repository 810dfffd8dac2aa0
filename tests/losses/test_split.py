"""Classes split over ranks give the numbers of one that has them all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from crossent.class_shard import ClassShard
from crossent.judging import predict
from crossent.losses import Cost, CrossEntropy, LogitLoss, OneHot, RowLoss, Statistics
from crossent.losses.base import Backend
from crossent.losses.rows import Rows
from crossent.metrics import Scores
from losses.ranks import Messages, on_ranks
from losses.references import Case, Outcome, Problem, expected, outcome, slices
from losses.test_exactness import OPTIONS, assert_exact

HOW: list[Backend] = ["dense", "chunked"]


def here(problem: Problem, shard: ClassShard) -> Problem:
    bias = None if problem.bias is None else problem.bias[shard.part]
    return problem._replace(weight=problem.weight[shard.part], bias=bias)


def configured(case: Case, problem: Problem, how: Backend, shard: ClassShard) -> RowLoss:
    loss = case.make(problem.frequencies).configure(
        class_weight=problem.class_weight,
        ignore_index=problem.ignore_index,
        z_loss=problem.z_loss,
        backend=how,
        shard=shard,
    )
    assert isinstance(loss, RowLoss)
    return loss


def together(case: Case, problem: Problem, ranks: int, how: Backend) -> Outcome:
    """What ranks make of a problem."""
    found, _ = on_ranks(
        ranks,
        len(problem.frequencies),
        lambda shard: outcome(configured(case, problem, how, shard), here(problem, shard)),
    )
    for each in found[1:]:
        for name in ("mean", "denominator", "features"):  # which all of them have
            assert torch.equal(getattr(each, name), getattr(found[0], name))
    biases = [each.bias for each in found if each.bias is not None]
    return found[0]._replace(
        weight=torch.cat([each.weight for each in found]), bias=torch.cat(biases) if biases else None
    )


@pytest.mark.chunked
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("how", HOW)
def test_float64_is_the_formula(case: Case, how: Backend, option: str) -> None:
    problem = OPTIONS[option](case, case.random())

    for ranks in (2, 3, 7):  # 7 classes
        with slices(4, torch.float64):
            found = together(case, problem, ranks, how)

        assert_exact(found, expected(case, problem))


@pytest.mark.chunked
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_narrow_types_round_as_those_of_one(case: Case, how: Backend, dtype: torch.dtype) -> None:
    problem = case.with_all(case.random(classes=60, rows=40)).to(dtype)

    with slices(30, dtype):
        found = together(case, problem, 2, how)
        alone = outcome(case.configured(problem, "chunked"), problem)

    epsilon = 8 * torch.finfo(dtype).eps
    for name in ("mean", "features", "weight", "bias"):
        one, other = getattr(alone, name), getattr(found, name)
        torch.testing.assert_close(other, one, rtol=0, atol=epsilon * float(one.abs().max()))


@pytest.mark.gpu
@pytest.mark.chunked
@pytest.mark.parametrize("how", HOW)
def test_a_gpu_computes_what_the_formula_says(case: Case, how: Backend) -> None:
    problem = case.with_all(case.random())
    moved: dict[str, Any] = {name: each.cuda() for name, each in problem._asdict().items() if isinstance(each, Tensor)}

    with slices(4, torch.float64):
        found = together(case, problem._replace(**moved), 3, how)

    back = found._replace(**{name: each.cpu() for name, each in found._asdict().items() if each is not None})
    assert_exact(back, expected(case, problem))


@pytest.mark.chunked
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("option", ["plain", "all"])
def test_two_messages_a_batch_that_do_not_grow_with_the_classes(case: Case, how: Backend, option: str) -> None:
    sent: list[list[tuple[str, tuple[int, ...]]]] = []
    for classes in (8, 80):
        problem = OPTIONS[option](case, case.random(classes=classes))
        counting = problem.targets != problem.ignore_index
        if problem.sample_weight is not None:
            counting &= problem.sample_weight != 0
        counts = int(counting.sum())

        def step(shard: ClassShard, problem: Problem = problem) -> None:
            own = here(problem, shard)
            weight = own.weight.clone().requires_grad_()
            loss = configured(case, problem, how, shard)
            loss(own.features, weight, own.bias, own.targets, own.sample_weight).mean.backward()

        with slices(classes // 2, torch.float64):
            _, messages = on_ranks(2, classes, step)

        assert [name for name, _ in messages.sent] == ["largest", "total"]
        assert messages.sent[0][1] == (counts,)
        assert messages.sent[1][1][1:] == (counts,)
        assert 2 <= messages.sent[1][1][0] <= 4
        sent.append([(name, shape[:-1]) for name, shape in messages.sent])

    assert sent[0] == sent[1]


@pytest.mark.chunked
@pytest.mark.parametrize("far", [1e3, 1e30])
def test_far_logits_overflow_nowhere(case: Case, far: float) -> None:
    problem = case.random(rows=6, columns=2)._replace(bias=torch.tensor([0, far, -far, 1, -1, far, 0]).double())

    for ranks in (2, 7):
        found = together(case, problem, ranks, "dense")

        alone = outcome(case.configured(problem, "dense"), problem)
        for name in ("mean", "features", "weight", "bias"):
            torch.testing.assert_close(getattr(found, name), getattr(alone, name), rtol=1e-12, atol=1e-12)


def test_a_rank_whose_logits_are_all_minus_infinity_adds_nothing() -> None:
    bias = torch.tensor([1.0, 2.0, -torch.inf, -torch.inf])

    def mean(shard: ClassShard) -> Tensor:
        loss = CrossEntropy().configure(shard=shard)
        found: Cost = loss(torch.ones(2, 1), torch.zeros(2, 1), bias[shard.part], torch.tensor([0, 1]))
        return found.mean

    found, _ = on_ranks(2, 4, mean)

    wanted = torch.nn.functional.cross_entropy(bias[:2].expand(2, 2), torch.tensor([0, 1]))
    torch.testing.assert_close(found[0], wanted)
    torch.testing.assert_close(found[1], wanted)


def test_no_row_takes_no_message() -> None:
    def cost(shard: ClassShard) -> Cost:
        loss = CrossEntropy().configure(shard=shard)
        weight = torch.zeros(2, 3, requires_grad=True)
        found: Cost = loss(torch.ones(2, 3), weight, None, torch.tensor([-100, -100]))
        found.mean.backward()
        assert weight.grad is not None
        assert not weight.grad.any()
        return Cost(found.mean.detach(), found.weight)

    found, messages = on_ranks(2, 4, cost)

    assert [(float(each.mean), each.weight) for each in found] == [(0.0, 0.0)] * 2
    assert messages.sent == []


@pytest.mark.chunked
@pytest.mark.parametrize("option", ["plain", "all"])
def test_evaluation_finds_the_same_cost_and_its_own_outputs(case: Case, option: str) -> None:
    problem = OPTIONS[option](case, case.random())
    alone = case.configured(problem).with_outputs(
        problem.features, problem.weight, problem.bias, problem.targets, problem.sample_weight
    )

    def evaluated(shard: ClassShard) -> tuple[Cost, Tensor]:
        own = here(problem, shard)
        given = (own.features, own.weight, own.bias, own.targets, own.sample_weight)
        return configured(case, problem, "auto", shard).with_outputs(*given)

    found, _ = on_ranks(3, 7, evaluated)

    torch.testing.assert_close(torch.cat([outputs for _, outputs in found], dim=1), alone[1])
    for cost, _ in found:
        assert float(cost.mean) == pytest.approx(float(alone[0].mean), rel=1e-12)
        assert float(cost.weight) == pytest.approx(float(alone[0].weight))


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_metrics_without_all_logits(ranks: int) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 7, generator=draw).mul_(2).round_() / 2  # many are equal, and rank by their place
    targets = torch.randint(7, (300,), generator=draw)
    alone = Scores(7)
    alone.update(logits, targets)

    def scored(shard: ClassShard) -> tuple[dict[str, Tensor], Tensor]:
        scores = Scores(7, shard)
        scores.update(logits[:, shard.part], targets)
        return scores.compute(), predict(logits[:, shard.part], shard)[0]

    found, messages = on_ranks(ranks, 7, scored)

    for metrics, predicted in found:
        assert torch.equal(predicted, logits.argmax(dim=1))
        for name, wanted in alone.compute().items():
            torch.testing.assert_close(metrics[name], wanted, rtol=1e-7, atol=1e-7)
    assert all(shape in ((300,), (3, 300)) for _, shape in messages.sent)


class TakesOtherLogits(CrossEntropy):
    def mean(self, rows: Rows, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super().mean(rows, 2 * weight, bias)


class Learns(RowLoss):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = torch.nn.Parameter(torch.ones(()))

    def cost(self, row: Statistics) -> Tensor:
        return row.nll * self.temperature


class OfAllLogits(LogitLoss):
    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.square().sum(1)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (OneHot, "OneHot needs the logits of all classes"),
        (OfAllLogits, "OfAllLogits needs the logits"),
        (TakesOtherLogits, "TakesOtherLogits needs the logits"),
        (Learns, "Learns has parameters"),
    ],
)
def test_what_cannot_be_split_is_refused(make: Callable[[], RowLoss], why: str) -> None:
    shard = ClassShard.share(4, 0, 2, Messages(2).way(0))

    with pytest.raises(ValueError, match=why):
        make().configure(shard=shard)


def test_weights_of_other_classes_are_refused() -> None:
    loss = CrossEntropy().configure(shard=ClassShard.share(5, 1, 2, Messages(2).way(1)))

    with pytest.raises(ValueError, match="weight is of 2 classes, and 3 are here"):
        loss(torch.ones(1, 3), torch.zeros(2, 3), None, torch.tensor([0]))


@pytest.mark.parametrize(("classes", "shards"), [(7, 3), (10, 4), (3, 3)])
def test_shares_are_neighbours_and_alike(classes: int, shards: int) -> None:
    found = [ClassShard.share(classes, shard, shards, Messages(1).way(0)) for shard in range(shards)]

    assert [index for each in found for index in range(classes)[each.part]] == list(range(classes))
    sizes = {each.classes for each in found}
    assert max(sizes) - min(sizes) <= 1
