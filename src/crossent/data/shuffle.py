"""The order in which an epoch takes the rows."""

import numpy as np
import torch
from torch import Tensor

# Parts of a window that lie together in the file: many, so that rows from all over it meet.
_BLOCKS = 64


class Shuffle:
    """A new order for every epoch, which follows from seed and epoch alone.

    With one window the order is a permutation of all rows. With several, an epoch draws blocks of neighbouring rows, as
    many as a window has room for, and shuffles the rows of each window: so no more than a window has to be in memory,
    and a file is read in long pieces. The blocks begin elsewhere in every epoch.

    Args:
        rows: how many.
        window: rows that are shuffled together; None: all of them.
        seed: of the orders.
    """

    def __init__(self, rows: int, window: int | None, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._window = rows if window is None else min(window, rows)
        self._block = max(1, self._window // _BLOCKS)

    def indices(self, epoch: int, window: int, device: torch.device) -> Tensor:
        """The rows of an epoch's window, (n,), in their order."""
        # PyTorch's generator takes 32 bits of a seed, in which seed and epoch have to be mixed.
        mixed = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0])
        generator = torch.Generator(device).manual_seed(mixed)
        if self._window == self._rows:
            return torch.randperm(self._rows, generator=generator, device=device)
        begin = int(torch.randint(self._rows, (1,), generator=generator, device=device))
        # Whole blocks in a random order, and after them, where the rows do not divide, a shorter one.
        whole = self._rows // self._block
        blocks = torch.randperm(whole, generator=generator, device=device) * self._block
        places = torch.arange(window * self._window, min((window + 1) * self._window, self._rows), device=device)
        block = (places // self._block).clamp(max=whole - 1)
        rows = (blocks[block] + places - block * self._block).where(places < whole * self._block, places)
        windows = -(-self._rows // self._window)
        own = torch.randint(2**62, (windows,), generator=generator, device=device)[window]
        order = torch.randperm(len(rows), generator=torch.Generator(device).manual_seed(int(own)), device=device)
        return (rows[order] + begin) % self._rows
