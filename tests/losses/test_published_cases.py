"""What others test their cross entropies with, run against these losses.

Samples, tables and grids: PyTorch's own, scikit-learn's, Liger-Kernel's and Apple's cut cross entropy's. No code of
theirs is here, only numbers. A test prints how many cases of its source were run, and what was skipped and why; both
are pinned, so that none can get lost.
"""

import contextlib
import itertools
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import sklearn
import torch
import torch.nn.functional as F
from sklearn._loss import HalfBinomialLoss, HalfMultinomialLoss
from torch import Tensor

from crossent.losses import Binary, Cost, CrossEntropy, Loss, NegativeLogLikelihood, products

Backend = Literal["dense", "chunked"]
Reduction = Literal["mean", "sum", "none"]
Record = Callable[[str, object], None]

BACKENDS: tuple[Backend, ...] = ("dense", "chunked")
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def many_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these small cases, too, take several slices and blocks, the last of them not full."""
    monkeypatch.setattr(products, "slice_rows", lambda weight, itemsize: max(1, 2**13 // len(weight)))
    monkeypatch.setattr(products, "_BLOCK_BYTES", 2**12)


@dataclass
class Tally:
    """How many cases of a source were run, skipped and failed."""

    source: str
    run: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def case(self, name: object) -> Iterator[None]:
        self.run += 1
        try:
            yield
        except Exception as error:
            self.failed.append(f"{name}: {type(error).__name__}: {error}")

    def close(self, record: Record) -> None:
        """Tells the counts, and fails where a case did."""
        counts = f"{self.run} run, {len(self.failed)} failed, skipped: {dict(self.skipped) or 0}"
        record(self.source, counts)
        print(f"\n{self.source}: {counts}")  # noqa: T201  # for pytest -s
        assert self.run
        assert not self.failed, "\n".join([f"{self.source}: {counts}", *self.failed[:20]])


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype, size: float = 1.0, floor: float = 0.0) -> None:
    """Whether the error is what rounding numbers of a size explains, by the norm or, if that is larger, the floor."""
    assert actual.shape == expected.shape
    roundings = 2.0 if dtype.itemsize > 2 else 0.25  # sums of 16-bit numbers are held in 32 bits
    allowed = roundings * torch.finfo(dtype).eps * size * max(expected.norm().item(), floor)
    error = (actual.detach().double() - expected).norm().item()
    assert error <= allowed, f"off by {error:.3g}, allowed {allowed:.3g}"


def reduced(cost: Cost, reduction: Reduction) -> Tensor:
    """Mean or sum; "none" is the sum, too, since what comes back to each row then goes in as its weight."""
    return cost.mean if reduction == "mean" else cost.mean * cost.weight


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch: the sample inputs that its operators are tested with.
# ---------------------------------------------------------------------------------------------------------------------

# In a process of its own: importing torch.testing._internal locks torch.backends' flags, which Lightning sets.
DUMP_SAMPLES = """
import random, sys, torch
from torch.testing._internal.common_methods_invocations import op_db

found = []
for op in op_db:
    if op.name in ("nn.functional.cross_entropy", "nn.functional.linear_cross_entropy"):
        for dtype in (torch.float64, torch.float32):
            torch.manual_seed(0)
            random.seed(0)
            for sample in op.sample_inputs("cpu", dtype):
                output = None
                tensors = sample.input, *sample.args
                if max(each.ndim for each in tensors) < 3 and not tensors[-1].is_floating_point():
                    output = op(sample.input, *sample.args, **sample.kwargs)
                sample.kwargs.pop("options", None)  # how PyTorch slices its rows, not what comes out
                found.append((op.name, tensors, sample.kwargs, output))
