"""Steps that are taken in blocks lead to the same bits as one by one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from conftest import MINI_BATCHES, Run, Train, assert_same_run, stop_after
from crossent.blocked_classifier import BlockedClassifier
from crossent.classifier import SoftmaxClassifier
from crossent.losses import Binary, Brier, CrossEntropy, Focal, LogitAdjusted, Loss, OneHot

FULL = ("data=iris", "trainer.max_steps=60", "trainer.log_every_n_steps=1")
OPTIMIZERS = {
    "sgd": ("optimizer=sgd",),
    "momentum": ("optimizer=sgd", "optimizer.momentum=0.9"),
    "adam": ("optimizer=adam",),
    "adamw": ("optimizer=adamw",),
}
OPTIONS = {
    "nothing": (),
    "checkpoints": ("callbacks.checkpoint.every_n_steps=7",),
    "validation": ("trainer.val_check_interval=11",),
    "validation by epochs": ("trainer.val_check_interval=1.0", "trainer.check_val_every_n_epoch=2"),
    "schedule": ("scheduler=cosine",),
    "clipping": ("trainer.gradient_clip_val=0.05",),
    "penalty": ("model.l2=0.01",),
    "accumulation": ("trainer.accumulate_grad_batches=3",),
    "accumulation, validated in the middle": ("trainer.accumulate_grad_batches=3", "trainer.val_check_interval=7"),
    "epochs": ("trainer.max_steps=-1", "trainer.max_epochs=9"),
    "few points": ("trainer.log_every_n_steps=25",),
    "focal": ("loss=focal",),
    "shared bias": ("model.bias=shared",),
    "double": ("accelerator.precision=64-true",),
}
CLOSED: dict[str, Callable[[int], Loss]] = {
    "cross_entropy": lambda classes: CrossEntropy(),
    "smoothed": lambda classes: CrossEntropy(0.2),
    "weighted": lambda classes: CrossEntropy(0.2).configure(class_weight=torch.arange(1, classes + 1)),
    "focal": lambda classes: Focal(),
    "brier": lambda classes: Brier(),
    "adjusted": lambda classes: LogitAdjusted(torch.arange(1, classes + 1)),
    "z_loss": lambda classes: CrossEntropy().configure(z_loss=0.1),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that had been taken at each call of Lightning's."""
    found: list[int] = []

    def noting(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def training_step(self: SoftmaxClassifier, batch: Any, batch_idx: int) -> torch.Tensor:
            found.append(self.trainer.global_step)
            return original(self, batch, batch_idx)

        return training_step

    for kind in (SoftmaxClassifier, BlockedClassifier):
        monkeypatch.setattr(kind, "training_step", noting(kind.training_step))
    return found


def one_by_one(train: Train, *arguments: str) -> Run:
    return train(*arguments, "trainer.steps_per_execution=1")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rows", ["full", "mini-batches"])
def test_optimizers(rows: str, optimizer: str, train: Train, calls: list[int]) -> None:
    arguments = (*(FULL if rows == "full" else MINI_BATCHES), *OPTIMIZERS[optimizer])
    apart = one_by_one(train, *arguments)
    assert len(calls) == 60
    calls.clear()

    together = train(*arguments)

    assert len(calls) < 30
    assert_same(apart, together)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rows", ["full", "mini-batches"])
def test_options(rows: str, options: str, train: Train) -> None:
    arguments = (*(FULL if rows == "full" else MINI_BATCHES), *OPTIONS[options])

    apart = one_by_one(train, *arguments)

    for most in ("auto", "4"):
        assert_same(apart, train(*arguments, f"trainer.steps_per_execution={most}"))


@pytest.mark.parametrize("options", ["checkpoints", "validation", "schedule", "clipping", "accumulation"])
@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "sgd"])
@pytest.mark.parametrize("rows", ["full", "mini-batches"])
def test_options_of_other_optimizers(rows: str, optimizer: str, options: str, train: Train) -> None:
    arguments = (*(FULL if rows == "full" else MINI_BATCHES), *OPTIMIZERS[optimizer], *OPTIONS[options])

    assert_same(one_by_one(train, *arguments), train(*arguments))


