"""A run that diverges says where, and what to do."""

import sys
from pathlib import Path

import pytest

from conftest import Train, assert_answered_in_one_line

FLOAT32 = ("accelerator.precision=32-true", "trainer.log_every_n_steps=1")


def test_one_hot_and_the_gap_explain_a_cost_that_is_no_number(train: Train) -> None:
    run = train("loss=one_hot", "optimizer.lr=1000", *FLOAT32)

    assert_answered_in_one_line(
        run,
        [
            "the cost is nan at step 1 (batch 0 of epoch 1); the largest logit there is ",
            " above the smallest of its row: loss=one_hot takes the logarithm of a softmax that underflows from a gap "
            "of 88.72 on; loss=cross_entropy is the same cost and does not",
        ],
    )
    assert run.curves["train/cost"].keys() == {0}


def test_one_hot_is_caught_where_its_gradient_breaks_ahead_of_its_cost(train: Train) -> None:
    """From a gap of 88.7 to one of 104 the cost is right, and only the update would make the weights NaN."""
    run = train("loss=one_hot", "optimizer.lr=1", "data.standardize=false", "trainer.max_steps=100000", *FLOAT32)
    other = train("loss=cross_entropy", "optimizer.lr=1", "trainer.max_steps=100", *FLOAT32)

    assert other.code == 0
    if run.code:
        assert "loss=cross_entropy is the same cost" in run.err


@pytest.mark.parametrize("loss", ["brier", "one_hot"])
def test_weights_that_grow_without_bound(loss: str, train: Train) -> None:
    run = train("data=wine", f"loss={loss}", "optimizer.lr=1e38", "optimizer.momentum=0.9", *FLOAT32)

    assert_answered_in_one_line(run, ["at step ", "the weights have grown without bound; an optimizer.lr below 1e+38"])


@pytest.mark.parametrize("split", ["data.val_fraction=0", "data.val_fraction=0.3"])
def test_weights_that_the_last_step_has_made_infinite(split: str, train: Train) -> None:
    steep = ("data=wine", "data.standardize=false", "optimizer=sgd", "optimizer.lr=3e38")
    run = train(*steep, split, "trainer.max_steps=1", *FLOAT32)

    assert_answered_in_one_line(run, ["step 1", "grown without bound; an optimizer.lr below 3e+38"])
    assert not list(run.directory.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        ("(logits.sum(1) - 1000).sqrt()", "the cost is nan at step 0"),
        ("(logits.softmax(1)[:, 0] * 0).sqrt()", "the gradient of head.weight is not finite at step 0"),
    ],
)
def test_a_loss_of_ones_own_that_breaks(
    cost: str, said: str, train: Train, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "broken_loss.py").write_text(
        "from crossent.losses.base import LogitLoss\n\n\n"
        "class Broken(LogitLoss):\n"
        "    def cost(self, logits, targets):\n"
        f"        return {cost}\n"
    )
    monkeypatch.syspath_prepend(workplace)
    monkeypatch.delitem(sys.modules, "broken_loss", raising=False)

    run = train("loss=custom", "loss._target_=broken_loss.Broken")

    assert_answered_in_one_line(run, [said, "which is not large: the loss (Broken) itself has no value or no slope"])


def test_a_checkpoint_from_before_is_left_as_it_was(train: Train) -> None:
    run = train("loss=one_hot", "optimizer.lr=30", "callbacks.checkpoint.every_n_steps=1", *FLOAT32)

    assert run.code == 2
    stored = run.checkpoint()
    assert stored["state_dict"]["head.weight"].isfinite().all()
    assert f"at step {stored['global_step']} " in run.err
