"""The losses where numbers end: huge logits, masked classes, nothing to average, targets that are none."""

import re

import pytest
import torch
from torch import Tensor

from crossent import losses
from crossent.errors import UserError
from crossent.losses import Binary, CrossEntropy, Focal, Hinge, LogitLoss, Loss, OneHot, RowLoss, Statistics
from crossent.losses.backends import choose
from crossent.losses.base import Backend
from losses.references import Case, Outcome, Problem, expected, outcome, pairs, slices

BROKEN_BY_LARGE_GAPS = (OneHot,)


def assert_finite(found: Outcome) -> None:
    for name, each in found._asdict().items():
        assert each is None or each.isfinite().all(), name


def assert_nothing(found: Outcome) -> None:
    for name, each in found._asdict().items():
        assert each is None or not each.any(), name


def on_the_diagonal(case: Case, gap: float) -> Problem:
    """Five rows; row i has the logit ``gap`` for class i, if there is one, and 0 for the others."""
    problem = case.random(classes=5, rows=5, columns=5)
    outputs = len(problem.weight)
    weight = torch.eye(outputs, 5).double() * gap
    return problem._replace(features=torch.eye(5).double(), weight=weight, bias=torch.zeros(outputs).double())


# -- large logits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gap", [-1e4, -100.0, 100.0, 1e4])
def test_large_gaps_have_a_finite_cost_and_gradient(
    case: Case, backend: Backend, gap: float, dtype: torch.dtype
) -> None:
    if isinstance(case.loss, BROKEN_BY_LARGE_GAPS):
        pytest.skip("written by hand on purpose; see the tests of its own below")
    problem = on_the_diagonal(case, gap).to(dtype)
    if dtype != torch.float16:  # too narrow for the gradient of a square
        problem = case.with_z_loss(problem)

    with slices(len(problem.frequencies), dtype, rows=2, block=1):
        found = outcome(case.configured(problem, backend), problem)

    reference = expected(case, problem.to(torch.float64))
    digits = 2e-2 if case.tau and dtype.itemsize == 2 else 1e-6  # the logarithms of the frequencies have 16 bits, too
    torch.testing.assert_close(found.mean.double(), reference.mean, rtol=digits, atol=digits)
    for name, ours, theirs in pairs(found, reference):
        # The plain formula is no number itself where it raises 0 to a power below 1, so it cannot say how large the
        # gradient is; where it can, the type may be too narrow for it.
        fits = theirs.isnan() | theirs.to(dtype).isfinite()
        assert ours[fits].isfinite().all(), name
        if dtype == torch.float64:
            right = theirs.isfinite()
            torch.testing.assert_close(ours[right], theirs[right], rtol=1e-9, atol=1e-12)


# The table "Numbers to know" of the losses' description: gaps that are fine, then the first that is not.
GRADIENT_ENDS = {torch.float64: 710.0, torch.float32: 88.75, torch.bfloat16: 88.75, torch.float16: 11.25}
COST_ENDS = {torch.float64: 745.25, torch.float32: 104.0, torch.bfloat16: 92.75, torch.float16: 17.5}


def gradient(logits: Tensor) -> tuple[Tensor, Tensor]:
    logits.requires_grad_()
    cost = OneHot().cost(logits, torch.tensor([0]))
    (by_logits,) = torch.autograd.grad(cost.sum(), logits)
    return cost.detach(), by_logits


@pytest.mark.parametrize(("dtype", "gap"), GRADIENT_ENDS.items(), ids=str)
def test_the_gradient_of_one_hot_ends_at_a_gap(dtype: torch.dtype, gap: float) -> None:
    _, before = gradient(torch.tensor([[0, gap - 0.5]], dtype=dtype))
    _, at = gradient(torch.tensor([[0, gap]], dtype=dtype))

    assert before.isfinite().all()
    assert at.isnan().any()


@pytest.mark.parametrize(("dtype", "gap"), COST_ENDS.items(), ids=str)
def test_the_cost_of_one_hot_ends_at_a_gap(dtype: torch.dtype, gap: float) -> None:
    before, _ = gradient(torch.tensor([[0, gap - 0.5]], dtype=dtype))
    at, _ = gradient(torch.tensor([[0, gap]], dtype=dtype))
    confident, _ = gradient(torch.tensor([[gap, 0]], dtype=dtype))

    assert before.isfinite().all()
    assert at.isinf().all()
    assert confident.isnan().all()


