"""How much memory a run needs, and what to say where there is not enough."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities.memory import is_oom_error

from crossent import config
from crossent.data.module import DataModule
from crossent.errors import UserError
from crossent.losses import backends, products
from crossent.processes.world import ALONE, World
from crossent.solvers.machine import KEPT_BYTES

# Numbers that are held at most for each logit of a batch while its cost and gradient are found: measured were 2 to 3
# (of the losses that can be chunked) and 1 to 4 (of those that cannot).
_COPIES, _COPIES_WITHOUT_STATISTICS = 3, 4
_BYTES = {"64-true": 8, "16-true": 2, "bf16-true": 2}  # a number, by accelerator.precision
_WORTH_NAMING = 0.05  # of what is needed, that an option spares


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, from whichever allocator."""
    return isinstance(error, MemoryError) or is_oom_error(error)


@contextlib.contextmanager
def explained(chosen: config.TrainConfig, data: DataModule, world: World) -> Iterator[None]:
    """Says what would have been needed where memory runs out.

    Raises:
        UserError: it has.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise UserError(explanation(error, chosen, data, world)) from error


def estimate(chosen: config.TrainConfig, data: DataModule, world: World = ALONE) -> dict[str, int]:
    """Bytes that a training step holds, by what they are for; the interpreter and its libraries come on top.

    Args:
        chosen: the configuration.
        data: the rows; after its ``setup``.
        world: the processes that share a step; each holds so much.
    """
    rows, classes = _share(data.batch_rows, data, world)
    weights = classes * len(data.facts.columns) * _number(chosen)
    return {
        "features": data.bytes_in_memory,
        "weights": weights,
        "their gradient": weights,
        "the optimizer": weights * _states(chosen.optimizer),
        f"the logits of {rows} rows and {classes} classes": _logits(chosen, rows, classes),
    }


def explanation(error: BaseException, chosen: config.TrainConfig, data: DataModule, world: World = ALONE) -> str:
    """What a run would have needed that has run out of memory, and which options need less."""
    if not data.is_set_up:
        return "out of memory while the rows are read; data.in_memory=false leaves features on disk"
    found = None if "CUDA" in str(error) else room()
    of = "" if found is None else f", and this machine has {_size(found.total)}"
    return f"out of memory: {_need(chosen, data, world)}{of}; {_remedies(chosen, data, world)}"


def warning(chosen: config.TrainConfig, data: DataModule, world: World = ALONE) -> str | None:
    """What to say ahead of a run that needs more than there is; a system that is out of memory kills without a word."""
    found = room()
    needed = sum(estimate(chosen, data, world).values()) - data.bytes_in_memory  # which are there already
    needed *= world.local_ranks
    if world.class_shards > 1:  # whose parts the first rank puts together for a checkpoint
        whole = estimate(chosen, data)
        needed += whole["weights"] + whole["the optimizer"]
    if found is None or needed < found.free:
        return None
    said = _need(chosen, data, world), _remedies(chosen, data, world)
    return f"{_size(found.free)} of memory are free, but {said[0]}; {said[1]}"


def _need(chosen: config.TrainConfig, data: DataModule, world: World) -> str:
    parts = estimate(chosen, data, world)
    shares = ", ".join(f"{_size(size)} for {name}" for name, size in parts.items() if size)
    each = "" if world.local_ranks == 1 else f", in each of {world.local_ranks} processes"
    return f"a step takes about {_size(sum(parts.values()))}{each} ({shares})"


def _remedies(chosen: config.TrainConfig, data: DataModule, world: World) -> str:
    """The options that need less, those that spare most first."""
    parts = estimate(chosen, data, world)
    features, weights, _, states, logits = parts.values()
    fewer = max(1, data.batch_rows // 4)
    spared = {
        f"data.batch_size={fewer}": logits - _logits(chosen, *_share(fewer, data, world)),
        "optimizer=sgd": states,
        "accelerator.precision=bf16-true": (2 * weights + states) * (_number(chosen) - 2) // _number(chosen),
    }
    if world.class_shards > 1:
        spared["more accelerator.devices"] = (2 * weights + states) // 2
    if isinstance(chosen.data, config.FileData):
        spared["data.in_memory=false"] = features
    if isinstance(chosen.loss, config.RowLoss | config.AutoLoss):
        spared["loss.backend=chunked"] = logits - products.SLICE_BYTES
    worth = [key for key, size in spared.items() if size > _WORTH_NAMING * sum(parts.values())]
    best = sorted(worth, key=lambda key: -spared[key])
    return f"{' or '.join(best)} needs less" if best else "it takes a larger machine"


def _share(rows: int, data: DataModule, world: World) -> tuple[int, int]:
    """The rows and classes of a process at most."""
    return -(-rows // world.row_shards), -(-len(data.facts.classes) // world.class_shards)


def _logits(chosen: config.TrainConfig, rows: int, classes: int) -> int:
    """Bytes for what is held of each logit."""
    size = rows * classes * _number(chosen)
    loss = chosen.loss
    if isinstance(chosen.optimizer, config.NewtonCg):  # keeps those of two evaluations, or makes them anew
        return min(4 * size, 2 * KEPT_BYTES)
    if not isinstance(loss, config.RowLoss | config.AutoLoss):
        return size * _COPIES_WITHOUT_STATISTICS
    chunked = backends.choose(loss.backend, rows, classes) == "chunked"
    return min(size * _COPIES, products.SLICE_BYTES) if chunked else size * _COPIES


def _number(chosen: config.TrainConfig) -> int:
    return _BYTES.get(chosen.accelerator.precision, 4)


def _states(optimizer: config.AnyOptimizer) -> int:
    """Numbers that an optimiser keeps for each weight; of a class of the user's own nobody knows."""
    match optimizer:
        case config.Adam(amsgrad=amsgrad):
            return 2 + amsgrad
        case config.Sgd(momentum=momentum):
            return int(momentum > 0)
        case config.NewtonCg():
            return 12  # a few vectors of conjugate gradients, and what is kept in double precision
        case config.Lbfgs(history_size=size):
            return 2 * size + 3
        case _:
            return 0


class Room(NamedTuple):
    """Memory in bytes."""

    total: int
    free: int


def room() -> Room | None:
    """What this process may have, by the system and by the container it is in; None where they do not say."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # no limit is the word "max"
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        used -= int(stat.get("inactive_file", 0))  # files that were read, and can be read again
        total, free = min(total, limit), min(free, limit - used)
    return Room(total, free)


def _size(size: int) -> str:
    for unit, word in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {word}"
    return f"{size / 1e3:.1f} kB"
