"""Run directories: their names, what they hold, and how a run is found again. Imports no torch."""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crossent.errors import UserError
from crossent.writing import whole

CONFIG = "config.yaml"
METRICS = "metrics.json"
SWEEP = "multirun.yaml"  # which Hydra writes into a sweep's directory
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"
LATEST = Path("logs/latest")

_LOOKS = 5  # at a run that somebody else has, before that counts


@dataclass(frozen=True)
class StoredRun:
    """A run directory, and the checkpoint in it that was asked for, if one was."""

    directory: Path
    checkpoint: Path | None = None

    @property
    def last(self) -> Path:
        """Where the last checkpoint is, if it is there."""
        return self.directory / CHECKPOINTS / LAST_CHECKPOINT

    @property
    def best(self) -> Path:
        """Where the checkpoint of the best weights is, if it is there."""
        return self.directory / CHECKPOINTS / BEST_CHECKPOINT

    @property
    def checkpoints(self) -> list[Path]:
        """The last checkpoint and those before it, the newest first, whole or not."""
        return [self.last] * self.last.exists() + [path for path, _ in step_checkpoints(self.last.parent)]

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint to predict with: the one asked for, else the best one, else the newest one, else none."""
        return self.checkpoint or (self.best if self.best.exists() else next(iter(self.checkpoints), None))

    def config(self, key: str) -> dict[str, Any]:
        """The configuration that the run stored.

        Raises:
            UserError: it is missing or broken; the message begins with ``key``, which pointed here.
        """
        path = self.directory / CONFIG
        try:
            stored = yaml.safe_load(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{key}: {self.directory} is no run directory: it has no {CONFIG}") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{key}: {path} cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(stored, dict):
            raise UserError(f"{key}: {path} holds no configuration, but a {type(stored).__name__}")
        return stored


def step_checkpoint(folder: Path, step: int) -> Path:
    """The name of a checkpoint that was the last one until there was a newer one."""
    return folder / f"step_{step}.ckpt"


def step_checkpoints(folder: Path) -> list[tuple[Path, int]]:
    """Those of them that are there, with their steps, the newest first."""
    found = [(path, path.stem.removeprefix("step_")) for path in folder.glob("step_*.ckpt")]
    return sorted(((path, int(step)) for path, step in found if step.isdecimal()), key=lambda each: -each[1])


def short_id() -> str:
    """Six hexadecimal digits that keep two runs of the same second apart."""
    return secrets.token_hex(3)


def find(reference: str, key: str) -> StoredRun:
    """Finds the run that ``key=reference`` names: ``latest``, a run directory, its config.yaml or a checkpoint.

    Raises:
        UserError: there is no such run.
    """
    key = f"{key}={reference}"
    if reference == "latest":
        if LATEST.is_symlink() and not LATEST.exists():
            raise UserError(f"{key}: {LATEST} points at a run that is gone, {LATEST.readlink()}")
        if not LATEST.exists():
            raise UserError(f"{key}: there is no run yet: {LATEST} is missing")
        return StoredRun(LATEST.resolve())
    path = Path(reference)
    if not path.exists():
        raise UserError(f"{key}: no such file or directory; give latest, a run directory or a file in one")
    path = path.resolve()
    if path.is_dir():
        return StoredRun(path)
    if path.name == CONFIG:
        return StoredRun(path.parent)
    if path.suffix == ".ckpt" and path.parent.name == CHECKPOINTS:
        return StoredRun(path.parent.parent, path)
    raise UserError(f"{key}: neither a run directory, nor a run's {CONFIG}, nor a checkpoint in a run directory")


def find_trained(reference: str, key: str) -> StoredRun:
    """Finds what ``key=reference`` names to predict with: as `find` does, or a checkpoint wherever it is.

    Raises:
        UserError: there is no such run or file.
    """
    path = Path(reference)
    if path.is_file() and path.name != CONFIG:
        path = path.resolve()
        within = path.parent.name == CHECKPOINTS
        return StoredRun(path.parent.parent if within else path.parent, path)
    if path.name == CHECKPOINTS and path.is_dir():
        path = path.resolve().parent
    run = find(str(path), key)
    if run.best_checkpoint is None and not (run.directory / CONFIG).exists():
        raise UserError(f"{key}={reference}: no run directory: it has neither {CONFIG} nor {CHECKPOINTS}/")
    return run


def folder_in(run: StoredRun, what: str) -> Path:
    """A folder that is not there yet for what is done with a run: inside it, or in ``logs/`` for a lone checkpoint."""
    above = run.directory if (run.directory / CONFIG).exists() else LATEST.parent
    return above / what / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{short_id()}"


def claim(directory: Path, config: Mapping[str, Any]) -> None:
    """Makes the directory this run's own by writing its config.yaml, whole, which no second run can do.

    Raises:
        UserError: another run has it.
    """
    try:
        with whole(directory / CONFIG, new=True) as part:
            part.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    except FileExistsError:
        raise UserError(taken(directory)) from None


def is_held(directory: Path) -> bool:
    """Whether a process is training this run, as far as this machine can tell."""
    try:
        with (directory / CONFIG).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # gone, or a system without locks
        pass
    return False


@contextlib.contextmanager
def held(directory: Path, key: str) -> Iterator[None]:
    """Keeps other processes from going on with the same run; over with the process, however that ends.

    Raises:
        UserError: one is at it already.
    """
    with (directory / CONFIG).open("rb+") as file:
        for again in range(_LOOKS, -1, -1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not again:
                    raise UserError(f"{key}: another process is training this run; wait until it has ended") from None
                time.sleep(0.02)  # somebody may just have looked whether it is running
            except OSError:  # a system without locks
                break
            else:
                break
        yield


def taken(directory: Path) -> str:
    """The complaint that a directory has a run already."""
    return f"hydra.run.dir={directory}: it holds a run; go on with it (resume={directory}) or choose another directory"


def leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of a nested configuration under its dotted key."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def point_latest(directory: Path) -> Path | None:
    """Lets ``logs/latest`` point at the run, replacing the link in one step.

    Returns:
        What it pointed at before, if at anything.
    """
    before = LATEST.resolve() if LATEST.exists() else None
    LATEST.parent.mkdir(parents=True, exist_ok=True)
    link = LATEST.with_name(f".latest-{short_id()}")
    link.symlink_to(os.path.relpath(directory, LATEST.parent.resolve()))
    link.replace(LATEST)
    return before


def discard(directory: Path, before: Path | None = None) -> None:
    """Takes away what a run that never began has put into its directory, and the directory if nothing else is there.

    Args:
        directory: of the run.
        before: what ``logs/latest`` pointed at before it.
    """
    if LATEST.is_symlink() and LATEST.resolve() == directory.resolve():
        if before is None:
            LATEST.unlink()
            with contextlib.suppress(OSError):  # there are other runs
                LATEST.parent.rmdir()
        else:
            point_latest(before)
    (directory / CONFIG).unlink(missing_ok=True)
    ours = {directory / ".hydra" / f"{name}.yaml" for name in ("config", "hydra", "overrides")} | {
        directory / "train.log"
    }
    if {path for path in directory.rglob("*") if path.is_file()} - ours:
        return  # of somebody who wanted the run beside files of their own
    for path in ours:
        path.unlink(missing_ok=True)
    folders = [directory / ".hydra", directory]
    if directory.is_relative_to(LATEST.parent.absolute()):
        folders += list(directory.parents)[:3]  # the day, what holds the days, and logs/, where now empty
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