torch.save(found, sys.argv[1])
"""
PROBABILITIES, DIMENSIONS = "probability targets", "more than two dimensions"


def test_pytorchs_sample_inputs(tmp_path: Path, record_property: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "slice_rows", lambda weight, itemsize: 3)
    monkeypatch.setattr(products, "_BLOCK_BYTES", 32)
    path = tmp_path / "samples.pt"
    subprocess.run([sys.executable, "-c", DUMP_SAMPLES, str(path)], check=True)
    names = {"nn.functional.cross_entropy"}
    if hasattr(F, "linear_cross_entropy"):  # not in PyTorch 2.11
        names.add("nn.functional.linear_cross_entropy")
    tallies = {name: Tally(f"PyTorch {torch.__version__}, {name}") for name in names}

    samples = torch.load(path, weights_only=True)
    for (name, arguments, options, output), backend in itertools.product(samples, BACKENDS):
        tally = tallies[name]
        if arguments[-1].is_floating_point():
            tally.skipped[PROBABILITIES] += 1
        elif max(each.ndim for each in arguments) > 2:
            tally.skipped[DIMENSIONS] += 1
        else:
            with tally.case(f"{[list(each.shape) for each in arguments]} {arguments[0].dtype} {options} {backend}"):
                check_sample(arguments, backend, output, **options)

    for name, tally in tallies.items():
        tally.close(record_property)
        assert tally.run + tally.skipped.total() == 2 * sum(name == sample[0] for sample in samples)


def check_sample(
    arguments: tuple[Tensor, ...],
    backend: Backend,
    output: Tensor,
    weight: Tensor | None = None,
    linear_bias: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> None:
    dtype = arguments[0].dtype
    features = torch.atleast_2d(arguments[0]).clone()
    classes = arguments[1] if len(arguments) == 3 else torch.eye(features.shape[1], dtype=dtype)
    targets = torch.atleast_1d(arguments[-1])
    leaves = [each.clone().requires_grad_() for each in (features, classes, linear_bias) if each is not None]
    loss = CrossEntropy(label_smoothing).configure(class_weight=weight, ignore_index=ignore_index, backend=backend)

    def head(leaves: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        return leaves[0], leaves[1], leaves[2] if len(leaves) > 2 else None

    x, w, b = head(leaves)
    if reduction == "none":
        each = [loss(x[n : n + 1], w, b, targets[n : n + 1]) for n in range(len(x))]
        actual = torch.stack([reduced(cost, "sum") for cost in each])
        total = sum(float(cost.weight) for cost in each)
    else:
        cost = loss(x, w, b, targets)
        total = float(cost.weight)
        reduction = reduction if total else "sum"  # of no rows PyTorch's mean is NaN, ours 0
        actual = reduced(cost, reduction)
    actual.sum().backward()

    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits = F.linear(*head(exact))
    expected = F.cross_entropy(
        logits,
        targets,
        None if weight is None else weight.double(),
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    expected.sum().backward()
    kept = targets != ignore_index
    weights = torch.ones(int(kept.sum())) if weight is None else weight[targets[kept]]
    floor = weights.abs().sum().item() / (abs(total) if reduction == "mean" else 1)  # where all but cancels out
    size = 1 + logits.abs().max().item()
    near(actual, expected.detach(), dtype, size, floor)
    if total:
        near(actual, output.double().reshape(actual.shape), dtype, size, floor)
    for leaf, other in zip(leaves, exact, strict=True):
        assert leaf.grad is not None
        assert other.grad is not None
        near(leaf.grad, other.grad, dtype, size, floor * size)


# ---------------------------------------------------------------------------------------------------------------------
# scikit-learn (BSD-3-Clause), sklearn/_loss/tests/test_loss.py: test_loss_on_specific_values and those named below.
# ---------------------------------------------------------------------------------------------------------------------

# Target, raw prediction, cost, gradient of HalfBinomialLoss; checked there with mpmath, to 1e-15 relative or absolute.
BINOMIAL = [
    (0, -1e20, 0.0, 0.0),
    (1, -1e20, 1e20, -1.0),
    (0, -1e3, 0.0, 0.0),
    (1, -1e3, 1e3, -1.0),
    (1, -37.5, 37.5, -1.0),
    (1, -37.0, 37.0, 1e-16 - 1),
    (0, -37.0, 8.533047625744065e-17, 8.533047625744065e-17),
    (1, -36.9, 36.9, 1e-16 - 1),
    (0, -36.9, 9.430476078526806e-17, 9.430476078526806e-17),
    (0, 37.0, 37.0, 1 - 1e-16),
    (1, 37.0, 8.533047625744066e-17, 8.533047625744066e-17),
    (0, 37.5, 37.5, 1.0),
    (0, 232.8, 232.8, 1.0),
    (1, 1e20, 0.0, 0.0),
    (0, 1e20, 1e20, 1.0),
    (1, 232.8, 0.0, -1.4287342391028437e-101),
    (1, 232.9, 0.0, 0.0),
    (1, 1e3, 0.0, 0.0),
    (0, 1e3, 1e3, 1.0),
]
# Target, raw predictions, cost of HalfMultinomialLoss.
MULTINOMIAL = [
    *((target, [0.2, 0.5, 0.3], math.log(sum(map(math.exp, (0.2, 0.5, 0.3)))) - z) for target, z in
      enumerate((0.2, 0.5, 0.3))),
    (2, [1e4, 0.0, 7e-7], 1e4 - 7e-7),
    # test_loss_of_perfect_prediction
    *((target, [math.exp(10) * (1 if c == target else -1) for c in range(3)], 0.0) for target in range(3)),
]  # fmt: skip
SKLEARN = f"scikit-learn {sklearn.__version__}"
SAMPLE_WEIGHTS = (None, 1.0, 0.1, 3.0, -0.7)


def costs_of_logits(loss: Loss, logits: Tensor, targets: Tensor, sample_weight: Tensor | None) -> tuple[Cost, Tensor]:
    """And the gradient of their sum by the logits."""
    leaf = logits.clone().requires_grad_()
    cost = loss(leaf, torch.eye(leaf.shape[1], dtype=leaf.dtype), None, targets, sample_weight)
    reduced(cost, "sum").backward()
    assert leaf.grad is not None
    return cost, leaf.grad


def softmax_losses() -> list[Loss]:
    return [*(CrossEntropy().configure(backend=backend) for backend in BACKENDS), NegativeLogLikelihood()]


def same(actual: Tensor, expected: object, absolute: float = 1e-15) -> None:
    """To scikit-learn's 1e-15, plus one rounding of the division and one of the multiplication by the weight."""
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected, dtype=F64), rtol=2e-15, atol=absolute)


