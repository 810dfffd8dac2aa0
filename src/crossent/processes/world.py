"""The processes that share a run, and which of them this one is. Imports no torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from crossent.config.running import does_not_divide
from crossent.errors import UserError

Starter = Literal["torchrun", "srun"]


@dataclass(frozen=True)
class World:
    """The processes that share a run, and which of them this one is; by default it is alone.

    Attributes:
        rank: of this process, from 0.
        ranks: how many there are.
        local_rank: of this process among those of its machine.
        machines: how many there are, each with as many processes.
        starter: what has started them, one by one; None: Crossent itself has, or there is one only.
        meeting: where they find one another, ``file://`` or ``env://``, as PyTorch's rendezvous takes it; empty: where
            SLURM says.
        class_shards: among how many processes the classes are shared out; as many groups of them share out the rows.
        is_certain: whether the starter has started them for sure. A script that SLURM runs without srun is told the
            same numbers, but for those of the step.
    """

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    machines: int = 1
    starter: Starter | None = None
    meeting: str = ""
    is_certain: bool = False
    class_shards: int = 1

    def with_class_shards(self, shards: int | Literal["auto"]) -> "World":
        """The same processes, of which so many share out classes; auto: all of them do.

        Raises:
            UserError: so many do not divide the processes.
        """
        shards = self.ranks if isinstance(shards, str) else shards
        if self.ranks % shards:
            raise UserError(f"accelerator.class_shards={shards}: {does_not_divide(self.ranks)}")
        return replace(self, class_shards=shards)

    def described(self, device: str) -> str:
        """What the console says of the processes and their kind of device; alone, of the device."""
        if self.ranks == 1:
            return device
        machines = f" on {self.machines} machines" if self.machines > 1 else ""
        shares = "its share of the rows" if self.class_shards == 1 else "its share of the classes"
        if 1 < self.class_shards < self.ranks:
            shares = f"its share of rows and classes ({self.row_shards} × {self.class_shards})"
        return f"{self.ranks} processes{machines}, each with {shares}, on {device.split(':')[0]}"

    @property
    def row_shards(self) -> int:
        """Among how many processes the rows of a batch are shared out."""
        return self.ranks // self.class_shards

    @property
    def local_ranks(self) -> int:
        """How many processes there are on each machine."""
        return self.ranks // self.machines

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that speaks and writes for all."""
        return self.rank == 0

    @property
    def command(self) -> str:
        """How the command was started that is ``crossent-train`` where nobody else has started it."""
        return {"torchrun": "torchrun … -m crossent.train", "srun": "srun crossent-train"}.get(
            self.starter or "", "crossent-train"
        )


#: One process, as most runs are.
ALONE = World()


def found(environment: Mapping[str, str] = os.environ) -> World:
    """What torchrun or srun say of the processes that they have started; `ALONE` where neither has.

    Raises:
        UserError: what they say is no number.
    """
    if "RANK" in environment and "MASTER_ADDR" in environment:
        ranks = _number(environment, "WORLD_SIZE")
        machines = max(1, ranks // max(1, _number(environment, "LOCAL_WORLD_SIZE", 1)))
        place = _number(environment, "RANK"), ranks, _number(environment, "LOCAL_RANK", 0)
        return World(*place, machines, "torchrun", "env://", is_certain=True) if ranks > 1 else ALONE
    in_step = "SLURM_STEP_NUM_TASKS" in environment
    in_shell = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_PROCID" in environment and (in_step or not in_shell):
        ranks = _number(environment, "SLURM_STEP_NUM_TASKS", _number(environment, "SLURM_NTASKS", 1))
        machines = _number(environment, "SLURM_STEP_NUM_NODES", _number(environment, "SLURM_NNODES", 1))
        place = _number(environment, "SLURM_PROCID"), ranks, _number(environment, "SLURM_LOCALID", 0)
        return World(*place, machines, "srun", is_certain=in_step or place[0] > 0) if ranks > 1 else ALONE
    return ALONE


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name, default)
    try:
        return int(str(value))
    except ValueError:
        raise UserError(f"{name}={value}: the environment is to say a number of processes") from None
