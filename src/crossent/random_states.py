"""The states of all generators of random numbers, as values that every checkpoint can hold."""

import random
from typing import Any

import numpy as np
import torch

from crossent.processes import together


def of_all_ranks() -> list[dict[str, Any]]:
    """The state of each rank; where there are several, every one of them has to call this."""
    return together.of_all(_collect())


def restore(states: list[dict[str, Any]], rank: int, ranks: int) -> None:
    """Takes up the state of a rank; a run that goes on with another number of ranks draws other numbers anyway."""
    if len(states) != ranks:
        return
    state = states[rank]
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if state["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def _collect() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, torch.tensor(words), gauss],  # as a list, its words would take longer than all the rest
        "numpy": [name, torch.from_numpy(np.array(keys, np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }
