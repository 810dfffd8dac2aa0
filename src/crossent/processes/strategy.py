"""What Lightning has to know of the ranks, none of which it starts, stops or waits for itself."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch.optim import Optimizer
from typing_extensions import override

from crossent.checkpoint_io import CheckpointFiles
from crossent.classifier import SoftmaxClassifier
from crossent.processes import shards
from crossent.processes.grid import Grid
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


class SharedClasses(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, for a model whose ranks have plain tensors of their own classes.

    Checkpoints are those of one process: the first rank is sent the others' parts when one is written, and each takes
    its own part when one is read.

    Args:
        grid: how the ranks share rows and classes.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid.rows, grid.columns, save_distributed_checkpoint=False)
        self._grid = grid

    @override
    def _configure_launcher(self) -> None:
        self._launcher = None  # the ranks are there

    @override
    def setup_environment(self) -> None:
        Strategy.setup_environment(self)
        self.set_world_ranks()
        self._device_mesh = self._grid.mesh

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        if isinstance(self.checkpoint_io, CheckpointFiles):
            self.checkpoint_io.wait()  # or the first rank would put another one together while one is being written
        return shards.gathered_weights(self._classifier, self._grid)

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        state = shards.own_weights(checkpoint["state_dict"], self._classifier)
        self.lightning_module.load_state_dict(state, strict=strict)

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = Strategy.optimizer_state(self, optimizer)
        return shards.gathered_optimizer(state, self._classifier, self._grid)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = [shards.own_optimizer(state, self._classifier) for state in checkpoint["optimizer_states"]]
        Strategy.load_optimizer_state_dict(self, {"optimizer_states": states})

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    @property
    def _classifier(self) -> SoftmaxClassifier:
        assert isinstance(self.lightning_module, SoftmaxClassifier)
        return self.lightning_module


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


def arguments(world: World, grid: Grid, precision: str) -> dict[str, Any]:
    """Trainer's arguments for the ranks of a world.

    Args:
        world: which they are.
        grid: how they share rows and classes.
        precision: as Lightning calls it.
    """
    there: dict[str, Any] = {"devices": world.local_ranks, "num_nodes": world.machines, "plugins": [Ranks(world)]}
    if grid.columns == 1:
        return {**there, "strategy": SharedRows()}
    there["strategy"] = SharedClasses(grid)
    if precision == "64-true":  # which Lightning refuses by its name for this strategy, but not the plugin behind it
        return {**there, "plugins": [*there["plugins"], DoublePrecision()], "precision": None}
    return there
