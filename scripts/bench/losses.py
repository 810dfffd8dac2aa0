"""What the losses cost: time and memory of a step, forward and backward, against PyTorch and against the floor.

A step starts without a gradient and ends with that of the weight. All cases of a table are measured in turns, and
ratios compare medians. Extra memory is the peak of a step beyond what every way of computing it needs: inputs, weight
and the weight's gradient. On a GPU PyTorch's allocator tells it; on the CPU, Linux does, of a fresh process a case.

- ``large``: every row-statistics loss, chunked, where logits are many; its limits hold for each of them.
- ``small``: every loss with softmax or margin, dense, where a step takes microseconds.
- ``million``: one step with a million classes.

    python scripts/bench/losses.py [--parts large small million] [--device auto] [--repeats 5] [--bias] [--json FILE]
"""

import argparse
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.losses import LOSSES, Binary, CrossEntropy, LogitAdjusted, LogitLoss, Loss, RowLoss
from crossent.losses.base import Backend
from crossent.losses.products import slice_rows

REFERENCE = "F.cross_entropy"
FLOOR = "floor: the two matrix products"
CHUNKED = "F.linear_cross_entropy, chunked"
TIME_LIMIT, MEMORY_LIMIT, FLOOR_LIMIT = 0.45, 0.08, 1.25  # of large, for each row-statistics loss
SMALL_LIMIT = 1.1  # of small, for cross_entropy
SMALL_STEPS, SMALL_TURNS = 200, 5  # steps a timing, and turns for each of --repeats


class Shape(NamedTuple):
    """The size of a problem."""

    rows: int
    features: int
    classes: int

    def __str__(self) -> str:
        return f"{self.rows:,} rows × {self.features} features × {self.classes:,} classes, float32"


TINY = Shape(64, 64, 100)
LARGE = Shape(4096, 256, 50_000)
SMALL = (Shape(4096, 64, 10), Shape(128, 64, 10))
MILLION = Shape(1024, 64, 1_000_000)


class Problem(NamedTuple):
    """What a step is given."""

    features: Tensor
    targets: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, shape: Shape, device: str, bias: bool) -> "Problem":
        """Random numbers, the same every time; made without a copy, which would count as a peak of memory."""
        torch.manual_seed(0)
        features = torch.randn(shape.rows, shape.features, device=device)
        targets = torch.randint(shape.classes, (shape.rows,), device=device)
        weight = torch.randn(shape.classes, shape.features, device=device).mul_(0.05).requires_grad_()
        zeros = torch.zeros(shape.classes, device=device).requires_grad_() if bias else None
        return cls(features, targets, weight, zeros)

    def clear(self) -> None:
        """Drops the gradients."""
        for leaf in (self.weight, self.bias):
            if leaf is not None:
                leaf.grad = None


Step = Callable[[Problem], None]


# -- the cases ----------------------------------------------------------------------------------------------


def floor(problem: Problem) -> None:
    """The logits and the weight's gradient by them, a slice of rows at a time, in one buffer."""
    features, _, weight, bias = problem
    with torch.no_grad():
        size = min(len(features), slice_rows(weight, weight.itemsize))
        memory = torch.empty(size, len(weight), device=weight.device)
        gradient, by_bias = torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
        for rows in features.split(size):
            logits = memory[: len(rows)]
            if bias is None or by_bias is None:
                torch.mm(rows, weight.t(), out=logits)
            else:
                torch.addmm(bias, rows, weight.t(), out=logits)
                by_bias += logits.sum(dim=0)
            gradient.addmm_(logits.t(), rows)
    weight.grad = gradient
    if bias is not None:
        bias.grad = by_bias


def reference(label_smoothing: float = 0.0) -> Step:
    """PyTorch's cross entropy of all logits."""
    return lambda problem: F.cross_entropy(
        F.linear(problem.features, problem.weight, problem.bias), problem.targets, label_smoothing=label_smoothing
    ).backward()


def ours(loss: Loss) -> Step:
    """A loss of Crossent's."""
    return lambda problem: loss(problem.features, problem.weight, problem.bias, problem.targets).mean.backward()


def fused(name: str) -> Step:
    """A fused loss of PyTorch's or of others; fails where it is missing, which the types do not know of."""
    if name == "Liger":
        loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
        return lambda problem: loss(problem.weight, problem.features, problem.targets, problem.bias).backward()
    if name == "CCE":
        cce = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        return lambda problem: cce(problem.features, problem.weight, problem.targets, bias=problem.bias).backward()
    functional, modules = (importlib.import_module(each) for each in ("torch.nn.functional", "torch.nn"))
    function = functional.linear_cross_entropy
    options = {"options": modules.LinearCrossEntropyOptions()} if name == CHUNKED else {}

    def step(problem: Problem) -> None:
        bias = {} if problem.bias is None else {"linear_bias": problem.bias}
        function(problem.features, problem.weight, problem.targets, **bias, **options).backward()

    return step


