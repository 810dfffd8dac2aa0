"""The keys of a search, ``hydra.sweeper`` under ``hydra/sweeper=optuna``."""

from msgspec import Struct

from crossent.config.summarize import MetricTag
from crossent.config.types import AtLeastOne, Seed, Text


class SearchConfig(Struct, kw_only=True, forbid_unknown_fields=True, rename={"target": "_target_"}):
    """How a search goes."""

    target: Text
    n_trials: AtLeastOne
    n_jobs: AtLeastOne
    metric: MetricTag | None
    seed: Seed
    params: dict[str, object] | None
