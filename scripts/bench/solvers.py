"""To the optimum: newton_cg beside scikit-learn's four solvers and PyTorch's L-BFGS, at equal objective.

- ``solve``: the time from data in memory to weights whose cost and penalty (C = 1) are within 1e-6 of the optimum. Each
  solver's tolerances are tried from loose to tight; of the first that get there (three, where that takes less than a
  tenth of a second), and one thread or two, the fastest counts, so that everyone has its best settings; then all are
  timed in turns. Ours is timed in two ways: as the peers are, and until it has *certified* 1e-6.
- ``fit``: the small problems through ``crossent-train``: what ``Trainer.fit`` adds to the solver.
- ``path``: 20 penalties on digits: one path, twenty single fits, and scikit-learn's LogisticRegressionCV on the same
  penalties, training rows and validation rows.
- ``hinge``: the time to certified optima of a support vector machine of many classes, how far PyTorch's L-BFGS gets,
  and, of two classes, scikit-learn's SVC.
- ``file``: rows of a 4 GB file, which stay there: time, anonymous memory, passes through the file.

    python scripts/bench/solvers.py [--parts solve fit path hinge file] [--repeats 5] [--only NAME …] [--plot PNG]

Unset OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE where they are set, which slow NumPy down, and so scikit-learn.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import sklearn
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter
from measuring import verdict, watched
from sklearn import datasets
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from crossent import cli
from crossent.losses import Binary, CrossEntropy, Hinge
from crossent.solvers import NewtonCG, Objective, minimize
from crossent.train import command
from crossent.training import train

GOAL = 1e-6  # relative suboptimality
TOLERANCES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12)
OURS = (1e-3, 3e-4, 1e-4, 5e-5, 3e-5, 2e-5, 1e-5, 5e-6, 3e-6, 2e-6, 1e-6)
SETTLE = 0.1  # seconds, since threads of NumPy's go on waiting for work on the second core for a while
PATIENCE = 6.0  # seconds of one try, after which a peer is given no tighter tolerance
TOLERANCES_TRIED, SHORT = 3, 0.1  # of those that get there, where a try takes less than these seconds; else one
MOST_NUMBERS = 10_000  # of weights, whose Hessian scikit-learn's newton-cholesky holds and factors
LARGE_LIMIT, SMALL_LIMIT, FIT_LIMIT = 0.5, 1.0, 0.010  # ratios, and seconds
MORE_TURNS = 10  # for those of SMALL, which take milliseconds
SMALL = ("iris", "wine", "breast_cancer")
FILE_BYTES = 4_000_000_000
Numbers = np.ndarray[Any, np.dtype[Any]]


class Rows(NamedTuple):
    """Features, (rows, columns), and targets, (rows,)."""

    features: Numbers
    targets: Numbers


def problem(name: str) -> Rows:
    """The rows of a problem."""
    if name in ("iris", "wine", "breast_cancer", "digits"):
        return Rows(*getattr(datasets, f"load_{name}")(return_X_y=True))
    if name == "digits, standardized":
        features, targets = datasets.load_digits(return_X_y=True)
        scale = features.std(0)
        return Rows((features - features.mean(0)) / np.where(scale > 0, scale, 1), targets)
    generator = np.random.default_rng(0)
    if name == "50,000 × 256 × 100":
        features = generator.standard_normal((50_000, 256), dtype=np.float32)
        logits = features @ (0.1 * generator.standard_normal((256, 100), dtype=np.float32))
        return Rows(features, (logits + generator.gumbel(size=logits.shape)).argmax(1))
    if name == "20,000 × 100 × 20":
        features = generator.standard_normal((20_000, 100), dtype=np.float32)
        logits = features @ (0.4 * generator.standard_normal((100, 20), dtype=np.float32))
        return Rows(features, (logits + generator.gumbel(size=logits.shape)).argmax(1))
    features = generator.standard_normal((20_000, 54))
    logits = features @ (0.2 * generator.standard_normal((54, 7)))
    targets = (logits + generator.gumbel(size=logits.shape)).argmax(1)
    return Rows(features * 10 ** generator.uniform(-3, 3, 54), targets)


PROBLEMS = ("digits", "digits, standardized", "50,000 × 256 × 100", "20,000 × 54 × 7, scaled", *SMALL)


def value(rows: Rows, weight: Numbers, bias: Numbers) -> float:
    """The mean cost and the penalty of C = 1, in double precision."""
    logits = rows.features.astype(np.float64) @ weight.astype(np.float64).T + bias
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    logits -= logits.max(1, keepdims=True)
    costs = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), rows.targets]
    return float(costs.mean() + (weight.astype(np.float64) ** 2).sum() / (2 * len(logits)))


@dataclass(frozen=True)
class Try:
    """A solver with its settings."""

    solver: str
    tol: float
    threads: int

    def __str__(self) -> str:
        return f"{self.solver} (tol {self.tol:g}, {self.threads} thread{'s' * (self.threads > 1)})"


class Tried(NamedTuple):
    """How long it took, and where it ended."""

    seconds: float
    value: float


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for PyTorch and for NumPy's libraries."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    with threadpool_limits(count):
        yield
    torch.set_num_threads(before)


def attempt(rows: Rows, settings: Try) -> Tried:
    """Solves once."""
    with threads(settings.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged; the objective tells
        time.sleep(SETTLE if settings.threads > 1 else 0)
        started = time.perf_counter()
        weight, bias = SOLVERS[settings.solver](rows, settings.tol)
        seconds = time.perf_counter() - started
    return Tried(seconds, value(rows, weight, bias))


def sklearns(solver: str) -> Callable[[Rows, float], tuple[Numbers, Numbers]]:
    """A solver of scikit-learn's."""

    def solve(rows: Rows, tol: float) -> tuple[Numbers, Numbers]:
        model = LogisticRegression(solver=solver, tol=tol, max_iter=5000).fit(rows.features, rows.targets)
        return model.coef_, model.intercept_

    return solve


