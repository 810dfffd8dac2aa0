"""Whether the device that was asked for is there."""

import torch

from crossent.errors import UserError


def check(name: str) -> None:
    """Refuses an accelerator that this machine does not have.

    Raises:
        UserError: what to choose instead.
    """
    if name in ("gpu", "ddp", "class_parallel") and not torch.cuda.is_available():
        instead = "auto takes what there is" if name == "gpu" else f"{name}_cpu takes processes on the CPU"
        raise UserError(f"accelerator={name}: this machine shows no GPU; accelerator={instead}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("accelerator=mps: this machine has no Apple GPU; accelerator=auto takes what there is")


def choose(name: str, local_rank: int = 0) -> torch.device:
    """The device that an accelerator stands for.

    Args:
        name: of the accelerator, but for ``custom``.
        local_rank: of the process, where each of several takes a GPU.

    Raises:
        UserError: this machine does not have it.
    """
    check(name)
    if name == "auto":
        name = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name in ("ddp", "class_parallel"):
        return torch.device("cuda", local_rank)
    return torch.device({"gpu": "cuda", "ddp_cpu": "cpu", "class_parallel_cpu": "cpu"}.get(name, name))
