"""Mistakes on the command line: one line that says what to write instead, and nothing left behind."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import Train, assert_answered_in_one_line
from crossent.losses import LogitLoss, RowLoss, Statistics


class Scalar(LogitLoss):
    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets)


class Misspelt(RowLoss):
    def cost(self, row: Statistics) -> Tensor:
        return row.nl  # type: ignore[attr-defined, no-any-return]


class Deciding(RowLoss):
    def cost(self, row: Statistics) -> Tensor:
        return row.nll * 2 if row.nll.max() > 1 else row.nll


class Unmade(RowLoss):
    def __init__(self) -> None:
        self.share = 1.0

    def cost(self, row: Statistics) -> Tensor:
        return row.nll * self.share


class Learning(RowLoss):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.zeros(()))

    def cost(self, row: Statistics) -> Tensor:
        return row.nll * self.temperature.exp()


MISTAKES = [
    # (what is typed, what the line has to say, in this order)
    ("loss=hing", ["loss=hing", "did you mean", "auto, binary, brier, cross_entropy, custom"]),
    ("loss=cross_entrpy", ["loss=cross_entrpy", "did you mean 'cross_entropy'?"]),
    ("optimizer.lr=abc", ["optimizer.lr=abc", "a number > 0"]),
    ("optimizer.lr=-1", ["optimizer.lr=-1", "a number > 0"]),
    ("optimizer.lr=nan", ["optimizer.lr=nan", "a number > 0"]),
    ("optimizer.lr=inf", ["optimizer.lr=inf", "a number > 0"]),
    ("optimizer.lr=", ["optimizer.lr=", "a number > 0"]),
    ("optimzer.lr=1", ["optimzer.lr", "did you mean 'optimizer.lr'?", "accelerator, calibration, callbacks"]),
    ("lr=1", ["lr", "did you mean 'optimizer.lr'?"]),
    ("+model.foo=1", ["model.foo", "bias, init, l2"]),
    ("model.bais=none", ["model.bais", "did you mean 'model.bias'?"]),
    ("model.bias=class", ["model.bias=class", "none, per_class, shared"]),
    ("trainer.max_steps=ten", ["trainer.max_steps=ten", "an integer >= -1"]),
    ("trainer.max_steps=1.5", ["trainer.max_steps=1.5", "an integer >= -1"]),
    ("trainer.max_stps=5", ["trainer.max_stps", "did you mean 'trainer.max_steps'?"]),
    ("+trainer.max_stps=5", ["trainer.max_stps", "did you mean 'trainer.max_steps'?"]),
    ("trainer.max_steps=-1", ["trainer:", "no end", "max_steps, max_epochs or max_time"]),
    ("trainer.devices=2", ["trainer.devices", "accelerator.devices"]),
    ("trainer.strategy=ddp", ["trainer.strategy", "accelerator=<name>"]),
    ("trainer.default_root_dir=x", ["trainer.default_root_dir", "hydra.run.dir"]),
    ("trainer.max_time=1h", ["trainer.max_time=1h", "DD:HH:MM:SS"]),
    ("accelerator.devices=2", ["accelerator.devices=2", "accelerator=auto takes one", "accelerator=ddp_cpu"]),
    ("accelerator=mps", ["accelerator=mps", "accelerator=auto"]),
    ("seed=-1", ["seed=-1", "an integer >= 0 and <= 4294967295"]),
    ("seed=null", ["seed=null", "an integer"]),
    ("data.batch_size=0", ["data.batch_size=0", "full or an integer >= 1"]),
    ("data.batch_size=true", ["data.batch_size=true", "full or an integer >= 1"]),
    ("data.val_fraction=1", ["data.val_fraction=1", "a number >= 0 and < 1"]),
    ("data.val_fraction=0.5 data.test_fraction=0.5", ["data: val_fraction + test_fraction = 1", "no row to train on"]),
    ("data.val_fraction=0.01", ["data.val_fraction=0.01", "of 8 rows that is none"]),
    ("data.path=x.csv", ["data.path", "data=toy has: batch_size"]),
    ("data.x.y.z=3", ["data.x.y.z", "no such key"]),
    ("optimizer=adam optimizer.betas=[0.9,2]", ["optimizer.betas.1=2", "< 1"]),
    ("optimizer=adam optimizer.betas=0.9", ["optimizer.betas=0.9", "a list of 2"]),
    ("optimizer=lbfgs optimizer.line_search_fn=x", ["optimizer.line_search_fn=x", "strong_wolfe or null"]),
    ("optimizer.nesterov=true", ["optimizer.nesterov=true needs momentum above 0"]),
    ("optimizer.name=adamm", ["optimizer.name=adamm", "did you mean 'adam'?"]),
    ("loss.gamma=2", ["loss.gamma", "loss=auto has: backend, class_weight, ignore_index, z_loss"]),
    ("loss=custom", ["loss._target_", "package.module.Class"]),
    ("loss=custom loss._target_=MyLoss", ["loss._target_=MyLoss", "package.module.Class"]),
    ("loss._target_=a.B", ["loss._target_", "loss=custom"]),
    ("scheduler=null", ["scheduler is a group"]),
    ("loss=[nll,one_hot]", ["loss is a group"]),
    ("hydra.run.dir=", ["hydra.run.dir: empty"]),
    ("config=", ["config=: empty"]),
    ("=1", ["=1", "key=value"]),
    ("optimizer.lr=(1", ["optimizer.lr=(1: cannot be read", "quotes"]),
    ("loss=ünlogic", ["loss=ünlogic: cannot be read", "quotes"]),
    ("-m optimizer=sgd,adam optimizer.momentum=0.9", ["optimizer.momentum", "optimizer=adam has: amsgrad"]),
    ("loss=null", ["loss is a group"]),
    ("optimizer=lbfgs trainer.accumulate_grad_batches=2", ["accumulate_grad_batches", "lbfgs"]),
    (
        "optimizer=custom optimizer._target_=torch.optim.LBFGS trainer.accumulate_grad_batches=2",
        ["accumulate_grad_batches", "lbfgs"],
    ),
    (
        "data=iris data.batch_size=4 trainer.accumulate_grad_batches=8 trainer.val_check_interval=2",
        ["trainer.val_check_interval=2", "8 batches make a step", "use 8"],
    ),
    ("loss=hinge loss.z_loss=0.1", ["loss.z_loss=0.1", "hinge has no softmax"]),
    ("loss=binary loss.z_loss=0.1", ["loss.z_loss=0.1", "binary has no softmax"]),
    ("loss=one_hot loss.backend=chunked", ["loss.backend=chunked", "one_hot needs all logits", "dense"]),
    ("loss=nll loss.backend=chunked", ["loss.backend=chunked", "nll needs all logits", "dense"]),
    ("loss.backend=sharded", ["loss.backend=sharded", "auto, chunked, dense"]),
    ("loss=focal loss.label_smoothing=0.1", ["loss.label_smoothing", "loss=focal does not read it", "cross_entropy"]),
    ("loss=focal loss.gamma=-1", ["loss.gamma=-1", ">= 0"]),
    ("loss=focal loss.gamma=1e300", ["loss.gamma=1e+300", "<= 1000000.0"]),
    ("loss=generalized_cross_entropy loss.q=0", ["loss.q=0", "> 0 and <= 1"]),
    ("loss=symmetric_cross_entropy loss.A=4", ["loss.A=4", "< 0"]),
    ("loss=hinge loss.p=3", ["loss.p=3", "1, 2"]),
    ("loss.class_weight=[1,-1,1]", ["loss.class_weight.1=-1", ">= 0"]),
    ("loss.class_weight=[0,0,0]", ["loss.class_weight", "above 0"]),
    ("loss.class_weight=[1,2]", ["loss.class_weight: 2 numbers", "3 classes"]),
    ("loss.class_weight=balance", ["loss.class_weight=balance", "balanced or null or a list"]),
    ("loss.ignore_index=99999999999999999999", ["loss.ignore_index"]),
    ("data=breast_cancer loss.z_loss=0.1", ["loss.z_loss=0.1", "binary", "cross_entropy"]),
    ("loss=custom loss._target_=test_errors.Scalar", ["test_errors.Scalar", "a cost a row", "reduction='none'"]),
    ("loss=custom loss._target_=test_errors.Misspelt", ["test_errors.Misspelt", "a row has no 'nl'"]),
    ("loss=custom loss._target_=test_errors.Deciding", ["test_errors.Deciding", "torch.where"]),
    ("loss=custom loss._target_=test_errors.Unmade", ["test_errors.Unmade"]),
    ("loss=custom loss._target_=test_errors.Learning loss.backend=chunked", ["loss.backend=chunked", "parameters"]),
    ("scheduler=cosine trainer.max_steps=-1 trainer.max_time=00:00:00:05", ["scheduler.steps=null"]),
    ("trainer.min_steps=2000", ["min_steps=2000", "max_steps=1001"]),
    ("data=iris trainer.check_val_every_n_epoch=1", ["trainer.val_check_interval=50", "1 batch", "1.0"]),
    ("--experimental-rerun=x", ["--experimental-rerun", "config=<run>"]),
    ("loss={_target_:a.B}", ["loss is a group", "loss=<name>"]),
    ("optimizer=5", ["optimizer is a group", "optimizer=<name>"]),
    ("optimizer.lr=0.1,0.2", ["optimizer.lr=0.1,0.2", "--multirun"]),
    ("optimizer.lr=range(1,3)", ["optimizer.lr=range(1,3)", "--multirun"]),
    ("-m optimizer.lr=0.1,abc", ["optimizer.lr=abc", "a number > 0"]),
    ("-m loss=nll,hing", ["loss=hing", "did you mean 'hinge'?"]),
    ("~optimizer.lr", ["optimizer.lr: not set", "a number > 0"]),
    ("~data", ["data: not set", "breast_cancer, csv, custom"]),
    ("+optimizer.lr=2", ["already", "optimizer.lr"]),
    ("optimizer.lr=${nope}", ["optimizer.lr", "'nope'"]),
    ("toy", ["toy", "key=value"]),
    ("data.batch_size=[1", ["data.batch_size=[1"]),
    ("--bogus", ["--bogus", "--multirun"]),
    ("--multirum", ["--multirum", "did you mean '--multirun'?"]),
    ("--config-name=nope", ["--config-name=nope"]),
    ("--config-dir=nope", ["--config-dir=nope", "no such directory"]),
    ("--cfg nope", ["--cfg", "nope"]),
    ("hydra.run.dr=x", ["hydra.run.dr"]),
    ("experiment=notebook", ["experiment=notebook", "did you mean 'notebook_"]),
    ("config=nope.yaml", ["config=nope.yaml", "no such file or directory"]),
    ("config=latest", ["config=latest", "no run yet"]),
    ("resume=latest", ["resume=latest", "no run yet"]),
    ("resume=nope", ["resume=nope", "no such file or directory"]),
    ("resume=.", ["resume=.", "config.yaml"]),
    ("-m resume=latest", ["resume=latest", "a sweep starts new runs"]),
    ("-m resume=a,b", ["resume=a,b", "takes one value"]),
    ("resume=latest config=latest", ["resume=latest", "config=latest"]),
    ("resume=latest hydra.run.dir=x", ["resume=latest", "hydra.run.dir"]),
    ("data=iris loss=binary", ["loss=binary", "3", "cross_entropy"]),
    ("data.val_fraction=0.25 trainer.val_check_interval=0.5", ["trainer", "check_val_every_n_epoch"]),
    ("trainer.barebones=true trainer.profiler=simple", ["trainer", "barebones"]),
]


@pytest.mark.parametrize(("typed", "said"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_mistake_is_answered_in_one_line_and_leaves_nothing_behind(
    typed: str, said: list[str], train: Train, workplace: Path
) -> None:
    run = train(*typed.split())

    assert_answered_in_one_line(run, said)
    assert run.out == ""
    assert not [path for path in workplace.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "typed", ["optimizer.lr=abc", "loss=hing", "optimzer.lr=1", "--bogus", "config=nope", "--help"]
)
def test_torch_is_not_imported_for_an_answer(typed: str, workplace: Path) -> None:
    script = (
        "import sys; from crossent.train import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    sys.exit(10 + ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, typed], capture_output=True, timeout=60, check=False)

    assert done.returncode == 10
    assert not list(workplace.iterdir())


def test_an_answer_takes_less_than_half_of_torchs_import() -> None:
    def seconds(*arguments: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, timeout=60, check=False)
        return time.perf_counter() - started

    pairs = [(seconds("-m", "crossent.train", "optimzer.lr=1"), seconds("-c", "import torch")) for _ in range(3)]

    answer, torch_import = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert answer < torch_import / 2


def test_traceback_on_request(
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = command("optimizer.lr=abc", HYDRA_FULL_ERROR="1")

    assert "Traceback" in done.stderr
    assert done.returncode != 0


def test_help_lists_groups_and_commands(train: Train) -> None:
    run = train("--help")

    assert run.code == 0
    for line in ("loss: auto, binary", "optimizer: adam", "crossent-train  ", "data: arrays"):
        assert line in run.out


def test_a_second_run_may_not_share_a_directory(train: Train, workplace: Path) -> None:
    first = train("hydra.run.dir=mine", "trainer.max_steps=3")
    before = {path: path.read_bytes() for path in (workplace / "mine").rglob("*") if path.is_file()}

    second = train("hydra.run.dir=mine", "trainer.max_steps=3")

    assert first.code == 0
    assert second.code == 2
    assert second.err == (
        "error: hydra.run.dir=mine: it holds a run; go on with it (resume=mine) or choose another directory\n"
    )
    assert before == {path: path.read_bytes() for path in (workplace / "mine").rglob("*") if path.is_file()}


def test_a_second_sweep_may_not_share_a_directory(train: Train, workplace: Path) -> None:
    train("-m", "seed=0,1", "trainer.max_steps=2", "hydra.sweep.dir=mine")
    before = {path: path.read_bytes() for path in (workplace / "mine").rglob("*") if path.is_file()}

    second = train("-m", "seed=2,3", "trainer.max_steps=2", "hydra.sweep.dir=mine")

    assert second.err == "error: hydra.sweep.dir=mine: it holds a sweep; choose another directory\n"
    assert before == {path: path.read_bytes() for path in (workplace / "mine").rglob("*") if path.is_file()}


def test_files_of_the_users_own_stay_where_a_run_could_not_begin(train: Train, workplace: Path) -> None:
    theirs = [workplace / "mine" / name for name in ("train.log", "run.log", "sub/notes.txt")]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")

    run = train("data=iris", "loss=binary", "hydra.run.dir=mine")

    assert run.code == 2
    assert all(path.read_text() == "mine" for path in theirs)
    assert not (workplace / "mine" / "config.yaml").exists()


def test_options_may_stand_anywhere(train: Train) -> None:
    run = train("trainer.max_steps=2", "-m", "seed=0,1")

    assert run.code == 0, run.err


def test_directory_that_cannot_be_made(train: Train, workplace: Path) -> None:
    (workplace / "file").write_text("not a directory")

    run = train("hydra.run.dir=file/run")

    assert run.code == 2
    assert run.err.startswith("error: ")
    assert "file" in run.err
    assert run.err.count("\n") == 1


def test_missing_scikit_learn_is_named_with_its_extra(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    run = train("data=iris")

    assert run.err == "error: data=iris: needs scikit-learn: pip install 'crossent[sklearn]'\n"


def test_reader_of_the_help_may_leave(workplace: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "crossent.train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()

    _, stderr = process.communicate(timeout=60)

    assert (process.returncode, stderr) == (0, b"")


def test_reader_that_leaves_does_not_stop_the_run(workplace: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "crossent.train", "trainer.max_steps=50"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()

    _, stderr = process.communicate(timeout=120)

    assert process.returncode == 0
    assert stderr == b""
    assert (workplace / "logs" / "latest" / "metrics.json").exists()