def ours(rows: Rows, tol: float) -> tuple[Numbers, Numbers]:
    """Crossent's, from NumPy's arrays to NumPy's arrays."""
    targets = torch.from_numpy(rows.targets).long()
    loss = Binary() if rows.targets.max() == 1 else CrossEntropy()
    found = minimize(loss, torch.from_numpy(rows.features), targets, l2=1 / len(targets), tol=tol)
    assert found.bias is not None
    return found.weight.numpy(), found.bias.numpy()


def torchs(rows: Rows, tol: float) -> tuple[Numbers, Numbers]:
    """PyTorch's L-BFGS with its line search, on columns of mean 0, without which it does not move."""
    features = torch.from_numpy(rows.features - rows.features.mean(0, dtype=rows.features.dtype))
    targets = torch.from_numpy(rows.targets).long()
    outputs = 1 if rows.targets.max() == 1 else int(rows.targets.max()) + 1
    weight = torch.zeros(outputs, features.shape[1], dtype=features.dtype, requires_grad=True)
    bias = torch.zeros(outputs, dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=5000,
        max_eval=10**6,
        tolerance_grad=tol * 0.1,
        tolerance_change=tol * 1e-4,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = torch.nn.functional.linear(features, weight, bias)
        if outputs == 1:
            labels = targets.to(logits.dtype)
            cost = torch.nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1), labels)
        else:
            cost = torch.nn.functional.cross_entropy(logits, targets)
        found = cost + weight.square().sum() / (2 * len(targets))
        found.backward()
        return found

    optimizer.step(closure)
    found = weight.detach().numpy()
    return found, bias.detach().numpy() - found @ rows.features.mean(0, dtype=rows.features.dtype)


SKLEARN = {f"scikit-learn {name}": sklearns(name) for name in ("lbfgs", "newton-cg", "newton-cholesky", "saga")}
SOLVERS = {"crossent": ours, **SKLEARN, "torch.optim.LBFGS": torchs}


def optimum(rows: Rows) -> float:
    """The least value, as far as double precision tells."""
    exact = Rows(rows.features.astype(np.float64), rows.targets)
    return value(rows, *ours(exact, 1e-13))


# -- the parts ----------------------------------------------------------------------------------------------


