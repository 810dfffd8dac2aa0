"""Whether the device that was asked for is there."""

import torch

from crossent.errors import UserError


def check(name: str) -> None:
    """Refuses an accelerator that this machine does not have.

    Raises:
        UserError: what to choose instead.
    """
    if name == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu: this machine shows no GPU; accelerator=auto takes what there is")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("accelerator=mps: this machine has no Apple GPU; accelerator=auto takes what there is")


def choose(name: str) -> torch.device:
    """The device that an accelerator stands for: ``auto``, ``cpu``, ``gpu`` or ``mps``.

    Raises:
        UserError: this machine does not have it.
    """
    check(name)
    if name == "auto":
        name = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device({"gpu": "cuda"}.get(name, name))