def others(device: str, bias: bool) -> tuple[dict[str, Step], dict[str, str]]:
    """The fused losses that work here, and why the rest are not available."""
    steps, missing = {}, {}
    for name in ("F.linear_cross_entropy", CHUNKED, "Liger", "CCE"):
        if name in ("Liger", "CCE") and device != "cuda":
            missing[name] = "needs CUDA"
            continue
        try:
            step = fused(name)
            step(Problem.of(TINY, device, bias))
            steps[name] = step
        except Exception as error:  # whatever keeps it from running
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return steps, missing


def losses(kind: type[Loss], classes: int, backend: Backend) -> dict[str, Loss]:
    """The registered losses of a kind, by name, with their default arguments."""
    found: dict[str, Loss] = {}
    for section, made in LOSSES.items():
        if issubclass(made, kind) and made is not Binary:  # which has one output
            loss = LogitAdjusted(torch.arange(1.0, classes + 1)) if made is LogitAdjusted else made()
            found[str(section.__struct_config__.tag)] = loss.configure(backend=backend)
    return found


def row_losses(classes: int, backend: Backend) -> dict[str, Loss]:
    """The row-statistics losses, and cross entropy with what it can be given."""
    found = losses(RowLoss, classes, backend)
    found["cross_entropy, smoothing"] = CrossEntropy(0.1).configure(backend=backend)
    found["cross_entropy, smoothing, weights, z_loss"] = CrossEntropy(0.1).configure(
        class_weight=torch.linspace(0.5, 1.5, classes), z_loss=1e-4, backend=backend
    )
    return found


def steps_of(part: str, classes: int, device: str, bias: bool) -> dict[str, Step]:
    """The cases of a part of this script, by name."""
    if part == "million":
        return {"cross_entropy": ours(CrossEntropy())}
    steps = {REFERENCE: reference()}
    by_logits = losses(LogitLoss, classes, "dense")
    if part == "large":
        steps |= {FLOOR: floor, **others(device, bias)[0], "one_hot, dense": ours(by_logits["one_hot"])}
        return steps | {name: ours(loss) for name, loss in row_losses(classes, "chunked").items()}
    steps[f"{REFERENCE}, smoothing"] = reference(0.1)
    return steps | {name: ours(loss) for name, loss in (row_losses(classes, "dense") | by_logits).items()}


# -- measuring ----------------------------------------------------------------------------------------------


def seconds(step: Step, problem: Problem, count: int) -> float:
    """Seconds a step, the mean of so many."""
    cuda = problem.weight.is_cuda
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        problem.clear()
        step(problem)
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def in_turns(steps: dict[str, Step], problem: Problem, turns: int, count: int = 1) -> dict[str, list[float]]:
    """Seconds of each case, all of them measured in every turn; the first turn warms up."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            measured = seconds(step, problem, count)
            if turn:
                taken[name].append(measured)
    return taken


def resident(key: str) -> int:
    """Bytes of this process in memory: now, ``VmRSS``, or at most so far, ``VmHWM``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def extra_here(part: str, name: str, shape: Shape, device: str, bias: bool) -> int:
    """Peak bytes of a case's step beyond inputs, weight and gradients; on the CPU, of a process without a past."""
    steps_of(part, TINY.classes, device, bias)[name](Problem.of(TINY, device, bias))  # libraries get ready
    step, problem = steps_of(part, shape.classes, device, bias)[name], Problem.of(shape, device, bias)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(problem)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    else:
        before = resident("VmRSS")
        step(problem)
        peak = resident("VmHWM")
    return peak - before - problem.weight.nbytes - (0 if problem.bias is None else problem.bias.nbytes)


def extra(part: str, names: Iterable[str], shape: Shape, device: str, bias: bool) -> dict[str, list[float]]:
    """`extra_here` of each case, on the CPU in a process each."""
    if device == "cuda":
        return {name: [extra_here(part, name, shape, device, bias)] for name in names}
    found: dict[str, list[float]] = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[name] = [pool.submit(extra_here, part, name, shape, device, bias).result()]
    return found


# -- the tables ---------------------------------------------------------------------------------------------


def ratios(values: dict[str, list[float]], base: str, limit: float, limited: Collection[str]) -> dict[str, str]:
    """Every median by that of the base; a mark shows where one is over its limit."""
    found = {name: statistics.median(each) / statistics.median(values[base]) for name, each in values.items()}
    return {name: f"{each:.3f}{'!' if name in limited and each > limit else ' '}" for name, each in found.items()}


def verdicts(limited: Iterable[str], *columns: dict[str, str]) -> dict[str, str]:
    """Whether limits hold, by the marks of `ratios`."""
    return {name: "missed" if any("!" in column[name] for column in columns) else "hold" for name in limited}