def test_a_gap_of_200_breaks_one_hot_alone(case: Case) -> None:
    problem = on_the_diagonal(case, 200.0).to(torch.float32)
    loss = case.configured(problem)
    arguments = problem.features, problem.weight, problem.bias, 1 - problem.targets.clamp(max=1)

    mean = loss(*arguments).mean

    assert mean.isfinite() != isinstance(loss, BROKEN_BY_LARGE_GAPS)


def test_a_gap_of_200_costs_200() -> None:
    features, weight, target = torch.ones(1, 1), torch.tensor([[0.0], [200.0]]), torch.tensor([0])

    assert losses.NegativeLogLikelihood()(features, weight, None, target).mean == 200
    assert CrossEntropy()(features, weight, None, target).mean == 200


@pytest.mark.parametrize("backend", Focal.backends)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_focal_has_a_gradient_where_the_target_is_certain(backend: Backend, gamma: float, dtype: torch.dtype) -> None:
    weight = torch.tensor([[1000.0], [0.0]], dtype=dtype, requires_grad=True)
    loss = Focal(gamma).configure(backend=backend)

    mean = loss(torch.ones(1, 1, dtype=dtype), weight, None, torch.tensor([0])).mean
    mean.backward()

    assert mean == 0
    assert weight.grad is not None
    assert not weight.grad.any()


# -- a masked class -----------------------------------------------------------------------------------------


@pytest.mark.symmetric
def test_a_masked_class_that_is_no_target_costs_nothing(case: Case, backend: Backend) -> None:
    if isinstance(case.loss, OneHot):
        pytest.skip("0 · log 0 is not a number, as it is written")
    if isinstance(case.loss, CrossEntropy) and case.loss.label_smoothing:
        pytest.skip("smoothing makes every class a target, and −log 0 is infinite")
    problem = case.with_z_loss(case.random())
    assert problem.bias is not None
    problem.bias[3] = -torch.inf
    problem = problem._replace(targets=problem.targets.where(problem.targets != 3, 4))

    with slices(7, torch.float64):
        found = outcome(case.configured(problem, backend), problem)

    assert_finite(found)
    assert found.bias is not None
    assert found.bias[3] == 0
    assert not found.weight[3].any()
    assert found.mean > 0


# -- nothing to average -------------------------------------------------------------------------------------


def test_all_rows_ignored_cost_nothing(case: Case, backend: Backend) -> None:
    problem = case.with_all(case.random())
    problem = problem._replace(targets=torch.full_like(problem.targets, -100))

    assert_nothing(outcome(case.configured(problem, backend), problem))


def test_all_sample_weights_0_cost_nothing(case: Case, backend: Backend) -> None:
    problem = case.with_all(case.random())._replace(sample_weight=torch.zeros(13))

    with slices(len(problem.frequencies), torch.float64):
        assert_nothing(outcome(case.configured(problem, backend), problem))


def test_rows_of_classes_of_weight_0_cost_nothing(case: Case, backend: Backend) -> None:
    if isinstance(case.loss, CrossEntropy) and case.loss.label_smoothing:
        pytest.skip("smoothing gives every row a share of the other classes, which have weights")
    problem = case.random()
    none = torch.ones(len(problem.frequencies)).double()
    none[0] = 0
    problem = problem._replace(targets=torch.zeros_like(problem.targets), class_weight=none)

    assert_nothing(outcome(case.configured(problem, backend), problem))


def test_an_empty_batch_costs_nothing(case: Case, backend: Backend) -> None:
    problem = case.with_all(case.random(rows=0))

    found = outcome(case.configured(problem, backend), problem)

    assert_nothing(found)
    assert found.features.shape == (0, 5)


@pytest.mark.parametrize("backend", CrossEntropy.backends)
def test_ignored_rows_may_hold_anything(backend: Backend) -> None:
    features = torch.tensor([[torch.nan], [1.0], [torch.inf]], requires_grad=True)
    loss = CrossEntropy().configure(backend=backend)

    mean = loss(features, torch.zeros(4, 1), None, torch.tensor([-100, 2, -100])).mean
    mean.backward()

    torch.testing.assert_close(mean, torch.tensor(4.0).log())
    assert features.grad is not None
    assert not features.grad.any()