def scan(rows: Rows, solver: str, best: float) -> tuple[Try | None, list[tuple[Try, float, float]]]:
    """The settings that get there in the least time, and all that were tried: seconds and suboptimality."""
    seen: list[tuple[Try, float, float]] = []
    times: dict[Try, float] = {}
    reached = 0
    for tol in OURS if solver == "crossent" else TOLERANCES:
        settings = Try(solver, tol, 1)
        found = attempt(rows, settings)
        if found.seconds < 1:
            found = min(found, attempt(rows, settings))
        seen.append((settings, found.seconds, (found.value - best) / best))
        if seen[-1][2] <= GOAL:
            reached += 1
            for each in (settings, Try(solver, tol, 2)):
                several = [attempt(rows, each) for _ in range(5 if found.seconds < 1 else 1)]
                if all((once.value - best) / best <= GOAL for once in several):  # whatever the order of sums
                    times[each] = statistics.median(once.seconds for once in several)
        if found.seconds > PATIENCE or reached == (TOLERANCES_TRIED if found.seconds < SHORT else 1):
            break
    return min(times, key=lambda each: times[each], default=None), seen


def curve(rows: Rows, best: float, count: int) -> list[tuple[float, float]]:
    """Seconds and suboptimality after each of our steps."""
    targets = torch.from_numpy(rows.targets).long()
    loss = Binary() if rows.targets.max() == 1 else CrossEntropy()
    outputs = 1 if isinstance(loss, Binary) else int(targets.max()) + 1
    parameters = [
        torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        for shape in ((outputs, rows.features.shape[1]), (outputs,))
    ]
    points: list[tuple[float, float]] = []
    with threads(count):
        started = time.perf_counter()
        solver = NewtonCG(
            parameters,
            Objective(loss, torch.from_numpy(rows.features), targets, outputs=outputs, l2=1 / len(targets)),
            tol=1e-9,
        )
        for _ in range(60):
            solver.step()
            seconds = time.perf_counter() - started
            assert solver.reached is not None
            assert solver.last is not None
            points.append((seconds, max((solver.reached.value - best) / best, 1e-13)))
            if solver.last.end is not None:
                return points
    return points


def solve(names: list[str], repeats: int) -> dict[str, Any]:
    """Prints a table a problem."""
    report: dict[str, Any] = {}
    for name in names:
        rows = problem(name)
        best = optimum(rows)
        print(f"\n{name}: the optimum is {best:.10f}")
        print(f"{'':58}{'median s':>10}{'min':>9}{'max':>9}{'ratio':>8}{'suboptimality':>15}")
        chosen: dict[str, Try] = {}
        seen: dict[str, list[tuple[float, float]]] = {}
        for solver in SOLVERS:
            if solver.endswith("cholesky") and rows.features.shape[1] * (rows.targets.max() + 1) > MOST_NUMBERS:
                print(f"{solver:58}{'':51}  its Hessian does not fit in memory")
                seen[solver] = []
                continue
            settings, tried = scan(rows, solver, best)
            seen[solver] = [(seconds, distance) for _, seconds, distance in tried]
            if settings is None:
                nearest = min(tried, key=lambda each: each[2])
                print(f"{nearest[0]!s:58}{nearest[1]:10.3f}{'':26}{nearest[2]:15.1e}  does not get there")
            else:
                chosen[solver] = settings
        certified = Try("crossent", GOAL, chosen["crossent"].threads)
        cases = {str(settings): settings for settings in chosen.values()}
        cases[f"crossent, certified (tol {GOAL:g})"] = certified
        taken: dict[str, list[Tried]] = {label: [] for label in cases}
        for turn in range(repeats * (MORE_TURNS if name in SMALL else 1) + 1):
            for label, settings in cases.items():
                once = attempt(rows, settings)
                if turn:
                    taken[label].append(once)
        medians = {label: statistics.median(each.seconds for each in found) for label, found in taken.items()}
        peers = {label: medians[label] for label, settings in cases.items() if settings.solver in SKLEARN}
        fastest = min(peers, key=lambda label: peers[label])
        for label, found in taken.items():
            times = [each.seconds for each in found]
            distance = max((each.value - best) / best for each in found)
            print(
                f"{label:58}{medians[label]:10.4f}{min(times):9.4f}{max(times):9.4f}"
                f"{medians[label] / peers[fastest]:8.2f}{distance:15.1e}"
            )
        limit = SMALL_LIMIT if name in SMALL else LARGE_LIMIT
        verdict(f"crossent of {fastest}", medians[str(chosen["crossent"])] / peers[fastest], limit)
        several = [curve(rows, best, chosen["crossent"].threads) for _ in range(5)]
        ours_here = sorted(several, key=lambda points: points[-1][0])[2]  # the median
        report[name] = {"optimum": best, "seconds": medians, "tried": seen, "steps": ours_here}
    return report


