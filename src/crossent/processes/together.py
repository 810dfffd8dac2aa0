"""What the ranks of a run tell one another. Where there is one process alone, all of it costs nothing."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from crossent.errors import UserError, about_a_file

T = TypeVar("T")

# Gradients of fewer bytes go in one message, since each takes longer to send off than so many bytes to add up.
_ONE_MESSAGE = 2**20


def rank() -> int:
    """Of this process."""
    return distributed.get_rank() if _several() else 0


def ranks() -> int:
    """How many there are."""
    return distributed.get_world_size() if _several() else 1


def is_first() -> bool:
    """Whether this is the rank that speaks and writes for all."""
    return rank() == 0


def from_first(make: Callable[[], T]) -> T:
    """What the first rank makes; all have to call this, and all get it, or its `UserError`."""
    if not _several():
        return make()
    said: list[tuple[Any, str | None]] = [(None, None)]
    failure: UserError | None = None
    if is_first():
        try:
            said = [(make(), None)]
        except (UserError, OSError) as error:
            failure = error if isinstance(error, UserError) else about_a_file(error)
            said = [(None, str(failure))]
    distributed.broadcast_object_list(said, src=0)
    value, complaint = said[0]
    if complaint is not None:
        raise failure or UserError(complaint)
    found: T = value
    return found


def agreed(make: Callable[[], T]) -> T:
    """What each rank makes for itself, if all of them can; all have to call this.

    Raises:
        UserError: one of them cannot; all say the same.
    """
    if not _several():
        return make()
    failure: UserError | None = None
    made: list[T] = []
    try:
        made.append(make())
    except (UserError, OSError) as error:
        failure = error if isinstance(error, UserError) else about_a_file(error)
    complaints = of_all(None if failure is None else str(failure))
    first = next((rank for rank, complaint in enumerate(complaints) if complaint is not None), None)
    if first is None:
        return made[0]
    if failure is not None and len(set(complaints)) == 1:
        raise failure
    raise UserError(f"rank {first}: {complaints[first]}") from failure


def of_all(value: T) -> list[T]:
    """What each rank has, in their order."""
    if not _several():
        return [value]
    values: list[Any] = [None] * ranks()
    distributed.all_gather_object(values, value)
    return values


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Whether each of some things is so on any rank."""
    if not _several():
        return flags
    heard = torch.tensor(flags, dtype=torch.uint8)
    distributed.all_reduce(heard, distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in heard.tolist())


def largest(*numbers: float) -> tuple[float, ...]:
    """The largest of all ranks' numbers, one by one; a number that is none counts as infinite."""
    if not _several():
        return numbers
    heard = torch.tensor(numbers, dtype=torch.float64).nan_to_num(nan=torch.inf)
    distributed.all_reduce(heard, distributed.ReduceOp.MAX)
    return tuple(heard.tolist())


def total(numbers: Tensor, group: distributed.ProcessGroup | None = None) -> Tensor:
    """The sum over all ranks, or those of a group."""
    if _several():
        numbers = numbers.clone()
        distributed.all_reduce(numbers, group=group)
    return numbers


def add_up(
    tensors: Sequence[Tensor], numbers: Sequence[float], group: distributed.ProcessGroup | None = None
) -> list[float]:
    """Turns tensors into their sums over all ranks, in place, and returns the sums of some numbers.

    Args:
        tensors: at least one.
        numbers: a few.
        group: the ranks; None: all.

    Every rank computes with the same bits afterwards. What is added to what is the same at every call, other than with
    PyTorch's DistributedDataParallel, which lays its messages out anew after the first step, so that with three ranks
    and more a run that goes on would round otherwise than one that was never stopped.
    """
    wide = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    small = [tensor for tensor in tensors if tensor.nbytes < _ONE_MESSAGE]
    for tensor in tensors:
        if tensor.nbytes >= _ONE_MESSAGE:
            distributed.all_reduce(tensor, group=group)
    message = torch.cat([*(tensor.flatten().to(wide) for tensor in small), tensors[0].new_tensor(numbers, dtype=wide)])
    distributed.all_reduce(message, group=group)
    *sums, added = message.split([*(tensor.numel() for tensor in small), len(numbers)])
    for tensor, summed in zip(small, sums, strict=True):
        tensor.copy_(summed.view_as(tensor))
    found: list[float] = added.tolist()
    return found


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