# -- what is refused, and what is not -----------------------------------------------------------------------


def of_targets(targets: Tensor, loss: Loss | None = None, features: Tensor | None = None) -> Tensor:
    """The mean cost with the targets, three classes and logits of 0."""
    loss = loss or CrossEntropy()
    features = torch.ones(len(targets), 2) if features is None else features
    mean: Tensor = loss(features, torch.zeros(3, 2), None, targets).mean
    return mean


def test_one_class_is_refused(case: Case, backend: Backend) -> None:
    loss = case.make(torch.ones(1)).configure(backend=backend)
    if loss.classes(1) != 1:
        pytest.skip("one output is two classes")

    with pytest.raises(ValueError, match="1 class: a loss needs 2 or more"):
        loss(torch.ones(2, 3), torch.ones(1, 3), None, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("wrong", [3, -1, -101, 10**12])
def test_a_target_that_is_no_class_is_refused(case: Case, wrong: int) -> None:
    problem = case.random(classes=3, rows=4)
    problem.targets[0] = problem.ignore_index
    problem.targets[2:] = wrong
    highest = len(problem.frequencies) - 1

    with pytest.raises(ValueError, match=f"^row 2: target {wrong}, expected 0 to {highest}$"):
        outcome(case.configured(problem), problem)


def test_another_ignore_index_makes_the_usual_one_a_mistake() -> None:
    loss = CrossEntropy().configure(ignore_index=1)

    assert of_targets(torch.tensor([0, 1, 2]), loss).isfinite()
    assert loss(torch.ones(3, 2), torch.zeros(3, 2), None, torch.tensor([0, 1, 2])).weight == 2
    with pytest.raises(ValueError, match=r"^row 1: target -100, expected 0 to 2$"):
        of_targets(torch.tensor([1, -100]), loss)


def test_nan_in_the_features_names_the_row(case: Case, backend: Backend) -> None:
    problem = case.random(rows=6)
    problem.features[4, 1] = torch.nan

    with pytest.raises(ValueError, match=r"^row 4: NaN in the features$"):
        outcome(case.configured(problem, backend), problem)


def test_nan_in_the_features_names_the_row_also_after_ignored_ones() -> None:
    features = torch.ones(4, 2)
    features[2, 0] = torch.nan

    with pytest.raises(ValueError, match=r"^row 2: NaN in the features$"):
        of_targets(torch.tensor([-100, -100, 1, 0]), features=features)


def test_nan_in_an_ignored_row_is_not_to_blame() -> None:
    features = torch.ones(4, 2)
    features[0, 0] = features[2, 0] = torch.nan

    with pytest.raises(ValueError, match=r"^row 2: NaN in the features$"):
        of_targets(torch.tensor([-100, 1, 1, 0]), features=features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64])
def test_targets_that_are_no_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"^targets are {dtype}; expected the index of each row's class$"):
        of_targets(torch.ones(2).to(dtype))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_targets_may_be_any_integers(case: Case, backend: Backend, dtype: torch.dtype) -> None:
    problem = case.random()
    wide = outcome(case.configured(problem, backend), problem)

    narrow = problem._replace(targets=problem.targets.to(dtype))

    assert torch.equal(outcome(case.configured(narrow, backend), narrow).weight, wide.weight)


def test_targets_of_uint8_can_be_ignored() -> None:
    loss = CrossEntropy().configure(ignore_index=255)

    assert loss(torch.ones(2, 2), torch.zeros(3, 2), None, torch.tensor([255, 1], dtype=torch.uint8)).weight == 1


