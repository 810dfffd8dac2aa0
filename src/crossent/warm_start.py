"""Starts from the weights of another run."""

import logging

import torch

from crossent import checkpoints, runs
from crossent.console import shown
from crossent.data.facts import DataFacts
from crossent.errors import UserError
from crossent.head import Head

log = logging.getLogger(__name__)


@torch.no_grad()
def warm_start(head: Head, facts: DataFacts, reference: str) -> None:
    """Gives a head the weights of a checkpoint, so that it predicts what that predicts.

    Where the features are standardised in another way than they were there, the weights are turned to fit.

    Args:
        head: of the new run.
        facts: of its data.
        reference: a run or a checkpoint.

    Raises:
        UserError: there is none, or it is of other classes or features, or the head cannot hold its weights.
    """
    key = f"model.warm_start={reference}"
    found = checkpoints.read(runs.find_trained(reference, "model.warm_start"), key)
    for what in ("classes", "columns"):
        theirs, ours = getattr(found.facts, what), getattr(facts, what)
        if theirs != ours:
            raise UserError(f"{key}: has other {what} than the data: {_difference(theirs, ours)}")
    outputs = head.shard.of if not head.shard.is_whole else len(head.weight)
    weight = torch.from_numpy(found.weight).double()
    if len(weight) != outputs:
        raise UserError(
            f"{key}: has {len(weight)} output{'s' * (len(weight) != 1)}, and the loss makes {outputs} "
            f"(loss=binary has one for two classes); use the loss that it was trained with"
        )
    bias = torch.zeros(outputs, dtype=torch.float64)
    if found.bias is not None:
        bias += torch.from_numpy(found.bias).double()
    # z = W (x − m) / s + b, in features x' = (x − m') / s' of the new run
    before = found.facts
    bias += weight @ torch.from_numpy((facts.mean - before.mean) / before.scale)
    weight = weight * torch.from_numpy(facts.scale / before.scale)
    kept = {"weight": weight}
    if head.bias is not None and head.has_shared_bias:
        if not torch.allclose(bias, bias[:1].expand(outputs), atol=1e-6):
            raise UserError(
                f"{key}: has a bias for each class, and model.bias=shared holds one; use model.bias=per_class"
            )
        kept["bias"] = bias[:1]
    elif head.bias is not None:
        kept["bias"] = bias
    elif bias.abs().max() > 1e-6:
        raise UserError(f"{key}: has a bias, and model.bias=none; use model.bias=per_class")
    for name, value in head.own_part(kept).items():
        getattr(head, name).copy_(value)
    log.info("starting from the weights of %s, of step %d", shown(found.path), found.steps)


def _difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} there, {len(ours)} here"
    one, other = next((one, other) for one, other in zip(theirs, ours, strict=True) if one != other)
    return f"'{one}' there where '{other}' is here"
