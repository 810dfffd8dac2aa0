"""How the ranks of a run share its rows and its classes, and how those put together what they know of the same rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh

from crossent import config
from crossent.class_shard import ClassShard
from crossent.errors import UserError
from crossent.processes.world import World

# As Lightning names them.
_ROWS, _CLASSES = "data_parallel", "tensor_parallel"


class ClassRanks:
    """Ranks that have different classes of the same rows.

    With the largest numbers of the rows they also tell one another what each of them wishes to be done, so that this
    takes no message of its own; `crossent.open_step` says when there is something to wish for.

    Args:
        group: the ranks.

    Attributes:
        wishes: what this rank wants, asked at every message of that kind.
    """

    def __init__(self, group: distributed.ProcessGroup) -> None:
        self._group = group
        self._heard: Tensor | None = None
        self.wishes: Callable[[], Sequence[bool]] = tuple

    def largest(self, numbers: Tensor) -> None:
        """Turns numbers, of one shape on every rank, into the largest of all ranks' ones, in place."""
        wishes = self.wishes()
        if not wishes and not numbers.numel():
            return
        message = torch.cat([numbers.flatten(), numbers.new_tensor(wishes)]) if wishes else numbers
        distributed.all_reduce(message, distributed.ReduceOp.MAX, self._group)
        if wishes:
            found, self._heard = message.split([numbers.numel(), len(wishes)])
            numbers.copy_(found.view_as(numbers))

    def total(self, numbers: Tensor) -> None:
        """Turns numbers, of one shape on every rank, into the sums of all ranks' ones, in place."""
        if numbers.numel():
            distributed.all_reduce(numbers, group=self._group)

    def heard(self, like: Tensor) -> tuple[bool, ...]:
        """Whether any of the ranks has wished for each of the things, by their last message of the largest numbers.

        Where there was none since this was asked before, since no row has led to one, they send one now.

        Args:
            like: on whose device they send messages.
        """
        if self._heard is None:
            self.largest(like.new_empty(0))
        heard, self._heard = self._heard, None
        return () if heard is None else tuple(wish > 0 for wish in heard.tolist())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # there is one such group of processes, whatever is copied


@dataclass(frozen=True)
class Grid:
    """The ranks as rows and columns: those of one row have the same rows of the data, of one column the same classes.

    Attributes:
        row: of this rank.
        rows: how many share the rows of every batch.
        column: of this rank; neighbouring ranks share a row's classes, since those have most to say to one another.
        columns: how many share the classes.
        mesh: the same for PyTorch; None: the classes are not split.
        class_ranks: those that this one shares the classes with; None: the classes are not split.
    """

    row: int = 0
    rows: int = 1
    column: int = 0
    columns: int = 1
    mesh: DeviceMesh | None = None
    class_ranks: ClassRanks | None = None

    @classmethod
    def of(cls, world: World, accelerator: config.AnyAccelerator | config.AnyEvaluationAccelerator) -> "Grid":
        """The grid of a world; every rank calls this, after they have met.

        Args:
            world: the processes, and into how many shards the classes go.
            accelerator: what they work on, and how long they wait for one another.
        """
        if not isinstance(accelerator, config.SplitClasses) or world.class_shards == 1:
            return cls(world.rank, world.ranks)
        device = "cpu" if accelerator.__struct_config__.tag == "class_parallel_cpu" else "cuda"
        if device == "cuda":
            torch.cuda.set_device(world.local_rank)
        ranks = torch.arange(world.ranks).view(-1, world.class_shards)
        row, column = divmod(world.rank, world.class_shards)
        # Not by init_device_mesh, whose groups would wait for half an hour, whatever the timeout of all ranks.
        of_columns = _groups(ranks.t().tolist(), accelerator.timeout)
        of_rows = _groups(ranks.tolist(), accelerator.timeout)
        mine = [of_columns[column], of_rows[row]]
        mesh = DeviceMesh.from_group(mine, device, mesh=ranks, mesh_dim_names=(_ROWS, _CLASSES))
        return cls(row, len(ranks), column, world.class_shards, mesh, ClassRanks(mesh.get_group(_CLASSES)))

    @property
    def of_my_classes(self) -> distributed.ProcessGroup | None:
        """The ranks that have the same classes and other rows; None: all ranks."""
        return None if self.mesh is None else self.mesh.get_group(_ROWS)

    def shard(self, classes: int) -> ClassShard | None:
        """The classes of this rank; None: all of them.

        Raises:
            UserError: there are fewer classes than ranks to share them.
        """
        if self.class_ranks is None:
            return None
        if classes < self.columns:
            raise UserError(
                f"accelerator: {self.columns} processes cannot share out {classes} classes; use fewer "
                "(accelerator.devices), or have groups of them share the rows (accelerator.class_shards)"
            )
        return ClassShard.share(classes, self.column, self.columns, self.class_ranks)


def _groups(members: list[list[int]], seconds: float) -> list[distributed.ProcessGroup]:
    """Groups of ranks that wait for so long; every rank makes all of them."""
    return [distributed.new_group(ranks, timeout=timedelta(seconds=seconds)) for ranks in members]