@pytest.mark.parametrize(
    ("features", "targets", "sample_weight", "message"),
    [
        ((3,), (3,), None, r"features have the shape (3,) and targets (3,); expected (rows, features) and (rows,)"),
        ((3, 2), (2,), None, r"features have the shape (3, 2) and targets (2,); expected (rows, features) and (rows,)"),
        ((3, 2), (3, 1), None, r"features have the shape (3, 2) and targets (3, 1)"),
        ((3, 2), (3,), (2,), "sample_weight has the shape (2,), not (3,)"),
        ((3, 2), (3,), (3, 1), "sample_weight has the shape (3, 1), not (3,)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    features: tuple[int, ...], targets: tuple[int, ...], sample_weight: tuple[int, ...] | None, message: str
) -> None:
    weights = None if sample_weight is None else torch.ones(sample_weight)

    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        CrossEntropy()(torch.ones(features), torch.ones(3, 2), None, torch.zeros(targets, dtype=torch.int64), weights)


def test_class_weights_for_other_classes_are_refused(case: Case, backend: Backend) -> None:
    problem = case.random()._replace(class_weight=torch.ones(3).double())
    classes = len(problem.frequencies)

    with pytest.raises(ValueError, match=f"^class_weight has 3 numbers for {classes} classes$"):
        outcome(case.configured(problem, backend), problem)


@pytest.mark.parametrize("loss", [Hinge(), Binary()], ids=lambda loss: type(loss).__name__)
def test_z_loss_is_refused_without_a_softmax(loss: Loss) -> None:
    message = f"^z_loss=0.1: {type(loss).__name__} has no softmax whose normaliser it could hold$"

    with pytest.raises(ValueError, match=message):
        loss.configure(z_loss=0.1)


@pytest.mark.parametrize("kind", [OneHot, losses.NegativeLogLikelihood, Hinge, Binary])
def test_chunked_is_refused_by_what_needs_all_logits(kind: type[LogitLoss]) -> None:
    message = f"^backend=chunked: {kind.__name__} needs all logits of a row; use dense$"

    with pytest.raises(ValueError, match=message):
        kind().configure(backend="chunked")


def test_pos_weight_keeps_its_precision() -> None:
    one = torch.ones(1, 1).double()

    mean = Binary(0.1)(one, one, None, torch.tensor([1])).mean

    torch.testing.assert_close(mean, 0.1 * torch.nn.functional.softplus(-one[0, 0]), rtol=1e-15, atol=0)


def test_binary_wants_two_classes_and_one_output() -> None:
    assert Binary().outputs(2) == 1
    assert Binary().classes(1) == 2
    with pytest.raises(UserError, match="loss=binary: made for 2 classes, the data has 3"):
        Binary().outputs(3)
    with pytest.raises(ValueError, match="weight has 2 rows; Binary takes one output"):
        Binary()(torch.ones(1, 2), torch.ones(2, 2), None, torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("pos_weight", [None, 3.0])
def test_binary_is_cross_entropy_of_the_logits_0_and_d(pos_weight: float | None) -> None:
    difference = torch.linspace(-3, 3, 7).double().unsqueeze(1)
    targets = torch.tensor([0, 1, 1, 0, 1, 0, 1])

    two = torch.cat([torch.zeros_like(difference), difference], dim=1)
    weight = torch.where(targets == 1, pos_weight or 1.0, 1.0).double()
    wanted = weight * losses.NegativeLogLikelihood().cost(two, targets)
    torch.testing.assert_close(Binary(pos_weight).cost(difference, targets), wanted)


# -- a loss of one's own ------------------------------------------------------------------------------------


class Uniform(RowLoss):
    """Reads one statistic, and not that of the target."""

    def cost(self, row: Statistics) -> Tensor:
        return row.mean_nll


class Scaled(CrossEntropy):
    """Changes what it inherits."""

    def cost(self, row: Statistics) -> Tensor:
        return 2 * row.nll


class Constant(RowLoss):
    """Not a cost a row."""

    def cost(self, row: Statistics) -> Tensor:
        return row.nll.sum()


class Unknown(RowLoss):
    """Reads what there is not."""

    def cost(self, row: Statistics) -> Tensor:
        return row.entropy  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("kind", [Uniform, Scaled])
@pytest.mark.parametrize("backend", RowLoss.backends)
def test_a_loss_of_ones_own_is_what_it_says(kind: type[RowLoss], backend: Backend) -> None:
    case = Case(kind.__name__, lambda _: kind(), None)
    problem = case.random()

    found = outcome(case.configured(problem, backend), problem)

    reference = expected(case, problem)
    torch.testing.assert_close(found.mean, reference.mean)
    torch.testing.assert_close(found.weight, reference.weight)


@pytest.mark.parametrize("backend", RowLoss.backends)
def test_a_loss_of_ones_own_has_to_return_a_cost_a_row(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"Constant\.cost has to return a cost a row"):
        of_targets(torch.tensor([0, 1]), Constant().configure(backend=backend))


@pytest.mark.parametrize("backend", RowLoss.backends)
def test_a_statistic_that_there_is_not_is_named(backend: Backend) -> None:
    with pytest.raises(AttributeError, match="no 'entropy', only nll, mean_nll, squared_probabilities, logsumexp"):
        of_targets(torch.tensor([0, 1]), Unknown().configure(backend=backend))


@pytest.mark.parametrize("backend", RowLoss.backends)
def test_a_loss_can_be_configured_again(backend: Backend) -> None:
    loss = CrossEntropy().configure(backend=backend)
    arguments = torch.ones(2, 2), torch.zeros(3, 2), None, torch.tensor([0, 1])
    nll = loss(*arguments).mean

    with_z_loss = loss.configure(z_loss=0.5, backend=backend)(*arguments).mean

    torch.testing.assert_close(with_z_loss, nll + 0.5 * nll.square())  # logits of 0: both are log 3


# -- 16 bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", CrossEntropy.backends)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_logits_near_the_end_of_16_bits_have_their_cost(backend: Backend, dtype: torch.dtype) -> None:
    weight = torch.tensor([[200.0], [-200.0], [0.0]], dtype=dtype, requires_grad=True)
    features = torch.tensor([[300.0], [-300.0]], dtype=dtype)
    loss = CrossEntropy().configure(backend=backend)

    mean = loss(features, weight, None, torch.tensor([1, 1])).mean
    mean.backward()

    torch.testing.assert_close(mean, torch.tensor(60_000.0), rtol=2**-8, atol=0)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([[150.0], [-150.0], [0.0]], dtype=dtype))


@pytest.mark.parametrize("backend", CrossEntropy.backends)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_over_many_rows_neither_overflow_nor_stand_still(backend: Backend, dtype: torch.dtype) -> None:
    rows = 20_000
    features = torch.full((rows, 1), 100.0, dtype=dtype)  # their sum is 2 million; bfloat16 counts to 256
    weight = torch.zeros(2, 1, dtype=dtype, requires_grad=True)
    loss = CrossEntropy().configure(backend=backend)

    cost = loss(features, weight, None, torch.zeros(rows, dtype=torch.int64), torch.full((rows,), 3.0))
    cost.mean.backward()

    torch.testing.assert_close(cost.mean, torch.tensor(2.0).log())
    assert cost.weight == 3 * rows
    torch.testing.assert_close(weight.grad, torch.tensor([[-50.0], [50.0]], dtype=dtype), rtol=2**-7, atol=0)


@pytest.mark.parametrize("backend", CrossEntropy.backends)
def test_scaling_the_loss_saves_gradients_too_small_for_float16(backend: Backend) -> None:
    weight = torch.tensor([[9.0], [-9.0]], requires_grad=True)
    loss = CrossEntropy().configure(backend=backend)

    with torch.autocast("cpu", dtype=torch.float16):
        mean = loss(torch.ones(1, 1), weight, None, torch.tensor([0])).mean
    (2**16 * mean).backward()  # as a GradScaler does

    assert weight.grad is not None
    small = 2**16 * torch.tensor(-18.0).sigmoid()
    torch.testing.assert_close(weight.grad[1, 0], small, rtol=2e-3, atol=0)


# -- which backend ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "classes", "chosen"),
    [
        (1, 8191, "dense"),
        (1, 8192, "chunked"),
        (2**16, 1024, "dense"),  # 256 MB to the byte
        (2**16 + 1, 1024, "chunked"),
    ],
)
def test_auto_takes_slices_of_many_classes_and_of_many_logits(rows: int, classes: int, chosen: str) -> None:
    assert choose("auto", rows, classes) == chosen


@pytest.mark.parametrize("name", ["dense", "chunked"])
def test_a_backend_that_is_named_is_taken(name: str) -> None:
    assert choose(name, 1, 2) == choose(name, 2**20, 2**20) == name
