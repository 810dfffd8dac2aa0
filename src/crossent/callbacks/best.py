"""Which validation is the best one of a run so far."""

import math
from typing import Any

import lightning.pytorch as lightning

#: The metric that tells, the lower the better.
MONITORED = "val/cost"


class Best:
    """The best validation so far."""

    def __init__(self) -> None:
        self._value = math.inf
        self._step: int | None = None

    def improves(self, trainer: lightning.Trainer, module: Any) -> bool:
        """Whether the validation that has just ended is better than all before it, and so the best from here on.

        Args:
            trainer: that validated.
            module: the `crossent.classifier.SoftmaxClassifier`.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return False
        value = float(trainer.callback_metrics[MONITORED])
        if value >= self._value and (self._step is None or self._step != module.superseded_step):
            return False
        self._value, self._step = value, trainer.global_step
        return True

    def state_dict(self) -> dict[str, Any]:
        """Its value and step."""
        return {"best": self._value, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state."""
        self._value, self._step = state_dict["best"], state_dict["step"]
