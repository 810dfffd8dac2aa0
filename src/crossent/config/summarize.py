"""The configuration of ``crossent-summarize``."""

from typing import Annotated

from msgspec import Meta, Struct

from crossent.config.types import FilePath

MetricTag = Annotated[str, Meta(pattern=r"^(train|val|test)/\w+$", description="a curve as val/accuracy")]


class SummarizeConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of ``crossent-summarize``."""

    folder: FilePath
    metric: MetricTag | None
    output: FilePath | None
    overwrite: bool
    plot: bool