def test_sklearns_extreme_binomial_values(record_property: Record) -> None:
    tally = Tally(f"{SKLEARN}, HalfBinomialLoss at specific values")
    tally.skipped[PROBABILITIES] += 1  # y = 0.25, raw = log 4
    for (target, raw, value, slope), weight in itertools.product(BINOMIAL, SAMPLE_WEIGHTS):
        sample_weight = None if weight is None else torch.tensor([weight], dtype=F64)
        factor = 1.0 if weight is None else weight
        for loss in [Binary(), *softmax_losses()]:
            with tally.case(f"{target} {raw} {weight} {type(loss).__name__} {loss.backend}"):
                logits = [[raw]] if isinstance(loss, Binary) else [[0.0, raw]]
                slopes = [[slope]] if isinstance(loss, Binary) else [[-slope, slope]]
                cost, gradient = costs_of_logits(
                    loss, torch.tensor(logits, dtype=F64), torch.tensor([target]), sample_weight
                )
                same(cost.mean, value)
                same(cost.mean * cost.weight, factor * value)
                same(gradient, [[factor * each for each in slopes[0]]])
    tally.close(record_property)


def test_sklearns_extreme_multinomial_values(record_property: Record) -> None:
    tally = Tally(f"{SKLEARN}, HalfMultinomialLoss at specific values")
    theirs = HalfMultinomialLoss(n_classes=3)
    for (target, raw, value), weight, loss in itertools.product(MULTINOMIAL, SAMPLE_WEIGHTS, softmax_losses()):
        with tally.case(f"{target} {raw} {weight} {type(loss).__name__} {loss.backend}"):
            sample_weight = None if weight is None else torch.tensor([weight], dtype=F64)
            cost, gradient = costs_of_logits(
                loss, torch.tensor([raw], dtype=F64), torch.tensor([target]), sample_weight
            )
            same(cost.mean, value)
            weights = None if weight is None else np.array([weight])
            same(gradient, theirs.gradient(np.array([float(target)]), np.array([raw]), sample_weight=weights))
    tally.close(record_property)


# As in test_loss_same_as_C_functions, test_sample_weight_multiplies, test_multinomial_cy_gradient.
WEIGHTS_OF_100: dict[str, Callable[[np.random.RandomState], Any]] = {
    "none": lambda _: None,
    "ones": lambda _: np.ones(100),
    "range": lambda _: np.linspace(0.1, 2, num=100),
    "normal": lambda random: random.normal(size=100),
}


