"""What Lightning has to know of the ranks, none of which it starts, stops or waits for itself."""

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as lightning
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from typing_extensions import override

from crossent.processes.world import World


class SharedRows(DDPStrategy):
    """Lightning's DDP, without PyTorch's wrapper around the model.

    Each rank has a copy of the weights and a share of the rows. `crossent.open_step` adds up the gradients: one layer
    has no backward pass behind which messages could hide, and their sums have to be the same bits in a run that goes
    on.
    """

    @override
    def _configure_launcher(self) -> None:
        self._launcher = None  # the ranks are there

    @override
    def configure_ddp(self) -> None:
        assert self.model is not None
        _sync_module_states(self.model)

    @override
    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        yield  # going back adds nothing up anyway


class Ranks(ClusterEnvironment):
    """Who the ranks are, in Lightning's words."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return True

    @property
    @override
    def main_address(self) -> str:
        raise NotImplementedError("the ranks have met")

    @property
    @override
    def main_port(self) -> int:
        raise NotImplementedError("the ranks have met")

    @staticmethod
    @override
    def detect() -> bool:
        return False

    @override
    def world_size(self) -> int:
        return self._world.ranks

    @override
    def set_world_size(self, size: int) -> None:
        pass

    @override
    def global_rank(self) -> int:
        return self._world.rank

    @override
    def set_global_rank(self, rank: int) -> None:
        pass

    @override
    def local_rank(self) -> int:
        return self._world.local_rank

    @override
    def node_rank(self) -> int:
        return self._world.rank // self._world.local_ranks


class _Steps(_TrainingEpochLoop):
    @override
    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing, in place of a message at every batch, for a signal that the ranks agree on with their gradients."""


class _Signals(_SignalConnector):
    @override
    def register_signal_handlers(self) -> None:
        """None: Lightning's would send a message to other ranks, in the middle of another one."""

    @override
    def teardown(self) -> None:
        """Nothing was changed."""


def leave_signals_alone(trainer: lightning.Trainer) -> None:
    """Keeps Lightning from handling signals, which `crossent.stopping` does."""
    trainer._signal_connector = _Signals(trainer)
    steps = _Steps(trainer, trainer.fit_loop.epoch_loop.min_steps, trainer.fit_loop.epoch_loop.max_steps)
    trainer.fit_loop.epoch_loop = steps


def arguments(world: World) -> dict[str, Any]:
    """Trainer's arguments for the ranks of a world."""
    return {"strategy": SharedRows(), "devices": world.local_ranks, "num_nodes": world.machines}
