"""Which processes share a run, and who starts them. Imports no torch until they are started."""

import contextlib
import logging
import os
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from crossent import config, stopping
from crossent.errors import UserError
from crossent.processes.job import Job
from crossent.processes.world import ALONE, World, found
from crossent.stopping import Stopped

log = logging.getLogger(__name__)

_AUTO_ON_CPU = 2
_leads = False  # others have been told what to do


def wanted(accelerator: config.AnyAccelerator | config.AnyEvaluationAccelerator) -> World:
    """The processes that an accelerator takes, as this one sees them, which is the first.

    Raises:
        UserError: there are no such devices, or other processes have been started than those.
    """
    world, name = found(), str(accelerator.__struct_config__.tag)
    if not isinstance(accelerator, config.SeveralProcesses):
        if world.is_certain:
            raise UserError(
                f"accelerator={name}: takes one process, but {world.starter} has started {world.ranks}; "
                "accelerator=ddp_cpu shares the rows among them (accelerator=ddp on GPUs)"
            )
        return ALONE
    if world.ranks > 1:
        if "SUBMITIT_EXECUTOR" in os.environ:
            raise UserError(
                "hydra.launcher.tasks_per_node: a job of a sweep is one task, which starts its processes itself "
                "(accelerator.devices)"
            )
        if world.ranks % world.machines:
            raise UserError(
                f"{world.starter}: {world.ranks} processes do not share out evenly among {world.machines} machines; "
                "start as many on each of them"
            )
        there = {"devices": world.local_ranks, "num_nodes": world.machines}
        for key, count in there.items():
            if (asked := getattr(accelerator, key)) not in ("auto", count):
                raise UserError(
                    f"accelerator.{key}={asked}: {world.starter} has started {world.local_ranks} processes on each of "
                    f"{world.machines} machines; leave it out"
                )
        return laid_out(world, accelerator)
    if accelerator.num_nodes not in ("auto", 1):
        raise UserError(
            f"accelerator.num_nodes={accelerator.num_nodes}: the processes of several machines are started by torchrun "
            "or srun, which say how many there are; see docs/scaling.md"
        )
    return laid_out(World(ranks=_on_this_machine(name, accelerator.devices)), accelerator)


def laid_out(world: World, accelerator: config.AnyAccelerator | config.AnyEvaluationAccelerator) -> World:
    """The processes as they share rows and classes, where they do.

    Raises:
        UserError: they do not divide so.
    """
    if not isinstance(accelerator, config.SplitClasses):
        return world
    return world.with_class_shards(accelerator.class_shards)


def _on_this_machine(name: str, devices: int | str) -> int:
    if name.endswith("_cpu"):
        return _AUTO_ON_CPU if isinstance(devices, str) else devices
    from crossent.processes import launcher

    gpus = launcher.gpus()
    if not gpus:
        raise UserError(
            f"accelerator={name}: this machine shows no GPU; accelerator={name}_cpu takes processes on its CPU"
        )
    if isinstance(devices, str):
        return gpus
    if devices > gpus:
        raise UserError(f"accelerator.devices={devices}: this machine shows {gpus} GPU{'s' * (gpus > 1)}")
    return devices


def run(job: Job, world: World) -> dict[str, float]:
    """Has several processes do a job of Hydra's.

    Args:
        job: which one.
        world: the processes.

    Returns:
        The last points of the curves, or the metrics.

    Raises:
        UserError: something that the user has to change.
        Stopped: a signal has ended the run.
    """
    if world.starter is not None:
        global _leads
        from crossent.processes import outside

        if not world.is_certain:
            log.info("SLURM has %d tasks for this job; waiting for the others, which srun starts", world.ranks)
        _leads = True
        return outside.lead(job, world)
    from crossent.processes import launcher

    logging_as_here = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    return launcher.launch(job, world.ranks, cast("dict[str, Any]", logging_as_here))


def follow() -> int | None:
    """Does what the first rank says, where this process was started as another one: its exit code."""
    world = found()
    if world.is_first:
        return None
    try:
        with stopping.postponed():  # torchrun ends the others when one has failed, also amid their imports
            from crossent.processes import outside

        return outside.follow(world)
    except Stopped as stop:
        if stop.at_once:
            raise
        return stop.exit_code  # the first rank says so


def finish(code: int) -> None:
    """Lets other ranks end that were started beside this one, which ends with an exit code."""
    try:
        world = found()
    except UserError:  # of which has been spoken
        return
    ends_them = world.starter == "torchrun" and code != 0  # as soon as this one has
    if world.ranks > 1 and world.is_first and (world.is_certain or _leads) and not ends_them:
        from crossent.processes import outside

        with contextlib.suppress(UserError):  # they have not come, or are gone already
            outside.dismiss(world)
