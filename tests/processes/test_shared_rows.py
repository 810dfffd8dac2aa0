"""Rows split over ranks give the numbers of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Run, Train, assert_same_run
from crossent.losses import LOSSES

#: Of 512 training rows, batches of 73 leave one of a single row, of which two of three ranks have none.
RAGGED = (
    "data=breast_cancer",
    "data.standardize=true",
    "data.val_fraction=0.1",
    "data.batch_size=73",
    "trainer.max_steps=48",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=16",
    "callbacks.early_stopping.patience=null",
)
DOUBLE = "accelerator.precision=64-true"
NAMES = [str(section.__struct_config__.tag) for section in LOSSES]


def shared(ranks: int) -> tuple[str, str]:
    return "accelerator=ddp_cpu", f"accelerator.devices={ranks}"


def weights(run: Run) -> torch.Tensor:
    state: dict[str, torch.Tensor] = run.checkpoint()["state_dict"]
    return torch.cat([each.flatten() for each in state.values()])


def assert_agree(one: Run, other: Run, tolerance: float) -> None:
    assert (one.code, other.code) == (0, 0), one.err + other.err
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=tolerance)
    assert one.curves.keys() == other.curves.keys()
    for tag, points in one.curves.items():
        assert other.curves[tag] == pytest.approx(points, rel=1e-5, abs=1e-6), tag  # float32, as the files have it
    assert one.metrics.keys() == other.metrics.keys()
    for name in one.metrics.keys() - {"seconds"}:
        assert other.metrics[name] == pytest.approx(one.metrics[name], rel=10 * tolerance, abs=10 * tolerance), name


@pytest.mark.parametrize("loss", NAMES)
def test_every_loss(loss: str, train: Train, start: Train) -> None:
    alone = train(*RAGGED, DOUBLE, f"loss={loss}")

    assert_agree(alone, start(*RAGGED, DOUBLE, f"loss={loss}", *shared(2)), 1e-12)


@pytest.mark.parametrize(
    ("options", "ranks", "tolerance"),
    [
        (["loss=focal", "accelerator.precision=32-true"], 3, 1e-6),
        (["optimizer=adam", "optimizer.lr=0.01", DOUBLE], 3, 1e-9),
        (["optimizer=lbfgs", "model.l2=0.01", "data.batch_size=full", "trainer.max_steps=20", DOUBLE], 2, 1e-8),
        (["model.l2=0.1", "model.bias=shared", DOUBLE], 3, 1e-12),
        (["trainer.accumulate_grad_batches=3", "model.l2=0.1", "loss.class_weight=balanced", DOUBLE], 3, 1e-12),
        (["loss=cross_entropy", "loss.class_weight=balanced", "loss.label_smoothing=0.1", DOUBLE], 2, 1e-12),
        (["loss=cross_entropy", "loss.ignore_index=1", DOUBLE], 2, 1e-12),
        (["loss=cross_entropy", "loss.backend=chunked", "loss.z_loss=0.01", DOUBLE], 2, 1e-12),
        (["trainer.gradient_clip_val=0.01", DOUBLE], 2, 1e-12),
        (["data.val_fraction=0.002", "data.test_fraction=0.1", DOUBLE], 2, 1e-12),  # one row for validation
        (["calibration=temperature", "data.test_fraction=0.1", DOUBLE], 2, 1e-9),
        (["data.batch_size=1", "trainer.max_steps=10", DOUBLE], 2, 1e-12),
        (["scheduler=cosine", "optimizer.momentum=0.9", DOUBLE], 2, 1e-12),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else str(each),
)
def test_what_else_a_run_can_do(options: list[str], ranks: int, tolerance: float, train: Train, start: Train) -> None:
    alone = train(*RAGGED, *options)

    assert_agree(alone, start(*RAGGED, *options, *shared(ranks)), tolerance)


def test_sample_weights(workplace: Path, train: Train, start: Train) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [f"{x:.6f},{w:.6f},{'ab'[x + w > 0.5]}" for x, w in torch.rand(100, 2, generator=generator).tolist()]
    (workplace / "rows.csv").write_text("\n".join(["x,w,target", *rows]))
    options = ("data=csv", "data.path=rows.csv", "data.target=target", "data.weight=w", "data.batch_size=30", DOUBLE)

    alone = train(*options, "trainer.max_steps=20")

    assert_agree(alone, start(*options, "trainer.max_steps=20", *shared(3)), 1e-12)


def test_steps_without_a_row_that_counts_are_penalised_too(workplace: Path, train: Train, start: Train) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [f"{x:.6f},{x > 0:d},{'ab'[y > 0]}" for x, y in torch.randn(60, 2, generator=generator).tolist()]
    (workplace / "rows.csv").write_text("\n".join(["x,w,target", *rows]))
    options = ("data=csv", "data.path=rows.csv", "data.weight=w", "data.batch_size=1", "model.l2=0.5", DOUBLE)

    alone = train(*options, "data.val_fraction=0", "trainer.max_steps=40")

    assert_agree(alone, start(*options, "data.val_fraction=0", "trainer.max_steps=40", *shared(2)), 1e-12)


def test_rows_that_stay_on_disk(workplace: Path, train: Train, start: Train) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [f"{x:.6f},{y:.6f},{'ab'[x > y]}" for x, y in torch.randn(90, 2, generator=generator).tolist()]
    (workplace / "rows.csv").write_text("\n".join(["x,y,target", *rows]))
    options = ("data=csv", "data.path=rows.csv", "data.in_memory=false", "data.batch_size=32", DOUBLE)

    alone = train(*options, "trainer.max_steps=20")

    assert_agree(alone, start(*options, "trainer.max_steps=20", *shared(2)), 1e-12)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_run_that_goes_on_has_the_same_bits(ranks: int, start: Train) -> None:
    options = (*RAGGED, *shared(ranks), "optimizer=adam", "callbacks.checkpoint.every_n_steps=7")
    whole = start(*options, "hydra.run.dir=whole")

    start(*options, "hydra.run.dir=part", "trainer.max_steps=21")
    part = start("resume=part/checkpoints/step_14.ckpt", "trainer.max_steps=48")

    assert part.code == 0, part.err
    assert_same_run(whole, part)


def test_a_run_goes_on_with_other_processes(train: Train, start: Train) -> None:
    options = (*RAGGED, DOUBLE, "optimizer=adam")
    alone = train(*options)

    start(*options, *shared(3), "trainer.max_steps=20")
    start("resume=latest", *shared(2), "trainer.max_steps=30")
    last = train("resume=latest", "accelerator=cpu", DOUBLE, "trainer.max_steps=48")

    torch.testing.assert_close(weights(alone), weights(last), rtol=0, atol=1e-9)


def test_one_directory_and_one_voice(start: Train, workplace: Path) -> None:
    run = start(*RAGGED, *shared(3), "data.test_fraction=0.1")

    assert (run.code, run.err) == (0, "")
    assert len(list(workplace.glob("logs/train/*/*"))) == 1
    assert len(list(run.directory.glob("events.out.tfevents.*"))) == 1
    log = (run.directory / "train.log").read_text()
    assert log.count("trained to step 48") == 1
    assert log.count("3 processes, each with its share of the rows, on cpu") == 1


def test_one_process_needs_no_other(start: Train) -> None:
    run = start(*RAGGED, "accelerator=ddp_cpu", "accelerator.devices=1")

    assert run.code == 0
    assert "device     cpu, 32-true" in run.out  # of this very process


def random_states(run: Run) -> Any:
    return run.checkpoint()["callbacks"]["LastCheckpoint"]["random"]


def test_each_rank_has_its_random_numbers_stored(start: Train) -> None:
    assert len(random_states(start(*RAGGED, *shared(3)))) == 3