def test_random_rows_cost_what_sklearn_says(record_property: Record) -> None:
    tally = Tally(f"{SKLEARN}, random rows with sample weights")
    for kind, classes, bound, dtype in itertools.product(WEIGHTS_OF_100, (2, 3, 5), (5, 100), (F64, F32)):
        random = np.random.RandomState(42)
        raw = random.uniform(-bound, bound, size=(100, classes)).astype(str(dtype).removeprefix("torch."))
        targets = np.arange(100) % classes
        weights = WEIGHTS_OF_100[kind](random)
        losses = softmax_losses()
        if classes == 2:
            losses.append(Binary())
        for loss in losses:
            binary = isinstance(loss, Binary)
            theirs = HalfBinomialLoss() if binary else HalfMultinomialLoss(n_classes=classes)
            logits = raw[:, :1] if binary else raw
            double = (logits[:, 0] if binary else logits).astype(np.float64)
            value, gradient = theirs.loss_gradient(targets.astype(np.float64), double, weights)
            with tally.case(f"{kind} {classes} {bound} {dtype} {type(loss).__name__} {loss.backend}"):
                cost, ours = costs_of_logits(
                    loss,
                    torch.from_numpy(logits),
                    torch.from_numpy(targets),
                    None if weights is None else torch.from_numpy(weights),
                )
                total, size = (100.0, 1.0) if weights is None else (weights.sum(), np.abs(weights).sum())
                near(torch.as_tensor(cost.weight), torch.tensor(total, dtype=F64), dtype, floor=size)
                exact = torch.from_numpy(value)
                near(reduced(cost, "sum"), exact.sum(), dtype, 8, floor=exact.norm().item())
                near(ours, torch.from_numpy(gradient).reshape(ours.shape), dtype, 1 + bound)
    tally.close(record_property)


def test_gradient_is_zero_at_sklearns_intercept(record_property: Record) -> None:  # test_loss_intercept_only
    tally = Tally(f"{SKLEARN}, fit_intercept_only")
    targets = np.arange(50) % 3
    targets[::5] = 0
    for weights, loss in itertools.product((None, np.linspace(0.1, 2, num=50)), softmax_losses()):
        intercept = HalfMultinomialLoss(n_classes=3).fit_intercept_only(targets.astype(np.float64), weights)
        bias = torch.from_numpy(intercept).requires_grad_()
        zeros = torch.zeros(50, 2, dtype=F64), torch.zeros(3, 2, dtype=F64)
        with tally.case(f"{weights is None} {type(loss).__name__} {loss.backend}"):
            cost = loss(*zeros, bias, torch.from_numpy(targets), None if weights is None else torch.from_numpy(weights))
            (gradient,) = torch.autograd.grad(reduced(cost, "sum"), bias)
            same(gradient, [0.0, 0.0, 0.0], absolute=1e-12)
    tally.close(record_property)


