"""Where the ranks of a run find one another, and what is said when they lose touch."""

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from crossent.errors import UserError
from crossent.processes.world import World

# What PyTorch's errors name where they come from gloo.
_OF_GLOO = re.compile(r"/gloo/\S+\.(cc|h):\d+\]")


class LostError(UserError):
    """Other ranks do not answer any more: one of them has failed, or its machine is gone."""


@contextlib.contextmanager
def joined(world: World, store: Store, seconds: float) -> Iterator[None]:
    """Has the ranks hear one another until the end of a block.

    Args:
        world: which of them this process is.
        store: where they find one another.
        seconds: that a rank waits for the others.

    Raises:
        LostError: some of them have not come, or are gone.
    """
    _speak_as(world.rank)  # Lightning does so only when it makes a Trainer
    several = torch.cuda.is_available() and distributed.is_nccl_available()
    with _in_touch(world.rank):
        _await(world, store, seconds)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if several else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.ranks,
            timeout=timedelta(seconds=seconds),
        )
        try:
            yield
        except UserError:
            distributed.destroy_process_group()  # there may be another job
            raise
        else:
            distributed.destroy_process_group()
        finally:
            _speak_as(0)


def _await(world: World, store: Store, seconds: float) -> None:
    """Waits until all ranks are there; here, since PyTorch would wait without letting any other thread run."""
    store.set(f"rank {world.rank}", "is there")
    awaited, until = [f"rank {rank}" for rank in range(world.ranks)], time.monotonic() + seconds
    while not store.check(awaited):
        if time.monotonic() > until:
            missing = ", ".join(name for name in awaited if not store.check([name]))
            raise LostError(f"{missing} has not come within {seconds:g} seconds (accelerator.timeout)")
        time.sleep(0.01)


def _speak_as(rank: int) -> None:
    """Tells Lightning whether this is the rank that does what only one of them is to do."""
    setattr(rank_zero_only, "rank", rank)  # noqa: B010  # Lightning types it as a function


def meet(world: World, seconds: float) -> Store:
    """The store at which the ranks of a world find one another.

    Raises:
        LostError: not all of them have come.
    """
    with _in_touch(world.rank):
        patience = timedelta(seconds=seconds)
        meeting = world.meeting or _slurms_meeting(os.environ)
        store: Store = next(rendezvous(meeting, world.rank, world.ranks, timeout=patience))[0]
        store.set_timeout(patience)
        return store


def _slurms_meeting(environment: Mapping[str, str]) -> str:
    """A port of the job's own on its first machine."""
    address = environment.get("MASTER_ADDR")
    if address is None:
        hosts = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", "127.0.0.1"))
        address = SLURMEnvironment.resolve_root_node_address(hosts)
    port = environment.get("MASTER_PORT", str(15000 + int(environment.get("SLURM_JOB_ID", "0")[-4:])))
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


@contextlib.contextmanager
def _in_touch(rank: int) -> Iterator[None]:
    """Words what PyTorch says where other ranks are gone."""
    try:
        yield
    except RuntimeError as error:
        # gloo's errors have no type of their own, but name the file of its source that they come from.
        if not isinstance(error, distributed.DistError) and not _OF_GLOO.search(str(error)):
            raise
        raise LostError(f"rank {rank} has lost touch with the others ({_gist(error)})") from error


def _gist(error: RuntimeError) -> str:
    """PyTorch's message without the place in its source and its advice."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\] ", "", line).split(". This is ")[0].rstrip(".")
