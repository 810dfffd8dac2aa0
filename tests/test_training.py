"""What a run does and leaves behind, on real data."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from conftest import Train
from crossent.classifier import SoftmaxClassifier
from crossent.data import Batch
from crossent.head import Head
from crossent.losses.binary import Binary


@pytest.mark.parametrize(
    ("data", "accuracy"), [("digits", 0.95), ("iris", 0.9), ("wine", 0.9), ("breast_cancer", 0.93)]
)
def test_bundled_sets_are_learned_without_further_overrides(data: str, accuracy: float, train: Train) -> None:
    run = train(f"data={data}", "data.test_fraction=0.2")

    assert run.metrics["test/accuracy"] >= accuracy


def test_run_directory_holds_what_the_contract_names(train: Train, workplace: Path) -> None:
    run = train("data=iris", "data.test_fraction=0.2", "trainer.max_steps=20")

    names = {str(path.relative_to(run.directory)) for path in run.directory.rglob("*") if path.is_file()}
    (events,) = (name for name in names if name.startswith("events.out.tfevents."))
    assert names == {
        ".hydra/config.yaml",
        ".hydra/hydra.yaml",
        ".hydra/overrides.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "metrics.json",
        "train.log",
        events,
    }
    day, name = run.directory.relative_to(workplace / "logs" / "train").parts
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day)
    assert re.fullmatch(r"\d\d-\d\d-\d\d_[0-9a-f]{6}", name)
    metrics = ["cost", "accuracy", "top5_accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece"]
    of_steps = {f"train/{name}" for name in ("cost", "accuracy", "gradient_norm", "weight_norm", "lr")}
    assert set(run.curves) == of_steps | {f"{split}/{name}" for split in ("val", "test") for name in metrics}
    assert yaml.safe_load((run.directory / "config.yaml").read_text())["data"]["test_fraction"] == 0.2


def test_metrics_json_holds_the_last_point_of_every_curve(train: Train) -> None:
    run = train("data=iris", "data.test_fraction=0.2", "model.l2=0.1", "trainer.max_steps=35")

    last = {tag: points[max(points)] for tag, points in run.curves.items()}
    steps, seconds = run.metrics.pop("steps"), run.metrics["seconds"]
    assert {**last, "steps": steps, "seconds": seconds} == pytest.approx(run.metrics)
    assert "train/penalty" in last
    assert steps == 35
    assert seconds > 0


def test_val_and_test_points_stand_at_the_updates_that_the_weights_have_had(train: Train) -> None:
    run = train(
        "data=iris",
        "data.batch_size=full",
        "data.val_fraction=0.2",
        "data.test_fraction=0.2",
        "trainer.max_steps=25",
        "trainer.log_every_n_steps=1",
        "trainer.val_check_interval=10",
    )

    curves = run.curves
    assert list(curves["train/cost"]) == list(range(25))
    assert list(curves["val/cost"]) == [10, 20, 25]  # the final weights are validated whatever the interval
    assert list(curves["test/cost"]) == [run.checkpoint("best")["global_step"]]


def test_cost_at_step_s_is_that_of_the_weights_after_s_updates(train: Train) -> None:
    """Validation on the training rows themselves gives the same numbers at the same x."""
    run = train(
        "data=custom",
        "data._target_=test_training.TwiceTheSameRows",
        "data.val_fraction=0.5",
        "trainer.max_steps=30",
        "trainer.log_every_n_steps=1",
        "trainer.val_check_interval=1",
    )

    train_cost, val_cost = run.curves["train/cost"], run.curves["val/cost"]
    assert [val_cost[step] for step in range(1, 30)] == pytest.approx([train_cost[step] for step in range(1, 30)])


class TwiceTheSameRows:
    """Every row often enough that both halves of a stratified split are alike: a class has one kind of row."""

    def load(self) -> Any:
        from crossent.data import Table

        features = torch.eye(3).repeat_interleave(10, dim=0)
        return Table(features, torch.arange(3).repeat_interleave(10), ("a", "b", "c"), ("x", "y", "z"))


def test_same_seed_gives_the_same_bits_and_another_seed_does_not(train: Train) -> None:
    def weights(seed: int) -> Tensor:
        run = train("data=iris", "data.batch_size=16", "trainer.max_steps=40", f"seed={seed}")
        found: Tensor = run.checkpoint()["state_dict"]["head.weight"]
        return found

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize(
    "limits",
    [
        ("trainer.max_steps=-1", "trainer.max_epochs=7"),
        ("trainer.max_steps=7", "trainer.min_epochs=100"),
        ("trainer.max_steps=-1", "trainer.max_time=00:00:00:01"),
    ],
)
def test_the_final_weights_are_validated_however_the_run_ends(limits: tuple[str, ...], train: Train) -> None:
    run = train("data=iris", "trainer.val_check_interval=100000", *limits)

    assert list(run.curves["val/cost"]) == [run.metrics["steps"]]
    assert run.checkpoint("best")["global_step"] == run.metrics["steps"]


def test_sums_in_16_bits_do_not_overflow(train: Train) -> None:
    run = train(
        "data=custom",
        "data._target_=test_training.ManyRows",
        "data.val_fraction=0.5",
        "data.batch_size=100",
        "accelerator=cpu",
        "accelerator.precision=16-true",
        "model.init=zeros",
        "trainer.max_steps=1",
    )

    assert run.metrics["val/cost"] == pytest.approx(0.693, abs=0.01)


class ManyRows:
    def load(self) -> Any:
        from crossent.data import Table

        rows = 300_000
        return Table(torch.zeros(rows, 1), torch.arange(rows) % 2, ("a", "b", "c")[:2], ("x",))


def test_best_checkpoint_is_that_of_the_lowest_val_cost(train: Train) -> None:
    run = train("data=iris", "optimizer.lr=0.5", "trainer.max_steps=200", "trainer.val_check_interval=5")

    val = run.curves["val/cost"]
    assert run.checkpoint("best")["global_step"] == min(val, key=lambda step: val[step])


def test_early_stopping_ends_the_run(train: Train) -> None:
    run = train(
        "data=iris",
        "trainer.val_check_interval=2",
        "callbacks.early_stopping.patience=3",
        "callbacks.early_stopping.min_delta=100",
    )

    assert run.metrics["steps"] == 8
    assert "; val/cost had not improved for 3 validations" in run.out


def test_without_a_val_split_there_is_no_best_checkpoint(train: Train) -> None:
    run = train("trainer.max_steps=5")

    assert [path.name for path in (run.directory / "checkpoints").iterdir()] == ["last.ckpt"]


def test_checkpoint_holds_plain_values_that_load_with_weights_only(train: Train) -> None:
    run = train("data=wine", "trainer.max_steps=5")

    stored = run.checkpoint()["crossent"]
    assert stored["config"] == yaml.safe_load((run.directory / "config.yaml").read_text())
    assert stored["data"]["classes"] == ["class_0", "class_1", "class_2"]
    assert len(stored["data"]["columns"]) == len(stored["data"]["mean"]) == len(stored["data"]["scale"]) == 13
    assert sum(stored["data"]["class_counts"]) == 160


def test_two_classes_take_one_output_under_the_notebooks_rule(train: Train) -> None:
    run = train("data=breast_cancer", "trainer.max_steps=5")

    assert run.checkpoint()["state_dict"]["head.weight"].shape == (1, 30)
    assert "auto (Binary)" in run.out


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lbfgs"])
@pytest.mark.parametrize("batch_size", ["full", "32"])
def test_every_optimizer_brings_the_cost_down(name: str, batch_size: str, train: Train) -> None:
    # Without a penalty a batch that can be told apart has no optimum, and LBFGS ends in 0 / 0.
    run = train(
        "data=iris", f"optimizer={name}", f"data.batch_size={batch_size}", "model.l2=0.01",
        "trainer.max_steps=60", "trainer.log_every_n_steps=1",
    )  # fmt: skip

    cost = run.curves["train/cost"]
    assert sum(cost[step] for step in range(56, 60)) / 4 < cost[0] / 2  # over the four batches of the last epoch


@pytest.mark.parametrize("name", ["one_hot", "nll", "cross_entropy"])
def test_the_ways_of_writing_cross_entropy_train_alike(name: str, train: Train) -> None:
    run = train("data=iris", f"loss={name}", "trainer.max_steps=50")
    other = train("data=iris", "loss=cross_entropy", "trainer.max_steps=50")

    assert run.curves["train/cost"] == pytest.approx(other.curves["train/cost"], rel=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "final"),
    [
        (("none",), 0.1),
        (("cosine", "scheduler.eta_min=0.01"), 0.01),
        (("cosine", "scheduler.steps=40"), 0.05),
        (("step", "scheduler.step_size=8", "scheduler.gamma=0.5"), 0.1 * 0.5**2),
        (
            ("custom", "scheduler._target_=torch.optim.lr_scheduler.ExponentialLR", "+scheduler.gamma=0.9"),
            0.1 * 0.9**20,
        ),
    ],
)
def test_schedules_step_with_the_optimizer(scheduler: tuple[str, ...], final: float, train: Train) -> None:
    run = train(f"scheduler={scheduler[0]}", *scheduler[1:], "trainer.max_steps=20")

    (group,) = run.checkpoint()["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(final)


def test_penalty_is_a_curve_of_its_own_and_is_minimised(train: Train) -> None:
    free = train("data=iris", "trainer.max_steps=100")
    held = train("data=iris", "trainer.max_steps=100", "model.l2=0.5")

    assert "train/penalty" not in free.curves
    weight = held.checkpoint()["state_dict"]["head.weight"]
    assert weight.norm() < free.checkpoint()["state_dict"]["head.weight"].norm() / 2
    penalty = held.curves["train/penalty"]
    assert penalty[max(penalty)] == pytest.approx(0.25 * float(weight.square().sum()), rel=0.05)


def test_accumulated_batches_make_one_step_with_the_mean_cost_of_all(train: Train) -> None:
    whole = train("data=toy", "trainer.max_steps=3", "trainer.log_every_n_steps=1")
    parts = train(
        "data=toy",
        "data.batch_size=4",
        "trainer.accumulate_grad_batches=2",
        "trainer.max_steps=3",
        "trainer.log_every_n_steps=1",
    )

    assert parts.curves["train/cost"] == pytest.approx(whole.curves["train/cost"], rel=1e-5)


def test_lbfgs_records_the_cost_before_its_step(train: Train) -> None:
    run = train(
        "optimizer=lbfgs", "model.init=zeros", "model.l2=0.1", "trainer.max_steps=2", "trainer.log_every_n_steps=1"
    )

    assert run.curves["train/cost"][0] == pytest.approx(1.098612, abs=2e-6)  # log 3, the cost of zero weights


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true", "16-true"])
def test_precisions(precision: str, train: Train) -> None:
    run = train("data=iris", f"accelerator.precision={precision}", "trainer.max_steps=60")

    assert run.code == 0, run.err
    assert run.metrics["val/accuracy"] > 0.6


def test_classes_of_the_users_own(train: Train, workplace: Path) -> None:
    (workplace / "mine.py").write_text(
        "import torch\n"
        "from crossent.data import Table\n"
        "from crossent.losses import LogitLoss\n"
        "class Margin(LogitLoss):\n"
        "    def __init__(self, margin):\n"
        "        super().__init__()\n"
        "        self.margin = margin\n"
        "    def cost(self, logits, targets):\n"
        "        return torch.nn.functional.multi_margin_loss(logits, targets, margin=self.margin, reduction='none')\n"
        "class Data:\n"
        "    def __init__(self, rows):\n"
        "        self.rows = rows\n"
        "    def load(self):\n"
        "        x = torch.arange(self.rows).float().unsqueeze(1)\n"
        "        return Table(x, (x[:, 0] > 4).long(), ('low', 'high'), ('x',))\n"
    )

    run = train(
        "loss=custom", "loss._target_=mine.Margin", "+loss.margin=3",
        "data=custom", "data._target_=mine.Data", "+data.rows=10",
        "optimizer=custom", "optimizer._target_=torch.optim.RMSprop", "+optimizer.lr=0.01",
        "accelerator=custom", "accelerator._target_=lightning.pytorch.strategies.SingleDeviceStrategy",
        "+accelerator.device=cpu",
        "trainer.max_steps=5",
    )  # fmt: skip

    assert run.code == 0, run.err
    assert "custom (mine.Data): 10 train rows, 1 features, 2 classes" in run.out
    assert "custom (mine.Margin)" in run.out
    assert "custom (torch.optim.RMSprop), all rows a step" in run.out
    assert run.checkpoint()["crossent"]["config"]["loss"]["margin"] == 3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("loss=custom", "loss._target_=nowhere.Loss"), "loss._target_=nowhere.Loss: no module named 'nowhere'"),
        (("loss=custom", "loss._target_=crossent.losses.CrossEntrpy"), "did you mean 'CrossEntropy'?"),
        (("loss=custom", "loss._target_=test_training.Stubborn"), "_target_=test_training.Stubborn: ValueError: no"),
        (("optimizer=custom", "optimizer._target_=torch.optim.SGD", "+optimizer.lr=-1"), "Invalid learning rate: -1"),
        (("loss=custom", "loss._target_=broken.Loss"), "broken cannot be imported: SyntaxError"),
        (("loss=custom", "loss._target_=crossent.losses.base"), "not a class, but a module"),
        (("loss=custom", "loss._target_=torch.nn.Flatten"), "has to be a crossent.losses.base.Loss, not a Flatten"),
        (("loss=custom", "loss._target_=crossent.losses.CrossEntropy", "+loss.k=3"), "unexpected keyword argument 'k'"),
        (("optimizer=custom", "optimizer._target_=torch.optim.SGD", "+optimizer.rate=3"), "argument 'rate'"),
        (("data=custom", "data._target_=builtins.dict"), "has to be a crossent.data.table.Source, not a dict"),
        (("accelerator=custom", "accelerator._target_=builtins.dict"), "has to be a Lightning Accelerator or Strategy"),
        (("data=custom", "data._target_=test_training.BadShape"), "expected (rows, columns) and (rows,)"),
        (("data=custom", "data._target_=test_training.BadTarget"), "row 1: target 7, expected 0 to 1"),
        (("data=custom", "data._target_=test_training.NotFinite"), "row 1, column 'x': nan, expected a finite number"),
        (("data=custom", "data._target_=test_training.OneClass"), "1 class; telling apart needs 2 or more"),
        (("data=custom", "data._target_=test_training.NoRows"), "there are no rows"),
        (("data=custom", "data._target_=test_training.BadNames"), "1 columns, but 2 names"),
        (("data=custom", "data._target_=test_training.NoTable"), "crossent.data.Table, not a int"),
    ],
)
def test_a_class_that_cannot_be_used_is_named_and_leaves_no_run(
    overrides: tuple[str, ...], said: str, train: Train, workplace: Path
) -> None:
    (workplace / "broken.py").write_text("class Loss(")

    run = train(*overrides)

    assert run.code == 2
    assert said in run.err
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1
    assert not list(workplace.rglob("config.yaml"))


def _source(
    features: Tensor, targets: list[int], classes: tuple[str, ...] = ("a", "b"), columns: tuple[str, ...] = ("x",)
) -> type:
    from crossent.data import Table

    class Source:
        def load(self) -> Table:
            return Table(features, torch.tensor(targets, dtype=torch.int64), classes, columns)

    return Source


BadShape = _source(torch.zeros(3), [0, 1, 0])
BadTarget = _source(torch.zeros(2, 1), [0, 7])
NotFinite = _source(torch.tensor([[0.0], [float("nan")]]), [0, 1])
OneClass = _source(torch.zeros(2, 1), [0, 0], ("a",))
NoRows = _source(torch.zeros(0, 1), [])
BadNames = _source(torch.zeros(2, 1), [0, 1], columns=("x", "y"))


class Stubborn:
    def __init__(self) -> None:
        raise ValueError("no")


class NoTable:
    def load(self) -> int:
        return 3


def test_a_split_that_leaves_a_class_without_rows_is_refused(train: Train, workplace: Path) -> None:
    run = train("data=custom", "data._target_=test_training.LonelyRow", "data.val_fraction=0.3")

    assert run.err.startswith("error: data: class 'b' has 1 row, too few to split")
    assert not list(workplace.rglob("config.yaml"))


LonelyRow = _source(torch.zeros(5, 1), [0, 0, 0, 0, 1])


def test_sweep_runs_every_combination_in_a_directory_of_its_own(train: Train, workplace: Path) -> None:
    run = train("-m", "loss=nll,cross_entropy", "optimizer.lr=0.1,0.01", "trainer.max_steps=3")

    assert run.code == 0, run.err
    found = sorted(
        (stored["loss"]["name"], stored["optimizer"]["lr"])
        for stored in (yaml.safe_load(path.read_text()) for path in workplace.glob("logs/sweep/*/*/*/config.yaml"))
    )
    assert found == [("cross_entropy", 0.01), ("cross_entropy", 0.1), ("nll", 0.01), ("nll", 0.1)]
    assert len(list(workplace.glob("logs/sweep/*/*/*/metrics.json"))) == 4


def test_a_failing_job_of_a_sweep_does_not_take_the_others_down(train: Train, workplace: Path) -> None:
    run = train("-m", "data=iris,breast_cancer", "loss=binary", "trainer.max_steps=3")

    assert run.code == 2
    assert run.err.startswith(
        "error: job 0 (data=iris,loss=binary,trainer.max_steps=3): loss=binary: made for 2 classes"
    )
    assert len(list(workplace.glob("logs/sweep/*/*/*/metrics.json"))) == 1


def test_fast_dev_run_writes_no_results_and_is_no_run_to_come_back_to(train: Train, workplace: Path) -> None:
    run = train("data=iris", "data.test_fraction=0.2", "trainer.fast_dev_run=true")

    assert run.code == 0, run.err
    (directory,) = workplace.glob("logs/train/*/*")
    assert sorted(path.name for path in directory.iterdir()) == [".hydra", "config.yaml", "train.log"]
    assert not (workplace / "logs" / "latest").exists()


def test_overfit_batches_trains_on_the_same_batches_again_and_again(train: Train) -> None:
    run = train(
        "data=digits",
        "data.batch_size=32",
        "data.val_fraction=0",
        "trainer.overfit_batches=2",
        "trainer.max_steps=300",
        "optimizer=adam",
        "optimizer.lr=0.1",
    )

    assert run.metrics["train/cost"] < 1e-3


def test_profiler_says_where_the_time_goes(train: Train) -> None:
    run = train("trainer.profiler=simple", "trainer.max_steps=3")

    assert "FIT Profiler Report" in run.out
    assert "run_training_batch" in run.out


def test_barebones_trains(train: Train) -> None:
    run = train("data=iris", "data.test_fraction=0.2", "trainer.barebones=true", "trainer.max_steps=5")

    assert run.code == 0, run.err
    assert run.metrics["steps"] == 5


def test_without_logger_and_checkpoints(train: Train) -> None:
    run = train("logger=none", "trainer.enable_checkpointing=false", "trainer.max_steps=5")

    assert sorted(path.name for path in run.directory.iterdir()) == [
        ".hydra",
        "config.yaml",
        "metrics.json",
        "train.log",
    ]


def test_epochs_can_limit_a_run(train: Train) -> None:
    run = train("data=iris", "data.batch_size=50", "trainer.max_steps=-1", "trainer.max_epochs=4")

    assert run.metrics["steps"] == 4 * 3


def test_time_can_limit_a_run(train: Train) -> None:
    run = train("trainer.max_steps=-1", "trainer.max_time=00:00:00:01")

    assert run.code == 0
    assert run.metrics["steps"] > 10


def test_checkpoints_are_renewed_every_n_steps(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(
        SoftmaxClassifier, "on_save_checkpoint", lambda self, checkpoint: saved.append(checkpoint["global_step"])
    )

    train("callbacks.checkpoint.every_n_steps=4", "trainer.max_steps=10")
    train("callbacks.checkpoint.every_minutes=0.00000001", "trainer.max_steps=3")

    assert saved == [4, 8, 10, 1, 2, 3]


def test_threads_are_those_asked_for_and_one_for_tiny_problems(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(Head, "output_bias", property(lambda head: seen.append(torch.get_num_threads())))
    before = torch.get_num_threads()

    train("trainer.max_steps=1")
    train("trainer.max_steps=1", "accelerator.threads=2")

    assert (seen[0], seen[-1]) == (1, 2)
    assert torch.get_num_threads() == before


@pytest.mark.gpu
def test_gpu_trains_to_the_same_cost(train: Train) -> None:
    cpu = train("accelerator=cpu", "experiment=notebook_cross_entropy")
    gpu = train("accelerator=gpu", "experiment=notebook_cross_entropy")

    assert gpu.code == 0, gpu.err
    assert gpu.curves["train/cost"] == pytest.approx(cpu.curves["train/cost"], abs=1e-4)


def test_gpu_is_refused_where_there_is_none(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    run = train("accelerator=gpu")

    assert run.err.startswith("error: accelerator=gpu: this machine shows no GPU")


def test_forward_gives_the_logits_of_all_classes() -> None:
    head = Head(2, 2, 1, bias="per_class", init="default", seed=0)
    classifier = SoftmaxClassifier(head, Binary(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))

    logits = classifier(torch.ones(3, 2))

    assert logits.shape == (3, 2)
    assert head.bias is not None
    expected = torch.sigmoid(head.weight.sum() + head.bias).expand(3)
    torch.testing.assert_close(torch.softmax(logits, dim=1)[:, 1], expected)


def test_batch_moves_whole() -> None:
    batch = Batch(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)).to(torch.device("meta"))

    assert batch.features.device.type == batch.targets.device.type == "meta"