def fit(repeats: int) -> dict[str, Any]:
    """Prints what Trainer.fit adds to the solver."""
    print(f"\n{'Trainer.fit':34}{'solver s':>10}{'fit s':>9}{'more, ms':>10}")
    report: dict[str, Any] = {}
    for name in SMALL:
        rows = problem(name)
        size = len(rows.targets)
        alone: list[float] = []
        within: dict[str, list[float]] = {"bare": [], "as it comes": []}
        options = {"bare": ["logger=none", "trainer.enable_checkpointing=false"], "as it comes": []}
        for turn in range(repeats + 1):
            seconds = attempt(rows, Try("crossent", GOAL, 1)).seconds
            runs = {how: _run([f"data={name}", f"model.l2={1 / size}", *more]) for how, more in options.items()}
            if turn:
                alone.append(seconds)
                for how, taken in runs.items():
                    within[how].append(taken)
        base = statistics.median(alone)
        for how, times in within.items():
            median = statistics.median(times)
            print(f"{f'{name}, {how}':34}{base:10.4f}{median:9.4f}{1000 * (median - base):10.1f}")
            report[f"{name}, {how}"] = {"solver": base, "fit": median}
        more = statistics.median(within["bare"]) - base
        verdict(f"{name}: ms more, without logger and checkpoints", 1000 * more, 1000 * FIT_LIMIT)
    return report


def _run(overrides: list[str]) -> float:
    """Seconds of ``Trainer.fit``."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        common = ["optimizer=newton_cg", "data.standardize=false", "data.val_fraction=0", f"hydra.run.dir={directory}"]
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
            if cli.run(command(train), [*common, *overrides]) != 0:
                raise RuntimeError("the run failed")
        return float(json.loads((directory / "metrics.json").read_text())["seconds"])


def path(repeats: int) -> dict[str, Any]:
    """Prints a path of penalties beside single fits and beside scikit-learn's search."""
    rows = problem("digits, standardized")
    order = np.random.default_rng(0).permutation(len(rows.targets))
    inner, outer = order[:1437], order[1437:]
    features, targets = torch.from_numpy(rows.features[inner]), torch.from_numpy(rows.targets[inner]).long()
    strengths = np.logspace(-3, 3, 20)  # scikit-learn's C
    penalties = [float(1 / (strength * len(inner))) for strength in strengths]

    def one_path() -> None:
        parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((10, 64), (10,))]
        objective = Objective(CrossEntropy(), features, targets, outputs=10, l2=penalties[0])
        solver = NewtonCG(parameters, objective)
        for penalty in penalties:
            objective.penalise(penalty)
            solver.begin_anew()
            while solver.last is None or solver.last.end is None:
                solver.step()
            _ = (torch.from_numpy(rows.features[outer]) @ parameters[0].t() + parameters[1]).log_softmax(1)

    def single_fits() -> None:
        for penalty in penalties:
            minimize(CrossEntropy(), features, targets, l2=penalty)

    def search(solver: str, tol: float) -> Callable[[], None]:
        def run() -> None:
            LogisticRegressionCV(
                Cs=strengths,
                cv=[(inner, outer)],
                solver=solver,
                tol=tol,
                max_iter=5000,
                refit=False,
                scoring="neg_log_loss",
            ).fit(rows.features, rows.targets)

        return run

    cases = {
        "crossent, one path, each certified to 1e-6": one_path,
        "crossent, twenty single fits": single_fits,
        **{
            f"LogisticRegressionCV, {solver}, tol {tol:g}": search(solver, tol)
            for solver, tol in (("lbfgs", 1e-4), ("newton-cg", 1e-4), ("newton-cg", 1e-5), ("newton-cholesky", 1e-4))
        },
    }
    print(f"\n{'20 penalties, digits':58}{'median s':>10}{'min':>9}{'max':>9}{'ratio':>8}")
    taken: dict[str, list[float]] = {label: [] for label in cases}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(repeats + 1):
            for label, measure in cases.items():
                with threads(1):  # which is faster for all of them
                    started = time.perf_counter()
                    measure()
                    if turn:
                        taken[label].append(time.perf_counter() - started)
    base = statistics.median(taken["crossent, one path, each certified to 1e-6"])
    for label, times in taken.items():
        median = statistics.median(times)
        print(f"{label:58}{median:10.3f}{min(times):9.3f}{max(times):9.3f}{median / base:8.2f}")
    return taken


