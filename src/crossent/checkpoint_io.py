"""Writes checkpoints: each is there whole or not at all, and training need not wait for the disk."""

import contextlib
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, distributed
from typing_extensions import override

from crossent import runs
from crossent.checkpoints import KEY
from crossent.processes import together
from crossent.seal import SealedFile, seal_of
from crossent.writing import PART, whole

# State of fewer bytes is written at once: a copy and a thread for it would cost as much as they spare.
_WORTH_A_THREAD = 2**20
# And so is one of more bytes in main memory, in which a copy may have no room: steps with so many weights take so long
# that a run hardly waits for its checkpoints.
_TOO_LARGE_TO_COPY = 2**30
_SENT_AT_A_TIME = 2**26  # bytes of a file that other ranks do not see


@dataclass(frozen=True)
class Kept:
    """What becomes of the file that a new checkpoint replaces.

    Attributes:
        step: of the file that is replaced; None: there is none, or it is not worth keeping.
        newest: how many checkpoints are kept, the new one included.
    """

    step: int | None
    newest: int


class CheckpointFiles(CheckpointIO):
    """Lightning's way to checkpoints, on a disk of this machine.

    A checkpoint is written beside its place under a name of its own, brought to disk and renamed, so that a crash at
    any moment leaves the earlier one or the new one. It has a checksum, which `crossent.checkpoints` looks at. A large
    one is copied and written by a thread; the next one waits for it.

    Args:
        is_split: whether ranks have parts of the weights and of the optimiser: what is to be written was put together
            for that, so that it need not be copied, and of what is read only a part is needed.
    """

    def __init__(self, *, is_split: bool = False) -> None:
        self._is_split = is_split
        self._writing: _Writing | None = None

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint, or begins to.

        Args:
            checkpoint: what it holds.
            path: of the file.
            storage_options: a `Kept`, where earlier ones are kept.

        Raises:
            CannotWriteError: this checkpoint, or the one before it, could not be written.
        """
        self.wait()
        kept: Kept | None = storage_options
        total, on_cpu = _bytes(checkpoint)
        if total < _WORTH_A_THREAD or (on_cpu > _TOO_LARGE_TO_COPY and not self._is_split):
            _write(checkpoint, Path(path), kept)
            return
        # What is Crossent's own never changes, and has a name for each of a million classes.
        own = _as_it_is if self._is_split else _copy
        copy = {
            name: part if name == KEY else apply_to_collection(part, Tensor, own) for name, part in checkpoint.items()
        }
        self._writing = _Writing(lambda: _write(copy, Path(path), kept))

    def wait(self) -> None:
        """Waits until the checkpoint under way is on disk.

        Raises:
            CannotWriteError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                writing.join()
            except BaseException:
                self._writing = writing  # whoever stopped waiting may wait again, or not
                raise
            if writing.error is not None:
                raise writing.error

    def abandon(self) -> None:
        """Does not wait for the checkpoint under way; the process has to end without waiting for threads."""
        self._writing = None

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Reads a checkpoint; see `torch.load`.

        Ranks that do not see the first one's file, on other machines, are sent what it holds. Where ranks have parts,
        tensors are read from the file when they are needed, if at all.
        """
        self.wait()

        def load(path: str | Path) -> dict[str, Any]:
            lazy = self._is_split
            loaded: dict[str, Any] = torch.load(path, map_location, weights_only=weights_only, mmap=lazy)
            return loaded

        first = together.from_first(lambda: seal_of(Path(path)))
        here = Path(path).exists() and seal_of(Path(path)) == first
        if not together.any_of(not here)[0]:
            return load(path)
        with _sent_by_first(Path(path), needed=not here) as copy:
            return load(path if here else copy)

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint, if it is there."""
        self.wait()
        Path(path).unlink(missing_ok=True)

    @override
    def teardown(self) -> None:
        """Waits, as `wait` does."""
        self.wait()


class _Writing(threading.Thread):
    """Writes a checkpoint beside the training.

    Not one of `concurrent.futures`: the process could not end before those are done.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._write = write
        self.error: BaseException | None = None
        self.start()

    @override
    def run(self) -> None:
        try:
            self._write()
        except BaseException as error:  # for the thread that waits
            self.error = error


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint, whole or not at all.

    Raises:
        CannotWriteError: it could not be written.
    """
    _write(checkpoint, path, None)


def _write(checkpoint: dict[str, Any], path: Path, kept: Kept | None) -> None:
    with whole(path) as part:
        with part.open("wb") as file:
            sealed = SealedFile(file)
            torch.save(checkpoint, sealed)  # type: ignore[arg-type]  # write and flush are all that it calls
            sealed.seal()
        if kept is not None and kept.step is not None and kept.newest > 1:
            _keep(path, kept.step)
    if kept is not None:
        _forget(path, checkpoint["global_step"], kept.newest)


def _keep(path: Path, step: int) -> None:
    """Gives a checkpoint that is to be replaced the name under which it is kept; it has both until then."""
    name = runs.step_checkpoint(path.parent, step)
    second = path.with_name(f".{name.name}{PART}")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except FileNotFoundError:
        return
    except OSError:  # a system without such links
        path.replace(name)
        return
    second.replace(name)
    second.unlink(missing_ok=True)  # it stays where both are the same file already


def _forget(path: Path, step: int, newest: int) -> None:
    """Removes the checkpoints that are too old, and those of steps that the run went back behind."""
    earlier = 0
    for other, taken in runs.step_checkpoints(path.parent):
        if taken >= step or earlier >= newest - 1:
            with contextlib.suppress(OSError):
                other.unlink()
        else:
            earlier += 1


def _bytes(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Of weights and optimiser, which are all that is ever large, and of what of them is in main memory."""
    sizes = Counter[str]()

    def count(tensor: Tensor) -> Tensor:
        sizes[tensor.device.type] += tensor.nbytes
        return tensor

    apply_to_collection([checkpoint.get("state_dict"), checkpoint.get("optimizer_states")], Tensor, count)
    return sizes.total(), sizes["cpu"]


@contextlib.contextmanager
def _sent_by_first(path: Path, *, needed: bool) -> Iterator[str]:
    """A copy of the first rank's file where it is needed, by its name; all ranks have to call this."""
    size = together.from_first(lambda: path.stat().st_size)
    with tempfile.NamedTemporaryFile() as copy, path.open("rb") if together.is_first() else copy as file:
        for start in range(0, size, _SENT_AT_A_TIME):
            part = torch.empty(min(_SENT_AT_A_TIME, size - start), dtype=torch.uint8)
            if together.is_first():
                file.readinto(part.numpy().data)
            distributed.broadcast(part, src=0)
            if needed:
                copy.write(part.numpy().data)
        copy.flush()
        yield copy.name


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