def test_gradients_are_accumulated_within_a_block(train: Train, calls: list[int]) -> None:
    run = train(*MINI_BATCHES, "trainer.accumulate_grad_batches=2", "trainer.steps_per_execution=1000")

    assert (run.code, run.metrics["steps"]) == (0, 60), run.err
    assert len(calls) < 60  # of 120 batches


def assert_same(apart: Run, together: Run) -> None:
    assert (apart.code, together.code) == (0, 0), apart.err + together.err
    assert_same_run(apart, together)
    assert [row for row in apart.out.splitlines() if row.lstrip()[:1].isdigit()] == [
        row for row in together.out.splitlines() if row.lstrip()[:1].isdigit()
    ]
    for name in ("last", "best"):
        one, other = apart.checkpoint(name), together.checkpoint(name)
        assert one["loops"] == other["loops"], name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rows", ["full", "mini-batches"])
def test_a_run_that_was_stopped_in_a_block_goes_on_with_the_same_bits(rows: str, optimizer: str, train: Train) -> None:
    arguments = (*(FULL if rows == "full" else MINI_BATCHES), *OPTIMIZERS[optimizer])
    apart = one_by_one(train, *arguments)

    stopped = stop_after(23, train, *arguments)

    assert stopped.code == 130
    assert stopped.checkpoint()["global_step"] == 23
    assert_same_run(apart, train("resume=latest"))


def test_a_block_ends_where_something_is_due(train: Train, calls: list[int]) -> None:
    run = train(
        *FULL,
        "trainer.log_every_n_steps=60",
        "trainer.val_check_interval=25",
        "callbacks.checkpoint.every_n_steps=20",
        "trainer.steps_per_execution=1000",
    )

    assert run.code == 0, run.err
    assert calls == [0, 20, 25, 40, 50]  # checkpoints and validations


@pytest.mark.parametrize(
    "options",
    [
        ("optimizer=lbfgs",),
        ("trainer.profiler=simple",),
        ("optimizer=custom", "optimizer._target_=torch.optim.RMSprop"),
    ],
    ids=lambda options: options[0],
)
def test_what_cannot_be_blocked_is_taken_step_by_step(options: tuple[str, ...], train: Train, calls: list[int]) -> None:
    run = train(*FULL, "trainer.max_steps=10", *options)

    assert run.code == 0, run.err
    assert len(calls) >= 10


def test_hooks_of_optimizers_are_called(train: Train) -> None:
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    hook = register_optimizer_step_post_hook(count)
    try:
        run = train(*FULL)
    finally:
        hook.remove()

    assert (run.code, steps) == (0, 60)


def test_names_the_step_in_the_middle_of_a_block(train: Train) -> None:
    late = (
        "optimizer.lr=1",
        "trainer.max_steps=20000",
        "trainer.log_every_n_steps=1000",
        "trainer.val_check_interval=1000",
    )
    diverging = ("loss=one_hot", "accelerator.precision=32-true", *late)

    apart, together = one_by_one(train, *diverging), train(*diverging)

    assert (apart.code, together.code) == (2, 2)
    assert "step " in apart.err
    assert together.err == apart.err


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [3, 80])
@pytest.mark.parametrize("name", CLOSED)
def test_gradients_in_closed_form_are_autograds(name: str, classes: int, weighted: bool) -> None:
    loss = CLOSED[name](classes)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (30,), generator=generator)
    sample_weight = torch.rand(30, generator=generator, dtype=torch.float64) if weighted else None
    weight = torch.randn(classes, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64, requires_grad=True)
    wanted = loss(features, weight, bias, targets, sample_weight).mean

    with torch.no_grad():
        rows = loss.counting(features, targets, sample_weight, weight)
        found = loss.mean_with_gradients(rows, weight, bias)

    assert found is not None
    mean, *gradients = found
    torch.testing.assert_close(mean, wanted.detach())
    for gradient, other in zip(gradients, torch.autograd.grad(wanted, (weight, bias)), strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("loss", [Binary(), OneHot()])
def test_other_losses_have_no_closed_form(loss: Loss) -> None:
    weight = torch.randn(loss.outputs(2), 3)
    rows = loss.counting(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), None, weight)

    assert loss.mean_with_gradients(rows, weight, None) is None
