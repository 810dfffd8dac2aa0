"""Turns the parts of weights and optimiser that ranks have into those of one process, and back."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, distributed

from crossent.class_shard import ClassShard
from crossent.processes import together
from crossent.processes.grid import Grid

if TYPE_CHECKING:
    from crossent.classifier import SoftmaxClassifier


def gathered_weights(classifier: "SoftmaxClassifier", grid: Grid) -> dict[str, Any]:
    """The state of all classes, a copy of it in the first rank's main memory; every rank calls this.

    Other ranks get what they have themselves, which is not to be used.
    """
    split = {f"head.{name}" for name in classifier.head.sharded}
    state: dict[str, Any] = classifier.state_dict()
    return {
        name: _gathered(value, classifier.head.shard, grid) if name in split else _copied(value)
        for name, value in state.items()
    }


def own_weights(state: Mapping[str, Any], classifier: "SoftmaxClassifier") -> dict[str, Any]:
    """The state of the classes that are here, out of that of all."""
    of_head = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
    return {**state, **{f"head.{name}": value for name, value in classifier.head.own_part(of_head).items()}}


def scattered(whole: Tensor, shard: ClassShard, grid: Grid) -> Tensor:
    """The part of the classes that are here, out of what the first rank has of all; every rank calls this.

    Args:
        whole: on the first rank (classes, …); elsewhere (0, …), of the same type.
        shard: the classes that are here.
        grid: how the ranks share rows and classes.
    """
    if together.is_first():
        for rank in range(1, grid.rows * grid.columns):
            part = ClassShard.share(shard.of, rank % grid.columns, grid.columns, shard.exchange).part
            distributed.send(whole[part].contiguous(), dst=rank)
        return _own(whole, shard)
    own = whole.new_empty(shard.classes, *whole.shape[1:])
    distributed.recv(own, src=0)
    return own


def gathered_optimizer(state: dict[str, Any], classifier: "SoftmaxClassifier", grid: Grid) -> dict[str, Any]:
    """The optimiser's state for all classes, a copy of it in the first rank's main memory; every rank calls this."""
    return _with_parts(state, classifier, lambda value: _gathered(value, classifier.head.shard, grid))


def own_optimizer(state: dict[str, Any], classifier: "SoftmaxClassifier") -> dict[str, Any]:
    """The optimiser's state for the classes that are here, out of that for all."""
    return _with_parts(state, classifier, lambda value: _own(value, classifier.head.shard))


def _with_parts(
    state: dict[str, Any], classifier: "SoftmaxClassifier", changed: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """An optimiser's state, of which the numbers for each weight of the classes are changed."""
    sharded = {id(parameter) for parameter in classifier.head.sharded.values()}
    # Optimisers number the parameters, in their order.
    shapes = {index: each.shape for index, each in enumerate(classifier.parameters()) if id(each) in sharded}
    of = classifier.head.shard.of

    def of_parameter(index: int, values: dict[str, Any]) -> dict[str, Any]:
        mine = shapes.get(index)
        all_classes = None if mine is None else (of, *mine[1:])
        return {
            name: changed(value) if isinstance(value, Tensor) and value.shape in (mine, all_classes) else _copied(value)
            for name, value in values.items()
        }

    return {**state, "state": {index: of_parameter(index, values) for index, values in state["state"].items()}}


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def _own(value: Tensor, shard: ClassShard) -> Tensor:
    return value[shard.part].clone()


def _gathered(value: Tensor, shard: ClassShard, grid: Grid) -> Tensor:
    """The parts of all classes one below the other, on the first rank; elsewhere the own part."""
    if grid.row:
        return value  # of which the ranks of the first row have the same
    here = value.detach().cpu()
    if grid.column:
        distributed.send(here.contiguous(), dst=0)
        return value
    whole = here.new_empty(shard.of, *here.shape[1:])
    for column in range(grid.columns):
        part = whole[ClassShard.share(shard.of, column, grid.columns, shard.exchange).part]
        if column:
            distributed.recv(part, src=column)  # ranks of the first row come first
        else:
            part.copy_(here)
    return whole
