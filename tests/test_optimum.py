"""Runs with optimizer=newton_cg: they end at the optimum, say so, and start from where others have ended."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import datasets
from sklearn.linear_model import LogisticRegression

import crossent
from conftest import Run, Train, assert_answered_in_one_line, assert_same_run, stop_after
from crossent.solved_classifier import Fit

SOLVED = ("data=digits", "optimizer=newton_cg", "model.l2=1e-3")
DOUBLE = "accelerator.precision=64-true"
PATH = "model.l2_path=[0.1,0.01,0.001,0.0001]"


def fits(run: Run, name: str = "last") -> list[Fit]:
    found: list[Fit] = run.checkpoint(name)["crossent"]["fits"]
    return found


def test_coefficients_are_those_of_scikit_learn(train: Train) -> None:
    run = train(
        "data=wine", "data.val_fraction=0", "optimizer=newton_cg", f"model.l2={1 / 178}", "optimizer.tol=1e-13", DOUBLE
    )
    features, targets = datasets.load_wine(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    theirs = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(features, targets)

    weights = run.checkpoint()["state_dict"]

    assert run.code == 0, run.err
    np.testing.assert_allclose(weights["head.weight"], theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(weights["head.bias"], theirs.intercept_, atol=1e-5)


def test_every_step_is_a_point(train: Train) -> None:
    run = train(*SOLVED)

    curves = run.curves
    steps = int(run.metrics["steps"])
    assert steps < 15
    assert list(curves["train/cost"]) == list(curves["train/penalty"]) == list(range(steps + 1))
    assert list(curves["train/gradient_norm"]) == list(curves["train/inner_iterations"]) == list(range(steps))
    assert curves["train/suboptimality"][steps] <= 1e-6
    assert run.metrics["train/suboptimality"] == pytest.approx(curves["train/suboptimality"][steps])
    assert curves["train/cost"][steps] == pytest.approx(run.metrics["train/cost"])
    assert list(curves["val/cost"]) == [steps]
    assert "optimum reached: cost + penalty is at most " in run.out
    assert run.err == ""


def test_the_table_has_a_row_for_every_step(train: Train) -> None:
    run = train(*SOLVED)

    lines = run.out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.split()[:2] == ["step", "train/cost"])
    rows = [line.split() for line in lines[start + 1 : start + 2 + int(run.metrics["steps"])]]
    assert [int(row[0]) for row in rows] == list(range(int(run.metrics["steps"]) + 1))
    assert float(rows[-1][1]) == pytest.approx(run.metrics["train/cost"], abs=1e-6)
    assert float(rows[-1][-2]) == pytest.approx(run.metrics["val/cost"], abs=1e-6)


def test_the_start_does_not_matter(train: Train) -> None:
    one, other = (train(*SOLVED, DOUBLE, "optimizer.tol=1e-12", f"model.init={init}") for init in ("zeros", "notebook"))

    weight = one.checkpoint()["state_dict"]["head.weight"]
    torch.testing.assert_close(weight, other.checkpoint()["state_dict"]["head.weight"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["model.l2=0"], "no optimum exists: the training rows can be told apart without error"),
        (["model.l2=0", "data=iris"], "but no finite weights have that"),
        (["trainer.max_steps=3"], "stopped by the run's limit (trainer.max_steps) before optimizer.tol=1e-06"),
        (["optimizer.tol=1e-15"], "as near as the arithmetic gets: cost + penalty"),
        (["loss=hinge", "model.l2=0"], "optimum reached: no row costs anything, after"),
    ],
)
def test_says_why_it_did_not_get_there(options: list[str], said: str, train: Train) -> None:
    run = train(*SOLVED, *options)

    assert run.code == 0, run.err
    assert said in run.out + run.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loss=focal"], ["loss=focal: not convex", "optimizer=newton_cg", "cross_entropy is convex", "lbfgs"]),
        (["loss=brier"], ["loss=brier: not convex"]),
        (["loss=poly1"], ["loss=poly1: not convex"]),
        (["loss=generalized_cross_entropy"], ["loss=generalized_cross_entropy: not convex"]),
        (["loss=symmetric_cross_entropy"], ["loss=symmetric_cross_entropy: not convex"]),
        (["loss=cross_entropy", "loss.z_loss=0.1"], ["loss.z_loss=0.1: not convex"]),
        (["data.batch_size=64"], ["data.batch_size=64", "use data.batch_size=full"]),
        (["scheduler=cosine"], ["scheduler=cosine", "no learning rate"]),
        (["trainer.accumulate_grad_batches=2"], ["trainer.accumulate_grad_batches", "leave it at 1"]),
        (["trainer.gradient_clip_val=1"], ["trainer.gradient_clip_val", "leave it at null"]),
        (["accelerator=cpu", "accelerator.precision=bf16-mixed"], ["accelerator.precision=bf16-mixed", "64-true"]),
        (["accelerator=mps"], ["accelerator=mps", "double precision"]),
        (["accelerator=class_parallel_cpu"], ["optimizer=newton_cg", "no process has all of them"]),
        (["optimizer.tol=0.0.1"], ["optimizer.tol"]),
        (["optimizer.tol=2"], ["optimizer.tol=2", "< 1"]),
        (["optimizer.max_inner=0"], ["optimizer.max_inner=0", ">= 1"]),
        (["model.l2_path=[]"], ["model.l2_path=[]", "strong ones first"]),
        (["model.l2_path=[0.1,0.1]"], ["model.l2_path=[0.1,0.1]", "strong ones come first", "[0.1]"]),
        (["model.l2_path=[0.01,0.1]"], ["strong ones come first", "[0.1,0.01]"]),
        (["optimizer.tol=0"], ["optimizer.tol=0", "> 0"]),
        (["model.l2_path=[0.1,-1]"], ["model.l2_path", "-1"]),
        (["model.l2_path=[0.1]", "model.l2=1"], ["model.l2=1", "leave it out"]),
        (["model.l2_path=[0.1]", "optimizer=sgd"], ["model.l2_path: optimizer=sgd", "use optimizer=newton_cg"]),
        (["model.l2_path=[0.1]", "data.val_fraction=0"], ["model.l2_path", "data.val_fraction=0.1"]),
        (["model.warm_start=nowhere"], ["model.warm_start=nowhere: no such file"]),
        (["model.warm_start=latest"], ["model.warm_start=latest: there is no run yet"]),
    ],
    ids=lambda each: " ".join(each) if len(each[0]) > 1 else None,
)
def test_mistakes_are_answered_in_one_line(overrides: list[str], said: list[str], start: Train) -> None:
    run = start("data=digits", "optimizer=newton_cg", *overrides)

    assert_answered_in_one_line(run, said)
    assert not (run.directory / "logs").exists()


def test_a_loss_of_the_users_own_may_be_convex(workplace: Path, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "own_convex.py").write_text(
        "from crossent.losses import RowLoss\n\n\n"
        "class Doubled(RowLoss):\n    def cost(self, row):\n        return 2 * row.nll\n\n\n"
        "class Squared(RowLoss):\n    def cost(self, row):\n        return row.nll**2\n"
    )
    monkeypatch.syspath_prepend(str(workplace))
    own = ("data=iris", "data.val_fraction=0", "optimizer=newton_cg", "loss=custom")

    doubled = train(*own, "loss._target_=own_convex.Doubled", "model.l2=0.02")
    single = train("data=iris", "data.val_fraction=0", "optimizer=newton_cg", "model.l2=0.01")
    squared = train(*own, "loss._target_=own_convex.Squared")

    assert doubled.metrics["train/cost"] == pytest.approx(2 * single.metrics["train/cost"], rel=1e-5)
    assert_answered_in_one_line(squared, ["loss._target_=own_convex.Squared", "not convex", "lbfgs"])


@pytest.mark.parametrize(
    "options",
    [(), ("data.val_fraction=0",), ("optimizer.tol=1e-9",), (PATH, "model.l2=0"), ("loss=hinge", "optimizer.tol=1e-4")],
)
@pytest.mark.parametrize("stop", [2, 5])
def test_a_stopped_run_ends_as_if_it_had_not_been(options: tuple[str, ...], stop: int, train: Train) -> None:
    whole = train(*SOLVED, *options)
    stopped = stop_after(stop, train, *SOLVED, *options)

    resumed = train("resume=latest")

    assert stopped.code == 130
    assert resumed.code == 0, resumed.err
    assert_same_run(whole, resumed)


@pytest.mark.parametrize(
    ("ranks", "loss", "tol", "near"),
    [(2, "cross_entropy", 1e-12, 1e-8), (3, "auto", 1e-12, 1e-8), (2, "hinge", 1e-6, 1e-3)],
)
def test_ranks_that_share_the_rows_come_to_the_same_weights(
    ranks: int, loss: str, tol: float, near: float, train: Train, start: Train
) -> None:
    options = (*SOLVED, f"loss={loss}", f"optimizer.tol={tol}", DOUBLE)
    alone = train(*options)

    shared = start(*options, "accelerator=ddp_cpu", f"accelerator.devices={ranks}")

    assert shared.code == 0, shared.err
    weight = alone.checkpoint()["state_dict"]["head.weight"]
    torch.testing.assert_close(shared.checkpoint()["state_dict"]["head.weight"], weight, rtol=0, atol=near)
    if loss != "hinge":  # near whose kinks the last digits of sums decide over steps
        assert shared.metrics["steps"] == alone.metrics["steps"]
    assert shared.metrics["train/suboptimality"] <= tol


def test_rows_in_a_file_come_to_the_same_weights(workplace: Path, train: Train) -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((30_000, 12)).astype(np.float32) * np.arange(1, 13, dtype=np.float32)
    logits = features @ generator.standard_normal((12, 4)) / 10 + generator.gumbel(size=(30_000, 4))
    np.save("x.npy", features)
    np.save("y.npy", logits.argmax(1))
    options = ("data=arrays", "data.path=x.npy", "data.target=y.npy", "optimizer=newton_cg", "model.l2=1e-4")

    one, other = (train(*options, f"data.in_memory={where}", "optimizer.tol=1e-8") for where in ("true", "false"))

    assert (one.code, other.code) == (0, 0), one.err + other.err
    assert one.metrics["train/suboptimality"] <= 1e-8
    assert other.metrics["train/cost"] == pytest.approx(one.metrics["train/cost"], rel=1e-7)
    weight = one.checkpoint()["state_dict"]["head.weight"]
    torch.testing.assert_close(other.checkpoint()["state_dict"]["head.weight"], weight, rtol=0, atol=1e-4)


def test_a_path_of_penalties(train: Train) -> None:
    run = train("data=digits", "data.test_fraction=0.2", "optimizer=newton_cg", PATH)

    found = fits(run)
    assert run.code == 0, run.err
    assert [fit["l2"] for fit in found] == [0.1, 0.01, 0.001, 0.0001]
    assert all(fit["end"] == "tolerance" and (fit["suboptimality"] or 0) <= 1e-6 for fit in found)
    val = [fit["val_cost"] or math.nan for fit in found]
    assert run.curves["val/cost"] == pytest.approx({fit["steps"]: cost for fit, cost in zip(found, val, strict=True)})
    best = found[val.index(min(val))]
    assert run.checkpoint("best")["global_step"] == best["steps"]
    assert f"{best['l2']:g}" in next(line for line in run.out.splitlines() if line.endswith("<- best"))
    assert set(run.curves["train/l2"].values()) == pytest.approx([0.1, 0.01, 0.001, 0.0001])
    assert run.curves["test/cost"].keys() == {best["steps"]}


def test_a_path_that_ends_early_says_what_was_not_fitted(train: Train) -> None:
    run = train("data=digits", "optimizer=newton_cg", PATH, "trainer.max_steps=7")

    said = run.out + run.err
    assert "model.l2=0.01: stopped by the run's limit" in said
    assert "not fitted, since the run's limit came first (trainer.max_steps): model.l2=[0.001, 0.0001]" in said


def test_what_is_not_certain_is_not_in_the_metrics(train: Train) -> None:
    run = train("data=wine", "optimizer=newton_cg", "model.l2_path=[0.1,0]")

    assert [fit["end"] for fit in fits(run)] == ["tolerance", "separable"]
    assert "train/suboptimality" not in run.metrics


@pytest.mark.parametrize("options", [("model.l2=1e-3",), (PATH,)])
def test_a_run_whose_steps_ran_out_goes_on(options: tuple[str, ...], train: Train) -> None:
    whole = train("data=digits", "optimizer=newton_cg", *options)
    train("data=digits", "optimizer=newton_cg", *options, "trainer.max_steps=3")

    longer = train("resume=latest", "trainer.max_steps=100")

    assert longer.code == 0, longer.err
    assert [(fit["l2"], fit["end"]) for fit in fits(longer)] == [(fit["l2"], fit["end"]) for fit in fits(whole)]
    best = min(fits(longer), key=lambda fit: fit["val_cost"] or math.inf)
    assert longer.checkpoint("best")["global_step"] == best["steps"]
    assert all(len(points) for points in longer.curves.values())  # and none is doubled


def test_a_path_fits_each_penalty_as_if_it_were_alone(train: Train) -> None:
    options = ("data=digits", "optimizer=newton_cg", "optimizer.tol=1e-10", DOUBLE)
    path = fits(train(*options, PATH))

    for fit in path:
        alone = train(*options, f"model.l2={fit['l2']}")
        assert fit["cost"] == pytest.approx(alone.metrics["train/cost"], rel=1e-4)
        assert fit["val_cost"] == pytest.approx(alone.metrics["val/cost"], rel=1e-4)


@pytest.mark.parametrize("optimizer", ["newton_cg", "adam"])
def test_warm_start_begins_with_the_weights_of_another_run(optimizer: str, train: Train) -> None:
    first = train(*SOLVED, "data.standardize=false", DOUBLE)

    run = train("data=digits", f"optimizer={optimizer}", DOUBLE, "model.l2=1e-3", "model.warm_start=latest")

    assert run.code == 0, run.err
    assert "starting from the weights of" in run.out
    # Its features are standardised, so that weights and penalty are others, and the cost is the same.
    assert run.curves["train/cost"][0] == pytest.approx(first.metrics["train/cost"], rel=1e-6)
    assert json.loads(json.dumps(run.checkpoint()["crossent"]["config"]))["model"]["warm_start"].startswith("/")


def test_warm_start_from_the_optimum_is_there_at_once(train: Train) -> None:
    options = (*SOLVED, "optimizer.tol=1e-9", DOUBLE)
    first = train(*options)

    run = train(*options, f"model.warm_start={first.directory / 'checkpoints' / 'last.ckpt'}")

    assert run.metrics["steps"] <= 2 < first.metrics["steps"]
    np.testing.assert_allclose(
        crossent.load(str(run.directory)).coef_, crossent.load(str(first.directory)).coef_, atol=1e-2
    )


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (["data=iris"], ["data=wine"], ["other classes", "setosa"]),
        (["data=iris"], ["data=iris", "model.bias=none"], ["has a bias", "model.bias=none", "per_class"]),
        (["data=iris"], ["data=iris", "model.bias=shared"], ["a bias for each class", "per_class"]),
        (["data=breast_cancer"], ["data=breast_cancer", "loss=cross_entropy"], ["1 output", "loss=binary"]),
    ],
)
def test_warm_start_refuses_weights_that_do_not_fit(
    first: list[str], second: list[str], said: list[str], train: Train
) -> None:
    train(*first, "trainer.max_steps=3")

    run = train(*second, "model.warm_start=latest")

    assert_answered_in_one_line(run, ["model.warm_start=", *said])
