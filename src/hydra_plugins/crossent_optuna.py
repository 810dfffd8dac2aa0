"""The way into `crossent.search` for Hydra, which takes sweepers from packages of this name alone.

Every command imports this module.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """``hydra/sweeper=optuna``: draws the jobs of a sweep one after the other, each from what came of those before.

    Args:
        options: the keys of conf/hydra/sweeper/optuna.yaml, which have been checked.
    """

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes in what Hydra has composed, without what is swept over."""
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        """Runs the jobs; what they returned, in batches."""
        from crossent.search import search  # with Optuna, which other commands do without

        return search(arguments, self.hydra_context.config_loader, self.config, self.launcher)