def hinge(repeats: int) -> dict[str, Any]:
    """Prints how long the hinge's optima take, whose costs have kinks."""
    report: dict[str, Any] = {}
    print(f"\n{'hinge, C = 1':58}{'median s':>10}{'min':>9}{'max':>9}{'suboptimality':>15}")
    for name in (*SMALL, "digits", "digits, standardized", "20,000 × 54 × 7, scaled", "20,000 × 100 × 20"):
        rows = problem(name)
        best = _hinge_value(rows, *_hinges(rows, 1e-8))
        cases: dict[str, Callable[[], tuple[Numbers, Numbers]]] = {
            "crossent, certified to 1e-3": functools.partial(_hinges, rows, 1e-3),
            "crossent, certified to 1e-6": functools.partial(_hinges, rows, 1e-6),
            "torch.optim.LBFGS, 1,000 iterations": functools.partial(_hinges_by_lbfgs, rows),
        }
        if rows.targets.max() == 1:
            cases["scikit-learn SVC (libsvm)"] = functools.partial(_machine, rows)
        for label, measure in cases.items():
            times: list[float] = []
            with threads(2):
                for _ in range(repeats):
                    started = time.perf_counter()
                    found = measure()
                    times.append(time.perf_counter() - started)
            distance = _hinge_value(rows, *found) / best - 1
            case = f"{name}: {label}"
            print(f"{case:58}{statistics.median(times):10.4f}{min(times):9.4f}{max(times):9.4f}{distance:15.1e}")
            report[case] = {"seconds": times, "suboptimality": distance}
    return report


def _hinges(rows: Rows, tol: float) -> tuple[Numbers, Numbers]:
    """Crossent's."""
    targets = torch.from_numpy(rows.targets).long()
    found = minimize(Hinge(), torch.from_numpy(rows.features), targets, l2=1 / len(targets), tol=tol, max_steps=300)
    assert found.bias is not None
    return found.weight.numpy(), found.bias.numpy()


def _hinges_by_lbfgs(rows: Rows) -> tuple[Numbers, Numbers]:
    """PyTorch's, on columns of mean 0 and deviation 1, as far as it gets."""
    mean, scale = rows.features.mean(0), rows.features.std(0)
    scale = np.where(scale > 0, scale, 1)
    features, targets = torch.from_numpy((rows.features - mean) / scale), torch.from_numpy(rows.targets).long()
    weight = torch.zeros(int(targets.max()) + 1, features.shape[1], dtype=features.dtype, requires_grad=True)
    bias = torch.zeros(len(weight), dtype=features.dtype, requires_grad=True)
    by = torch.from_numpy(scale)
    settings: dict[str, Any] = {"max_iter": 1000, "tolerance_grad": 0, "tolerance_change": 0}
    optimizer = torch.optim.LBFGS([weight, bias], line_search_fn="strong_wolfe", **settings)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        cost = torch.nn.functional.multi_margin_loss(torch.nn.functional.linear(features, weight, bias), targets)
        found = cost + (weight / by).square().sum() / (2 * len(targets))
        found.backward()
        return found

    optimizer.step(closure)
    found = weight.detach().numpy() / scale
    return found, bias.detach().numpy() - found @ mean


def _machine(rows: Rows) -> tuple[Numbers, Numbers]:
    """scikit-learn's, whose weight is that of class 1 over class 0."""
    found = SVC(kernel="linear", C=1, tol=1e-6).fit(rows.features, rows.targets)
    return np.concatenate([-found.coef_, found.coef_]) / 2, np.concatenate([-found.intercept_, found.intercept_]) / 2


def _hinge_value(rows: Rows, weight: Numbers, bias: Numbers) -> float:
    """The mean cost and the penalty of C = 1, in double precision."""
    logits = rows.features.astype(np.float64) @ weight.T + bias
    violations = np.maximum(0, 1 + logits - logits[np.arange(len(logits)), rows.targets][:, None])
    violations[np.arange(len(logits)), rows.targets] = 0
    return float(violations.mean() + (weight**2).sum() / (2 * len(logits)))


