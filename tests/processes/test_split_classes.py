"""Classes split over ranks, and rows as well, give the numbers of one process."""

import os
import signal
import threading
import time
from collections import Counter
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from torch.optim import SGD

from conftest import Run, Train, assert_answered_in_one_line, assert_same_run, wait_until
from crossent import checkpoints, config
from crossent.class_shard import ClassShard
from crossent.classifier import SoftmaxClassifier
from crossent.head import Head
from crossent.losses import LOSSES, CrossEntropy
from crossent.processes import watching
from crossent.processes.grid import ClassRanks, Grid
from processes.test_shared_rows import assert_agree, weights

#: Three classes and 160 training rows, of which batches of 53 leave one row: one of two rows of ranks has none.
RAGGED = (
    "data=wine",
    "data.standardize=true",
    "data.val_fraction=0.1",
    "data.batch_size=53",
    "trainer.max_steps=30",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=3",
    "callbacks.early_stopping.patience=null",
    "loss=cross_entropy",
)
#: Ten classes: three ranks have 3, 3 and 4 of them.
DIGITS = ("data=digits", "data.batch_size=100", *RAGGED[1:3], *RAGGED[4:])
DOUBLE = "accelerator.precision=64-true"
ROW_LOSSES = [str(kind.__struct_config__.tag) for kind in LOSSES if issubclass(kind, config.RowLoss)]


def split(ranks: int, shards: int | None = None) -> tuple[str, ...]:
    shards_too = () if shards is None else (f"accelerator.class_shards={shards}",)
    return "accelerator=class_parallel_cpu", f"accelerator.devices={ranks}", *shards_too


@pytest.mark.parametrize("loss", ROW_LOSSES)
def test_every_loss_that_can_be_split(loss: str, train: Train, start: Train) -> None:
    alone = train(*RAGGED, DOUBLE, f"loss={loss}", "model.l2=0.01")

    assert_agree(alone, start(*RAGGED, DOUBLE, f"loss={loss}", "model.l2=0.01", *split(2)), 1e-12)


@pytest.mark.parametrize(
    ("options", "ranks", "tolerance"),
    [
        ([*DIGITS, "loss=focal", "accelerator.precision=32-true"], (3,), 1e-6),
        (["loss=brier", "loss.class_weight=balanced", "loss.z_loss=0.01", DOUBLE], (4, 2), 1e-12),
        (["loss.label_smoothing=0.1", "loss.class_weight=balanced", "loss.ignore_index=1", DOUBLE], (4, 2), 1e-12),
        ([*DIGITS, "optimizer=adam", "optimizer.lr=0.01", "loss.backend=chunked", DOUBLE], (3,), 1e-9),
        (["model.bias=shared", "model.l2=0.1", "loss.z_loss=0.1", DOUBLE], (4, 2), 1e-12),
        (["model.bias=none", "model.init=notebook", DOUBLE], (3,), 1e-12),
        (["trainer.accumulate_grad_batches=3", "model.l2=0.1", "loss.class_weight=balanced", DOUBLE], (4, 2), 1e-12),
        (["trainer.gradient_clip_val=0.01", "model.bias=shared", "loss.z_loss=0.1", DOUBLE], (4, 2), 1e-12),
        ([*DIGITS, "calibration=temperature", "data.test_fraction=0.2", DOUBLE], (4, 2), 1e-9),
        (["scheduler=cosine", "optimizer.momentum=0.9", DOUBLE], (2, 1), 1e-12),
    ],
    ids=lambda each: " ".join(map(str, each[-3:])) if isinstance(each, list | tuple) else str(each),
)
def test_what_else_a_run_can_do(
    options: list[str], ranks: tuple[int, ...], tolerance: float, train: Train, start: Train
) -> None:
    alone = train(*RAGGED, *options)

    assert_agree(alone, start(*RAGGED, *options, *split(*ranks)), tolerance)


@pytest.mark.parametrize("ranks", [(3,), (4, 2)])
def test_a_run_that_goes_on_has_the_same_bits(ranks: tuple[int, ...], start: Train) -> None:
    options = (*RAGGED, *split(*ranks), "optimizer=adam", "callbacks.checkpoint.every_n_steps=7")
    whole = start(*options, "hydra.run.dir=whole")

    start(*options, "hydra.run.dir=part", "trainer.max_steps=21")
    part = start("resume=part/checkpoints/step_14.ckpt", "trainer.max_steps=30")

    assert part.code == 0, part.err
    assert_same_run(whole, part)


def test_a_run_goes_on_with_other_processes(train: Train, start: Train) -> None:
    options = (*DIGITS, DOUBLE, "optimizer=adam")
    alone = train(*options, "trainer.max_steps=25")

    train(*options, "trainer.max_steps=5")
    start("resume=latest", *split(3), DOUBLE, "trainer.max_steps=10")
    start("resume=latest", *split(4, 2), DOUBLE, "trainer.max_steps=15")
    start("resume=latest", "accelerator=ddp_cpu", DOUBLE, "trainer.max_steps=20")
    last = train("resume=latest", "accelerator=cpu", DOUBLE, "trainer.max_steps=25")

    torch.testing.assert_close(weights(alone), weights(last), rtol=0, atol=1e-9)