# ---------------------------------------------------------------------------------------------------------------------
# Grids of Liger-Kernel (BSD-2-Clause, at ead96b618e5c) and Apple's ml-cross-entropy (at d42911f9b1a1).
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One point of a grid.

    Without columns the logits themselves are drawn, and stand where the head's weights do: the features are the
    identity, so that a gradient by the weights is one by the logits.
    """

    rows: int
    classes: int
    columns: int = 0
    dtype: torch.dtype = F32
    bias: bool = False
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
    ignore_index: int = -100
    ignored: float = 0.0  # share of the rows
    z_loss: float = 0.0
    class_weight: Literal["", "rand", "randn"] = ""
    draw: Literal["normal", "uniform", "confident", "copied"] = "normal"  # the head's weights
    by_loss: float | Literal["per row"] = 1.0  # what comes back to the loss
    cast: torch.dtype | None = None  # by autocast
    backward: bool = True
    wanted: tuple[bool, bool, bool] = (True, True, True)  # gradients by features, weight, bias
    lacks: str = ""  # what the case tests that these losses do not have


class Material:
    """The tensors of a case, always the same."""

    def __init__(self, case: Case) -> None:
        random = torch.Generator().manual_seed(case.rows * case.classes + case.columns)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=random)

        columns = case.columns or case.rows
        self.targets = torch.randint(case.classes, (case.rows,), generator=random)
        features = normal(case.rows, columns) if case.columns else torch.eye(case.rows)
        weight = uniform(case.classes, columns) if case.draw == "uniform" else normal(case.classes, columns)
        if case.draw == "confident":
            weight[self.targets, torch.arange(case.rows)] = weight.amax(dim=0) + 10
        if case.draw == "copied":  # Apple's: some rows' features are some classes' weights
            features /= columns**0.5
            half = min(case.rows, case.classes) // 2
            weight[:half] = features[:half]
        bias = uniform(case.classes) if case.draw == "uniform" else 0.02 * normal(case.classes)
        self.head = [each.to(case.dtype) for each in (features, weight, bias)[: 2 + case.bias]]
        self.targets[torch.randperm(case.rows, generator=random)[: int(case.ignored * case.rows)]] = case.ignore_index
        self.class_weight: Tensor | None = None
        if case.class_weight:
            self.class_weight = (uniform if case.class_weight == "rand" else normal)(case.classes).double()
        self.by_row = uniform(case.rows).double() + 0.5

    def leaves(
        self, dtype: torch.dtype, wanted: tuple[bool, bool, bool]
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        made = [each.to(dtype, copy=True).requires_grad_(want) for each, want in zip(self.head, wanted, strict=False)]
        return (made[0], made[1]), made[2] if len(made) > 2 else None


def check_case(case: Case, backend: Backend) -> None:
    made = Material(case)
    loss = CrossEntropy(case.label_smoothing).configure(
        class_weight=made.class_weight, ignore_index=case.ignore_index, z_loss=case.z_loss, backend=backend
    )
    per_row = case.reduction == "none" or case.by_loss == "per row"
    factor = 1.0 if case.by_loss == "per row" else case.by_loss
    weights, bias = made.leaves(case.dtype, case.wanted)
    with contextlib.ExitStack() as stack:
        if case.cast is not None:
            stack.enter_context(torch.autocast("cpu", case.cast))
        if not case.backward:
            stack.enter_context(torch.no_grad())
        cost = loss(*weights, bias, made.targets, made.by_row if per_row else None)
        actual = factor * reduced(cost, "none" if per_row else case.reduction)

    exact_weights, exact_bias = made.leaves(F64, case.wanted)
    logits = F.linear(*exact_weights, exact_bias)
    kept = made.targets != case.ignore_index
    factors = torch.ones(case.rows, dtype=F64)
    factors[kept] = factors[kept] if made.class_weight is None else made.class_weight[made.targets[kept]]
    factors = factors.where(kept, 0.0)
    reduction: Reduction = "none" if per_row else case.reduction
    expected = F.cross_entropy(
        logits,
        made.targets,
        made.class_weight,
        ignore_index=case.ignore_index,
        label_smoothing=case.label_smoothing,
        reduction=reduction,
    )
    squares = case.z_loss * logits.logsumexp(dim=1).square() * factors  # weighted as the cost is, unlike Liger's
    if reduction == "none":
        expected = ((expected + squares) * made.by_row).sum()
    else:
        expected = expected + squares.sum() / (factors.sum() if reduction == "mean" else 1)
    expected = factor * expected

    narrow = case.cast or case.dtype
    size = 1 + logits.detach().abs().max().item()
    cancelled = (factors.abs().sum() / factors.sum().abs()).item() if reduction == "mean" else 1.0
    assert actual.dtype == F32  # also of 16-bit logits
    by_row = factors * made.by_row if per_row else factors
    near(torch.as_tensor(cost.weight), by_row.sum(), F32, floor=by_row.norm().item())
    near(actual, expected.detach(), narrow, size * cancelled, floor=factor * factors.abs().mean().item())
    if not case.backward:
        assert not actual.requires_grad
        return
    actual.backward()
    expected.backward()
    pairs = [*zip(weights, exact_weights, strict=True)]
    if bias is not None and exact_bias is not None:
        pairs.append((bias, exact_bias))
    for leaf, exact in pairs:
        assert (leaf.grad is None) == (exact.grad is None) == (not leaf.requires_grad)
        if leaf.grad is not None and exact.grad is not None:
            near(leaf.grad, exact.grad, narrow, size * cancelled)


def check_grid(source: str, cases: list[Case], record: Record) -> Tally:
    tally = Tally(source)
    for case, backend in itertools.product(cases, BACKENDS):
        if case.lacks:
            tally.skipped[case.lacks] += 1
        else:
            with tally.case(f"{case} {backend}"):
                check_case(case, backend)
    tally.close(record)
    return tally


def over(cases: list[Case], **axes: list[Any]) -> list[Case]:
    """Every case with every combination; a name of several fields, joined by ``__``, takes tuples."""
    for name, values in axes.items():
        fields = name.split("__")
        cases = [
            replace(case, **dict(zip(fields, value if len(fields) > 1 else (value,), strict=True)))
            for case, value in itertools.product(cases, values)
        ]
    return cases


SOFTCAP = "soft capping of the logits"
APART = "z_loss returned apart"
ACCURACY = "token accuracy returned"
PREDICTED = "predicted tokens returned"
TOKEN_SCALING = "scaling by the target's probability"
SHARDS = "classes spread over processes"


def liger_logits() -> list[Case]:
    """test/transformers/test_cross_entropy.py.

    Rows and classes scaled down: 2 × 4096 (and 2 × 1024) and 32000 to 2 × 32 and 320; 3 × 423 and 32000 to 3 × 23 and
    317. Where a case caps its logits beside other things, those other things are run without the cap.
    """
    shapes = [Case(2 * 32, 320), Case(3 * 23, 317)]
    large, odd = shapes
    some: dict[str, list[Any]] = {"dtype": [BF16, F32]}
    reductions = ["sum", "mean", "none"]
    others = [(-100, 1e-4, 0.1), (42, 1e-5, 0.2)]
    ignored = over(shapes, ignored=[0.25])
    return [
        *over(shapes, reduction=reductions, **some),  # test_correctness
        *over(  # functional
            [Case(2 * 2, 8), Case(9 * 7, 41)], ignore_index__z_loss__label_smoothing__by_loss=[(0, 1e-4, 0.1, 0.7)],
            **some,
        ),
        *over(  # with_ignore_index
            [replace(large, ignore_index=2, ignored=0.25), replace(odd, ignore_index=-123, ignored=0.25)],
            reduction=reductions, **some,
        ),
        *over(shapes, label_smoothing=[0.1], **some),
        *over(  # with_label_smoothing_with_ignore_index
            [replace(large, ignore_index=1, label_smoothing=0.1), replace(odd, ignore_index=-300, label_smoothing=0.2)],
            ignored=[0.25], **some,
        ),
        *over(shapes, lacks=[SOFTCAP], reduction=reductions, **some),
        *over(shapes, lacks=["", APART], z_loss=[1e-4, 1e-5], **some),
        *over(  # with_z_loss_with_other_params
            ignored, z_loss=[1e-4, 1e-5],
            label_smoothing__ignore_index__reduction=[(0.1, 42, "mean"), (0.2, -42, "sum")], **some,
        ),
        *over(shapes, class_weight=["rand"], reduction=reductions, **some),
        *over(  # with_weight_with_other_params
            ignored, class_weight=["rand"], reduction=reductions, ignore_index__z_loss__label_smoothing=others, **some,
        ),
        *over(shapes, by_loss=[3.0], reduction=["sum", "mean"], **some),  # not_last_layer
        *over(
            ignored, by_loss=[3.0], reduction=["sum", "mean"], ignore_index__z_loss__label_smoothing=others, **some,
        ),
        *over(  # with_forward_only
            [large, replace(odd, ignore_index=2)], backward=[False], reduction=["mean", "sum", "none"],
            dtype=[F32, F16, BF16],
        ),
        *over([Case(2 * 128, 512), Case(3 * 47, 31)], ignored=[0.25], ignore_index=[-100, 2],  **some),
        *over([Case(2 * 128, 512), Case(3 * 47, 31)], ignore_index=[-100, 2], lacks=[PREDICTED], **some),
        *(Case(3, 3, lacks=lacks) for lacks in (APART, ACCURACY, PREDICTED)),  # structured_output
    ]  # fmt: skip


def test_ligers_grid_of_logits(record_property: Record) -> None:
    tally = check_grid("Liger-Kernel, test_cross_entropy", liger_logits(), record_property)

    assert tally.run == 2 * 146
    assert tally.skipped == {SOFTCAP: 2 * 12, APART: 2 * 9, ACCURACY: 2 * 1, PREDICTED: 2 * 9}


def liger_fused() -> list[Case]:
    """test/transformers/test_fused_linear_cross_entropy.py.

    8 × 128 rows of 1024 features and 4096 classes scaled down to 8 × 16, 64 and 256; the rest as they are.
    """
    shapes = over([Case(8 * 16, 256, 64), Case(4 * 47, 123, 31)], draw=["uniform"])
    plain: dict[str, list[Any]] = {"bias": [True, False], "dtype": [BF16, F32]}
    ignored = over(shapes, ignored=[0.25])
    # has_ce_weight, label_smoothing, ignore_index, lse_square_scale
    parameters: dict[str, list[Any]] = {
        "class_weight__label_smoothing__ignore_index__z_loss": [("", 0.0, -100, 0.0), ("rand", 0.1, 42, 1e-4)]
    }
    return [
        *over(ignored, backward=[True, False], reduction=["mean", "sum"], **plain, **parameters),
        *over(  # functional
            [Case(2 * 2, 8, 8), Case(9 * 7, 41, 41)],
            z_loss__label_smoothing__by_loss=[(1e-4, 0.1, 0.7)], class_weight=["randn", ""], **plain,
        ),
        *over(ignored, lacks=["", ACCURACY], **plain),
        *over(shapes, bias=[True, False], cast=[BF16, F16]),  # amp
        *over([Case(2 * 4, 16, 8, bias=True)], lacks=[TOKEN_SCALING] * 4),
        *over([Case(6, 1000, 8, bias=True)], lacks=[TOKEN_SCALING]),
        *(Case(3, 3, 2, bias=True, lacks=lacks) for lacks in (APART, ACCURACY)),  # structured_output
        *over(ignored, draw=["normal"], ignore_index=[-100, 2], lacks=["", PREDICTED], **plain),
        *over([Case(2 * 16, 64, 32), Case(32, 128, 64)], by_loss=["per row"], bias=[True, False]),
    ]  # fmt: skip


def test_ligers_grid_of_heads(record_property: Record) -> None:
    tally = check_grid("Liger-Kernel, test_fused_linear_cross_entropy", liger_fused(), record_property)

    assert tally.run == 2 * 116
    assert tally.skipped == {ACCURACY: 2 * 9, TOKEN_SCALING: 2 * 5, APART: 2 * 1, PREDICTED: 2 * 16}


def test_ligers_structured_output_numbers(record_property: Record) -> None:
    tally = Tally("Liger-Kernel, structured outputs' numbers")
    features = torch.tensor([[0.2, -0.1], [1.0, 0.5], [-0.3, 0.7]])
    weight = torch.tensor([[0.5, -0.4], [-0.2, 0.3], [0.1, 0.6]])
    bias = torch.tensor([0.1, -0.2, 0.05])
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.1, 1.5, 0.3], [0.7, -0.2, 0.9]])
    for arguments, backend in itertools.product(((features, weight, bias), (logits, torch.eye(3), None)), BACKENDS):
        with tally.case(backend):
            actual, exact = arguments[0].clone().requires_grad_(), arguments[0].double().requires_grad_()
            cost = CrossEntropy().configure(backend=backend)(actual, *arguments[1:], torch.arange(3))
            others = [None if each is None else each.double() for each in arguments[1:]]
            expected = F.cross_entropy(F.linear(exact, cast(Tensor, others[0]), others[1]), torch.arange(3))
            cost.mean.backward()
            expected.backward()
            near(cost.mean, expected.detach(), F32)
            near(cast(Tensor, actual.grad), cast(Tensor, exact.grad), F32)
    tally.close(record_property)


def test_16_bit_logits_cost_what_the_same_numbers_in_32_bits_do(record_property: Record) -> None:
    tally = Tally("Liger-Kernel, test_float32_internal")
    logits = torch.randn(128256, 4, generator=torch.Generator().manual_seed(0)).to(BF16)
    targets = torch.tensor([0, 128255, 5, 70000])
    for backend in BACKENDS:
        with tally.case(backend):
            loss = CrossEntropy().configure(backend=backend)
            found = [loss(torch.eye(4, dtype=dtype), logits.to(dtype), None, targets).mean for dtype in (BF16, F32)]
            assert torch.equal(*found)
    tally.close(record_property)


def test_confident_16_bit_rows_have_as_exact_a_gradient_as_pytorchs(record_property: Record) -> None:
    tally = Tally("Liger-Kernel, confident predictions")
    cases = over(
        [Case(2 * 64, 4096, draw="confident")],
        dtype=[BF16, F16],
        label_smoothing=[0.0, 0.1],
        reduction=["sum", "mean"],
    )
    for case, backend in itertools.product(cases, BACKENDS):
        made = Material(case)
        _, logits = made.head
        at = made.targets, torch.arange(case.rows)

        def by_target(
            dtype: torch.dtype, case: Case = case, logits: Tensor = logits, made: Material = made, at: Any = at
        ) -> Tensor:
            leaf = logits.to(dtype, copy=True).requires_grad_()
            options: dict[str, Any] = {"reduction": case.reduction, "label_smoothing": case.label_smoothing}
            F.cross_entropy(leaf.t(), made.targets, **options).backward()
            assert leaf.grad is not None
            return leaf.grad[at].double()

        with tally.case(f"{case} {backend}"):
            leaf = logits.clone().requires_grad_()
            loss = CrossEntropy(case.label_smoothing).configure(backend=backend)
            reduced(loss(made.head[0], leaf, None, made.targets), case.reduction).backward()
            assert leaf.grad is not None
            exact = by_target(F64)
            ours = (leaf.grad[at].double() - exact).abs().max().item()
            theirs = (by_target(case.dtype) - exact).abs().max().item()
            assert ours <= max(4 * theirs, torch.finfo(case.dtype).tiny), f"{ours:.3g} against {theirs:.3g}"
    tally.close(record_property)


def test_targets_out_of_bounds_are_refused_by_row(record_property: Record) -> None:
    tally = Tally("Liger-Kernel, out of bounds targets")
    cases = [Case(2 * 32, 320, ignore_index=2, ignored=0.25), Case(3 * 23, 317, ignore_index=-123, ignored=0.25)]
    for case, backend in itertools.product(cases, BACKENDS):
        with tally.case(f"{case} {backend}"):
            made = Material(case)
            outside = torch.randperm(case.rows, generator=torch.Generator().manual_seed(1))[: case.rows // 4]
            made.targets[outside] = torch.randint(case.classes, 2 * case.classes, outside.shape)
            row = int(outside.min())
            loss = CrossEntropy().configure(ignore_index=case.ignore_index, backend=backend)
            with pytest.raises(ValueError, match=rf"row {row}: target {int(made.targets[row])}, expected 0 to"):
                loss(*made.head, None, made.targets)
    tally.close(record_property)


def apple_grid() -> list[Case]:
    """tests/test_cce_loss_forward.py, _backward.py, test_vocab_parallel.py: e / √D, half the rows' features copied.

    Rows, classes, columns. Forward they are as they are; for the long grid that goes backward they are scaled down,
    256, 512 and 128 to 64, 128 and 32, and 252, 507 and 123 to 60, 127 and 31. Their shift drops the first targets and
    the last features of each of 4 sequences, by 2 or 1, before the loss: fewer rows. z_loss is 1 there.
    """
    large = [Case(*shape, draw="copied") for shape in ((256, 512, 128), (252, 507, 128), (252, 507, 123))]
    small = [Case(*shape, draw="copied") for shape in ((64, 128, 32), (60, 127, 32), (60, 127, 31))]
    dtypes = [F32, F16, BF16]
    invalids, softcap = [0.0, 0.2], ["", SOFTCAP]
    return [
        *over(
            [*large, *(replace(case, rows=case.rows - 4 * 2) for case in large)], backward=[False], reduction=["none"],
            dtype=dtypes, bias=[True, False], ignored=invalids, lacks=softcap,
        ),
        *over(
            [*small, *(replace(case, rows=case.rows - 4 * 1) for case in small)], reduction=["none", "mean", "sum"],
            dtype=dtypes, bias=[False, True], ignored=invalids, z_loss=[1.0, 0.0], lacks=softcap,
        ),
        *over(  # partials
            [replace(large[0], dtype=BF16, bias=True)],
            wanted=[(True, False, True), (False, True, False), (False, False, True)],
        ),
        *over([large[2]], dtype=[F16, BF16], ignored=invalids, z_loss=[1.0, 0.0], lacks=[SHARDS]),
    ]  # fmt: skip


def test_apples_grid(record_property: Record) -> None:
    tally = check_grid("Apple, cut cross entropy", apple_grid(), record_property)

    assert tally.run == 2 * (72 + 432 + 3)
    assert tally.skipped == {SOFTCAP: 2 * (72 + 432), SHARDS: 2 * 8}


@pytest.mark.parametrize("backend", BACKENDS)
def test_z_loss_of_logsumexps_from_1_to_10(backend: Backend, record_property: Record) -> None:  # test_compute_z_loss
    tally = Tally("Apple, test_compute_z_loss")
    head = torch.eye(10, dtype=F64), (torch.arange(1.0, 11.0, dtype=F64) - math.log(2)).expand(2, 10)
    some = torch.full((10,), -100)
    some[[3, 5]] = 1
    for targets, squares in (
        (torch.ones(10, dtype=torch.int64), sum(n * n for n in range(1, 11))),
        (some, 4**2 + 6**2),
    ):
        for factor in (1, -1):  # a rows' order must not matter
            with tally.case(f"{squares} {factor}"):
                features = head[0] if factor == 1 else head[0].flip(0)
                order = targets if factor == 1 else targets.flip(0)
                with_, without = (
                    CrossEntropy().configure(z_loss=z, backend=backend)(features, head[1], None, order)
                    for z in (1.0, 0.0)
                )
                same(reduced(with_, "sum") - reduced(without, "sum"), float(squares), absolute=1e-11)
                same(with_.mean - without.mean, squares / int((targets == 1).sum()), absolute=1e-12)
    tally.close(record_property)