def file(folder: Path) -> dict[str, Any]:
    """Prints what a run on rows of a file takes that stay there."""
    columns, classes = 256, 10
    count = FILE_BYTES // (4 * columns)
    generator = np.random.default_rng(0)
    features = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (count, columns))
    targets = np.empty(count, np.int64)
    truth = 0.1 * generator.standard_normal((columns, classes), dtype=np.float32)
    for start in range(0, count, 100_000):
        part = slice(start, min(start + 100_000, count))
        features[part] = generator.standard_normal((part.stop - part.start, columns), dtype=np.float32)
        logits = features[part] @ truth
        targets[part] = (logits + generator.gumbel(size=logits.shape)).argmax(1)
    features.flush()
    np.save(folder / "y.npy", targets)
    del features
    common = ["data=arrays", "data.path=x.npy", "data.target=y.npy", "data.val_fraction=0", "data.standardize=false"]
    options = ["optimizer=newton_cg", f"model.l2={1 / count}", "hydra.run.dir=run"]
    trained = [sys.executable, "-m", "crossent.train", *common, *options]
    seconds, peak, said = watched(trained, folder)
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    print(f"\n{count:,} × {columns} in a file of {FILE_BYTES / 1e9:g} GB, {classes} classes, C = 1")
    print(
        f"whole command {seconds:.1f} s, fit {metrics['seconds']:.1f} s, anonymous memory at most {peak / 1e9:.2f} GB"
    )
    print(f"{metrics['steps']} steps, suboptimality {metrics['train/suboptimality']:.1e}")
    print(*(line for line in said.splitlines() if "passes" in line), sep="\n")
    return {"seconds": seconds, "anonymous": peak, **metrics}


def plot(report: dict[str, Any], target: Path) -> None:
    """Draws suboptimality against time, a panel a problem."""
    mpl.use("Agg")
    colours = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    rows = -(-len(report) // 2)
    figure, panels = plt.subplots(rows, 2, figsize=(9, 2.6 * rows), layout="constrained", squeeze=False)
    for panel in panels.flat[len(report) :]:
        panel.remove()
    for panel, (name, found) in zip(panels.flat, report.items(), strict=False):
        for colour, solver in zip(colours, SOLVERS, strict=True):
            points = sorted(found["steps"] if solver == "crossent" else found["tried"][solver])
            seconds = [each for each, _ in points]
            distances = np.minimum.accumulate([max(distance, 1e-13) for _, distance in points])
            style: dict[str, Any] = {"linewidth": 2.2 if solver == "crossent" else 1.2, "marker": "o", "markersize": 3}
            panel.plot(seconds, distances, color=colour, label=solver, **style)
        panel.axhline(GOAL, color="#888888", linestyle=":", linewidth=1)
        panel.set(xscale="log", yscale="log", title=name, ylim=(1e-11, 2))
        panel.title.set_fontsize(10)
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    for panel in panels.flat[max(0, len(report) - 2) : len(report)]:
        panel.set_xlabel("seconds")
    for panel in panels[:, 0]:
        panel.set_ylabel("(value − optimum) / optimum", fontsize=8)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=3, frameon=False)
    figure.savefig(target, dpi=90)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", default=["solve", "fit", "path"], choices=["solve", "fit", "path", "hinge", "file"]
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(PROBLEMS), choices=PROBLEMS, help="problems of solve")
    parser.add_argument("--folder", type=Path, help="where there is room for the file; else a temporary folder")
    parser.add_argument("--plot", type=Path, help="draw solve's curves here")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    slowed = [name for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ]
    if slowed:
        raise SystemExit(f"unset {' and '.join(slowed)}, which slow scikit-learn down")
    print(
        f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, {os.cpu_count()} cores, {platform.machine()}"
    )
    report: dict[str, Any] = {}
    if "solve" in options.parts:
        report["solve"] = solve(options.only, options.repeats)
        if options.plot:
            plot(report["solve"], options.plot)
    if "fit" in options.parts:
        report["fit"] = fit(options.repeats)
    if "path" in options.parts:
        report["path"] = path(options.repeats)
    if "hinge" in options.parts:
        report["hinge"] = hinge(options.repeats)
    if "file" in options.parts:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            report["file"] = file(Path(folder))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