def test_it_begins_with_the_bits_of_one_process(train: Train, start: Train) -> None:
    options = (*DIGITS, "trainer.max_steps=1", "optimizer.lr=1e-30")

    alone, shared = train(*options), start(*options, *split(3))

    assert torch.equal(weights(alone), weights(shared))


def signalled(number: int, start: Train, *options: str) -> Run:
    """A run of two rows and two columns of ranks, of which the last one gets a signal at the first checkpoint.

    Without validations, at whose end all ranks agree by a message of their own.
    """

    def tell() -> None:
        wait_until(Path("run/checkpoints/last.ckpt").exists)
        (rank,) = (each for each in active_children() if each.name == "rank 3")
        assert rank.pid is not None
        os.kill(rank.pid, number)

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    endless = ("data.val_fraction=0", "callbacks.checkpoint.every_n_steps=20", "trainer.max_steps=10000000")
    run = start(*RAGGED, *split(4, 2), *endless, "hydra.run.dir=run", *options)
    telling.join()
    return run


def test_a_signal_to_one_rank_stops_all_at_one_step(start: Train) -> None:
    """Rows and columns hear of it by the messages that they exchange anyway."""
    run = signalled(signal.SIGTERM, start, "accelerator.timeout=20")

    assert run.code == 143, run.err
    steps = int(run.err.split()[2])
    assert run.err == f"terminated after {steps} steps; to go on: crossent-train resume=run\n"
    assert checkpoints.newest_step(Path("run")) == steps


def test_what_is_sent_does_not_grow_with_the_classes(start: Train, workplace: Path) -> None:
    (workplace / "counted.py").write_text(
        "from torch import distributed\nfrom crossent.losses import CrossEntropy\n"
        "class Counted(CrossEntropy):\n"
        "    def __init__(self):\n"
        "        super().__init__(label_smoothing=0.1)\n"
        "        send = distributed.all_reduce\n"
        "        def counted(tensor, *arguments, **more):\n"
        "            with open(f'sent_{distributed.get_rank()}', 'a') as file: file.write(f'{tensor.nbytes}\\n')\n"
        "            return send(tensor, *arguments, **more)\n"
        "        distributed.all_reduce = counted\n"
    )
    sent = {}
    for classes in (10, 1000):
        for steps in (3, 7):
            run = start(
                "data=synthetic",
                "data.rows=4000",
                f"data.classes={classes}",
                "data.val_fraction=0",
                "data.batch_size=50",
                f"trainer.max_steps={steps}",
                "trainer.enable_checkpointing=false",
                "loss=custom",
                "loss._target_=counted.Counted",
                *split(2),
            )
            assert run.code == 0, run.err
            files = [workplace / f"sent_{rank}" for rank in range(2)]
            sent[classes, steps] = [[int(line) for line in file.read_text().split()] for file in files]
            for file in files:
                file.unlink()

    for classes in (10, 1000):
        for rank in range(2):
            few, many = (Counter(sent[classes, steps][rank]) for steps in (3, 7))
            # In float32 the largest logit of each row, and three sums; with nothing to wish for without checkpoints.
            assert many - few == Counter({50 * 4: 4, 3 * 50 * 4: 4})


def test_a_rank_of_a_grid_that_does_not_answer_ends_the_run(start: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_LEAVE", 1.0)
    began = time.monotonic()

    run = signalled(signal.SIGSTOP, start, "accelerator.timeout=3")

    assert_answered_in_one_line(run, ["rank 3 has not answered any more"])
    assert time.monotonic() - began < 60


class NoOthers(ClassRanks):
    def __init__(self) -> None: ...

    def total(self, numbers: torch.Tensor) -> None: ...


def test_the_length_of_narrow_gradients_is_found_in_wide_numbers() -> None:
    ranks = NoOthers()
    head = Head(64, 1000, 1000, bias="shared", init="zeros", seed=0, shard=ClassShard.share(2000, 0, 2, ranks))
    grid = Grid(columns=2, class_ranks=ranks)
    classifier = SoftmaxClassifier(head, CrossEntropy(), optimizer=SGD, grid=grid).half()
    for parameter in classifier.parameters():
        parameter.grad = torch.full_like(parameter, 1e-4)  # whose squares are none of float16's

    classifier.configure_gradient_clipping(SGD(classifier.parameters()), 1e-3, "norm")

    gradients = [each.grad.double().flatten() for each in classifier.parameters() if each.grad is not None]
    length = torch.cat(gradients).norm()
    assert length == pytest.approx(1e-3, rel=0.05)
