"""Where memory runs out, a run says what it needs and what needs less."""

from typing import Any

import pytest

from conftest import Train, assert_answered_in_one_line
from crossent import memory
from crossent.blocked_classifier import BlockedClassifier
from crossent.classifier import SoftmaxClassifier

MANY = ("data=synthetic", "data.rows=1000", "data.features=40", "data.val_fraction=0", "trainer.max_steps=2")


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> None:
        raise MemoryError

    for kind in (SoftmaxClassifier, BlockedClassifier):
        monkeypatch.setattr(kind, "training_step", step)


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("data.features=2000", "data.classes=20", "data.batch_size=2", "optimizer=adam"),
            [
                "(8.0 MB for features, 160.0 kB for weights, 160.0 kB for their gradient, 320.0 kB for the optimizer, ",
                "it takes a larger machine",
            ],
        ),
        (
            ("data.rows=100", "data.features=2000", "data.classes=20", "data.batch_size=2", "optimizer=adam"),
            ["optimizer=sgd or accelerator.precision=bf16-true needs less"],
        ),
        (
            ("data.classes=500", "data.batch_size=full", "loss=cross_entropy", "loss.backend=dense"),
            ["6.0 MB for the logits of 1000 rows and 500 classes", "data.batch_size=250 needs less"],
        ),
        (
            ("data.features=3", "data.classes=500", "optimizer=lbfgs", "optimizer.history_size=1000"),
            [
                "12.0 MB for the optimizer",
                "optimizer=sgd or accelerator.precision=bf16-true or data.batch_size=250 needs less",
            ],
        ),
    ],
    ids=["features", "weights", "logits", "history"],
)
def test_the_largest_parts_come_with_what_makes_them_smaller(
    overrides: tuple[str, ...], said: list[str], train: Train
) -> None:
    run = train(*MANY, *overrides)

    assert_answered_in_one_line(run, ["out of memory: a step takes about ", *said])


def test_a_run_that_needs_more_than_there_is_says_so_first(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that is out of memory kills without a word."""
    few, enough = (memory.Room(total=16_000_000_000, free=free) for free in (1_000, 8_000_000_000))

    monkeypatch.setattr(memory, "room", lambda: enough)
    quiet = train(*MANY)
    monkeypatch.setattr(memory, "room", lambda: few)
    warned = train(*MANY)

    assert "of memory are free" not in quiet.out
    assert "1.0 kB of memory are free, but a step takes about " in warned.out
    assert warned.code == 0


def test_the_machine_says_what_it_has() -> None:
    found = memory.room()

    assert found is None or 0 < found.free <= found.total


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 1 bytes"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_which_errors_mean_memory(error: BaseException, *, expected: bool) -> None:
    assert memory.ran_out(error) == expected