def table(taken: dict[str, list[float]], unit: str, columns: dict[str, dict[str, str]]) -> None:
    """Prints a row a case: its times, and what the further columns have of it."""
    scale = {"s": 1, "µs": 1e6}[unit]
    print(f"{'':42}" + "".join(f"{each:>12}" for each in (f"median {unit}", f"min {unit}", f"max {unit}", *columns)))
    for name, times in taken.items():
        cells = [f"{scale * each:.3f}" for each in (statistics.median(times), min(times), max(times))]
        cells += [column.get(name, "") for column in columns.values()]
        print(f"{name:42}{''.join(f'{cell:>12}' for cell in cells)}".rstrip())


def large(device: str, bias: bool, repeats: int) -> dict[str, Any]:
    """Prints the table of many logits."""
    steps = steps_of("large", LARGE.classes, device, bias)
    limited = list(row_losses(LARGE.classes, "chunked"))
    memory = extra("large", steps, LARGE, device, bias)
    taken = in_turns(steps, Problem.of(LARGE, device, bias), repeats)
    by_time = ratios(taken, REFERENCE, TIME_LIMIT, limited)
    by_floor = ratios(taken, FLOOR, FLOOR_LIMIT, limited)
    by_memory = ratios(memory, REFERENCE, MEMORY_LIMIT, limited)
    print(f"\nlarge: {LARGE}; losses of Crossent chunked")
    print(f"Limits of each row-statistics loss (!: missed): time / {REFERENCE} (F.c_e) ≤ {TIME_LIMIT},")
    print(f"time / floor ≤ {FLOOR_LIMIT}, extra memory / {REFERENCE} ≤ {MEMORY_LIMIT}")
    columns = {"time/F.c_e": by_time, "time/floor": by_floor}
    columns["extra MiB"] = {name: f"{each / 2**20:.1f}" for name, (each,) in memory.items()}
    columns |= {"extra/F.c_e": by_memory, "limits": verdicts(limited, by_time, by_floor, by_memory)}
    table(taken, "s", columns)
    missing = others(device, bias)[1]
    for name, why in missing.items():
        print(f"{name:42}not available: {why}")
    return {"seconds": taken, "extra_bytes": memory, "not_available": missing}


def small(device: str, bias: bool, repeats: int) -> dict[str, Any]:
    """Prints the tables of few logits."""
    found: dict[str, Any] = {}
    usual = torch.get_num_threads()
    print(f"\nsmall: {SMALL_STEPS} steps a timing, {SMALL_TURNS * repeats} timings a case; losses of Crossent dense")
    print(f"Limit of cross_entropy (!: missed): time / {REFERENCE} (F.c_e) ≤ {SMALL_LIMIT}")
    for shape in SMALL:
        problem, steps = Problem.of(shape, device, bias), steps_of("small", shape.classes, device, bias)
        for threads in sorted({1, usual}) if device == "cpu" else [usual]:
            torch.set_num_threads(threads)
            taken = in_turns(steps, problem, SMALL_TURNS * repeats, SMALL_STEPS)
            by_time = ratios(taken, REFERENCE, SMALL_LIMIT, ["cross_entropy"])
            title = f"{shape}, threads: {threads}"
            print(f"\n{title}")
            table(taken, "µs", {"time/F.c_e": by_time, "limit": verdicts(["cross_entropy"], by_time)})
            found[title] = {"seconds": taken}
    torch.set_num_threads(usual)
    return found


def million(device: str, bias: bool, repeats: int) -> dict[str, Any]:
    """Prints the table of a million classes."""
    steps = steps_of("million", MILLION.classes, device, bias)
    memory = extra("million", steps, MILLION, device, bias)
    taken = in_turns(steps, Problem.of(MILLION, device, bias), repeats)
    logits = MILLION.rows * MILLION.classes * 4
    print(f"\nmillion: {MILLION}; backend=auto")
    table(taken, "s", {"extra MiB": {name: f"{each / 2**20:.1f}" for name, (each,) in memory.items()}})
    print(f"{f'{REFERENCE}, computed, not run':42}{3 * logits / 2**20:48.1f}")
    print(f"(three times {logits:,} bytes: log-softmax, and the gradients by it and by the logits)")
    return {"seconds": taken, "extra_bytes": memory, "computed_extra_bytes": {REFERENCE: [3 * logits]}}


def conditions(device: str, bias: bool) -> dict[str, Any]:
    """What the figures depend on."""
    processor = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "bias": bias,
    }


def main() -> None:
    """Prints the tables."""
    parts = {"large": large, "small": small, "million": million}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="which tables; default: all")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--repeats", type=int, default=5, help=f"turns that are measured; small takes {SMALL_TURNS} each"
    )
    parser.add_argument("--bias", action="store_true", help="give all cases a bias")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {"conditions": conditions(options.device, options.bias)}
    print(", ".join(f"{key}: {value}" for key, value in found["conditions"].items()))
    for part in options.parts:
        found[part] = parts[part](options.device, options.bias, options.repeats)
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
