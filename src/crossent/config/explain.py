"""The configuration of ``crossent-explain``."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from crossent.config.losses import AnyLoss
from crossent.config.types import Count

Logit = Annotated[float, Meta(ge=-1e6, le=1e6)]
Picture = Annotated[str, Meta(pattern=r"\.png$", description="a path that ends in .png")]


class ExplainConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of ``crossent-explain``."""

    logits: list[list[Logit]] | None
    targets: list[Count] | None
    loss: AnyLoss | None = None
    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    plot: Picture | None

    def __post_init__(self) -> None:
        if (self.logits is None) != (self.targets is None):
            raise ValueError("logits and targets go together: logits=[[1,2,3],[0,5,1]] targets=[2,1]")
        if self.logits is None or self.targets is None:
            return
        classes = len(self.logits[0]) if self.logits else 0
        for row, logits in enumerate(self.logits):
            if len(logits) != classes:
                raise ValueError(f"logits.{row}: {len(logits)} numbers, but {classes} in the first row")
        if classes < 2:
            raise ValueError("logits: a row needs 2 or more, one a class")
        if len(self.targets) != len(self.logits):
            raise ValueError(f"targets: {len(self.targets)}, but logits has {len(self.logits)} rows")
        for row, target in enumerate(self.targets):
            if target >= classes:
                raise ValueError(f"targets.{row}={target}: expected 0 to {classes - 1}, a place in the row of logits")
